"""Bytes: what the counters count, and that the predictions of an Expression are what torch then keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convein
from convein.metering import LiveMemory, MemoryCapError, SavedMemory, footprint
from strategies import Case, cases

# torch's reduced-precision complex numbers announce themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::convein.ConveinWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
]

LAYERS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    "CP": ("bshw,rt,rs,rh,rw->bthw|hw", ((8, 16, 12, 12), (5, 24), (5, 16), (5, 3), (5, 3))),
    "Tucker-2": ("bshw,rs,qrhw,tq->bthw|hw", ((8, 16, 12, 12), (5, 16), (6, 5, 3, 3), (24, 6))),
    "TT": ("bshw,sa,ahc,cwd,dt->bthw|hw", ((8, 16, 12, 12), (16, 5), (5, 3, 6), (6, 3, 7), (7, 24))),
    "TR": ("bshw,asc,chd,dwe,eta->bthw|hw", ((8, 16, 12, 12), (4, 16, 5), (5, 3, 3), (3, 3, 4), (4, 24, 4))),
    "RCP": ("b(s1 s2)hw,r(t1)(s1),r(t2)(s2),rhw->b(t1 t2)hw|hw", ((8, 16, 12, 12), (5, 6, 4), (5, 4, 4), (5, 3, 3))),
    "many pixels": ("bsf,rs,tr->btf", ((4, 64, 1600), (32, 64), (128, 32))),
    "long filters": ("bsh,tsh->bth|h", ((2, 3, 200), (4, 3, 90))),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int32)


def random(shape: tuple[int, ...], dtype: torch.dtype, grad: bool) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype).requires_grad_(grad)
    return torch.randint(-3, 3, shape, dtype=dtype)


def assert_predicted(expression: str, operands: list[torch.Tensor], **options: Any) -> None:
    grad = [place for place, x in enumerate(operands) if x.requires_grad]
    compiled = convein.compile(expression, *operands, **options, grad=grad)
    measured = footprint(compiled, operands)
    assert (compiled.saved_bytes, compiled.peak_bytes) == (measured.saved, measured.peak)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_bytes_are_predicted(name: str, dtype: torch.dtype) -> None:
    expression, shapes = LAYERS[name]
    for grads in ((True,) * 5, (False,) * 5, (False, True, True, True, True), (True, False, False, False, False)):
        operands = [random(shape, dtype, grad) for shape, grad in zip(shapes, grads, strict=False)]
        for options in ({}, {"checkpoint": True}, {"optimize": "left-to-right"}):
            assert_predicted(expression, operands, **options)
            last = [operands[0].detach().to(memory_format=torch.channels_last)] if operands[0].dim() == 4 else []
            if last:
                assert_predicted(expression, [last[0].requires_grad_(operands[0].requires_grad), *operands[1:]])


@given(case=cases(), data=st.data())
def test_the_bytes_of_any_expression_are_predicted(case: Case, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64]))
    grads = data.draw(st.lists(st.booleans(), min_size=len(case.shapes), max_size=len(case.shapes)))
    operands = [random(shape, dtype, grad) for shape, grad in zip(case.shapes, grads, strict=True)]
    assert_predicted(case.expression, operands, **case.options, checkpoint=data.draw(st.booleans()))


def test_free_sizes_and_constants() -> None:
    expression, shapes = LAYERS["CP"]
    w = torch.randn(shapes[1])
    shapes = ((None, *shapes[0][1:]), *shapes[2:])
    compiled = convein.compile(expression, *shapes, constants={1: w}, grad=[0, 2])
    operands = [torch.randn(32, *shapes[0][1:]), *map(torch.randn, shapes[1:])]
    for position in (0, 1):
        operands[position].requires_grad_()
    measured = footprint(compiled, operands)
    # The constant itself is one of the tensors kept, and it was there before.
    with SavedMemory([*operands, w]) as saved:
        compiled(*operands)
    assert (compiled.saved_bytes, compiled.peak_bytes) == (saved.bytes, measured.peak)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operands_with_gaps_in_memory(checkpoint: bool, requires_grad: bool) -> None:
    """A reshape of what is a view into a larger tensor is a copy."""
    w = torch.randn(16, 64, requires_grad=True)
    whole = torch.randn(4, 64, 66, 66)
    column = torch.randn(4, 64, 1, 1)
    for x in (whole[:, :, 1:65, 1:65], whole[:, ::2].mT.repeat(1, 2, 1, 1)[:, 1::2], column.expand(4, 64, 9, 9)):
        x = x.detach().requires_grad_(requires_grad)
        weight = w[:, : x.shape[1]].detach().requires_grad_()
        assert_predicted("bshw,ts->bthw", [x, weight], checkpoint=checkpoint)
        with SavedMemory([x, weight]) as saved:
            value = convein.conv_einsum("bshw,ts->bthw", x, weight, checkpoint=checkpoint)
        assert saved.bytes == 0 or not checkpoint
        torch.testing.assert_close(value, torch.einsum("bshw,ts->bthw", x, weight), rtol=1e-4, atol=1e-4)


def test_predictions_touch_no_memory_and_no_state() -> None:
    compiled = convein.compile("bij,bjk->bik", *[(1 << 20, 1 << 15, 1 << 15)] * 2)
    assert compiled.peak_bytes == 4 << 50
    compiled = convein.compile("ij,jk,kl->il", (4, 5), (5, 6), (6, 7), grad=True)
    alone = compiled.saved_bytes, compiled.peak_bytes
    with LiveMemory() as live, SavedMemory() as saved, torch.no_grad(), torch.autocast("cpu"):
        assert (compiled.saved_bytes, compiled.peak_bytes) == alone
    assert live.peak == saved.bytes == 0
    with torch.inference_mode():
        assert (compiled.saved_bytes, compiled.peak_bytes) == alone
    seen = []

    def inside(x: torch.Tensor) -> torch.Tensor:
        seen.append((compiled.saved_bytes, compiled.peak_bytes))
        return x.sum()

    torch.func.vmap(torch.func.grad(inside))(torch.ones(2, 3))
    assert seen == [alone]


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    x = torch.ones(10)
    with LiveMemory() as live:
        y = x + 1
        views = [y.view(2, 5), y[:3], y.t()]
        assert live.live == 40
        x.mul_(2)
        z = x.view(5, 2)
        assert live.live == 40
        del y
        assert live.live == 40
        views.clear()
        assert (live.live, live.peak) == (0, 40)
        w = x.double()
    assert (live.live, live.peak) == (80, 80)
    del w
    assert live.live == 0
    assert z.shape == (5, 2)


def test_what_autograd_keeps_is_alive_until_backward() -> None:
    x = torch.ones(10, requires_grad=True)
    with LiveMemory() as live:
        y = (x * 2).square().square().sum()
        assert live.live == 84
        y.backward()
        assert live.live == 44
    assert x.grad is not None


def test_meta_tensors_count_as_real_ones() -> None:
    x = torch.empty(1 << 40, device="meta")
    with LiveMemory() as live:
        (x * 2).sum()
    assert live.peak == (4 << 40) + 4


def test_a_cap_is_an_error_of_its_own() -> None:
    x = torch.ones(10)
    with LiveMemory(cap=100) as live:
        y = x + x
        z = y + x
        assert live.live == 80
        with pytest.raises(MemoryCapError, match=r"120 bytes are alive after aten.mul.Tensor, and the cap is 100"):
            z * y
        assert live.live == 80


def test_what_is_saved_counts_each_storage_once() -> None:
    x, w = torch.ones(4, 5, requires_grad=True), torch.ones(5, 6, requires_grad=True)
    with SavedMemory([x, w]) as saved:
        y = x @ w
        assert saved.bytes == 0
        (y * y.view(4, 6)).sum()
    assert saved.bytes == 96
