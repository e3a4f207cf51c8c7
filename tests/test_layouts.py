"""Whatever the machine's rates make the lowering choose, the program computes the same tensor."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convein
import reference
from convein.execution import run
from convein.lowering import Target, lower
from convein.planner import rates
from convein.planner.rates import SHIPPED, Rate
from strategies import cases

pytestmark = pytest.mark.filterwarnings("ignore::convein.ConveinWarning")

FREE = {
    "channels first": (rates.DENSE_FIRST, rates.GROUPED_FIRST, rates.DEPTHWISE_FIRST, rates.POINTWISE),
    "channels last": (rates.DENSE_LAST, rates.GROUPED_LAST, rates.DEPTHWISE_LAST, rates.ROWS),
    "matrices": (rates.MATRIX, rates.COPY),
    "transposed": (rates.ROWS, rates.TRANSPOSED, rates.DENSE_LAST),
    "rows": (rates.ROWS, rates.COPY, rates.DENSE_LAST),
}


def favouring(kinds: tuple[str, ...]) -> rates.Rates:
    """A machine on which calls of these classes take no time."""
    table = {kind: Rate(0, 1e9, 1e9) if kind in kinds else rate for kind, rate in SHIPPED.forward.items()}
    return replace(SHIPPED, name="made up", forward=table, backward=table)


@pytest.mark.parametrize("machine", FREE)
@given(data=st.data())
def test_every_choice_of_layout_gives_the_same_tensor(machine: str, data: st.DataObject) -> None:
    case = data.draw(cases(operands=(2, 4)))
    exact = case.operands()
    operands = [x.float() for x in exact]
    plan = convein.compile(case.expression, *operands, **case.options).plan
    memory = [tuple(data.draw(st.permutations(range(x.dim())))) for x in operands]
    placed = [
        x.permute(order).contiguous().permute(sorted(range(x.dim()), key=order.__getitem__))
        for x, order in zip(operands, memory, strict=True)
    ]
    program = lower(plan, Target(torch.float32, "cpu", dict(plan.network.sizes), favouring(FREE[machine])), memory)
    expected = reference.conv_einsum(case.expression, *exact, **case.options)
    torch.testing.assert_close(run(program, placed).double(), expected, rtol=2e-4, atol=2e-4)


def test_channels_are_brought_last_at_once() -> None:
    operands = [torch.randn(2, 5, 3, 4), torch.randn(6, 5, 3, 3)]
    plan = convein.compile("bshw,tshw->bthw|hw", *operands).plan
    program = lower(plan, Target(rates=favouring(FREE["transposed"])))
    assert "transposed(x0" in program.source
    torch.testing.assert_close(run(program, operands), torch.nn.functional.conv2d(*operands, padding=1))


@pytest.mark.parametrize("rank", [2, 24, 600])
def test_a_network_of_convolutions_keeps_its_channels_last(rank: int) -> None:
    """Whichever is larger, pixels or weights."""
    x = torch.randn(4, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    factors = [torch.randn(rank, 32), torch.randn(rank, 3), torch.randn(rank, 3), torch.randn(rank, 32)]
    compiled = convein.compile("bshw,rs,rh,rw,rt->bthw|hw", x, *factors, optimize="left-to-right")
    assert compiled(x, *factors).is_contiguous(memory_format=torch.channels_last)
    assert ".permute(0, 2, 3, 1).contiguous()" not in compiled.source


def test_the_price_of_a_program_is_that_of_its_statements() -> None:
    program = convein.compile("bshw,tshw->bthw|hw", (8, 16, 28, 28), (32, 16, 3, 3)).program
    assert program.price == sum(statement.price for statement in program.statements) > 0


@pytest.mark.parametrize("grad", [False, True])
def test_a_compiled_expression_takes_operands_in_any_memory_order(grad: bool) -> None:
    expression, shapes = "bhc,cab,ahb->bch|h", [(2, 7, 3), (3, 1, 2), (1, 3, 2)]
    compiled = convein.compile(expression, *shapes, flip=True, padding="valid", optimize=[(0, 1), (0, 1)], grad=grad)
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randint(-3, 4, shape, generator=generator).float() for shape in shapes]
    expected = reference.conv_einsum(expression, *[x.double() for x in operands], flip=True, padding="valid")
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        placed = [
            x.permute(order).contiguous().permute(sorted(range(3), key=order.__getitem__)).requires_grad_(grad)
            for x, order in zip(operands, orders, strict=True)
        ]
        value = compiled(*placed)
        torch.testing.assert_close(value.double(), expected)
        if grad:
            value.sum().backward()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rank", [64, 100])
def test_matrix_products_over_pixels_have_the_values_and_gradients_of_the_dense_layer(
    memory: torch.memory_format, rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in [(16, 64, 16, 16), (rank, 64), (rank, 3), (rank, 3), (rank, 48)]
    ]
    operands = [x.float().requires_grad_() for x in exact]
    operands[0] = exact[0].float().contiguous(memory_format=memory).requires_grad_()
    compiled = convein.compile("bshw,rs,rh,rw,rt->bthw|hw", *operands, optimize="left-to-right")
    assert compiled.source.count(" linear(") + compiled.source.count(" pointwise(") == 2
    leaves = [x.requires_grad_() for x in exact]
    weight = torch.einsum("rs,rh,rw,rt->tshw", *leaves[1:])
    ours, theirs = compiled(*operands), torch.nn.functional.conv2d(leaves[0], weight, padding=1)
    gradients = zip(
        torch.autograd.grad(ours.square().mean(), operands),
        torch.autograd.grad(theirs.square().mean(), leaves),
        strict=True,
    )
    for one, other in [(ours, theirs), *gradients]:
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < 1e-4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("text", ["bshw,sr,qrhw,qt->bthw|hw", "bshw,rs,qrhw,tq->bthw|hw"])
def test_small_products_have_few_rows_and_not_few_columns(text: str, memory_format: torch.memory_format) -> None:
    """A single picture meets factors of low rank: products with few columns are slow, copies of weights are cheap."""
    x = torch.randn(1, 64, 16, 16).contiguous(memory_format=memory_format)
    sizes = {"s": 64, "r": 3, "q": 3, "t": 64, "h": 3, "w": 3}
    factors = [torch.randn([sizes[mode] for mode in term]) for term in text.partition("->")[0].split(",")[1:]]
    leaves = [operand.requires_grad_() for operand in (x, *factors)]
    plan = convein.compile(text, *leaves, optimize=[(0, 1), (0, 2), (0, 1)]).plan
    orders = [(0, 2, 3, 1) if memory_format is torch.channels_last else (0, 1, 2, 3)]
    program = lower(plan, Target(torch.float32, "cpu", dict(plan.network.sizes), SHIPPED), orders)
    assert program.source.count("torch.mm(") == 2
    assert ".reshape(1, 3, 16, 16), " in program.source, program
    assert all(".contiguous()" not in s.expression or s.uses[0] in ("x1", "x2", "x3") for s in program.statements)
    found = run(program, leaves)
    exact = [operand.detach().double().requires_grad_() for operand in leaves]
    expected = reference.conv_einsum(text, *exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    gradient = torch.randn(found.shape)
    ours = torch.autograd.grad(found, leaves, gradient)
    theirs = torch.autograd.grad(expected, exact, gradient.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("rank", "first"), [(309, True), (458, False), (114, False)])
def test_many_channels_of_small_images_are_trained_channels_first(rank: int, first: bool) -> None:
    """Where they are so many that gradients take longer channels last, and oneDNN can split the blocks of others."""
    text, shapes = "bshw,tq,sr,qrhw->bthw|hw", [(32, 512, 4, 4), (512, rank), (512, rank), (rank, rank, 3, 3)]
    plan = convein.compile(text, *shapes, grad=True, optimize=[(0, 2), (1, 2), (0, 1)]).plan
    program = lower(plan, Target(torch.float32, "cpu", dict(plan.network.sizes), SHIPPED))
    assert (f".reshape(32, {rank}, 4, 4), " in program.source) is first, program


def test_a_product_of_low_rank_has_no_rows_of_a_page() -> None:
    """Channels first, the rows of an image of 32 x 32 are one: they would be in each other's way in the cache."""
    text, shapes = "bshw,tq,sr,qrhw->bthw|hw", [(1, 64, 32, 32), (64, 3), (64, 3), (3, 3, 3, 3)]
    plan = convein.compile(text, *shapes, optimize=[(0, 2), (1, 2), (0, 1)]).plan
    program = lower(plan, Target(torch.float32, "cpu", dict(plan.network.sizes), SHIPPED))
    assert ".reshape(1, 32, 32, 64).permute(0, 3, 1, 2)" in program.source, program


@pytest.mark.parametrize("grad", [False, True])
def test_modes_that_only_pass_beside_the_channels_are_groups(grad: bool) -> None:
    # A ring's inner modes: as images of their own they would be copied before and after the convolution.
    expression = "bshw,atc,csd,dhwa->bthw|hw"
    shapes = [(32, 64, 32, 32), (5, 64, 5), (5, 64, 5), (5, 3, 3, 5)]
    operands = [torch.randn(shape, requires_grad=grad) for shape in shapes]
    operands[0] = operands[0].detach().to(memory_format=torch.channels_last)
    program = lower(convein.compile(expression, *operands).plan, Target(), [(0, 2, 3, 1)])
    assert "groups=5" in program.source
    weight = torch.einsum("atc,csd,dhwa->tshw", *operands[1:])
    torch.testing.assert_close(
        run(program, operands), torch.nn.functional.conv2d(operands[0], weight, padding=1), rtol=1e-3, atol=1e-2
    )
