"""Products of tensors that broadcast, summed, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from convein.kernels import product_reduce as kernel
from torch import Tensor

ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 3e-6, torch.float64: 1e-12}
# Shapes of up to three tensors, and the dimensions to sum.
CASES = {
    "inner product": ([(71,), (71,)], [0]),
    "long sums, split": ([(3, 257), (3, 257)], [1]),
    "across memory": ([(37, 5), (37, 5)], [0]),
    "across memory, many": ([(300, 3), (300, 3), (300, 3)], [0]),
    "three": ([(2, 5, 7), (2, 5, 7), (2, 5, 7)], [2]),
    "all broadcast": ([(2, 1, 7), (1, 5, 7), (2, 5, 1)], [1]),
    "no sum": ([(2, 3, 5, 7), (1, 3, 1, 1), (1, 1, 5, 7)], []),
    "everything": ([(3, 5, 7), (3, 1, 7)], [0, 1, 2]),
    "dimensions that alternate": ([(2, 3, 2, 3, 2, 3), (2, 1, 2, 3, 1, 3)], [1, 3, 5]),
    "one tensor": ([(3, 5, 7)], [0, 2]),
    "a dimension of one tensor only": ([(3, 5), (3, 1)], [1]),
    "sizes of 1": ([(1, 1), (1, 1)], [0]),
    "scalars": ([(), ()], []),
}


def operands(shapes, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return [*[x.requires_grad_() for x in tensors], *[None] * (3 - len(tensors))]


def compare(tensors: list[Tensor | None], summed: list[int], tolerance: float) -> None:
    exact = [None if x is None else x.detach().double().requires_grad_() for x in tensors]
    y, expected = kernel.product_reduce(*tensors, summed), kernel.reference(*exact, summed)
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    to = torch.autograd.grad(y, [x for x in tensors if x is not None], seed)
    of = torch.autograd.grad(expected, [x for x in exact if x is not None], seed.double())
    for one, other in zip((y, *to), (expected, *of), strict=True):
        atol = tolerance * float(other.detach().abs().max() + 1)
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shapes", "summed"), CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_reference(shapes, summed, dtype, device, guards) -> None:
    tensors = [None if x is None else guards.around(x) for x in operands(shapes, dtype, device)]
    compare(tensors, summed, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_types(dtype, device, guards) -> None:
    tensors = [None if x is None else guards.around(x) for x in operands(CASES["all broadcast"][0], dtype, device)]
    compare(tensors, [1], ROUNDING[dtype])


def test_tensors_may_lie_in_any_way(device, guards) -> None:
    a, b, _ = operands([(4, 5, 6), (4, 5, 6)], torch.float32, device)
    for one, other in (
        (a.permute(2, 0, 1), b.permute(2, 0, 1)),
        (a.permute(2, 1, 0), b.permute(2, 1, 0).contiguous()),
        (a[::2, 1:, ::3], b[1::2, 1:, ::3]),
    ):
        for summed in ([0], [1, 2], [0, 2]):
            compare([guards.around(x.detach().requires_grad_()) for x in (one, other)] + [None], summed, 3e-6)


def test_a_tensor_may_repeat_itself(device, guards) -> None:
    a, b, _ = operands([(1, 5, 6), (4, 5, 6)], torch.float32, device)
    compare([guards.around(a).detach().expand(4, 5, 6).requires_grad_(), b, None], [0], 3e-6)


def test_nothing_in(device, guards) -> None:
    a, b, _ = operands([(0, 3), (1, 3)], torch.float32, device)
    assert kernel.product_reduce(a, b, None, [1]).shape == (0,)
    assert kernel.product_reduce(a, b, None, [0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["all broadcast", "one tensor", "a dimension of one tensor only"])
def test_derivatives_of_first_and_second_order(name, device) -> None:
    shapes, summed = CASES[name]
    small = [tuple(min(size, 2) for size in shape) for shape in shapes]
    tensors = operands(small, torch.float64, device)
    assert torch.autograd.gradcheck(lambda *x: kernel.product_reduce(*x, summed), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: kernel.product_reduce(*x, summed), tensors, fast_mode=True)


def test_torch_finds_the_operator_in_order(device) -> None:
    tensors = operands([(2, 1, 3), (1, 2, 3)], torch.float32, device)
    torch.library.opcheck(torch.ops.convein.product_reduce, (*tensors, [1]))


A = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("tensors", "summed", "reason"),
    [
        ((A, torch.zeros(2, 4)), [0], r"\(2, 3\) and \(2, 4\) do not broadcast dimension by dimension"),
        ((A, torch.zeros(3)), [0], r"\(2, 3\) and \(3,\) do not broadcast dimension by dimension"),
        ((A, A), [2], r"the dimensions \(2,\) are not those of"),
        ((A, A), [0, 0], r"the dimensions \(0, 0\) are not those of"),
        ((A, A), [-1], r"the dimensions \(-1,\) are not those of"),
        (
            (torch.empty(2**16, 1, 2, device="meta"), torch.empty(1, 2**15, 1, device="meta")),
            [0, 1],
            "2.*30 summands",
        ),
        ((A, A.half()), [0], "the tensors are torch.float16 and torch.float32"),
        ((A.int(), A.int()), [0], "there is no kernel for torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(tensors, summed, reason, device) -> None:
    with pytest.raises(ValueError, match=reason):
        kernel.product_reduce(*(x if x.is_meta else x.to(device) for x in tensors), None, summed)
