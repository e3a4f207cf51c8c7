"""The calls that steps become: of the kind that the plan says, and no more of them than needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import convein
from convein.lowering import fft
from convein.planner import kinds
from strategies import Case, cases

pytestmark = pytest.mark.filterwarnings("ignore::convein.ConveinWarning")

PRODUCTS = ("torch.mm(", "torch.bmm(", "torch.matmul(", "torch.dot(", "F.conv1d(", "F.conv2d(")
CALLS = {
    kinds.GEMM: PRODUCTS,
    kinds.BATCHED_GEMM: ("torch.bmm(", "torch.matmul("),
    kinds.ELEMENTWISE: (" * ",),
    kinds.OUTER: (" * ", "torch.mm("),
    kinds.DENSE: ("F.conv", ".unfold("),
    kinds.DEPTHWISE: ("F.conv", ".unfold("),
    kinds.GROUPED: ("F.conv", ".unfold("),
    kinds.MERGE: ("F.conv", ".unfold("),
}


@given(case=cases(operands=(2, 2)), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_step_is_lowered_as_the_kind_that_the_plan_prints(case: Case, dtype: torch.dtype) -> None:
    compiled = convein.compile(case.expression, *case.shapes, **case.options, dtype=dtype)
    if compiled.network.is_zero:
        return
    (step,) = compiled.plan.steps
    texts = [statement.expression for statement in compiled.program.statements]
    assert any(call in text for call in CALLS[step.kind] for text in texts), (step.kind, compiled.source)
    if step.kind in (kinds.GEMM, kinds.BATCHED_GEMM, kinds.ELEMENTWISE, kinds.OUTER):
        assert not any("groups=" in text or "padding=" in text for text in texts)


@pytest.mark.parametrize(
    ("expression", "shapes", "options"),
    [
        ("bl,l->bl|l", [(3, 500), (100,)], {}),
        ("bcl,cl->bcl|l", [(2, 4, 900), (4, 200)], {"flip": True, "padding": "full"}),
        ("bsl,tsl->btl|l", [(2, 3, 2000), (2, 3, 301)], {"stride": 3}),
        ("hw,hw->hw|hw", [(90, 80), (31, 31)], {"padding_mode": "circular"}),
        ("ncd,nd->ncd|d", [(40, 3, 200), (40, 200)], {"padding": "full", "signal": "largest"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_long_filters_go_through_transforms(
    expression: str,
    shapes: list[tuple[int, ...]],
    options: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]
    ours = convein.compile(expression, *leaves, **options)
    assert "torch.fft" in ours.source
    monkeypatch.setattr(fft, "pays", lambda *_: False)
    direct = convein.compile(expression, *leaves, **options)
    assert "torch.fft" not in direct.source
    value, expected = ours(*leaves), direct(*leaves)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(value.shape, dtype=dtype, generator=generator)
    for one, other in zip(
        torch.autograd.grad(value, leaves, weights), torch.autograd.grad(expected, leaves, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_what_transforms_cannot_hold_is_convolved_directly(dtype: torch.dtype) -> None:
    assert "fft" not in convein.compile("bcl,cl->bcl|l", (2, 4, 900), (4, 200), dtype=dtype).source


@pytest.mark.parametrize(
    ("expression", "shape", "taps", "transforms"),
    [
        ("bsf,tsf->btf|f", (8, 256, 1000), 63, False),
        ("bsf,tsf->btf|f", (8, 256, 1000), 255, True),
        ("bsf,tsf->btf|f", (2, 512, 1600), 127, False),
        ("bsf,sf->bsf|f", (8, 64, 8192), 127, False),
        ("bsf,sf->bsf|f", (8, 64, 8192), 1023, True),
    ],
)
def test_transforms_start_where_they_are_faster(
    expression: str, shape: tuple[int, ...], taps: int, transforms: bool
) -> None:
    """On one core the other way takes 1.5 to 7 times as long."""
    channels = (shape[1],) * (expression.index("->") - expression.index(",") - 2)
    assert ("fft" in convein.compile(expression, shape, (*channels, taps)).source) == transforms


def test_modes_that_only_the_signal_has_are_not_moved() -> None:
    source = convein.compile("bchw,ch->bchw|h", (2, 3, 8, 9), (3, 5), dtype=torch.float64).source
    assert "permute" not in source
    assert source.count("F.conv2d(") == 1


def test_a_pair_is_one_call_of_torch() -> None:
    x, w = torch.randn(2, 4, 9, 9, dtype=torch.float64), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    compiled = convein.compile("bshw,tshw->bthw|hw", x, w, stride=2, dilation=2, padding=1)
    assert len(compiled.program.statements) == 1
    assert torch.equal(compiled(x, w), F.conv2d(x, w, stride=2, dilation=2, padding=1))


def test_four_convolved_modes_unfold_the_shortest_filter() -> None:
    compiled = convein.compile("abcd,abcd->abcd|abcd", (5, 6, 7, 8), (3, 2, 3, 3), dtype=torch.float64)
    assert compiled.source.count(".unfold(") == 1
    assert "F.conv3d(" in compiled.source
