"""Layers by kernels: what they compute, and all gradients, are those of plain calls.

On a CPU layers ask for kernels only where triton is loaded: what is imported of it here sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton.runtime.errors import OutOfResources

from convein.errors import ShapeError
from convein.execution import kernels
from convein.layers import ConvLSTMCell, ConvTTLSTM, ConvTTLSTMCell, bqn, explain

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
MULTIPLIES = True


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


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=ROUNDING[one.dtype], atol=ROUNDING[one.dtype])


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

    compare(cell, run, [x, *state], ROUNDING[torch.float32])
    assert used == ["lstm_gates"]


def test_a_sequence_with_checkpoints(used, device) -> None:
    layer = ConvTTLSTM(1, 2, 3, order=2, steps=2, ranks=2, checkpoint=2, device=device)
    frames = torch.randn(3, 1, 1, 3, 4, device=device, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        hidden, state = layer(frames)
        return hidden, *state

    compare(layer, run, [frames], ROUNDING[torch.float32])
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
    close(exported.module()(x)[0], cell(x)[0])
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    used.clear()
    h, _ = compiled(x)
    assert not used
    close(h, cell(x)[0])


def test_transformed_cells_are_plain_calls(used, device) -> None:
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(3, 1, 2, 4, 4, device=device)
    found = torch.func.vmap(lambda one: cell(one)[0])(x)
    assert not used
    close(found[1], cell(x[1])[0])


@pytest.mark.interpreted
def test_under_autocast_the_gates_may_be_narrower_than_the_state(used, device) -> None:
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(1, 2, 4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        compare(cell, lambda: (cell(x)[0],), [], ROUNDING[torch.bfloat16])
    assert used == ["lstm_gates"]


def draw(*shape: int, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device, requires_grad=True)


# The layer, and the sizes of its input after the batch.
SUMS = {
    "linear": (lambda **given: bqn.Linear(40, 3, **given), (40,)),
    "same": (lambda **given: bqn.Conv2d(5, 4, 3, padding="same", **given), (5, 4, 5)),
    "valid without bias": (lambda **given: bqn.Conv2d(5, 4, 3, bias=False, **given), (5, 4, 5)),
    "all options": (lambda **given: bqn.Conv2d(12, 3, (3, 2), (2, 3), (1, 2), (2, 1), **given), (12, 7, 6)),
    "unequal sides": (lambda **given: bqn.Conv2d(12, 2, (2, 4), padding="same", **given), (12, 3, 5)),
    "one dimension": (lambda **given: bqn.Conv1d(12, 3, 4, 2, 3, **given), (12, 7)),
    "circular": (lambda **given: bqn.Conv2d(5, 4, 3, padding=1, padding_mode="circular", **given), (5, 4, 5)),
    "circular line": (lambda **given: bqn.Conv1d(12, 3, 4, padding="same", padding_mode="circular", **given), (12, 7)),
    "replicate": (lambda **given: bqn.Conv1d(20, 3, 2, 1, 1, 2, padding_mode="replicate", **given), (20, 6)),
    "quaternary": (lambda **given: bqn.Conv2d(5, 4, 3, levels="quaternary", **given), (5, 4, 5)),
}


@pytest.mark.parametrize("lead", [(2,), (), (2, 1, 2)], ids=str)
@pytest.mark.parametrize(("make", "sizes"), SUMS.values(), ids=SUMS.keys())
def test_sums_of_signs(make, sizes, lead, used, device) -> None:
    layer, minus = make(device=device), draw(*lead, *sizes, device=device)

    def run() -> tuple[Tensor, ...]:
        sums = layer(bqn.Discrete(minus))
        return sums.mean, sums.var

    compare(layer, run, [minus], ROUNDING[torch.float32])
    assert used == ["dual_product"]


@pytest.mark.parametrize(("make", "sizes"), SUMS.values(), ids=SUMS.keys())
def test_signs_of_sums_of_signs(make, sizes, used, device) -> None:
    network, minus = bqn.Sequential(make(device=device), bqn.Sign()), draw(2, *sizes, device=device)
    compare(network, lambda: (network(bqn.Discrete(minus)).minus,), [minus], ROUNDING[torch.float32])
    assert used == ["dual_signs"]


PLAIN = {
    "groups": (lambda: bqn.Conv2d(8, 4, 3, groups=2, propagation="clt"), (8, 4, 5), "there is no kernel for groups"),
    "three dimensions": (lambda: bqn.Conv3d(2, 3, 3), (2, 3, 3, 4), "there is no kernel for three dimensions"),
    "copies": (lambda: bqn.Conv2d(5, 2, 3, padding=1, padding_mode="reflect"), (5, 4, 5),
               "an output reads one input several times"),
    "few inputs": (lambda: bqn.Linear(4, 3), (4,), "their distribution is exact, by convolution"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "sizes", "reason"), PLAIN.values(), ids=PLAIN.keys())
def test_sums_that_no_kernel_takes(make, sizes, reason, used, device) -> None:
    layer, minus = make().to(device), draw(2, *sizes, device=device)
    bqn.Sequential(layer, bqn.Sign())(bqn.Discrete(minus))
    assert not used
    assert layer.explain() == f"Sums of random signs are plain calls: {reason}."


def test_a_network_says_what_computes_it(device) -> None:
    network = nn.Sequential(bqn.Conv2d(8, 4, 3, device=device), bqn.Sign(), bqn.Conv2d(4, 4, 3, device="meta"))
    lines = explain(network).splitlines()
    assert lines[0].startswith("0 (Conv2d): Means and variances of sums of random signs are one kernel, dual_product;")
    reason = "the operands are on meta, and the kernels run on cuda"
    assert lines[1] == f"2 (Conv2d): Sums of random signs are plain calls: {reason}."
    assert (
        explain(bqn.Sign())
        == "No module has a kernel of its own; what an expression calls, explain() of a compiled one says."
    )


def test_errors_are_those_of_plain_calls(used, device) -> None:
    layer = bqn.Conv2d(5, 4, 3, device=device)
    for shape in ((5,), (2, 4, 5, 5), (2, 5, 2, 5)):
        with pytest.raises(ShapeError):
            layer(bqn.Discrete(draw(*shape, device=device)))
    assert not used


@pytest.mark.interpreted
@pytest.mark.parametrize("bias", [True, False])
def test_sums_under_autocast_and_in_half_precision(bias, used, device) -> None:
    layer, minus = bqn.Conv2d(5, 4, 3, bias=bias, device=device), draw(2, 5, 4, 5, device=device)
    network = bqn.Sequential(layer, bqn.Sign())

    def run(minus: Tensor) -> tuple[Tensor, ...]:
        return layer(bqn.Discrete(minus)).var, network(bqn.Discrete(minus)).minus

    with torch.autocast(device.type, torch.bfloat16):
        compare(network, lambda: run(minus), [minus], ROUNDING[torch.bfloat16])
    network.bfloat16()
    narrow = minus.detach().bfloat16().requires_grad_()
    compare(network, lambda: run(narrow), [narrow], ROUNDING[torch.bfloat16])
    assert used == ["dual_product", "dual_signs"] * 2


def test_hooks_of_a_sequence_run(used, device) -> None:
    network = bqn.Sequential(bqn.Conv2d(5, 4, 3, device=device), bqn.Sign(), bqn.Flatten())
    kinds: list[str] = []
    for layer in network:
        layer.register_forward_hook(
            lambda layer, _, output: kinds.append(f"{type(layer).__name__} {output.minus.ndim}")
        )
    network(bqn.Discrete(draw(2, 5, 3, 4, device=device)))
    assert (used, kinds) == (["dual_signs"], ["Conv2d 4", "Sign 4", "Flatten 2"])


def test_drawn_networks_take_plain_signs(device) -> None:
    network = bqn.Sequential(bqn.Conv2d(5, 4, 3, device=device), bqn.Sign())
    bqn.set_mode(network, "map")
    x = torch.randn(2, 5, 3, 4, device=device)
    assert set(network(x).unique().tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close(bqn.to_plain(network)(x), network(x))


def test_what_the_kernel_refuses_is_plain_calls(used, monkeypatch, device) -> None:
    monkeypatch.setattr(kernels, "refusal", lambda *_: "products of float32 are not to be rounded")
    cell, layer = ConvLSTMCell(2, 3, 3, device=device), bqn.Conv2d(5, 4, 3, device=device)
    cell(torch.randn(1, 2, 4, 4, device=device))
    layer(bqn.Discrete(draw(2, 5, 4, 5, device=device)), signs=True)
    assert not used
    assert cell.explain() == "The gates are plain calls: products of float32 are not to be rounded."
    assert layer.explain() == "Sums of random signs are plain calls: products of float32 are not to be rounded."


def test_a_kernel_that_cannot_be_built_is_tried_once(used, monkeypatch, device) -> None:
    def build(*_: Tensor) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    kernels.load("lstm_gates")
    monkeypatch.setattr(torch.ops.convein, "lstm_gates", build)
    monkeypatch.setattr(kernels, "_failed", set())
    cell, x = ConvLSTMCell(2, 3, 3, device=device), torch.randn(1, 2, 4, 4, device=device)
    with pytest.warns(UserWarning, match="the kernel lstm_gates could not be built"):
        first, _ = cell(x)
    second, _ = cell(x)
    assert used == ["lstm_gates"]
    close(first, second)
    assert cell.explain() == "The gates are plain calls: this GPU could not build it."
