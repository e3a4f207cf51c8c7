"""Initialisation: the dense weight that the factors make has the variance of torch's layer, in every draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from convein.errors import OptionError
from convein.layers import FORMS, Conv1d, Conv2d, Conv3d, ConvEinsum, ConvTranspose2d, Linear

GAINS = {"kaiming": 2.0, "lecun": 1.0, "torch": 1 / 3, 1.5: 2.25, 3: 9.0}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mean_square(layer: ConvEinsum) -> float:
    return float(layer.double().dense_weight().detach().square().mean())


@pytest.mark.parametrize("rank", [1, 0.1, "same"])
@pytest.mark.parametrize("form", FORMS)
def test_the_mean_square_of_the_dense_weight(form: str, rank: Any) -> None:
    groups = 1 if form == "interleaved" else 2
    layers = [
        (Conv2d(12, 16, 3, form=form, rank=rank), 12 * 9),
        (Conv2d(7, 1, (1, 5), form=form, rank=rank), 7 * 5),
        (Conv1d(8, 12, 5, form=form, rank=rank, groups=groups), 8 * 5 // groups),
        (Conv3d(4, 4, 3, form=form, rank=rank, factors=2), 4 * 27),
        (ConvTranspose2d(12, 6, 3, form=form, rank=rank, groups=groups), 12 * 9 // groups),
        (Linear(48, 60, form=form, rank=rank, factors=4), 48),
    ]
    for layer, fan_in in layers:
        assert mean_square(layer) == pytest.approx(2 / fan_in, rel=1e-5)


@pytest.mark.parametrize("init", GAINS)
def test_every_gain(init: Any) -> None:
    for form in ("cp", "rtr"):
        assert mean_square(Conv2d(12, 16, 3, form=form, init=init)) == pytest.approx(GAINS[init] / 108, rel=1e-5)


def test_torchs_own_variance() -> None:
    """What "torch" says of torch's layers is so: 20,000 uniform numbers are off by less than 3 %."""
    weight = nn.Conv2d(40, 56, 3).weight.detach()
    assert float(weight.square().mean()) == pytest.approx(GAINS["torch"] / 360, rel=0.03)
    assert mean_square(Conv2d(40, 56, 3, init="torch")) == pytest.approx(GAINS["torch"] / 360, rel=1e-5)


def outputs(layer: Any, *shape: int) -> float:
    x = torch.randn(shape)
    with torch.no_grad():
        return float(layer(x).square().mean())


@pytest.mark.parametrize("form", FORMS)
def test_the_variance_of_the_output_over_200_draws(form: str) -> None:
    """White noise of variance 1 comes out with variance 2, to within 2 % of it.

    The stride is the kernel size, so that no two outputs read the same numbers: 200 draws have 200 * 16 * 36 = 115,200
    independent places. At one of them the mean of the squares over the channels is x^T A x with A = W^T W / T of trace
    2 and a rank of 1 at least, so its relative deviation is sqrt(2) at most, and that of the mean over all places
    sqrt(2 / 115,200) = 0.42 %. 2 % are almost five of it; a draw of a wrong scale would not be averaged away, as every
    weight has the exact norm.
    """
    layer = Conv2d(8, 12, 3, stride=3, bias=False, form=form, rank=0.1, factors=2)
    squares = []
    for _ in range(200):
        layer.reset_parameters()
        squares.append(outputs(layer, 16, 8, 18, 18))
    assert sum(squares) / 200 == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_variance_of_a_linear_layers_output(form: str) -> None:
    """As above, with 200 * 600 places."""
    layer = Linear(24, 36, bias=False, form=form, rank=0.2, init="lecun")
    squares = []
    for _ in range(200):
        layer.reset_parameters()
        squares.append(outputs(layer, 600, 24))
    assert sum(squares) / 200 == pytest.approx(1, rel=0.02)


def test_all_factors_have_the_same_deviation_and_a_mean_of_zero() -> None:
    layer = Conv2d(64, 64, 3, form="cp", rank=64)
    deviations = torch.stack([weight.detach().std() for weight in layer.weights])
    torch.testing.assert_close(deviations, deviations.mean().expand(4), rtol=0.2, atol=0)
    for weight in layer.weights:
        assert abs(float(weight.detach().mean())) < 5 * float(weight.detach().std()) / weight.numel() ** 0.5


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = Conv2d(12, 16, 3, form="tt", rank=0.5, dtype=dtype)
    wide = layer.to(torch.complex128 if dtype.is_complex else torch.float64)
    found = float(wide.dense_weight().detach().abs().square().mean())
    assert found == pytest.approx(2 / 108, rel=1e-5 if dtype in (torch.float64, torch.complex64) else 0.02)
    bias = wide.bias.detach()
    assert float(bias.abs().max()) <= 108**-0.5 * 2**0.5 * 1.01


def test_the_bias_is_torchs() -> None:
    bound = 108**-0.5
    biases = torch.cat([Conv2d(12, 100, 3).bias.detach() for _ in range(10)])
    assert float(biases.abs().max()) <= bound
    assert float(biases.square().mean()) == pytest.approx(bound**2 / 3, rel=0.1)


def test_no_draw() -> None:
    state = torch.get_rng_state()
    layer = Conv2d(12, 16, 3, init=None)
    assert torch.equal(torch.get_rng_state(), state)
    layer.reset_parameters()
    assert mean_square(layer) == pytest.approx(2 / 108, rel=1e-5)


def test_after_the_meta_device() -> None:
    layer = Conv2d(12, 16, 3, form="rtk", device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert mean_square(layer) == pytest.approx(2 / 108, rel=1e-5)


@pytest.mark.parametrize("init", ["xavier", "", 0, 0.0, -1, True, float("inf"), float("nan"), (1,)])
def test_no_such_initialisation(init: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Conv2d(4, 4, 3, init=init)
    assert repr(init) in caught.value.message
    assert "'kaiming', 'lecun', 'torch'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("expression", "sizes", "fan_in"),
    [
        ("bfshw,fghw,sthw->bgthw|hw", {"f": 2, "s": 3, "g": 4, "t": 5, "h": 3, "w": 2}, 6 * 5 * 3),
        ("bsh,srh,rth,h->bth|h[dilation=2]", {"s": 3, "r": 2, "t": 4, "h": 3}, 3 * 7),
        ("bsx,srh,rth->btxh|h", {"s": 3, "r": 2, "t": 4, "h": 3}, 3),
        ("bsx,srh,rth->btxh|h[padding=full, flip]", {"s": 3, "r": 2, "t": 4, "h": 3}, 3),
        ("bsx,srh,rth->btxh|h[padding=valid, stride=2]", {"s": 3, "r": 2, "t": 4, "h": 3}, 3),
        ("b(g s)h,(g t)sh->b(g t)h|h", {"g": 2, "s": 3, "t": 4, "h": 5}, 15),
        ("b(s h),(t h)s->b(t h)|h", {"s": 3, "t": 4, "h": 5}, 15),
        ("bss,sst->bt", {"s": 3, "t": 4}, 3),
        ("bs,rs,rs,rt->bt", {"r": 2, "s": 3, "t": 4}, 3),
        ("bs,s->bs", {"s": 3}, 1),
        ("bs,->bs", {}, 1),
    ],
)
def test_the_dense_weight_of_any_expression(expression: str, sizes: dict[str, int], fan_in: int) -> None:
    assert mean_square(ConvEinsum(expression, sizes)) == pytest.approx(2 / fan_in, rel=1e-5)
