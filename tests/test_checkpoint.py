"""checkpoint=: what is kept for backward fits the bytes allowed, costs the least time, and changes no value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings

import convein
from convein.lowering import Program
from convein.lowering.checkpoint import PART_OVERHEAD, Demand, choices
from convein.lowering.program import OPS
from convein.memory import draft, keeping
from convein.memory.observing import observe
from convein.metering import Footprint, Sample, SavedMemory, footprint
from strategies import Case, cases
from test_metering import LAYERS

pytestmark = [
    pytest.mark.filterwarnings("ignore::convein.ConveinWarning"),
    # torch's own derivatives of some operations are still torchscript.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

CP, CP_SHAPES = LAYERS["CP"]


def leaves(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def saved_by(call: Any, operands: list[torch.Tensor]) -> int:
    with SavedMemory(operands) as saved:
        call(*operands)
    return saved.bytes


def gradients(call: Any, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    value = call(*operands)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value, *torch.autograd.grad(value, operands, weights)]


def all_choices(program: Program, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Demand], list[Any]]:
    demands = observe(program, [Sample(shape, torch.float64, "cpu", (), grad=True) for shape in shapes])
    return demands, choices(program, demands)


def assert_every_budget_holds(expression: str, shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> None:
    plain = convein.compile(expression, *shapes, dtype=torch.float64, grad=True, **options)
    operands = leaves(shapes)
    expected = gradients(plain, operands)
    _, found = all_choices(plain.program, shapes)
    assert [choice.kept for choice in found] == sorted({choice.kept for choice in found}, reverse=True)
    assert plain.saved_bytes == found[0].kept
    assert found[-1].kept == 0
    for budget in {0, 1, found[0].kept, *(choice.kept for choice in found), *(choice.kept - 1 for choice in found)}:
        if budget < 0:
            continue
        compiled = convein.compile(expression, *shapes, dtype=torch.float64, checkpoint=budget, **options)
        assert saved_by(compiled, operands) == compiled.saved_bytes <= budget
        for ours, theirs in zip(gradients(compiled, operands), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_stays_within_every_budget(name: str) -> None:
    expression, shapes = LAYERS[name]
    assert_every_budget_holds(expression, shapes, {})


@settings(max_examples=60)
@given(case=cases(operands=(2, 5)))
def test_every_expression_stays_within_every_budget(case: Case) -> None:
    assert_every_budget_holds(case.expression, case.shapes, case.options)


def subsets(items: list[str]) -> Iterator[frozenset[str]]:
    return map(frozenset, chain.from_iterable(combinations(items, size) for size in range(len(items) + 1)))


def brute_force(program: Program, demands: list[Demand]) -> dict[int, float]:
    """The least time for each number of bytes kept, over all sets of kept values and of statements that run twice."""
    made = {s.target: (s, d) for s, d in zip(program.statements, demands, strict=True)}
    best: dict[int, float] = {}
    free = {name for name, (_, d) in made.items() if not d.bytes}
    for kept in subsets([name for name in made if name not in free]):
        for forced in subsets([name for name, (_, d) in made.items() if d.unnamed]):
            asking = {name for name, (_, d) in made.items() if d.saves - kept - free} | forced
            again: set[str] = set()
            waiting = list(asking)
            while waiting:
                for used in made[waiting.pop()][0].uses:
                    if used in made and used not in kept | again | free:
                        again.add(used)
                        waiting.append(used)
            inside = asking | again
            read = {used for name, (s, d) in made.items() for used in (s.uses if name in inside else d.saves)}
            total = sum(made[name][1].bytes for name in read & kept)
            total += sum(d.unnamed for name, (_, d) in made.items() if name not in inside)
            time = sum(made[name][1].time for name in again)
            time += sum(made[name][1].until_saved + PART_OVERHEAD for name in asking - again)
            best[total] = min(time, best.get(total, time))
    return best


def assert_optimal(program: Program, shapes: tuple[tuple[int, ...], ...]) -> None:
    demands, found = all_choices(program, shapes)
    best = brute_force(program, demands)
    for budget in best:
        least = min(time for kept, time in best.items() if kept <= budget)
        ours = next(choice for choice in found if choice.kept <= budget)
        assert ours.time == pytest.approx(least)


@pytest.mark.parametrize("name", LAYERS)
def test_the_choice_for_a_layer_is_the_fastest(name: str) -> None:
    expression, shapes = LAYERS[name]
    assert_optimal(convein.compile(expression, *shapes, dtype=torch.float64, grad=True).program, shapes)


@given(case=cases(operands=(2, 4)))
def test_the_choice_is_the_fastest(case: Case) -> None:
    options = {"dtype": torch.float64, "grad": True, "optimize": "left-to-right"}
    program = convein.compile(case.expression, *case.shapes, **case.options, **options).program
    assume(len(program.statements) <= 8)
    assert_optimal(program, case.shapes)


@given(case=cases(operands=(1, 6)))
def test_every_value_is_read_by_one_statement(case: Case) -> None:
    """The search for what to keep relies on it."""
    program = convein.compile(case.expression, *case.shapes, **case.options, grad=True).program
    made = {statement.target for statement in program.statements}
    read = [name for statement in program.statements for name in dict.fromkeys(statement.uses) if name in made]
    assert len(read) == len(set(read))


def test_the_program_shows_what_is_computed_again() -> None:
    compiled = convein.compile(CP, *CP_SHAPES, checkpoint=True)
    assert str(compiled.program) == compiled.source
    assert "from torch.utils.checkpoint import checkpoint\n" in compiled.source
    (part,) = compiled.program.parts
    assert f"{part}\n\ndef program(x0, x1, x2, x3, x4):\n" in compiled.source
    assert f" = checkpoint(part1, {part.parameters[0]}, " in compiled.source
    namespace: dict[str, Any] = {}
    exec(compiled.source, namespace)
    operands = leaves(CP_SHAPES, torch.float32)
    assert torch.equal(namespace["program"](*operands), compiled(*operands))
    assert saved_by(namespace["program"], operands) == 0


@pytest.mark.parametrize("checkpoint", [True, 30_000])
def test_free_sizes(checkpoint: int) -> None:
    compiled = convein.compile(CP, (None, None, 12, 12), *CP_SHAPES[1:], checkpoint=checkpoint, dtype=torch.float64)
    operands = leaves(CP_SHAPES)
    expected = gradients(lambda *xs: convein.conv_einsum(CP, *xs), operands)
    for ours, theirs in zip(gradients(compiled, operands), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_constants_stand_outside() -> None:
    constants = {position: torch.randn(CP_SHAPES[position], dtype=torch.float64) for position in (1, 3, 4)}
    rest = (CP_SHAPES[0], CP_SHAPES[2])
    operands = leaves(rest)
    expected = gradients(convein.compile(CP, *rest, constants=constants, grad=True), operands)
    for budget in (0, 10**9):
        compiled = convein.compile(CP, *rest, constants=constants, checkpoint=budget)
        with SavedMemory([*operands, *constants.values(), *compiled._folded]) as saved:
            compiled(*operands)
        assert saved.bytes == compiled.saved_bytes
        assert ("checkpoint(" in compiled.source) is (budget == 0)
        for ours, theirs in zip(gradients(compiled, operands), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        namespace: dict[str, Any] = {}
        exec(compiled.source, namespace)
        whole = [*operands]
        for position, constant in constants.items():
            whole.insert(position, constant)
        torch.testing.assert_close(namespace["program"](*whole), expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("checkpoint", [True, 10_000, 100_000])
def test_second_derivatives(checkpoint: int) -> None:
    shapes = ((1, 2, 3, 3), (2, 2), (2, 2), (2, 3), (2, 3))

    def call(*operands: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(CP, *operands, checkpoint=checkpoint if checkpoint is True else checkpoint // 1000)

    assert torch.autograd.gradgradcheck(call, leaves(shapes))


@pytest.mark.parametrize("checkpoint", [True, 30_000])
def test_the_rest_of_torch(checkpoint: int) -> None:
    def call(*operands: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(CP, *operands, checkpoint=checkpoint)

    operands = leaves(CP_SHAPES, torch.float32)
    expected = gradients(lambda *xs: convein.conv_einsum(CP, *xs), operands)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for ours, theirs in zip(gradients(compiled, operands), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    mapped = torch.func.vmap(call, in_dims=(0, *[None] * 4))(torch.stack([operands[0], operands[0] * 2]), *operands[1:])
    torch.testing.assert_close(mapped[1], expected[0] * 2, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients(call, operands)
    assert low[0].dtype is torch.bfloat16
    for ours, theirs in zip(low, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.1, atol=3.0)
    with torch.no_grad():
        assert torch.equal(call(*operands), convein.conv_einsum(CP, *operands))


def test_another_order_is_taken_where_it_is_faster_than_computing_again() -> None:
    expression, shapes = LAYERS["TR"]
    samples = [Sample(shape, torch.float32, "cpu", (), grad=True) for shape in shapes]
    costs = ("time", "memory")
    programs = [convein.compile(expression, *shapes, grad=True, cost=cost).program for cost in costs]
    hungry, lean = (draft(program, samples, frozenset()) for program in programs)
    budget = choices(lean.rest, observe(lean.rest, samples))[0].kept
    assert budget < choices(hungry.rest, observe(hungry.rest, samples))[0].kept
    for price, plan in ((1e9, lean.rest.plan), (-1e9, hungry.rest.plan)):
        first, *others = hungry.rest.statements
        priced = replace(hungry, rest=replace(hungry.rest, statements=(replace(first, price=price), *others)))
        chosen = keeping([priced, lean], budget)
        assert chosen.rest.plan == plan
        assert bool(chosen.rest.parts) is (price < 0)


# They exist in float32 only, and for large operands only.
MATRICES = "bsf,rs,tr->btf", ((4, 64, 1600), (32, 64), (128, 32))
PICTURES = "bshw,tshw->bthw|hw", ((8, 64, 32, 32), (64, 64, 3, 3))


@pytest.mark.parametrize("name", OPS)
def test_our_own_operators_are_observed(name: str) -> None:
    expression, shapes = PICTURES if name == "transposed" else MATRICES
    operands = leaves(shapes, torch.float32)
    for checkpoint in (False, True):
        compiled = convein.compile(expression, *operands, checkpoint=checkpoint)
        assert f"{name}(" in compiled.source
        assert footprint(compiled, operands) == Footprint(compiled.saved_bytes, compiled.peak_bytes)
    assert compiled.saved_bytes == 0
