"""Dtypes, memory layouts, devices and modes: what a tensor may be besides a contiguous float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import convein
import reference

# name: expression, shapes, options
CALLS: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "matmul": ("ij,jk->ik", [(3, 4), (4, 5)], {}),
    "batched": ("bij,bjk,bk->bi", [(2, 3, 4), (2, 4, 5), (2, 5)], {}),
    "outer": ("i,j->ij", [(3,), (4,)], {}),
    "elementwise": ("bi,bi->bi", [(2, 3), (2, 3)], {}),
    "sum": ("ijk->j", [(2, 3, 4)], {}),
    "diagonal": ("iij->ji", [(3, 3, 2)], {}),
    "conv1d": ("bsh,tsh->bth|h", [(2, 3, 7), (4, 3, 3)], {}),
    "conv2d": ("bshw,tshw->bthw|hw", [(2, 3, 6, 5), (4, 3, 3, 2)], {"stride": 2, "padding": 1}),
    "depthwise": ("bchw,chw->bchw|hw", [(2, 3, 6, 5), (3, 3, 3)], {"dilation": 2}),
    "grouped": ("b(g s)h,(g t)sh->b(g t)h|h", [(2, 4, 6), (6, 2, 3)], {"sizes": {"g": 2}}),
    "cp": ("bshw,rt,rs,rh,rw->bthw|hw", [(2, 3, 5, 6), (4, 5), (4, 3), (4, 3), (4, 3)], {}),
    "transposed": ("bsh,sth->bth|h", [(2, 3, 5), (3, 4, 3)], {"transposed": True, "stride": 2}),
    "circular": ("bh,h,h->bh|h", [(2, 6), (3,), (2,)], {"padding_mode": "circular"}),
    "reflect": ("bhw,hw->bhw|hw", [(2, 6, 5), (3, 3)], {"padding_mode": "reflect"}),
    "full": ("h,h->h|h", [(6,), (3,)], {"padding": "full", "flip": True}),
    "four modes": ("abcd,abcd->abcd|abcd", [(3, 4, 3, 2), (2, 3, 2, 2)], {}),
    "subsampled": ("bh->bh|h", [(2, 7)], {"stride": 3}),
}
FLOATS = {
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.complex128: 1e-10,
}
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def operands_of(name: str, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = CALLS[name][1]
    if dtype.is_floating_point or dtype.is_complex:
        return [torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes]
    return [torch.randint(0, 4, shape, generator=generator, dtype=dtype) for shape in shapes]


def both(name: str, operands: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    expression, _, options = CALLS[name]
    return convein.conv_einsum(expression, *operands, **options), expected(name, operands)


def expected(name: str, operands: list[torch.Tensor]) -> torch.Tensor:
    expression, _, options = CALLS[name]
    dtype = operands[0].dtype
    exact = torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else torch.int64
    return reference.conv_einsum(expression, *(x.to(exact) for x in operands), **options).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_floats(name: str, dtype: torch.dtype) -> None:
    ours, theirs = both(name, operands_of(name, dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=FLOATS[dtype], atol=FLOATS[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["cp", "conv2d", "transposed", "circular", "batched"])
def test_gradients_have_the_operands_dtype(name: str, dtype: torch.dtype) -> None:
    expression, _, options = CALLS[name]
    operands = [x.requires_grad_() for x in operands_of(name, dtype)]
    value = convein.conv_einsum(expression, *operands, **options)
    assert value.dtype == dtype
    value.abs().sum().backward()
    assert [x.grad is not None and x.grad.dtype for x in operands] == [dtype] * len(operands)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_integers(name: str, dtype: torch.dtype) -> None:
    ours, theirs = both(name, operands_of(name, dtype))
    assert ours.dtype == dtype
    assert ours.tolist() == theirs.tolist()


def test_integers_beyond_the_reach_of_floats() -> None:
    x = torch.tensor([[2**53 + 1, 1, 2**60 + 7]])
    w = torch.tensor([1, 3, 1])
    ours = convein.conv_einsum("bh,h->bh|h", x, w)
    assert ours.tolist() == [[3 * (2**53 + 1) + 1, 2**53 + 1 + 3 + 2**60 + 7, 1 + 3 * (2**60 + 7)]]
    assert convein.conv_einsum("ij,jk->ik", x, w[:, None]).item() == 2**53 + 1 + 3 + 2**60 + 7


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    last = tuple(reversed(range(x.dim())))
    wide = torch.zeros([2 * n for n in x.shape], dtype=x.dtype)
    every_other = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    every_other.copy_(x)
    found = {
        "transposed": x.permute(last).contiguous().permute(last),
        "every other": every_other,
        "offset": torch.cat([torch.zeros(1, dtype=x.dtype), x.reshape(-1)])[1:].reshape(x.shape),
    }
    if x.dim() == 4:
        found["channels last"] = x.contiguous(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_layouts(name: str) -> None:
    operands = operands_of(name)
    _, theirs = both(name, operands)
    for layout in ("transposed", "every other", "offset", "channels last"):
        moved = [layouts(x).get(layout, x) for x in operands]
        expression, _, options = CALLS[name]
        torch.testing.assert_close(convein.conv_einsum(expression, *moved, **options), theirs, msg=layout)


@pytest.mark.parametrize("name", CALLS)
def test_expanded_operands(name: str) -> None:
    operands = [x[tuple(slice(0, 1) for _ in x.shape)].expand(x.shape) for x in operands_of(name)]
    ours, theirs = both(name, operands)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_the_operands_are_left_as_they_were(name: str) -> None:
    operands = operands_of(name)
    before = [x.clone() for x in operands]
    both(name, operands)
    assert all(torch.equal(x, y) for x, y in zip(operands, before, strict=True))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call[0].startswith("b")])
def test_an_empty_batch(name: str) -> None:
    expression, _, options = CALLS[name]
    operands = operands_of(name)
    batched = [x[:0] if term.startswith("b") else x for x, term in zip(operands, expression.split(","), strict=True)]
    leaves = [x.clone().requires_grad_() for x in batched]
    ours = convein.conv_einsum(expression, *leaves, **options)
    assert ours.shape == (0, *expected(name, operands).shape[1:])
    gradients = torch.autograd.grad(ours.sum(), leaves)
    assert [g.shape for g in gradients] == [x.shape for x in leaves]
    assert all((g == 0).all() for g in gradients)


def test_a_sum_over_nothing_is_zero() -> None:
    ours = convein.conv_einsum("ij,jk,kl->il", torch.randn(2, 3), torch.randn(3, 0), torch.randn(0, 4))
    assert torch.equal(ours, torch.zeros(2, 4))
    assert torch.equal(ours.add_(1), torch.ones(2, 4))
    x = torch.randn(2, 0, 5, requires_grad=True)
    ours = convein.conv_einsum("bsh,tsh->bth|h", x, torch.randn(3, 0, 3))
    assert torch.equal(ours, torch.zeros(2, 3, 5))
    assert torch.autograd.grad(ours.sum(), x)[0].shape == (2, 0, 5)


@pytest.mark.parametrize("name", CALLS)
def test_all_sizes_one(name: str) -> None:
    expression, shapes, options = CALLS[name]
    ones = [torch.full([1] * len(shape), 3.0) for shape in shapes]
    options = {k: v for k, v in options.items() if k not in {"sizes", "padding_mode"}}
    options |= {"padding": "same"} if "|" in expression else {}
    options |= {"sizes": {"g": 1}} if "(" in expression else {}
    ours = convein.conv_einsum(expression, *ones, **options)
    assert ours.flatten()[0] == 3.0 ** len(shapes)
    assert ours.sum() == 3.0 ** len(shapes)


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors(name: str) -> None:
    expression, _, options = CALLS[name]
    operands = operands_of(name, torch.float32)
    ours = convein.conv_einsum(expression, *(x.to("meta") for x in operands), **options)
    assert ours.device.type == "meta"
    assert ours.dtype == torch.float32
    assert ours.shape == expected(name, operands).shape


@pytest.mark.parametrize("name", ["cp", "batched", "circular"])
def test_any_operands_may_want_gradients(name: str) -> None:
    expression, shapes, options = CALLS[name]
    for mask in itertools.product([False, True], repeat=len(shapes)):
        ours = [x.requires_grad_(wanted) for x, wanted in zip(operands_of(name), mask, strict=True)]
        theirs = [x.requires_grad_(wanted) for x, wanted in zip(operands_of(name), mask, strict=True)]
        value = convein.conv_einsum(expression, *ours, **options)
        assert value.requires_grad == any(mask)
        if not any(mask):
            continue
        value.square().sum().backward()
        reference.conv_einsum(expression, *theirs, **options).square().sum().backward()
        for one, other, wanted in zip(ours, theirs, mask, strict=True):
            assert (one.grad is not None) == wanted
            if wanted:
                torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", CALLS)
def test_grad_modes_do_not_leak_through_the_cache(name: str) -> None:
    expression, _, options = CALLS[name]
    operands = [x.requires_grad_() for x in operands_of(name)]
    theirs = expected(name, operands).detach()
    with torch.inference_mode():
        value = convein.conv_einsum(expression, *operands, **options)
    torch.testing.assert_close(value, theirs)
    with torch.no_grad():
        assert convein.conv_einsum(expression, *operands, **options).grad_fn is None
    value = convein.conv_einsum(expression, *operands, **options)
    torch.testing.assert_close(value, theirs)
    gradients = torch.autograd.grad(value.sum(), operands)
    assert not any(g.is_inference() for g in gradients)


def test_one_tensor_in_many_places() -> None:
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    value = convein.conv_einsum("ij,jk,kl->il", x, x, x)
    torch.testing.assert_close(value, x @ x @ x)
    (ours,) = torch.autograd.grad(value.sum(), x)
    (theirs,) = torch.autograd.grad((x @ x @ x).sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["matmul", "conv2d", "cp"])
def test_autocast(name: str) -> None:
    expression, _, options = CALLS[name]
    operands = [x.requires_grad_() for x in operands_of(name, torch.float32)]
    theirs = expected(name, operands)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = convein.conv_einsum(expression, *operands, **options)
        mixed = convein.conv_einsum(expression, operands[0].bfloat16(), *operands[1:], **options)
    assert value.dtype == torch.bfloat16
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(value.float(), theirs, rtol=0.1, atol=0.2)
    value.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in operands)
    assert convein.conv_einsum(expression, *operands, **options).dtype == torch.float32


def test_sizes_of_a_real_layer() -> None:
    x, w = torch.randn(4, 48, 28, 28), torch.randn(64, 48, 3, 3)
    torch.testing.assert_close(
        convein.conv_einsum("bshw,tshw->bthw|hw", x, w, stride=2, padding=1),
        F.conv2d(x, w, stride=2, padding=1), rtol=1e-4, atol=1e-3,
    )  # fmt: skip
    a, b, k = torch.randn(16, 64), torch.randn(16, 48), torch.randn(16, 3, 3)
    dense = torch.einsum("rt,rs,rhw->tshw", a, b, k)
    torch.testing.assert_close(
        convein.conv_einsum("bshw,rt,rs,rhw->bthw|hw", x, a, b, k),
        F.conv2d(x, dense, padding=1), rtol=1e-3, atol=1e-2,
    )  # fmt: skip


def test_parameters_and_subclasses() -> None:
    class Tagged(torch.Tensor):
        pass

    x, w = torch.randn(2, 3), torch.nn.Parameter(torch.randn(3, 2))
    assert type(convein.conv_einsum("ij,jk->ik", x, w)) is torch.Tensor
    tagged = convein.conv_einsum("ij,jk->ik", x.as_subclass(Tagged), w)
    torch.testing.assert_close(torch.as_tensor(tagged).as_subclass(torch.Tensor), x @ w)
