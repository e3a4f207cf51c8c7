"""Mean and variance of a convolution of random signs in one kernel against plain convolutions in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from convein.kernels import dual_product as kernel
from convein.kernels import dual_signs
from torch import Tensor

ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 4e-6, torch.float64: 1e-12}
MULTIPLIES = True
# Batch, s, h, w; t, kh, kw; then the options.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((2, 5, 5, 7), (6, 3, 3), {"low": (1, 1), "size": (5, 7)}),
    "valid": ((1, 3, 5, 6), (2, 2, 3), {"low": (0, 0), "size": (4, 4)}),
    "stride": ((2, 3, 7, 6), (3, 3, 2), {"low": (1, 0), "size": (4, 2), "stride": (2, 3)}),
    "dilation": ((1, 3, 7, 6), (3, 2, 3), {"low": (1, 2), "size": (6, 6), "dilation": (3, 2)}),
    "more channels than a block": ((1, 18, 2, 3), (19, 1, 2), {"low": (0, 1), "size": (2, 4)}),
    "one tap": ((3, 1, 2, 2), (1, 1, 1), {"low": (0, 0), "size": (2, 2)}),
}
WAYS = {"moments": kernel.dual_product, "signs": dual_signs.dual_signs}
REFERENCES = {"moments": kernel.reference, "signs": dual_signs.reference}


def operands(case, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    (batch, s, high, wide), (t, kh, kw), options = case
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(device, dtype)

    minus, w = draw(batch, s, high, wide).abs(), draw(t, s, kh, kw)
    return [x.requires_grad_() for x in (minus, w, draw(t), draw(t, *options["size"]).abs() + 0.1)]


def reference(way: str, tensors, options) -> tuple[Tensor, ...]:
    full = {"stride": (1, 1), "dilation": (1, 1), **options}
    found = REFERENCES[way](*tensors, *(full[name] for name in ("stride", "low", "size", "dilation")))
    return found if way == "moments" else (found,)


def compare(way: str, tensors: list[Tensor], options, tolerance: float) -> None:
    exact = [x.detach().double().requires_grad_() for x in tensors]
    outputs = WAYS[way](*tensors, **options)
    outputs = outputs if way == "moments" else (outputs,)
    expected = reference(way, exact, options)
    seeds = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
    to = torch.autograd.grad(outputs, tensors, seeds)
    of = torch.autograd.grad(expected, exact, [seed.double() for seed in seeds])
    for one, other in zip((*outputs, *to), (*expected, *of), strict=True):
        # Sums over taps, channels and pixels: their rounding goes with the largest.
        atol = tolerance * float(other.detach().abs().max() + 1)
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_reference(case, way, device, guards) -> None:
    tensors = [guards.around(x) for x in operands(case, torch.float32, device)]
    compare(way, tensors, case[2], ROUNDING[torch.float32])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.interpreted)], ids=str
)
def test_other_types(dtype, way, device, guards) -> None:
    tensors = [guards.around(x) for x in operands(CASES["same"], dtype, device)]
    compare(way, tensors, CASES["same"][2], ROUNDING[dtype])


def test_tensors_may_lie_in_any_way(device, guards) -> None:
    minus, w, shift, base = (x.detach() for x in operands(CASES["same"], torch.float32, device))
    last = minus.movedim(1, -1).contiguous().movedim(-1, 1)
    gaps = [last, w.repeat_interleave(2, -1)[..., ::2], shift.repeat_interleave(3)[::3], base.mT.contiguous().mT]
    compare("signs", [guards.around(x.requires_grad_()) for x in gaps], CASES["same"][2], ROUNDING[torch.float32])


def test_moments_are_those_of_all_signs_and_weights(device) -> None:
    """Of two signs and two weights of sign, written out: sixteen cases, each with its probability."""
    m = torch.tensor([0.3, -0.9], dtype=torch.float32, device=device).view(1, 2, 1, 1)
    w = torch.tensor([-0.5, 0.2], dtype=torch.float32, device=device).view(1, 2, 1, 1)
    options = ((1, 1), (0, 0), (1, 1), (1, 1))
    base = kernel.weight_variances(1 - w * w, (1, 1), *options)
    mean, var = kernel.dual_product((1 - m) / 2, w, torch.zeros(1, device=device), base, size=(1, 1))
    first = second = 0.0
    for values in itertools.product((-1, 1), repeat=4):
        means = (*m.flatten().tolist(), *w.flatten().tolist())
        chance = torch.tensor([(1 + sign * p) / 2 for sign, p in zip(values, means, strict=True)]).prod().item()
        total = values[0] * values[2] + values[1] * values[3]
        first, second = first + chance * total, second + chance * total**2
    assert mean.item() == pytest.approx(first, abs=ROUNDING[torch.float32])
    assert var.item() == pytest.approx(second - first**2, abs=ROUNDING[torch.float32])


def test_variances_of_weights_count_inside_of_the_image_only(device) -> None:
    v = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(device)
    base = kernel.weight_variances(v, (4, 5), (1, 1), (1, 1), (4, 5), (1, 1))
    torch.testing.assert_close(base, torch.nn.functional.conv2d(torch.ones(2, 4, 5, device=device), v, padding=1))


def test_nothing_in_nothing_out(device, guards) -> None:
    minus, w, shift, base = operands(CASES["same"], torch.float32, device)
    assert dual_signs.dual_signs(minus[:0], w, shift, base, **CASES["same"][2]).shape == (0, 6, 5, 7)


SMALL = ((1, 1, 2, 2), (2, 1, 2), {"low": (0, 1), "size": (2, 2)})


@pytest.mark.interpreted
@pytest.mark.parametrize("way", WAYS)
def test_derivatives_of_first_and_second_order(way, device) -> None:
    tensors = operands(SMALL, torch.float64, device)
    assert torch.autograd.gradcheck(lambda *x: WAYS[way](*x, **SMALL[2]), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: WAYS[way](*x, **SMALL[2]), tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["dual_product", "dual_signs"])
def test_torch_finds_the_operators_in_order(name, device) -> None:
    tensors = operands(SMALL, torch.float32, device)
    torch.library.opcheck(getattr(torch.ops.convein, name), (*tensors, (1, 1), (0, 1), (2, 2), (1, 1)))


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


MINUS, W, SHIFT, BASE = zeros(1, 2, 3, 3), zeros(4, 2, 3, 3), zeros(4), zeros(4, 1, 1)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((MINUS, W[:, :1], SHIFT, BASE), "the channels of minus and w do not fit"),
        ((MINUS[0], W, SHIFT, BASE), "the channels of minus and w do not fit"),
        ((MINUS, W, SHIFT[:3], BASE), r"shift is not \(t,\) or base not \(t, 1, 1\)"),
        ((MINUS, W, SHIFT, BASE[:, :, 0]), r"shift is not \(t,\) or base not \(t, 1, 1\)"),
        ((MINUS.half(), W, SHIFT, BASE), "the tensors are torch.float16 and torch.float32"),
        ((torch.empty(1, 2, 2**15, 2**16, device="meta"), W, SHIFT, BASE), "an image spans more than"),
        ((torch.empty(2**30, 2, 3, 3, device="meta"), W, SHIFT, BASE), "there are 2.*30 pixels or more"),
        ((MINUS.int(), W.int(), SHIFT.int(), BASE.int()), "there is no kernel for torch.int32"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_refused(way, tensors, reason, device) -> None:
    with pytest.raises(ValueError, match=reason):
        WAYS[way](*(x if x.is_meta else x.to(device) for x in tensors), size=(1, 1))
