"""gradcheck and gradgradcheck, by finite differences, of expressions one can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import convein

REAL, COMPLEX = torch.float64, torch.complex128

# name: expression, shapes, options, dtype
EXPRESSIONS: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any], torch.dtype]] = {
    "a matrix product": ("ij,jk->ik", [(2, 3), (3, 2)], {}, REAL),
    "a chain": ("ij,jk,kl->il", [(2, 2), (2, 3), (3, 2)], {}, COMPLEX),
    "a star": ("ra,rb,rc->abc", [(2, 2), (2, 3), (2, 2)], {}, REAL),
    "a trace": ("iij,j->", [(2, 2, 3), (3,)], {}, COMPLEX),
    "a 2d convolution": ("bshw,tshw->bthw|hw", [(1, 2, 4, 3), (2, 2, 3, 2)], {"stride": 2}, REAL),
    "a depthwise convolution": ("bch,ch->bch|h", [(2, 2, 5), (2, 3)], {"dilation": 2, "padding": "full"}, COMPLEX),
    "a cp layer": ("bshw,rt,rs,rh,rw->bthw|hw", [(1, 2, 3, 3), (2, 2), (2, 2), (2, 3), (2, 2)], {}, REAL),
    "a reshaped layer": ("b(s u)h,rs,ru,rht->bth|h", [(1, 4, 4), (2, 2), (2, 2), (2, 3, 2)], {"padding": 1}, REAL),
    "kernels composed": ("h,h,h->h|h", [(4,), (2,), (3,)], {"padding": "full", "flip": True}, COMPLEX),
    "a circular convolution": ("bh,h,h->bh|h", [(2, 4), (3,), (2,)], {"padding_mode": "circular"}, REAL),
    "a reflected border": ("bh,h->bh|h[stride=2]", [(2, 5), (3,)], {"padding_mode": "reflect"}, REAL),
    "a replicated border": ("bh,bh->bh|h", [(2, 3), (2, 2)], {"padding_mode": "replicate"}, COMPLEX),
    "a transposed convolution": (
        "bsh,sth,h->bth|h", [(1, 2, 3), (2, 2, 3), (2,)], {"transposed": True, "stride": 2}, REAL,
    ),
    "its circular kin": (
        "bh,h,h->bh|h", [(1, 3), (3,), (2,)], {"transposed": True, "stride": 2, "padding_mode": "circular"}, REAL,
    ),
    "four convolved modes": ("abcd,abcd->abcd|abcd", [(2, 3, 2, 2), (2, 2, 1, 2)], {}, REAL),
    "upsampling alone": ("bh->bh|h", [(2, 3)], {"transposed": True, "stride": 2}, REAL),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_gradients_of_both_orders(name: str) -> None:
    expression, shapes, options, dtype = EXPRESSIONS[name]
    generator = torch.Generator().manual_seed(1)
    operands = [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]

    def call(*xs: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(expression, *xs, **options)

    assert torch.autograd.gradcheck(call, operands, check_batched_grad=True, check_forward_ad=False)
    assert torch.autograd.gradgradcheck(call, operands)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_forward_mode_agrees() -> None:
    x, w = torch.randn(1, 2, 4, dtype=REAL, requires_grad=True), torch.randn(2, 2, 3, dtype=REAL, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *xs: convein.conv_einsum("bsh,tsh->bth|h", *xs, stride=2), (x, w), check_forward_ad=True
    )


def test_an_operand_without_gradient_gets_none() -> None:
    x, w = torch.randn(2, 5), torch.randn(3, requires_grad=True)
    convein.conv_einsum("bh,h->bh|h", x, w).sum().backward()
    assert x.grad is None
    assert w.grad is not None


def test_the_same_tensor_twice_gets_both_gradients() -> None:
    x = torch.randn(4, dtype=REAL, requires_grad=True)
    (ours,) = torch.autograd.grad(convein.conv_einsum("h,h->|h", x, x), x)
    y, z = x.detach().requires_grad_(), x.detach().requires_grad_()
    theirs = torch.autograd.grad(convein.conv_einsum("h,h->|h", y, z), (y, z))
    torch.testing.assert_close(ours, theirs[0] + theirs[1])


def test_a_window_that_is_empty_still_has_gradients() -> None:
    x, w = torch.randn(3, dtype=REAL, requires_grad=True), torch.randn(2, dtype=REAL, requires_grad=True)
    y = convein.conv_einsum("h,h->h|h", x, w, padding={"h": (9, 0)}, stride=30)
    assert y.tolist() == [0.0]
    assert [g.abs().sum().item() for g in torch.autograd.grad(y.sum(), (x, w))] == [0.0, 0.0]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    "expression", ["bshw,rs,rh,rw,rt->bthw|hw", "bshw,sr,whr,tr->bthw|hw", "b(g s)hw,hwsgt->b(g t)hw|hw"]
)
def test_second_derivatives_in_the_precision_that_has_its_own_kernels(
    expression: str, rank: int, batch: int, memory: torch.memory_format
) -> None:
    """Those of float64 run elsewhere: they say nothing about the calls of layers that are trained."""
    sizes = {"b": batch, "s": 4, "r": rank, "g": rank, "t": 5, "h": 3, "w": 3}
    inputs = expression.split("->", maxsplit=1)[0].split(",")
    shapes = [
        (batch, 4 * rank if "(" in inputs[0] else 4, 8, 8),
        *(tuple(map(sizes.__getitem__, i)) for i in inputs[1:]),
    ]
    numbers = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, dtype=torch.float64, generator=numbers) for shape in shapes]
    exact[0] = exact[0].contiguous(memory_format=memory)

    def second(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [leaf.requires_grad_() for leaf in leaves]
        value = convein.conv_einsum(expression, *leaves)
        first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))

    for one, other in zip(second([x.float() for x in exact]), second(exact), strict=True):
        assert (one.double() - other).abs().max() / other.abs().max() < 1e-3
