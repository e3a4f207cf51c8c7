"""Receptive fields: golden radii, theorem 6.3, and fields that are known by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arma.fields import LINE, measure
from convein.errors import OptionError, ShapeError
from convein.layers import ARMAStage, field_radius, receptive_field, theoretical_radius

ROWS = np.load(Path(__file__).parent / "golden" / "arma.npz")["erf/rows_L_K_dil_a_measured_theory"]


def test_in_inference_mode() -> None:
    conv, x = nn.Conv1d(2, 3, 3, padding=1), torch.randn(1, 2, 7)
    wanted = receptive_field(conv, x)
    with torch.inference_mode():
        for given in (x, x.clone()):
            torch.testing.assert_close(receptive_field(conv, given), wanted)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(f"{one:g}" for one in row[:4]))
def test_the_published_radii(row: np.ndarray) -> None:
    depth, kernel_size, dilation, coefficient, measured, theory = row
    stage = ARMAStage(int(kernel_size), float(coefficient), int(dilation))
    found = measure(int(depth), stage, 1, LINE)
    assert found.theory == pytest.approx(theory, abs=1e-9)
    assert found.radius == pytest.approx(measured, abs=1e-9)
    assert found.radius == pytest.approx(found.theory, abs=1e-6)


@settings(max_examples=12)
@given(
    st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.floats(0, 0.85), st.booleans(), st.sampled_from([1, 2])
)
def test_what_is_measured_is_the_theorem(
    depth: int, kernel_size: int, dilation: int, coefficient: float, two_sided: bool, dimensions: int
) -> None:
    """A single point has no radius to compare: rounding errors far from it, times squared distances, are 1e-5 then."""
    kernel_size += two_sided and kernel_size % 2 == 0
    stage = ARMAStage(kernel_size, coefficient, dilation, two_sided)
    found = measure(depth, stage, dimensions, LINE if dimensions == 1 else 256)
    assert found.radius == pytest.approx(found.theory, abs=1e-6)
    assert float(found.values.sum()) == pytest.approx(1)


def test_stages_may_differ() -> None:
    stages = [ARMAStage(3, 0.5), ARMAStage(5, 0.0, dilation=2), ARMAStage(1, 0.75, two_sided=True)]
    assert theoretical_radius(stages) == pytest.approx(math.sqrt(8 / 12 + 0.5 / 0.25 + 4 * 24 / 12 + 3))
    assert theoretical_radius([]) == 0


def test_a_field_by_hand() -> None:
    """Channels and the batch add up; magnitudes, not values; the stride is the input's business."""
    conv = nn.Conv2d(1, 2, 3, stride=2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 1] = -3
        conv.weight[1, 0, 0, 1] = 2
        conv.weight[1, 0, 2, 2] = 5
    x = torch.randn(2, 1, 7, 9, dtype=torch.float64)
    found = receptive_field(nn.Sequential(conv, nn.Identity()), x, (1, -1))
    wanted = torch.zeros(7, 9, dtype=torch.float64)
    wanted[2, 7], wanted[4, 8] = 0.5, 0.5
    torch.testing.assert_close(found, wanted)
    assert field_radius(found) == pytest.approx((1, 0.5))
    assert field_radius(found, (3, 8)) == pytest.approx((0, 0.5))
    assert not x.requires_grad
    assert conv.weight.grad is None


def test_any_module_even_without_gradients() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.Tanh(), nn.Conv1d(3, 4, 3, padding=1)).eval()
    with torch.no_grad():
        found = receptive_field(model, torch.randn(3, 2, 21))
    assert (found > 0).nonzero().flatten().tolist() == list(range(7, 14))
    assert not found.requires_grad


def test_what_does_not_fit() -> None:
    x = torch.randn(1, 1, 5, 5)
    with pytest.raises(ShapeError, match="the module makes"):
        receptive_field(nn.Flatten(), x)
    with pytest.raises(ShapeError, match=r"position=\(5, 0\) of an output"):
        receptive_field(nn.Identity(), x, (5, 0))
    with pytest.raises(OptionError, match="depends on no input"):
        receptive_field(nn.Threshold(1e9, 0.0), x)
    with pytest.raises(ShapeError, match=r"center=\(1,\) of a field"):
        field_radius(torch.ones(2, 2) / 4, (1,))
    with pytest.raises(OptionError, match=r"coefficient=1.0 of a stage"):
        theoretical_radius([ARMAStage(3, 1.0)])
    with pytest.raises(OptionError, match=r"stages=ARMAStage\(kernel_size=3, .*\) is one layer"):
        theoretical_radius(ARMAStage(3))  # type: ignore[arg-type]
    for field, sentence in (
        (torch.zeros(2, 2), "adds up to 0"),
        (torch.tensor([2.0, -1.0]), "adds up to 1, with values below 0"),
        (torch.tensor([1.0, math.nan]), "adds up to nan"),
    ):
        with pytest.raises(OptionError, match=sentence):
            field_radius(field)


def test_a_radius_does_not_depend_on_the_sum_of_the_field() -> None:
    field = torch.tensor([[1, 2, 1], [0, 3, 5]])
    for center in (None, (0, 1)):
        assert field_radius(field, center) == pytest.approx(field_radius(field / 12, center), abs=1e-6)
