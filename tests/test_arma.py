"""Autoregressions and ARMA layers: golden vectors, dense linear systems, residuals at the edge of stability."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convein.errors import OperandError, OptionError, ShapeError
from convein.layers import ARMA1d, ARMA2d, ARMA3d, autoregress, whiten
from convein.layers.autoregression import taps
from convein.layers.stability import STABILITIES, margin_of

LAYERS = {1: (ARMA1d, nn.Conv1d), 2: (ARMA2d, nn.Conv2d), 3: (ARMA3d, nn.Conv3d)}
GOLDEN = np.load(Path(__file__).parent / "golden" / "arma.npz")
SMALL = st.integers(1, 7)


def golden(name: str, **given: Any) -> Tensor:
    return torch.tensor(GOLDEN[name], **given)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def as_layer(alpha: Tensor) -> Tensor:
    """The published parameters (t, q, 4) as ours: the same numbers, by dimension."""
    return alpha.unflatten(-1, (2, 2))


# Golden vectors of the research code


def published(weight: Tensor, alpha: Tensor, **given: Any) -> ARMA2d:
    layer = ARMA2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False, dtype=torch.float64, **given)
    with torch.no_grad():
        layer.moving_average.w1.copy_(weight)
        layer.alpha.copy_(as_layer(alpha))
    return layer


def test_the_published_autoregression() -> None:
    x, alpha = golden("ar_k3/x").requires_grad_(), golden("ar_k3/alpha")
    weight = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    layer = published(weight, alpha)
    found = layer.taps()
    close(found[:, :, 0], golden("ar_k3/f"), 1e-12)
    close(found[:, :, 1], golden("ar_k3/g"), 1e-12)
    y = layer(x)
    close(y, golden("ar_k3/y"))
    of_x, of_alpha = torch.autograd.grad((y * golden("ar_k3/R")).sum(), (x, layer.alpha))
    close(of_x, golden("ar_k3/grad_x"))
    close(of_alpha, as_layer(golden("ar_k3/grad_alpha")))


def theorem(x: Tensor, a: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The solution for any filter `a` as large as the grid, and its gradients as theorem 6.4 has them."""
    response = torch.fft.fft2(a)
    y = torch.fft.ifft2(torch.fft.fft2(x) / response).real
    adjoint = torch.fft.fft2(R) / response.conj()
    of_a = -torch.fft.ifft2((adjoint * torch.fft.fft2(y).conj()).sum(0)).real
    return y, torch.fft.ifft2(adjoint).real, of_a


def test_the_published_backward_pass_restricted_to_the_taps() -> None:
    x, R = golden("bwd/x"), golden("bwd/R")
    for found, name in zip(theorem(x, golden("bwd/a"), R), ("y", "grad_x", "grad_a")):
        close(found, golden(f"bwd/{name}"))
    torch.manual_seed(0)
    f, g = (torch.tensor([0.0, 1, 0], dtype=torch.float64) + torch.rand(3, 3).mul(0.4).sub(0.2) for _ in range(2))
    f, g = f / f[:, 1:2], g / g[:, 1:2]
    rows, columns = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    for k in (-1, 0, 1):
        rows[:, k], columns[:, k] = f[:, k + 1], g[:, k + 1]
    y, of_x, of_a = theorem(x, torch.einsum("ch,cw->chw", rows, columns), R)
    sums, differences = (torch.stack([f[:, 0] + s * f[:, 2], g[:, 0] + s * g[:, 2]], -1)[:, None] for s in (1, -1))
    leaves = [each.requires_grad_() for each in (x, sums, differences)]
    value = autoregress(*leaves)
    close(value, y)
    mine, of_sums, of_differences = torch.autograd.grad((value * R).sum(), leaves)
    close(mine, of_x)
    # A tap along one dimension is multiplied by all taps along the other.
    along = (of_a * columns[:, None, :]).sum(2), (of_a * rows[:, :, None]).sum(1)
    for axis, found in enumerate(along):
        close(of_sums[:, 0, axis], (found[:, -1] + found[:, 1]) / 2)
        close(of_differences[:, 0, axis], (found[:, -1] - found[:, 1]) / 2)


def test_the_published_layer() -> None:
    layer = published(golden("arma/W"), golden("arma/alpha"), padding=1)
    close(layer(golden("arma/x")), golden("arma/y"))


# The linear system


def system(sum: Tensor, difference: Tensor, space: tuple[int, ...]) -> Tensor:
    """A as a dense matrix (c, points, points), its taps added up where they wrap around."""
    found = taps(sum, difference)
    value = torch.eye(math.prod(space), dtype=sum.dtype).repeat(sum.shape[0], 1, 1)
    points = list(product(*map(range, space)))
    for number, axis in product(range(sum.shape[1]), range(sum.shape[2])):
        shifts = [torch.zeros(len(points), len(points), dtype=sum.dtype) for _ in range(3)]
        for shift, k in zip(shifts, (-1, 0, 1)):
            for row, point in enumerate(points):
                read = [*point]
                read[axis] = (read[axis] - k) % space[axis]
                shift[row, points.index(tuple(read))] += 1
        factor = torch.einsum("ck,kij->cij", found[:, number, axis], torch.stack(shifts))
        value = value @ factor
    return value


@st.composite
def systems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """An input and taps well inside of what is stable; the difference is free."""
    space = tuple(draw(SMALL) for _ in range(draw(st.integers(1, 3))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    channels, factors = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (channels, factors, len(space))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
    x = torch.randn(*batch, channels, *space, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.transpose(-1, -len(space)).contiguous().transpose(-1, -len(space))
    sums = 1.6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.8
    return x, sums, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=40)
@given(systems())
def test_values_and_gradients_are_those_of_the_dense_system(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [each.requires_grad_() for each in drawn]
    x, sums, differences = leaves
    space = x.shape[x.dim() - sums.shape[2] :]
    matrix = system(sums, differences, tuple(space))
    wanted = torch.linalg.solve(matrix, x.flatten(-len(space)).unsqueeze(-1)).view(x.shape)
    value = autoregress(x, sums, differences)
    close(value, wanted)
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.autograd.grad((value * weight).sum(), leaves)
    theirs = torch.autograd.grad((wanted * weight).sum(), leaves)
    for mine, other in zip(ours, theirs):
        close(mine, other, 1e-8 * max(1.0, float(other.abs().max())))
    close(whiten(value, sums, differences), x)


@st.composite
def edges(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As `systems`, with parameters of layers up to those that no clamp lets through."""
    dimensions, factors = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    space = tuple(draw(st.integers(1, 16 if dimensions < 3 else 5)) for _ in range(dimensions))
    stability = draw(st.sampled_from(["bounded", "free_difference"]))
    layer = LAYERS[dimensions][0](1, 2, 1, factors=factors, stability=stability, dtype=dtype)
    one = st.sampled_from([-100.0, -5.0, -1.0, 0.0, 1.0, 5.0, 100.0]) | st.floats(-12, 12)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([draw(one) for _ in range(layer.alpha.numel())]).view_as(layer.alpha))
    x = torch.randn(2, 2, *space, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))), dtype=dtype)
    sums, differences = (each.detach() for each in layer.coefficients())
    return x, sums, differences


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@settings(max_examples=100)
@given(st.data())
def test_the_residual_at_the_edge_of_stability(dtype: torch.dtype, tolerance: float, data: st.DataObject) -> None:
    """`A * y = T` by the engine, relative to the terms that it sums; and to T, it is rounding errors times the gain.

    A result that is 1e8 times as large as T is rounded by more than T, so nothing is below 1e-4 of T.
    """
    x, sums, differences = data.draw(edges(dtype))
    y = autoregress(x, sums, differences)
    assert y.isfinite().all()
    # In float64: these errors are those of the solution, and not of the check.
    x, y, sums, differences = (each.double() for each in (x, y, sums, differences))
    residual = (whiten(y, sums, differences) - x).abs().amax(dim=tuple(range(2, x.dim())))
    size = taps(sums, differences).abs().sum(-1).flatten(1).prod(1)
    largest_x, largest_y = (each.abs().amax(dim=tuple(range(2, x.dim()))) for each in (x, y))
    assert (residual <= tolerance / 100 * (size * largest_y + largest_x)).all()
    gain = (1 / (1 - sums.abs())).flatten(1).prod(1)
    rounding = 16 * torch.finfo(dtype).eps
    assert (residual <= rounding * (size * gain + 1) * x.abs().flatten(2).norm(dim=2)).all()


@pytest.mark.parametrize(("dtype", "tolerance", "margin"), [(torch.float64, 1e-10, 3e-3), (torch.float32, 1e-4, 0.06)])
def test_the_residual_relative_to_the_input_with_a_margin(dtype: torch.dtype, tolerance: float, margin: float) -> None:
    torch.manual_seed(0)
    layer = ARMA2d(3, 8, 3, padding=1, a_init=0.999, margin=margin, dtype=dtype)
    with torch.no_grad():
        layer.alpha[:4] = 100 * layer.alpha[:4].sign()
    x = torch.randn(2, 3, 12, 10, dtype=dtype)
    moved = layer.moving_average(x)
    torch.testing.assert_close(layer.gain().max().item(), margin**-2, rtol=1e-4, atol=0)
    residual = whiten(layer(x), *layer.coefficients()) - moved
    assert residual.abs().max() < tolerance * moved.abs().max()


def test_a_wave_is_amplified_by_the_gain_and_no_more() -> None:
    layer = ARMA2d(1, 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.moving_average.w1.fill_(1)
        layer.alpha.copy_(torch.tensor([[[[0.3, -100.0], [-2.0, 100.0]]]]))
    row = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    x = row.repeat(1, 1, 6, 1)
    margin = margin_of(torch.float64, 2)
    assert margin == pytest.approx(1e-8)
    torch.testing.assert_close(layer(x), x / margin**2, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.gain(), torch.tensor([1 / margin**2], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_slow_waves_are_as_exact_as_the_taps(sign: float) -> None:
    """Written as it stands, 1 + sum * cos w loses digits near the edge: the result is off by 7e-5."""
    sums = torch.full((1, 1, 1), sign * (1 - 1e-4))
    angle = torch.arange(256, dtype=torch.float64) * (2 * math.pi / 256)
    wave = angle.cos() * (-sign) ** torch.arange(256)  # around w = 0, or around w = pi
    response = 1 - sums.double().abs() * math.cos(2 * math.pi / 256)
    found = autoregress(wave.float().view(1, -1), sums, torch.zeros_like(sums)).double()
    assert (found - wave / response).abs().max() < 1e-5 * (wave / response).abs().max()


# Derivatives


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")  # by torch's forward mode
@pytest.mark.parametrize("space", [(3,), (1, 2), (3, 2)], ids=str)
def test_derivatives_of_every_order_and_mode(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    leaves = [
        torch.randn(2, *space, dtype=torch.float64),
        torch.rand(2, 1, len(space), dtype=torch.float64) - 0.5,
        torch.randn(2, 1, len(space), dtype=torch.float64),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(autoregress, leaves, check_batched_grad=True, **forward)
    assert torch.autograd.gradgradcheck(autoregress, leaves, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("taps_learn", [True, False])
def test_saved_are_the_result_and_the_taps(taps_learn: bool) -> None:
    x = torch.randn(4, 8, 9, 10, requires_grad=True)
    sums, differences = (torch.zeros(8, 2, 2).requires_grad_(taps_learn) for _ in range(2))
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = autoregress(x, sums, differences)
    assert sum(each.nbytes for each in saved) == 2 * sums.nbytes + taps_learn * y.nbytes
    assert any(each.data_ptr() == y.data_ptr() for each in saved) == taps_learn
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("stability", STABILITIES)
def test_parameters_get_the_gradients_of_their_taps(stability: str) -> None:
    torch.manual_seed(0)
    layer = ARMA1d(1, 2, 3, padding=1, factors=2, stability=stability, a_init=0.4, dtype=torch.float64)
    x = torch.randn(2, 1, 5, dtype=torch.float64)

    def value(alpha: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"alpha": alpha}, (x,))

    assert torch.autograd.gradcheck(value, (layer.alpha,))


# Layers


@pytest.mark.parametrize("stability", STABILITIES)
@pytest.mark.parametrize("dimensions", LAYERS)
def test_a_new_layer_is_its_convolution(dimensions: int, stability: str) -> None:
    torch.manual_seed(0)
    ours, theirs = LAYERS[dimensions]
    arguments: dict[str, Any] = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2, "padding_mode": "circular"}
    arguments["dtype"] = torch.float64
    conv = theirs(4, 6, 3, **arguments)
    layer = ours(4, 6, 3, **arguments, stability=stability, factors=2)
    with torch.no_grad():
        layer.moving_average.w1.copy_(conv.weight.view_as(layer.moving_average.w1))
        layer.moving_average.bias.copy_(conv.bias.view_as(layer.moving_average.bias))
    x = torch.randn(2, 4, *(7, 6, 5)[:dimensions], dtype=torch.float64)
    close(layer(x), conv(x), 1e-12)
    close(layer(x[0]), conv(x[0]), 1e-12)
    taken = ours.from_conv(conv.eval(), stability=stability)
    close(taken(x), conv(x), 1e-12)
    assert not taken.training
    assert torch.equal(taken.moving_average.dense_weight(), conv.weight)


def test_a_trained_convolution_with_factors_or_without_gradients() -> None:
    conv = nn.Conv2d(8, 8, 3, bias=False).requires_grad_(False)
    layer = ARMA2d.from_conv(conv, form="cp", rank=0.5, a_init=0.5)
    assert layer.moving_average.form == "cp"
    assert layer.moving_average.rate <= 0.5
    assert layer.moving_average.bias is None
    assert [name for name, each in layer.named_parameters() if each.requires_grad] == ["alpha"]
    assert layer.alpha.abs().max() > 0


def test_one_draw_makes_the_same_taps_by_every_parametrisation() -> None:
    found = []
    for stability in STABILITIES:
        torch.manual_seed(3)
        found.append(ARMA2d(2, 50, 3, a_init=0.9, factors=2, stability=stability, dtype=torch.float64).taps())
    close(found[1], found[0], 1e-12)
    close(found[2], found[0], 1e-12)
    sums = found[0][..., 0] + found[0][..., 2]
    assert 0.9 < sums.abs().max() < math.tanh(math.log(10))


def test_parameters_past_any_bound_are_stable() -> None:
    for stability in ("bounded", "free_difference"):
        for dtype, margin in ((torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)):
            layer = ARMA2d(1, 4, 1, stability=stability, dtype=dtype)
            torch.nn.init.constant_(layer.alpha, 300)
            sums, _ = layer.coefficients()
            assert (sums == torch.tensor(1 - margin)).all()
            assert layer.gain().max() < 1.1 / margin**2
    wild = ARMA2d(1, 4, 1, stability="none")
    torch.nn.init.constant_(wild.alpha, 2)
    assert wild.gain().isinf().all()


def test_strides_and_dilations_are_of_the_moving_average() -> None:
    torch.manual_seed(0)
    layer = ARMA2d(2, 3, 3, stride=2, padding=2, dilation=2, a_init=0.5, dtype=torch.float64)
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    moved = nn.functional.conv2d(
        x, layer.moving_average.dense_weight(), layer.moving_average.bias, stride=2, padding=2, dilation=2
    )
    assert layer(x).shape == moved.shape
    close(whiten(layer(x), *layer.coefficients()), moved, 1e-12)


# Errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"factors": 0}, "factors=0 is no size"),
        ({"stability": "bound"}, 'stability="bound": there is no such parametrisation'),
        ({"a_init": 1.0}, "a_init=1.0 is no coefficient"),
        ({"a_init": "zeros"}, "a_init='zeros' is no coefficient"),
        ({"margin": 0.0}, "margin=0.0 below"),
        ({"margin": 1}, "margin=1 below"),
        ({"dtype": torch.complex64}, "dtype=torch.complex64 of an autoregression"),
        ({"stride": 0}, "stride=0 of 2 dimensions"),
        ({"a_stride": 2}, "a_stride"),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ARMA2d(2, 2, 3, **given)


def test_modules_and_inputs_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match=r"ARMA2d.from_conv takes nn.Conv2d, not Conv1d"):
        ARMA2d.from_conv(nn.Conv1d(2, 2, 3))
    zeros = torch.zeros(3, 1, 2)
    with pytest.raises(ShapeError, match="there are factors for 3 channels of 2 dimensions"):
        autoregress(torch.zeros(2, 4, 5), zeros, zeros)
    with pytest.raises(ShapeError, match="have shapes"):
        autoregress(torch.zeros(3, 4, 5), zeros, zeros[0])
    with pytest.raises(OperandError, match=r"an autoregression of torch.int64"):
        whiten(torch.zeros(3, 4, 5, dtype=torch.int64), zeros, zeros)


def test_a_dense_weight_has_no_rank() -> None:
    with pytest.raises(OptionError, match=r'rank=0.1 with form="dense"'):
        ARMA2d(3, 8, 3, rank=0.1)
    with pytest.raises(OptionError, match=r'rank=0.1 with form="dense"'):
        ARMA2d.from_conv(nn.Conv2d(3, 8, 3), rank=0.1)
    assert ARMA2d(3, 8, 3, form="cp", rank=0.5).moving_average.form == "cp"
