"""The matrix product of our own: values and derivatives of any order, and where it leaves the work to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from convein.execution import ops
from convein.execution.ops import linear

SHAPES = [(1, 1, 1), (40, 8, 5), (40, 5, 8), (7, 33, 33), (0, 3, 2), (3, 2, 0), (3, 0, 2)]


def operands(rows: int, channels: int, made: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(rows, channels, generator=numbers), torch.randn(made, channels, generator=numbers)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the results that the private operator made."""
    made: list[tuple[int, ...]] = []
    product = ops._product

    def counted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        made.append((x.shape[0], w.shape[0]))
        return product(x, w)

    monkeypatch.setattr(ops, "_product", counted)
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_linear_of_torch_with_its_gradients(shape: tuple[int, int, int]) -> None:
    x, w = operands(*shape)
    torch.testing.assert_close(linear(x, w), F.linear(x, w))
    leaves, exact = (x.requires_grad_(), w.requires_grad_()), (x.detach().double(), w.detach().double())
    for leaf in exact:
        leaf.requires_grad_()
    ours, theirs = linear(*leaves).square(), F.linear(*exact).square()
    for one, other in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), exact), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 3, 4)])
def test_its_gradients_have_gradients(shape: tuple[int, int, int]) -> None:
    x, w = (leaf.requires_grad_() for leaf in operands(*shape))
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, w)]

    def second(call: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        first = torch.autograd.grad(call(*leaves).pow(3).sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(each.pow(2).sum() for each in first), leaves))

    for one, other in zip(second(linear, [x, w]), second(F.linear, exact), strict=True):
        assert (one.double() - other).abs().max() / other.abs().max() < 1e-5


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_only_needed_gradients_are_computed(needed: tuple[bool, bool], products: list[tuple[int, ...]]) -> None:
    x, w = operands(40, 8, 5)
    leaves = [leaf.requires_grad_() for leaf, wanted in zip((x, w), needed, strict=True) if wanted]
    torch.autograd.grad(linear(x, w).sum(), leaves)
    assert len(products) == 1 + sum(needed)


def test_operands_may_lie_in_memory_in_any_way() -> None:
    x, w = operands(6, 8, 3)
    placed = [
        x.t().contiguous().t(),
        torch.randn(12, 16)[::2, ::2],
        torch.randn(1, 8).expand(6, 8),
        torch.randn(6, 1).expand(6, 8),
        torch.randn(100)[5:53].view(6, 8),
        torch._neg_view(x),
    ]
    for each in placed:
        torch.testing.assert_close(linear(each, w), F.linear(each, w))
        torch.testing.assert_close(linear(w, each), F.linear(w, each))


def test_the_gradient_may_be_expanded(products: list[tuple[int, ...]]) -> None:
    x, w = (leaf.requires_grad_() for leaf in operands(6, 8, 3))
    linear(x, w).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand(6, 8))
    assert len(products) == 3


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own switches warn of themselves
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_what_is_not_plain_work_is_left_to_torch(products: list[tuple[int, ...]]) -> None:
    x, w = operands(6, 8, 3)
    expected = F.linear(x, w)

    class Own(torch.Tensor):
        pass

    assert linear(x.double(), w.double()).dtype is torch.float64
    assert linear(x.bfloat16(), w.bfloat16()).dtype is torch.bfloat16
    assert linear(x.to("meta"), w.to("meta")).is_meta
    assert type(linear(x.as_subclass(Own), w)) is Own
    with FakeTensorMode() as mode:
        linear(mode.from_tensor(x), mode.from_tensor(w))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype is torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(linear(x, w), expected)
    torch.testing.assert_close(torch.vmap(lambda one: linear(one, w))(x[None])[0], expected)
    torch.testing.assert_close(torch.func.jvp(lambda one: linear(one, w), (x,), (x,))[1], expected)
    with forward_ad.dual_level():
        pair = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, x), w))
        torch.testing.assert_close(pair.tangent, expected)
    torch.testing.assert_close(torch.compile(linear, fullgraph=True, backend="aot_eager")(x, w), expected)
    assert not products
    linear(x, w)
    assert products == [(6, 3)]


def test_without_the_private_operator_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(6, 8, 3)
    monkeypatch.setattr(ops, "_private", None)
    torch.testing.assert_close(linear(x, w), F.linear(x, w))
