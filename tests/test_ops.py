"""The calls of our own: values and derivatives of any order, and where they leave the work to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from convein.execution import ops
from convein.execution.ops import linear, pointwise, predicting, transposed

SHAPES = [(1, 1, 1), (40, 8, 5), (40, 5, 8), (7, 33, 33), (0, 3, 2), (3, 2, 0), (3, 0, 2)]


def operands(rows: int, channels: int, made: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(rows, channels, generator=numbers), torch.randn(made, channels, generator=numbers)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the results that the fast operators made."""
    made: list[tuple[int, ...]] = []
    product, shuffled = ops._product, ops._shuffled

    def counted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        made.append((x.shape[0], w.shape[0]))
        return product(x, w)

    def noted(x: torch.Tensor) -> torch.Tensor:
        made.append(tuple(x.shape))
        return shuffled(x)

    monkeypatch.setattr(ops, "_product", counted)
    monkeypatch.setattr(ops, "_shuffled", noted)
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


@pytest.mark.parametrize(
    ("shape", "pieces"), [((2048, 64, 65), 2), ((20480, 65, 64), 3), ((2048, 63, 80), 1), ((2047, 64, 65), 1)]
)
def test_many_rows_whole_pages_apart_are_summed_in_pieces(
    products: list[tuple[int, ...]], shape: tuple[int, int, int], pieces: int
) -> None:
    x, w = operands(*shape)
    w.requires_grad_()
    result = linear(x, w)
    products.clear()
    gradient = torch.randn_like(result)
    (found,) = torch.autograd.grad(result, w, gradient)
    assert len(products) == 2 * pieces  # each is transposed first
    copied = [shape[1] for shape in products if len(shape) == 3]
    assert pieces == 1 or all(rows % 1024 for rows in copied)
    exact = gradient.double().t() @ x.double()
    assert (found.double() - exact).abs().max() < 1e-5 * exact.abs().max()


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
    to_x, to_w = [(40, 8)], [(1, 40, 5), (5, 8)]
    assert products == [(40, 5), *(to_x if needed[0] else []), *(to_w if needed[1] else [])]


def test_operands_may_lie_in_memory_in_any_way() -> None:
    x, w = operands(6, 8, 3)
    placed = [
        x.t().contiguous().t(),
        torch.randn(12, 16)[::2, ::2],
        torch.randn(1, 8).expand(6, 8),
        torch.randn(6, 1).expand(6, 8),
        torch.randn(100)[5:53].view(6, 8),
        torch._neg_view(x),
        torch.randn(40).unfold(0, 8, 6),
        torch.randn(40).unfold(0, 8, 6).t().contiguous().t(),
        torch.randn(20).unfold(0, 8, 2),
        torch.randn(8).expand(6, 8),
    ]
    for each in placed:
        torch.testing.assert_close(linear(each, w), F.linear(each, w))
        torch.testing.assert_close(linear(w, each), F.linear(w, each))
        mine, theirs = each.detach().requires_grad_(), each.detach().requires_grad_()
        linear(mine, w).square().sum().backward()
        F.linear(theirs, w).square().sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        weight = w.detach().requires_grad_()
        linear(each, weight).sum().backward()
        torch.testing.assert_close(weight.grad, each.sum(0).expand(3, 8))


@pytest.mark.parametrize("call", [linear, lambda x, w: pointwise(x[None].transpose(1, 2), w)])
@pytest.mark.parametrize("frozen", [0, 1])
def test_what_no_gradient_needs_is_not_kept(call: Callable[..., torch.Tensor], frozen: int) -> None:
    leaves = list(operands(6, 8, 3))
    leaves[1 - frozen].requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = call(*leaves)
    assert kept == [leaves[frozen].data_ptr()]
    y.square().sum().backward()
    expected = leaves[1 - frozen].detach().clone().requires_grad_()
    pair = (leaves[0], expected) if frozen == 0 else (expected, leaves[1])
    F.linear(*pair).square().sum().backward()
    torch.testing.assert_close(leaves[1 - frozen].grad, expected.grad)


def test_the_gradient_may_be_expanded(products: list[tuple[int, ...]]) -> None:
    x, w = (leaf.requires_grad_() for leaf in operands(6, 8, 3))
    linear(x, w).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand(6, 8))
    assert len(products) == 4


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 64, 48), (3, 1, 7), (3, 7, 1), (1, 1, 1), (0, 2, 3), (2, 0, 3)])
def test_a_transposed_copy_is_contiguous_and_its_gradient_comes_back(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = transposed(x)
    assert y.is_contiguous()
    assert torch.equal(y, x.transpose(1, 2))
    weights = torch.randn(y.shape)
    (first,) = torch.autograd.grad((y.pow(3) * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, 3 * x.square() * weights.transpose(1, 2))
    torch.testing.assert_close(second, 6 * x * weights.transpose(1, 2))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)])
def test_what_is_transposed_may_lie_in_memory_in_any_way(order: tuple[int, int, int]) -> None:
    x = torch.randn(4, 5, 6).permute(order)
    for each in (x, x[:, ::2], x[:1].expand(3, -1, -1), torch._neg_view(x)):
        assert torch.equal(transposed(each), each.transpose(1, 2))


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (2, 5, 6, 8), (1, 1, 1, 1), (3, 4, 1, 2), (0, 2, 3, 4), (2, 2, 3, 0)])
def test_a_product_by_pixels_is_that_of_the_transposed(shape: tuple[int, int, int, int]) -> None:
    batch, channels, pixels, made = shape
    x = torch.randn(batch, channels, pixels, requires_grad=True)
    w = torch.randn(made, channels, requires_grad=True)
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, w)]

    def values(call: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        result = call(*leaves)
        first = torch.autograd.grad(result.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.pow(2).sum() for each in first), leaves)
        return [result, *first, *second]

    theirs = values(lambda x, w: torch.einsum("bsp,ts->bpt", x, w), exact)
    for one, other in zip(values(pointwise, [x, w]), theirs, strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=1e-3, atol=1e-3 * max(1.0, float(other.detach().abs().sum()))
        )
    with torch.no_grad():
        torch.testing.assert_close(pointwise(x, w).double(), theirs[0].detach(), rtol=1e-4, atol=1e-4)


def test_a_product_by_pixels_keeps_its_operands_only(products: list[tuple[int, ...]]) -> None:
    x, w = torch.randn(2, 8, 6, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = pointwise(x, w)
    assert kept == [x.data_ptr(), w.data_ptr()]
    assert products == [(2, 8, 6), (12, 5)]
    torch.autograd.grad(y.sum(), [x, w])
    assert products[2:] == [(12, 8), (2, 8, 6), (1, 12, 5), (5, 8)]
    torch.autograd.grad(pointwise(x, w.detach()).sum(), [x])
    assert products[6:] == [(2, 8, 6), (12, 5), (12, 8)]


def test_predictions_go_the_way_of_plain_tensors(products: list[tuple[int, ...]]) -> None:
    with FakeTensorMode(), predicting():
        pointwise(torch.empty(2, 8, 6), torch.empty(5, 8))
    assert products == [(2, 8, 6), (12, 5)]
    with FakeTensorMode():
        pointwise(torch.empty(2, 8, 6), torch.empty(5, 8))
    assert len(products) == 2


def product_of(x: torch.Tensor) -> torch.Tensor:
    return linear(x, torch.linspace(-1, 1, 3 * x.shape[1], dtype=x.dtype, device=x.device).reshape(3, -1))


def product_by_pixels_of(x: torch.Tensor) -> torch.Tensor:
    return pointwise(x[None], torch.eye(x.shape[0], dtype=x.dtype, device=x.device))[0]


def transpose_of(x: torch.Tensor) -> torch.Tensor:
    return transposed(x[None])[0]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own switches warn of themselves
@pytest.mark.filterwarnings("ignore:.*torch.jit.(script|trace). is deprecated")
@pytest.mark.parametrize("call", [product_of, transpose_of, product_by_pixels_of])
def test_what_is_not_plain_work_is_left_to_torch(
    call: Callable[[torch.Tensor], torch.Tensor], products: list[tuple[int, ...]]
) -> None:
    x = operands(6, 8, 3)[0]
    expected = call(x.double()).float()

    class Own(torch.Tensor):
        pass

    assert call(x.bfloat16()).dtype is torch.bfloat16
    assert call(x.to("meta")).is_meta
    assert type(call(x.as_subclass(Own))) is Own
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        call(mode.from_tensor(x))
    with torch.autocast("cpu", torch.bfloat16):
        call(x)
    torch.testing.assert_close(torch.vmap(call)(x[None])[0], expected)
    torch.testing.assert_close(torch.func.jvp(call, (x,), (x,))[1], expected)
    with forward_ad.dual_level():
        pair = forward_ad.unpack_dual(call(forward_ad.make_dual(x, x)))
        torch.testing.assert_close(pair.tangent, expected)
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.jit.trace(call, (x,), check_trace=False)(2 * x).shape == expected.shape
    assert not products
    torch.testing.assert_close(call(x), expected)
    assert products


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_a_switch_of_torch_turns_the_private_product_off(products: list[tuple[int, ...]]) -> None:
    x, w = operands(6, 8, 3)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(linear(x, w), F.linear(x, w))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype is torch.bfloat16
    assert not products


def test_without_the_private_operator_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operands(6, 8, 3)
    monkeypatch.setattr(ops, "_private", None)
    torch.testing.assert_close(linear(x, w), F.linear(x, w))


def slices() -> dict[str, torch.Tensor]:
    whole = torch.randn(48, 40, generator=torch.Generator().manual_seed(1))
    return {
        "packed": whole,
        "transposed": whole.t(),
        "columns": whole[:, :24],
        "rows of columns": whole[3:30, 5:25],
        "columns, transposed": whole[:, :24].t(),
        "every other row": whole[::2],
        "every other column": whole[:, ::2],
        "one row": whole[:1],
        "one column": whole[:, 3:4],
        "one column, transposed": whole[:, 3:4].t(),
    }


@pytest.mark.parametrize("name", slices())
def test_weights_with_gaps_are_copied_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided weights go to oneDNN's reference code."""
    w = slices()[name]
    given: list[torch.Tensor] = []
    private = ops._private

    def noted(x: torch.Tensor, w: torch.Tensor, *rest: object) -> torch.Tensor:
        given.append(w)
        made: torch.Tensor = private(x, w, *rest)
        return made

    monkeypatch.setattr(ops, "_private", noted)
    x = torch.randn(64, w.shape[1], requires_grad=True)
    leaf = w.detach().requires_grad_()
    value = linear(x, leaf)
    torch.testing.assert_close(value, F.linear(x, w))
    gradients = torch.autograd.grad(value.sum(), (x, leaf))
    for mine, theirs in zip(gradients, torch.autograd.grad(F.linear(x, leaf).sum(), (x, leaf)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(given) == 3
    for one in given:
        assert one.is_contiguous() or one.t().is_contiguous()
