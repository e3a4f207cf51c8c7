"""The pointwise part of an LSTM's step against its plain reference in float64."""

from __future__ import annotations

import pytest
import torch
from convein.kernels import lstm_gates as kernel
from torch import Tensor

SHAPES = [(2, 5, 7, 9), (3, 1, 5), (1, 3), (2, 16, 4, 4), (130, 1), (2, 3, 5, 1, 4)]
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 3e-6, torch.float64: 1e-12}
CHANNELS_LAST = "channels last"


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)


def operands(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    batch, channels, *sizes = shape
    z = draw(batch, 4 * channels, *sizes, dtype=dtype, device=device)
    return z, draw(*shape, dtype=dtype, device=device, seed=1)


def lying(x: Tensor, how: str) -> Tensor:
    """The same numbers, lying in memory in another way."""
    if how == CHANNELS_LAST:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if how == "every second row":
        return x.repeat_interleave(2, 0)[::2]
    if how == "every second entry":
        return x.repeat_interleave(2, -1)[..., ::2]
    return x.clone(memory_format=torch.contiguous_format)


def equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def compare(z: Tensor, cell: Tensor, tolerance: float) -> None:
    z.requires_grad_()
    cell.requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (z, cell)]
    outputs, expected = kernel.lstm_gates(z, cell), kernel.reference(*exact)
    equal(outputs, expected, tolerance)
    seeds = [draw(*y.shape, dtype=y.dtype, device=y.device, seed=seed) for seed, y in enumerate(outputs, 2)]
    to = torch.autograd.grad(outputs, (z, cell), seeds)
    assert [x.dtype for x in to] == [z.dtype, cell.dtype]
    equal(to, torch.autograd.grad(expected, exact, [seed.double() for seed in seeds]), 4 * tolerance)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_reference(shape, dtype, device, guards) -> None:
    compare(*(guards.around(x) for x in operands(shape, dtype, device)), ROUNDING[dtype])


@pytest.mark.parametrize("of_cell", ["contiguous", CHANNELS_LAST])
@pytest.mark.parametrize("of_gates", ["contiguous", CHANNELS_LAST, "every second row", "every second entry"])
def test_tensors_may_lie_in_any_way(of_gates, of_cell, device, guards) -> None:
    z, cell = operands((4, 5, 3, 7), torch.float32, device)
    compare(guards.around(lying(z, of_gates)), guards.around(lying(cell, of_cell)), ROUNDING[torch.float32])


def test_results_lie_as_the_gates_do(device, guards) -> None:
    z, cell = (lying(x, CHANNELS_LAST).requires_grad_() for x in operands((2, 5, 3, 7), torch.float32, device))
    outputs = kernel.lstm_gates(z, cell)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in outputs)
    to_z, to_cell = torch.autograd.grad(outputs, (z, cell), outputs)
    assert to_z.is_contiguous(memory_format=torch.channels_last)
    assert to_cell.is_contiguous(memory_format=torch.channels_last)


def test_a_cell_state_may_be_more_precise_than_the_gates(device, guards) -> None:
    z, cell = operands((2, 3, 5), torch.float32, device)
    outputs = kernel.lstm_gates(z.half(), cell)
    assert [x.dtype for x in outputs] == [x.dtype for x in kernel.reference(z.half(), cell)] == [torch.float32] * 2
    compare(guards.around(z.half()), guards.around(cell), ROUNDING[torch.float16])


def test_small_numbers_keep_their_digits(device, guards) -> None:
    """tanh as the difference of two numbers near 1 would lose them."""
    z, cell = (guards.around(1e-5 * x) for x in operands((1, 3, 50), torch.float32, device))
    for one, other in zip(kernel.lstm_gates(z, cell), kernel.reference(z.double(), cell.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-11)


# numpy, which computes for the interpreter, tells that exp is infinite; 1 / (1 + exp) is 0 then, as it should be.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_large_numbers_saturate(device, guards) -> None:
    z, cell = operands((1, 3, 5), torch.float32, device)
    compare(guards.around(100 * z), guards.around(100 * cell), ROUNDING[torch.float32])


def test_nothing_in_nothing_out(device, guards) -> None:
    z, cell = operands((0, 3, 5), torch.float32, device)
    assert [x.shape for x in kernel.lstm_gates(z, cell)] == [cell.shape] * 2


@pytest.mark.interpreted
def test_derivatives_of_first_and_second_order(device) -> None:
    inputs = tuple(x.requires_grad_() for x in operands((1, 1, 2), torch.float64, device))
    assert torch.autograd.gradcheck(kernel.lstm_gates, inputs)
    assert torch.autograd.gradgradcheck(kernel.lstm_gates, inputs)


@pytest.mark.parametrize("how", ["contiguous", CHANNELS_LAST])
def test_torch_finds_the_operators_in_order(how, device) -> None:
    z, cell = (lying(x, how).requires_grad_() for x in operands((2, 3, 5, 2), torch.float32, device))
    torch.library.opcheck(torch.ops.convein.lstm_gates, (z, cell))
    inputs = tuple(x.detach() for x in (z, cell, cell, cell))
    torch.library.opcheck(torch.ops.convein.lstm_gates_backward, inputs)


def test_it_compiles_in_one_graph(device) -> None:
    z, cell = (x.requires_grad_() for x in operands((2, 3, 5), torch.float32, device))
    compiled = torch.compile(kernel.lstm_gates, fullgraph=True, backend="aot_eager")
    equal(compiled(z, cell), kernel.reference(z.double(), cell.double()), ROUNDING[torch.float32])


@pytest.mark.parametrize(
    ("gates", "cell", "reason"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 3), r"gates \(2, 8\) are not four times the cell state \(2, 3\)"),
        (torch.zeros(2, 8, 1), torch.zeros(2, 2), r"gates \(2, 8, 1\) are not four times the cell state \(2, 2\)"),
        (torch.zeros(8), torch.zeros(2), r"gates \(8,\) are not four times the cell state \(2,\)"),
        (torch.empty(1, 4, 2**30, device="meta"), torch.empty(1, 1, 2**30, device="meta"), "has 2.*30 entries or more"),
        (torch.zeros(2, 8).int(), torch.zeros(2, 2).int(), "there is no kernel for torch.int32"),
        (torch.zeros(2, 8, device="meta"), torch.zeros(2, 2, device="meta"), "are on meta, and the kernels run on"),
        (torch.zeros(2, 8), torch.zeros(2, 2, device="meta"), "the tensors are on cpu and meta"),
    ],
)
def test_what_does_not_fit_is_refused(gates, cell, reason, device) -> None:
    gates, cell = (x if x.is_meta else x.to(device) for x in (gates, cell))
    with pytest.raises(ValueError, match=reason.replace("cpu", device.type)):
        kernel.lstm_gates(gates, cell)
