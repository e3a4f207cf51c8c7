"""Pointwise, depthwise or dense, pointwise in one kernel against the three convolutions in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from convein.kernels import pointwise_depthwise as kernel
from torch import Tensor

ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 4e-6, torch.float64: 1e-12}
MULTIPLIES = True


@dataclass(frozen=True, slots=True)
class Case:
    """A layer and its input."""

    channels: tuple[int, int, int, int] = (5, 7, 7, 6)
    image: tuple[int, int, int] = (2, 7, 9)
    filter: tuple[int, int] = (3, 3)
    low: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (7, 9)
    dilation: tuple[int, int] = (1, 1)
    first: bool = True
    dense: bool = False
    last: bool = True
    circular: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"low": self.low, "size": self.size, "dilation": self.dilation, "circular": self.circular}

    def operands(self, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
        s, r, q, t = self.channels
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, fan: int = 1) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * fan**-0.5
            return x.to(device, dtype).requires_grad_()

        batch, high, wide = self.image
        taps = self.filter[0] * self.filter[1]
        x = draw(batch, s, high, wide)
        a = draw(r, s, fan=s) if self.first else None
        d = draw(q, r, *self.filter, fan=r * taps) if self.dense else draw(r, *self.filter, fan=taps)
        return [x, a, d, draw(t, q, fan=q) if self.last else None]


CASES = {
    "CP": Case(),
    "Tucker": Case(channels=(5, 7, 3, 6), dense=True),
    "depthwise, pointwise": Case(channels=(5, 5, 5, 6), first=False),
    "pointwise, depthwise": Case(channels=(5, 7, 7, 7), last=False),
    "dense, pointwise": Case(channels=(5, 5, 3, 6), first=False, dense=True),
    "more channels than 16": Case(channels=(17, 18, 18, 33), image=(1, 3, 4), size=(3, 4)),
    "one channel each": Case(channels=(1, 1, 1, 1), image=(3, 2, 2), size=(2, 2)),
    "valid": Case(low=(0, 0), size=(5, 7)),
    "full": Case(low=(2, 2), size=(9, 11)),
    "even filter, dilated": Case(filter=(2, 4), low=(1, 2), dilation=(3, 2), image=(1, 9, 8)),
    "dense, dilated": Case(channels=(3, 4, 2, 3), filter=(3, 2), dilation=(2, 3), dense=True, image=(1, 6, 7)),
    "one tap": Case(filter=(1, 1), low=(0, 0)),
    "a corner is cropped": Case(low=(-1, -2), size=(4, 3)),
    "more padding than the filter reaches": Case(low=(4, 3), size=(12, 10)),
    "circular": Case(circular=True),
    "circular, dense, dilated": Case(
        channels=(3, 4, 2, 3),
        filter=(3, 2),
        dilation=(2, 3),
        low=(2, 1),
        dense=True,
        image=(1, 6, 7),
        size=(6, 7),
        circular=True,
    ),
    "circular, several times around": Case(image=(1, 3, 4), low=(7, 1), size=(8, 6), circular=True),
    "circular, cropped": Case(low=(-2, 1), size=(3, 5), circular=True),
}


def guarded(operands, guards) -> list[Tensor | None]:
    return [None if x is None else guards.around(x) for x in operands]


def compare(case: Case, operands: list[Tensor | None], tolerance: float) -> None:
    exact = [None if x is None else x.detach().double().requires_grad_() for x in operands]
    y = kernel.pointwise_depthwise(*operands, **case.options)
    expected = kernel.reference(*exact, *case.options.values())
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.device, y.dtype)
    given = [x for x in operands if x is not None]
    to = torch.autograd.grad(y, given, seed)
    of = torch.autograd.grad(expected, [x for x in exact if x is not None], seed.double())
    for one, other in zip(to, of, strict=True):
        # A factor's gradient sums over all pixels: its rounding goes with its largest entry.
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * float(other.abs().max() + 1))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_reference(case, device, guards) -> None:
    compare(case, guarded(case.operands(torch.float32, device), guards), ROUNDING[torch.float32])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.interpreted)], ids=str
)
@pytest.mark.parametrize("name", ["CP", "Tucker", "depthwise, pointwise"])
def test_other_types(name, dtype, device, guards) -> None:
    compare(CASES[name], guarded(CASES[name].operands(dtype, device), guards), ROUNDING[dtype])


def test_tensors_may_lie_in_any_way(device, guards) -> None:
    x, a, d, c = CASES["Tucker"].operands(torch.float32, device)
    last = x.detach().movedim(1, -1).contiguous().movedim(-1, 1)
    gaps = d.detach().repeat_interleave(2, -1)[..., ::2]
    for lying in ([last, a.detach().t().contiguous().t(), gaps, c], [x.detach()[:, :, ::2, ::2], a, d, c]):
        case = replace(CASES["Tucker"], size=tuple(lying[0].shape[2:]))
        compare(case, [guards.around(m.detach().requires_grad_()) for m in lying], ROUNDING[torch.float32])


def test_circular_images_go_on_with_themselves(device) -> None:
    case = CASES["circular"]
    x, a, d, c = (m.detach() for m in case.operands(torch.float64, device))
    plain = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    expected = kernel.reference(plain, a, d, c, (0, 0), case.size, case.dilation)
    torch.testing.assert_close(kernel.reference(x, a, d, c, *case.options.values()), expected)


def test_what_needs_no_gradient_gets_none(device, guards) -> None:
    x, a, d, c = CASES["CP"].operands(torch.float32, device)
    y = kernel.pointwise_depthwise(x.detach(), a, d.detach(), c.detach(), low=(1, 1), size=(7, 9))
    (to_a,) = torch.autograd.grad(y.sum(), [a])
    assert len(guards.buffers) == 1, "the gradient of x was computed"
    (expected,) = torch.autograd.grad(kernel.reference(x, a, d, c, (1, 1), (7, 9), (1, 1)).sum(), [a])
    torch.testing.assert_close(to_a, expected, rtol=1e-4, atol=1e-4)


def test_the_result_is_channels_last_and_may_be_empty(device, guards) -> None:
    operands = CASES["CP"].operands(torch.float32, device)
    y = kernel.pointwise_depthwise(*operands, low=(1, 1), size=(7, 9))
    assert y.is_contiguous(memory_format=torch.channels_last)
    none = kernel.pointwise_depthwise(operands[0][:0], *operands[1:], low=(1, 1), size=(7, 9))
    assert none.shape == (0, 6, 7, 9)


SMALL = [
    Case(channels=(2, 2, 2, 1), image=(1, 2, 2), filter=(2, 1), low=(1, 0), size=(2, 2)),
    Case(channels=(1, 2, 1, 2), image=(1, 2, 2), filter=(1, 2), low=(0, 0), size=(2, 1), dense=True),
    Case(channels=(2, 2, 2, 1), image=(1, 2, 3), filter=(1, 2), low=(0, 1), size=(3, 2), circular=True),
]


@pytest.mark.interpreted
@pytest.mark.parametrize("case", SMALL, ids=["depthwise", "dense", "circular"])
def test_derivatives_of_first_and_second_order(case, device) -> None:
    def layer(*operands: Tensor) -> Tensor:
        return kernel.pointwise_depthwise(*operands, **case.options)

    operands = case.operands(torch.float64, device)
    assert torch.autograd.gradcheck(layer, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, operands, fast_mode=True)


def test_torch_finds_the_operator_in_order(device) -> None:
    operands = SMALL[0].operands(torch.float32, device)
    torch.library.opcheck(torch.ops.convein.pointwise_depthwise, (*operands, (1, 0), (2, 2), (1, 1)))
    (x, d, c) = (operands[at] for at in (0, 2, 3))
    torch.library.opcheck(torch.ops.convein.pointwise_depthwise, (x, None, d, c, (1, 0), (2, 2), (1, 1)))


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


X, A, D, C = zeros(1, 5, 3, 3), zeros(7, 5), zeros(7, 3, 3), zeros(6, 7)


@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        ((X, None, D, None), "there is no pointwise convolution"),
        ((X[0], A, D, C), "x has four dimensions"),
        (
            (X, A, D, zeros(6, 5)),
            r"x, a, d and c are \(1, 5, 3, 3\), \(7, 5\), \(7, 3, 3\), \(6, 5\), and their channels",
        ),
        ((X, None, D, C), r"\(1, 5, 3, 3\), None, \(7, 3, 3\), \(6, 7\), and their channels do not fit"),
        ((X, A.half(), D, C), "the tensors are torch.float16 and torch.float32"),
        ((zeros(1, 300, 3, 3), zeros(7, 300), D, C), "there are 300 channels outside, more than 128"),
        ((X, zeros(33, 5), zeros(7, 33, 3, 3), C), "there are 33 channels inside, more than 32"),
        ((X, A, zeros(7, 3, 9), C), "d has 27 taps, more than 25"),
        ((torch.empty(1, 5, 2**15, 2**15, device="meta"), A, D, C), "an image spans more than"),
        ((X.int(), A.int(), D.int(), C.int()), "there is no kernel for torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(operands, reason, device) -> None:
    operands = [x if x is None or x.is_meta else x.to(device) for x in operands]
    with pytest.raises(ValueError, match=reason):
        kernel.pointwise_depthwise(*operands, low=(1, 1), size=(3, 3))


def test_no_image_goes_on_without_pixels(device) -> None:
    operands = [m.to(device) for m in (X[:, :, :0], A, D, C)]
    with pytest.raises(ValueError, match="an image without pixels does not go on"):
        kernel.pointwise_depthwise(*operands, low=(1, 1), size=(3, 3), circular=True)
