"""A depthwise convolution as the prologue of a matrix product against two convolutions in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from convein.kernels import depthwise_pointwise as kernel
from torch import Tensor

ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 4e-6, torch.float64: 1e-12}
MULTIPLIES = True


@dataclass(frozen=True, slots=True)
class Case:
    """A layer and its input."""

    channels: tuple[int, int] = (5, 7)
    image: tuple[int, int, int] = (2, 5, 7)
    filter: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    low: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (5, 7)
    dilation: tuple[int, int] = (1, 1)

    @property
    def options(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "low": self.low, "size": self.size, "dilation": self.dilation}

    def operands(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, fan: int = 1) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * fan**-0.5
            return x.to(device, dtype).requires_grad_()

        (r, t), (batch, high, wide) = self.channels, self.image
        taps = self.filter[0] * self.filter[1]
        return [draw(batch, r, high, wide), draw(r, *self.filter, fan=taps), draw(t, r, fan=r)]


CASES = {
    "same": Case(),
    "valid": Case(low=(0, 0), size=(3, 5)),
    "full": Case(low=(2, 2), size=(7, 9)),
    "strides": Case(image=(2, 7, 8), stride=(2, 3), size=(4, 3)),
    "even filter, dilated": Case(filter=(2, 4), low=(1, 2), dilation=(3, 2), image=(1, 9, 8), size=(7, 9)),
    "strides, dilated": Case(filter=(3, 2), stride=(3, 2), dilation=(2, 3), low=(2, 1), image=(1, 8, 9), size=(3, 5)),
    "more channels than a block": Case(channels=(18, 35), image=(1, 3, 4), size=(3, 4)),
    "one channel, one tap": Case(channels=(1, 1), image=(3, 2, 2), filter=(1, 1), low=(0, 0), size=(2, 2)),
    "a corner is cropped": Case(low=(-1, -2), size=(4, 3)),
    "more padding than the filter reaches": Case(low=(4, 3), size=(8, 9)),
}


def compare(case: Case, operands: list[Tensor], tolerance: float) -> None:
    exact = [x.detach().double().requires_grad_() for x in operands]
    y = kernel.depthwise_pointwise(*operands, **case.options)
    expected = kernel.reference(*exact, *(case.options[name] for name in ("stride", "low", "size", "dilation")))
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.device, y.dtype)
    to = torch.autograd.grad(y, operands, seed)
    of = torch.autograd.grad(expected, exact, seed.double())
    for one, other in zip(to, of, strict=True):
        # A factor's gradient sums over all pixels: its rounding goes with its largest entry.
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * float(other.abs().max() + 1))


@pytest.fixture(params=["dense", "depthwise"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How gradients of factors come, whatever the number of channels."""
    monkeypatch.setattr(kernel, "BALANCE", 2**30 if request.param == "dense" else 0)
    return request.param


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_reference(case, way, device, guards) -> None:
    compare(case, [guards.around(x) for x in case.operands(torch.float32, device)], ROUNDING[torch.float32])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.interpreted)], ids=str
)
@pytest.mark.parametrize("name", ["same", "strides"])
def test_other_types(name, dtype, device, guards) -> None:
    compare(CASES[name], [guards.around(x) for x in CASES[name].operands(dtype, device)], ROUNDING[dtype])


def test_tensors_may_lie_in_any_way(device, guards) -> None:
    x, d, c = (m.detach() for m in CASES["same"].operands(torch.float32, device))
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    gaps = x.repeat_interleave(2, -1).repeat_interleave(3, 1)[:, ::3, :, ::2]
    for image in (last, gaps):
        lying = [image, d.repeat_interleave(2, -1)[..., ::2], c.t().contiguous().t()]
        compare(CASES["same"], [guards.around(m.requires_grad_()) for m in lying], ROUNDING[torch.float32])


@pytest.mark.parametrize("place", range(3))
def test_what_needs_no_gradient_gets_none(place, way, device) -> None:
    operands = CASES["strides"].operands(torch.float32, device)
    given = [x if at == place else x.detach() for at, x in enumerate(operands)]
    options = CASES["strides"].options
    (to,) = torch.autograd.grad(kernel.depthwise_pointwise(*given, **options).square().sum(), given[place])
    plain = kernel.reference(*given, *(options[name] for name in ("stride", "low", "size", "dilation")))
    torch.testing.assert_close(to, torch.autograd.grad(plain.square().sum(), given[place])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "kernels"), [((5, 7), 2), ((5, 129), 1)])
def test_one_kernel_makes_the_gradient_of_x_unless_it_refuses(channels, kernels, device, guards) -> None:
    case = Case(channels=channels, image=(1, 2, 2), size=(2, 2))
    compare(case, [guards.around(x) for x in case.operands(torch.float32, device)], ROUNDING[torch.float32])
    assert len(guards.buffers) == kernels


def test_x_and_the_factors_are_all_that_is_kept(device) -> None:
    operands, kept = CASES["same"].operands(torch.float32, device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        kernel.depthwise_pointwise(*operands, **CASES["same"].options)
    assert sorted(kept) == sorted(x.data_ptr() for x in operands)


def test_the_result_is_channels_last_and_may_be_empty(device, guards) -> None:
    x, d, c = CASES["same"].operands(torch.float32, device)
    y = kernel.depthwise_pointwise(x, d, c, **CASES["same"].options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert kernel.depthwise_pointwise(x[:0], d, c, **CASES["same"].options).shape == (0, 7, 5, 7)


SMALL = Case(channels=(2, 2), image=(1, 3, 2), filter=(2, 1), stride=(2, 1), low=(1, 0), size=(2, 2))


@pytest.mark.interpreted
def test_derivatives_of_first_and_second_order(way, device) -> None:
    operands = SMALL.operands(torch.float64, device)

    def layer(*tensors: Tensor) -> Tensor:
        return kernel.depthwise_pointwise(*tensors, **SMALL.options)

    assert torch.autograd.gradcheck(layer, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, operands, fast_mode=True)


def test_torch_finds_the_operator_in_order(device) -> None:
    operands = SMALL.operands(torch.float32, device)
    torch.library.opcheck(torch.ops.convein.depthwise_pointwise, (*operands, (2, 1), (1, 0), (2, 2), (1, 1)))


X, D, C = torch.zeros(1, 5, 3, 3), torch.zeros(5, 3, 3), torch.zeros(6, 5)


@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        ((X[0], D, C), r"x, d and c are \(5, 3, 3\), \(5, 3, 3\), \(6, 5\), and not \(b, r, h, w\), \(r, kh, kw\)"),
        ((X, D[:4], C), r"x, d and c are \(1, 5, 3, 3\), \(4, 3, 3\), \(6, 5\), and not"),
        ((X, D, C[:, :4]), r"x, d and c are \(1, 5, 3, 3\), \(5, 3, 3\), \(6, 4\), and not"),
        ((X, D.half(), C), "the tensors are torch.float16 and torch.float32"),
        ((torch.empty(1, 5, 2**15, 2**15, device="meta"), D, C), "an image spans more than"),
        ((torch.empty(2**30, 5, 3, 3, device="meta"), D, C), "there are 2.*30 pixels or more"),
        ((X.int(), D.int(), C.int()), "there is no kernel for torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(operands, reason, device) -> None:
    operands = [x if x.is_meta else x.to(device) for x in operands]
    with pytest.raises(ValueError, match=reason):
        kernel.depthwise_pointwise(*operands, size=(1, 1))
