"""Every order gives the tensor that the expression means, and so do its gradients and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convein
import reference
from strategies import Case, cases, orders, paths

pytestmark = pytest.mark.filterwarnings("ignore::convein.ConveinWarning")

KINDS = {
    "einsum": cases(convolved=0, operands=(1, 4)),
    "few": cases(operands=(1, 3)),
    "four": cases(operands=(4, 4)),
    "many": cases(operands=(5, 6), convolved=2),
}
SEARCHES = ("auto", "optimal", "greedy")
COSTS = ("auto", "flops", "training", "memory")


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def laid_out(operands: list[torch.Tensor], layout: str) -> list[torch.Tensor]:
    """The same values, in another order of memory."""
    if layout == "reversed":
        backwards = [tuple(reversed(range(x.dim()))) for x in operands]
        return [x.permute(b).contiguous().permute(b) for x, b in zip(operands, backwards, strict=True)]
    if layout == "strided":
        return [torch.stack([x, x + 1], -1)[..., 0] for x in operands]
    return operands


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_order_gives_the_oracles_tensor(kind: str, data: st.DataObject) -> None:
    case = data.draw(KINDS[kind])
    operands = laid_out(case.operands(), data.draw(st.sampled_from(["contiguous", "reversed", "strided"])))
    expected = reference.conv_einsum(case.expression, *operands, **case.options)
    count = len(operands)
    chosen: list[Any] = [*orders(count)] if count <= 4 else [data.draw(paths(count)), *SEARCHES]
    for optimize in [*chosen, "auto"]:
        ours = convein.conv_einsum(case.expression, *operands, **case.options, optimize=optimize)
        try:
            assert_same(ours, expected)
        except AssertionError as error:
            raise AssertionError(f"{case!r} with optimize={optimize!r}") from error


def gradients(
    function: Callable[..., torch.Tensor], operands: list[torch.Tensor], wanted: list[int], twice: bool
) -> list[torch.Tensor]:
    """The value, its gradients for fixed weights of the output, and the gradients of a sum of those."""
    leaves = [x.detach().requires_grad_(place in wanted) for place, x in enumerate(operands)]
    value = function(*leaves)
    inputs = [leaves[place] for place in wanted]
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    first = torch.autograd.grad(value, inputs, weights.requires_grad_(twice), create_graph=twice)
    if not twice:
        return [value, *first]
    total = sum(
        (gradient * torch.linspace(1, 3, max(gradient.numel(), 1))[: gradient.numel()].reshape(gradient.shape)).sum()
        for gradient in first
    )
    second = torch.autograd.grad(total, [*inputs, weights], allow_unused=True, materialize_grads=True)
    return [value, *first, *second]


def assert_gradients(case: Case, data: st.DataObject, twice: bool) -> None:
    count = len(case.shapes)
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1), label="operands with gradients"))
    optimize = data.draw(st.sampled_from(SEARCHES) | paths(count), label="optimize")
    cost = data.draw(st.sampled_from(COSTS), label="cost")
    ours = gradients(
        lambda *xs: convein.conv_einsum(case.expression, *xs, **case.options, optimize=optimize, cost=cost),
        case.operands(), wanted, twice,
    )  # fmt: skip
    theirs = gradients(
        lambda *xs: reference.conv_einsum(case.expression, *xs, **case.options), case.operands(), wanted, twice
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_gradients_are_the_oracles(kind: str, data: st.DataObject) -> None:
    assert_gradients(data.draw(KINDS[kind]), data, twice=False)


@given(data=st.data())
def test_second_derivatives_are_the_oracles(data: st.DataObject) -> None:
    assert_gradients(data.draw(cases(operands=(1, 4))), data, twice=True)


@given(data=st.data())
def test_an_explicit_order_is_the_order_taken(data: st.DataObject) -> None:
    case = data.draw(cases(operands=(2, 6), convolved=2))
    path = data.draw(paths(len(case.shapes)))
    taken, _ = convein.contract_path(case.expression, *case.shapes, **case.options, optimize=path)
    assert [tuple(sorted(step)) for step in taken] == [*path]


@given(case=cases())
def test_the_printed_program_is_what_runs(case: Case) -> None:
    operands = case.operands()
    call = convein.compile(case.expression, *operands, **case.options)
    names: dict[str, Any] = {}
    exec(compile(call.source, "printed", "exec"), names)
    assert torch.equal(names["program"](*operands), call(*operands))
    assert_same(call(*operands), reference.conv_einsum(case.expression, *operands, **case.options))


def free_modes(case: Case) -> list[str]:
    """Modes that only stand alone in their dimensions, with one size everywhere: any of them may be left open."""
    parsed = reference.parse(case.expression)
    if any(("...",) in term for term in parsed.inputs):
        return []
    sizes: dict[str, set[int]] = {}
    bound = {*parsed.convolved, *case.options.get("sizes", {})}
    for term, shape in zip(parsed.inputs, case.shapes, strict=True):
        for dimension, size in zip(term, shape, strict=True):
            if len(dimension) > 1:
                bound |= set(dimension)
            else:
                sizes.setdefault(dimension[0], set()).add(size)
    return sorted(mode for mode, found in sizes.items() if len(found) == 1 and mode not in bound)


def with_size(case: Case, mode: str, size: int | None) -> list[tuple[int | None, ...]]:
    terms = reference.parse(case.expression).inputs
    return [
        tuple(size if dimension == (mode,) else n for dimension, n in zip(term, shape, strict=True))
        for term, shape in zip(terms, case.shapes, strict=True)
    ]


@given(data=st.data())
def test_a_free_size_is_read_from_the_operands(data: st.DataObject) -> None:
    case = data.draw(cases().filter(free_modes))
    mode = data.draw(st.sampled_from(free_modes(case)))
    call = convein.compile(case.expression, *with_size(case, mode, None), **case.options, dtype=torch.float64)
    for size in (1, 2, 5):
        operands = [torch.randn(shape, dtype=torch.float64) for shape in with_size(case, mode, size)]
        assert_same(call(*operands), reference.conv_einsum(case.expression, *operands, **case.options))


@given(data=st.data())
def test_transforms_give_the_same_tensor(data: st.DataObject) -> None:
    """Long filters are convolved by FFT; here all are that can be."""
    case = data.draw(cases(operands=(2, 4), convolved=3).filter(lambda case: "|" in case.expression))
    dtype = data.draw(st.sampled_from([torch.float64, torch.complex128]))
    operands = case.operands(dtype)

    def legal(x: Any, w: Any, correlations: Any, kept: Any, target: Any) -> bool:
        return len(correlations) <= 3 and all(c.dilation == c.upsample == 1 for c in correlations)

    with mock.patch("convein.lowering.fft.pays", legal):
        call = convein.compile(case.expression, *operands, **case.options, optimize=data.draw(paths(len(operands))))
    assert_same(call(*operands), reference.conv_einsum(case.expression, *operands, **case.options))


@given(data=st.data())
def test_constants_are_folded_without_a_trace(data: st.DataObject) -> None:
    case = data.draw(cases(operands=(2, 5)))
    operands = case.operands()
    constants = sorted(data.draw(st.sets(st.integers(0, len(operands) - 1)), label="constants"))
    call = convein.compile(case.expression, *operands, **case.options, constants=constants)
    rest = [operand for place, operand in enumerate(operands) if place not in constants]
    assert_same(call(*rest), reference.conv_einsum(case.expression, *operands, **case.options))


@given(data=st.data())
def test_mapped_over_a_batch_it_is_the_calls_one_by_one(data: st.DataObject) -> None:
    case = data.draw(cases(operands=(1, 4)))
    first = case.operands()
    mapped = data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1), label="mapped")
    second = [x + 1 if place in mapped else x for place, x in enumerate(first)]
    stacked = [
        torch.stack([x, y], -1) if p in mapped else x for p, (x, y) in enumerate(zip(first, second, strict=True))
    ]
    ours = torch.func.vmap(
        lambda *xs: convein.conv_einsum(case.expression, *xs, **case.options),
        in_dims=tuple(-1 if place in mapped else None for place in range(len(first))),
    )(*stacked)
    for one, operands in zip(ours, (first, second), strict=True):
        assert_same(one, reference.conv_einsum(case.expression, *operands, **case.options))


@given(case=cases())
def test_the_canonical_text_means_the_same(case: Case) -> None:
    operands = case.operands()
    equation = convein.compile(case.expression, *operands, **case.options).network.equation
    text, sizes = str(equation), case.options.get("sizes")
    assert convein.compile(text, *operands, sizes=sizes).network.equation == equation
    ours = convein.conv_einsum(text, *operands, sizes=sizes)
    assert_same(ours, reference.conv_einsum(case.expression, *operands, **case.options))
