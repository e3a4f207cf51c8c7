"""Layers by kernels: what they compute, and all gradients, are those of plain calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton  # noqa: F401 - on a CPU, layers ask for kernels only where triton is there already
from torch import Tensor, nn

from convein.execution import kernels
from convein.layers import ConvLSTMCell, ConvTTLSTM, ConvTTLSTMCell


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were called, in order."""
    names: list[str] = []
    call = kernels.call

    def noted(name: str, *arguments: Any) -> Any:
        names.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(kernels, "call", noted)
    return names


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def with_gradients(module: nn.Module, run: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]) -> list[Tensor]:
    """What a module returns, and the gradients of all inputs and parameters."""
    outputs = run()
    seeds = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
    wanted = [*inputs, *module.parameters()]
    return [*outputs, *torch.autograd.grad(outputs, wanted, seeds)]


def compare(module: nn.Module, run: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor], tolerance: float) -> None:
    """With kernels and, in the same process, without."""
    found = with_gradients(module, run, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "hindrance", lambda *_: "they are switched off")
        expected = with_gradients(module, run, inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        atol = tolerance * float(other.detach().abs().max() + 1)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=atol)


CELLS = {
    "ConvLSTM": lambda **given: ConvLSTMCell(2, 3, 3, **given),
    "Conv-TT-LSTM": lambda **given: ConvTTLSTMCell(2, 3, 3, order=2, steps=3, ranks=2, **given),
    "in a fixed window": lambda **given: ConvTTLSTMCell(2, 3, 3, order=2, steps=2, ranks=2, window="fixed", **given),
}


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS.keys())
def test_cells(make, used, device) -> None:
    cell = make(device=device)
    x = torch.randn(2, 2, 4, 5, device=device, requires_grad=True)
    state = tuple(torch.randn(2, channels, 4, 5, device=device, requires_grad=True) for channels in cell.state_channels)

    def run() -> tuple[Tensor, ...]:
        h, after = cell(x, state)
        return h, *after

    compare(cell, run, [x, *state], 1e-5)
    assert used == ["lstm_gates"]


def test_a_sequence_with_checkpoints(used, device) -> None:
    layer = ConvTTLSTM(1, 2, 3, order=2, steps=2, ranks=2, checkpoint=2, device=device)
    frames = torch.randn(3, 1, 1, 3, 4, device=device, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        hidden, state = layer(frames)
        return hidden, *state

    compare(layer, run, [frames], 1e-5)
    assert used == ["lstm_gates"] * 6  # three steps, computed once more in the backward pass


def test_a_cell_says_what_computes_its_gates(device) -> None:
    cell = ConvLSTMCell(2, 3, 3, device=device)
    assert cell.explain().startswith("The gates are one kernel, lstm_gates,")
    assert cell.to("meta").explain() == (
        "The gates are plain calls: the operands are on meta, and the kernels run on cuda."
    )


def test_graphs_hold_calls_of_torch(used, device) -> None:
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(1, 2, 4, 4, device=device)
    exported = torch.export.export(cell, (x,))
    assert not used
    assert not any("convein" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x)[0], cell(x)[0], rtol=1e-5, atol=1e-5)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    used.clear()
    h, _ = compiled(x)
    assert not used
    torch.testing.assert_close(h, cell(x)[0], rtol=1e-5, atol=1e-5)


def test_transformed_cells_are_plain_calls(used, device) -> None:
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(3, 1, 2, 4, 4, device=device)
    found = torch.func.vmap(lambda one: cell(one)[0])(x)
    assert not used
    torch.testing.assert_close(found[1], cell(x[1])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.interpreted
def test_under_autocast_the_gates_may_be_narrower_than_the_state(used, device) -> None:
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(1, 2, 4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        compare(cell, lambda: (cell(x)[0],), [], 2e-2)
    assert used == ["lstm_gates"]
