"""The planner: exact searches against all orders, costs, paths, the table, and what is refused."""

from __future__ import annotations

import importlib
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import networkx
import numpy as np
import opt_einsum
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opt_einsum.testing import rand_equation

import convein
from convein.network import Network
from convein.planner import Plan, kinds, plan
from convein.planner.costs import COSTS, StepSizes, choose_cost
from convein.planner.exhaustive import search_all
from convein.planner.frame import Frame, connected_parts, frame
from convein.planner.greedy import search_greedily
from convein.planner.netcon import search_connected
from convein.planner.order import score
from convein.planner.partial import partial
from convein.planner.plan import steps_of
from convein.planner.rates import SHIPPED
from convein.planner.search import SEARCHES
from convein.planner.subtrees import improve
from strategies import Case, cases

Order = tuple[tuple[int, int], ...]

CP = "bshw,rt,rs,rh,rw->bthw|hw", (8, 64, 32, 32), (16, 64), (16, 64), (16, 3), (16, 3)
PUBLISHED = "ijk,jl,lmq,njpq->ijknp|j", (4, 7, 9), (10, 5), (5, 4, 2), (6, 8, 9, 2)

pytestmark = pytest.mark.filterwarnings("ignore::convein.ConveinWarning")


def cotengra(name: str, **options: Any) -> Any:
    """One of its optimisers; importing it adds names to opt_einsum's, so not while other tests are collected."""
    return getattr(importlib.import_module("cotengra"), name)(**options)


def network_of(expression: str, *shapes: tuple[int, ...], **options: Any) -> Network:
    return convein.contract_path(expression, *shapes, **options)[1].plan.network


def problem_of(network: Network, needs_grad: int = 0, constants: int = 0) -> Frame:
    values = [partial(network, 1 << place) for place in range(len(network.operands))]
    return frame(network, values, needs_grad, constants)


def every_order(count: int) -> Iterator[Order]:
    """All trees over `count` operands: (2n-3)!! of them."""

    def trees(members: tuple[int, ...]) -> Iterator[Any]:
        if len(members) == 1:
            yield members[0]
        for pattern in range(1, 1 << len(members) - 1):
            left = tuple(m for place, m in enumerate(members) if pattern >> place & 1)
            right = tuple(m for place, m in enumerate(members) if not pattern >> place & 1)
            yield from itertools.product(trees(left), trees(right))

    def steps(tree: Any, found: list[tuple[int, int]]) -> int:
        if isinstance(tree, int):
            return tree
        found.append((steps(tree[0], found), steps(tree[1], found)))
        return count + len(found) - 1

    for tree in trees(tuple(range(count))):
        found: list[tuple[int, int]] = []
        steps(tree, found)
        yield tuple(found)


def graph_network(graph: networkx.Graph, seed: int, largest: int = 6) -> Network:
    """An operand for each node, a summed mode for each edge."""
    generator = random.Random(seed)
    letters = {frozenset(edge): opt_einsum.get_symbol(number) for number, edge in enumerate(graph.edges)}
    sizes = {letter: generator.randint(2, largest) for letter in letters.values()}
    terms = [[letters[frozenset((node, other))] for other in graph[node]] for node in graph]
    expression = ",".join("".join(term) for term in terms) + "->"
    return network_of(expression, *[tuple(sizes[letter] for letter in term) for term in terms], optimize=False)


def random_network(seed: int, operands: int) -> Network:
    equation, shapes, _ = rand_equation(operands, 3, 2, 4, seed=seed, return_size_dict=True)
    return network_of(equation, *shapes, optimize=False)


def value(network: Network, order: Order, cost: str, needs_grad: int, constants: int) -> tuple[int, ...]:
    """What an order costs, added up from its steps."""
    plan = Plan(network, steps_of(network, order, needs_grad, constants), "", cost, 0, needs_grad, constants)
    if cost == "time":
        _, objectives = choose_cost(cost, needs_grad, SHIPPED)
        return score(problem_of(network, needs_grad, constants), tuple(order), objectives)
    if cost == "memory":
        return (plan.saved, plan.training_macs) if needs_grad else (plan.largest, plan.macs)
    return (plan.macs,) if cost == "flops" else (plan.training_macs,)


# Exactness


@pytest.mark.parametrize("cost", COSTS)
@settings(max_examples=100)
@given(case=cases(operands=(3, 5)), needs_grad=st.integers(0, 31), constants=st.integers(0, 31))
def test_optimal_is_the_best_of_all_orders(case: Case, cost: str, needs_grad: int, constants: int) -> None:
    network = network_of(case.expression, *case.shapes, **case.options)
    assume(not network.is_zero)
    needs_grad &= network.everything
    constants &= network.everything & ~needs_grad
    found = plan(network, optimize="optimal", cost=cost, needs_grad=needs_grad, constants=constants, rates=SHIPPED)
    arguments = cost, needs_grad, constants
    best = min(value(network, order, *arguments) for order in every_order(len(network.operands)))
    assert value(network, found.ssa_path, *arguments) == pytest.approx(best, rel=1e-9)
    assert found.total == pytest.approx(best[0], rel=1e-9)


@pytest.mark.parametrize("cost", [*COSTS, lambda step: len(step.left) * len(step.right) + sum(step.result.values())])
@settings(max_examples=60)
@given(case=cases(operands=(3, 6)), needs_grad=st.integers(0, 63), constants=st.integers(0, 63))
def test_both_exact_searches_agree(case: Case, cost: Any, needs_grad: int, constants: int) -> None:
    """The one for few operands and the one for many, where this joins values that share no mode, too."""
    network = network_of(case.expression, *case.shapes, **case.options)
    assume(not network.is_zero)
    needs_grad &= network.everything
    problem = problem_of(network, needs_grad, constants & network.everything & ~needs_grad)
    _, objectives = choose_cost(cost, needs_grad, SHIPPED)
    known = search_greedily(problem, objectives)
    found = search_connected(problem, objectives, known, outer=True)
    assert found is not None
    best = score(problem, search_all(problem, objectives), objectives)
    assert score(problem, found, objectives) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_connected_sets_are_exact_on_graphs(seed: int) -> None:
    network = graph_network(networkx.random_regular_graph(3, 10, seed=seed), seed)
    problem = problem_of(network)
    for cost in ("flops", "memory"):
        _, objectives = choose_cost(cost, 0, SHIPPED)
        worst = SEARCHES["left-to-right"](problem, objectives)[0]
        best = score(problem, search_all(problem, objectives), objectives)
        found = [search_connected(problem, objectives, worst, outer=outer) for outer in (False, True)]
        scores = [score(problem, order, objectives) for order in found if order is not None]
        assert scores[0] >= scores[1] == best


@pytest.mark.parametrize("seed", range(40))
def test_never_more_multiplications_than_opt_einsum_optimal(seed: int) -> None:
    network = random_network(seed, 3 + seed % 4)
    inputs = [frozenset(operand.modes) for operand in network.operands]
    path = opt_einsum.paths.optimal(inputs, frozenset(network.output), dict(network.sizes))
    theirs = plan(network, optimize=path, cost="flops")
    assert plan(network, optimize="optimal", cost="flops").macs <= theirs.macs
    assert plan(network, optimize="auto", cost="flops").macs <= theirs.macs


@pytest.mark.parametrize("seed", range(4))
def test_optimal_of_many_operands_is_not_worse_than_cotengra_optimal(seed: int) -> None:
    network = graph_network(networkx.random_regular_graph(3, 18, seed=seed), seed)
    theirs = plan(network, optimize=cotengra("OptimalOptimizer", minimize="flops"), cost="flops")
    ours = plan(network, optimize="optimal", cost="flops")
    assert ours.macs <= theirs.macs
    assert ours.macs <= plan(network, cost="flops").macs <= plan(network, optimize="greedy", cost="flops").macs


def test_outer_products_are_used_where_they_are_cheaper() -> None:
    # Both vectors are short, and the matrix-like middle is long in what is left: multiply the vectors first.
    network = network_of("a,b,abc->c", (2,), (2,), (2, 2, 100))
    assert [step.kind for step in plan(network).steps] == [kinds.OUTER, kinds.GEMM]
    assert plan(network).macs == 404


def test_improving_subtrees_reaches_what_is_known_to_be_best() -> None:
    network = graph_network(networkx.grid_2d_graph(3, 4), 0)
    problem = problem_of(network)
    _, objectives = choose_cost("flops", 0, SHIPPED)
    start = SEARCHES["left-to-right"](problem, objectives)[0]
    better = improve(problem, start, objectives)
    best = score(problem, search_all(problem, objectives), objectives)
    assert best <= score(problem, better, objectives) < score(problem, start, objectives)
    assert sorted(number for step in better for number in step) == list(range(2 * len(network.operands) - 2))


# Costs


def published(step: StepSizes) -> int:
    """A mode costs its largest size; where it is convolved, the square of that."""
    cost = 1
    convolved = {correlation.mode for correlation in step.correlations}
    for mode in step.modes:
        largest = max(step.given_sizes(mode))
        cost *= largest**2 if mode in convolved else largest
    return cost


def test_the_published_convention_gives_the_published_numbers() -> None:
    network = network_of(*PUBLISHED)
    assert f"{plan(network, optimize=False, cost=published).total:.3e}" == "4.212e+05"
    optimum = plan(network, optimize="optimal", cost=published)
    assert f"{optimum.total:.3e}" == "2.056e+05"
    assert optimum.path == ((1, 2), (1, 2), (0, 1))
    assert optimum.cost == "published"


def test_what_a_step_tells_a_callable() -> None:
    seen: list[StepSizes] = []

    def cost(step: StepSizes) -> float:
        seen.append(step)
        return 1.0

    network = network_of("bshw,tsh,u->bth|h", (2, 3, 8, 5), (4, 3, 3), (7,))
    plan(network, optimize=[(0, 1), (0, 1)], cost=cost, needs_grad=0b10)
    step = next(step for step in seen if (step.left_set, step.right_set) == (0b001, 0b010))
    assert step.left == {"b": 2, "s": 3, "h": 8}
    assert step.right == {"t": 4, "s": 3, "h": 3}
    assert step.result == {"b": 2, "h": 8, "t": 4}
    assert step.modes == ("b", "s", "h", "w", "t")
    assert [(c.mode, c.n, c.kernel, c.size) for c in step.correlations] == [("h", 8, 3, 8)]
    assert step.given_sizes("h") == (8, 3)
    assert step.given_sizes("w") == (5,)
    assert step.macs == 2 * 3 * 4 * 8 * 3
    assert (step.left_grad, step.right_grad) == (False, True)


def test_gradients_that_are_not_needed_change_the_order() -> None:
    network = network_of("ab,bc,cd->ad", (10, 11), (11, 12), (12, 13))
    for needs_grad in range(8):
        found = plan(network, needs_grad=needs_grad)
        assert found.cost == ("training" if needs_grad else "flops")
        for step in found.steps:
            sides = bool(step.left_set & needs_grad) + bool(step.right_set & needs_grad)
            assert step.backward_macs == step.macs * sides
        assert found.training_macs == sum(step.macs + step.backward_macs for step in found.steps)
    frozen = network_of("ab,bc,cd->ad", (10, 30), (30, 20), (20, 9))
    assert plan(frozen).path == plan(frozen, needs_grad=0b111).path == ((0, 1), (0, 1))
    assert plan(frozen, needs_grad=0b001).path == ((1, 2), (0, 1))


def test_constants_are_joined_once() -> None:
    network = network_of("ab,bc,cd->ad", (4, 50), (50, 50), (50, 50))
    assert plan(network).path == ((0, 1), (0, 1))
    folded = plan(network, constants=0b110)
    assert [step.folded for step in folded.steps] == [True, False]
    assert folded.macs == 4 * 50 * 50
    assert "folded" in str(folded)


def test_memory_prefers_small_results_then_few_multiplications() -> None:
    network = network_of("ab,bc,cd,de->ae", (2, 30), (30, 2), (2, 30), (30, 2))
    assert plan(network, cost="memory").largest == 4
    training = plan(network, cost="memory", needs_grad=0b1111)
    assert training.saved == 8
    assert training.saved_bytes(8) == 64
    assert "8.000e+00 elements besides the operands" in str(training)


def test_a_transposed_mode_counts_what_is_multiplied() -> None:
    network = network_of("sh,tsh->th|h", (3, 10), (4, 3, 5), transposed=True, stride=4, padding=0)
    assert network.output_shape == (4, 41)
    assert plan(network).macs == 3 * 4 * 10 * 5


def test_merging_filters_counts_their_product() -> None:
    network = network_of("h,h,h->h|h", (100,), (3,), (5,))
    by_filters = plan(network, optimize=[(1, 2), (0, 1)])
    assert [step.kind for step in by_filters.steps] == [kinds.MERGE, kinds.DENSE]
    assert [step.macs for step in by_filters.steps] == [3 * 5, 100 * 7]


def test_numbers_are_exact_integers_of_any_size() -> None:
    ring = networkx.cycle_graph(300)
    network = graph_network(ring, 0, largest=9)
    huge = network_of(str(network.equation), *[(10**9 + 7, 10**9 + 7)] * 300, optimize=False)
    for optimize in ("auto", "greedy", "left-to-right"):
        found = plan(huge, optimize=optimize)
        assert found.macs == 298 * (10**9 + 7) ** 3 + (10**9 + 7) ** 2
        assert len(found.steps) == 299
    dense = plan(graph_network(networkx.complete_graph(60), 1, largest=1000), optimize="auto")
    assert dense.macs > 10**300
    assert "e+" in str(dense)


# Kinds


@pytest.mark.parametrize(
    ("expression", "shapes", "kind"),
    [
        ("ab,bc->ac", ((2, 3), (3, 4)), kinds.GEMM),
        ("gab,gbc->gac", ((5, 2, 3), (5, 3, 4)), kinds.BATCHED_GEMM),
        ("ga,g->ga", ((2, 3), (2,)), kinds.ELEMENTWISE),
        ("a,b->ab", ((2,), (3,)), kinds.OUTER),
        ("bshw,tshw->bthw|hw", ((2, 3, 8, 8), (4, 3, 3, 3)), kinds.DENSE),
        ("tshw,bshw->bthw|hw[signal=1]", ((4, 3, 3, 3), (2, 3, 8, 8)), kinds.DENSE),
        ("brhw,rh->brhw|h", ((2, 3, 8, 8), (3, 3)), kinds.DEPTHWISE),
        ("rh,brhw->brhw|h[signal=1]", ((3, 3), (2, 3, 8, 8)), kinds.DEPTHWISE),
        ("b(g s)hw,(g t)shw->b(g t)hw|hw", ((2, 6, 8, 8), (8, 3, 3, 3)), kinds.GROUPED),
        ("bghw,gthw->bgthw|hw", ((2, 3, 8, 8), (3, 2, 3, 3)), kinds.GROUPED),
    ],
)
def test_the_kind_of_a_step(expression: str, shapes: Any, kind: str) -> None:
    sizes = {"sizes": {"s": 3}} if "(g s)" in expression else {}
    network = network_of(expression, *shapes, **sizes)
    assert plan(network).steps[0].kind == kind == kinds.classify(network, 0b01, 0b10)


def test_the_signal_is_on_the_left() -> None:
    network = network_of("rh,brhw,rw->brhw|h[signal=1],w[signal=1]", (3, 3), (2, 3, 8, 8), (3, 3))
    assert [(step.left, step.right) for step in plan(network, optimize=False).steps] == [(1, 0), (3, 2)]
    assert [(step.left, step.right) for step in plan(network, optimize=[(0, 2), (0, 1)]).steps] == [(0, 2), (1, 3)]


# Searches by name, by object, by path


@pytest.mark.parametrize("optimize", [True, None, "auto", "AUTO", "optimal", "Optimal"])
def test_names_for_the_best_order(optimize: Any) -> None:
    network = network_of(*CP)
    assert plan(network, optimize=optimize).path == plan(network).path
    assert plan(network, optimize=optimize).optimizer == "optimal"


@pytest.mark.parametrize("optimize", [False, "left-to-right"])
def test_left_to_right(optimize: Any) -> None:
    found = plan(network_of(*CP), optimize=optimize)
    assert found.ssa_path == ((0, 1), (5, 2), (6, 3), (7, 4))
    assert found.path == ((0, 1), (0, 3), (0, 2), (0, 1))
    assert found.optimizer == "left-to-right"


OPTIMISERS = {
    "RandomGreedy": lambda: opt_einsum.RandomGreedy(max_repeats=4, parallel=False),
    "DynamicProgramming": opt_einsum.DynamicProgramming,
    "BranchBound": lambda: opt_einsum.BranchBound(nbranch=2),
    "OptimalOptimizer": lambda: cotengra("OptimalOptimizer"),
    "GreedyOptimizer": lambda: cotengra("GreedyOptimizer"),
    "HyperOptimizer": lambda: cotengra("HyperOptimizer", methods=["greedy"], max_repeats=2, parallel=False),
    "greedy": lambda: opt_einsum.paths.greedy,
    "<lambda>": lambda: lambda inputs, output, sizes, memory_limit: [(0, 1)] * (len(inputs) - 1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("expression", [CP, PUBLISHED, ("ab,c,d->abcd", (2, 3), (4,), (5,))], ids=lambda e: e[0])
def test_borrowed_optimisers(name: str, expression: Any) -> None:
    network = network_of(*expression)
    found = plan(network, optimize=OPTIMISERS[name]())
    assert found.steps[-1].result_set == network.everything
    assert found.macs >= plan(network, optimize="optimal").macs
    assert found.optimizer == name


def test_borrowed_optimisers_see_one_size_for_each_mode() -> None:
    asked: list[Any] = []

    def watch(inputs: Any, output: Any, sizes: Any, memory_limit: Any) -> Any:
        asked.extend((inputs, output, sizes, memory_limit))
        return [(0, 1), (0, 1)]

    plan(network_of("bsh,ts,th->bth|h", (2, 3, 64), (5, 3), (5, 4)), optimize=watch)
    inputs, output, sizes, memory_limit = asked
    assert [len(modes) for modes in inputs] == [3, 2, 2]
    assert len(output) == 3
    assert sorted(sizes.values()) == [2, 3, 5, 16]  # the convolved mode: the geometric mean of 64 and 4
    assert memory_limit is None


@pytest.mark.parametrize(
    ("path", "ssa_path"),
    [
        ([(0, 1), (0, 1), (0, 1)], ((0, 1), (2, 3), (4, 5))),
        (["einsum_path", (0, 1), (0, 1), (0, 1)], ((0, 1), (2, 3), (4, 5))),
        ([[3, 2], [1, 0], [0, 1]], ((2, 3), (0, 1), (5, 4))),
        ([tuple(np.array([0, 3])), (0, 1), (0, 1)], ((0, 3), (1, 2), (4, 5))),
        ([(0,), (0, 1), (0, 1), (0, 1)], ((1, 2), (0, 3), (5, 4))),
    ],
)
def test_a_path_is_followed(path: Any, ssa_path: Order) -> None:
    network = network_of("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 6))
    found = plan(network, optimize=path)
    assert found.ssa_path == ssa_path
    assert found.optimizer == "path"


def test_a_step_of_many_is_planned_inside() -> None:
    network = network_of("ab,bc,cd,de,ef->af", (2, 30), (30, 2), (2, 30), (30, 2), (2, 3))
    assert plan(network, optimize=[(0, 1, 2, 3, 4)]).macs == plan(network).macs
    inside = plan(network, optimize=[(1, 2, 3), (0, 1, 2)])
    sets = [step.result_set for step in inside.steps]
    assert 0b01110 in sets
    best = min(
        value(network, order, "flops", 0, 0)
        for order in every_order(5)
        if any(step.result_set == 0b01110 for step in steps_of(network, order))
    )
    assert (inside.macs,) == best


def test_one_operand_has_no_step() -> None:
    for optimize in ("auto", "optimal", "greedy", "dp", False, [(0,)], [], opt_einsum.RandomGreedy()):
        found = plan(network_of("ab->b", (2, 3)), optimize=optimize)
        assert found.steps == ()
        assert found.path == ((0,),)
        assert (found.macs, found.largest, found.saved) == (0, 3, 0)


def test_parts_that_share_no_mode_are_planned_apart_and_joined_smallest_first() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    chains = [",".join(letters[at : at + 2] for at in range(start, start + 5)) for start in (0, 6, 12)]
    kept = "afglmr"
    shapes = [(2 + place % 3,) * 2 for place in range(15)]
    sizes = {letter: 2 + place % 4 for place, letter in enumerate(letters)}
    expression = ",".join(chains)
    shapes = [tuple(sizes[letter] for letter in term) for term in expression.split(",")]
    network = network_of(f"{expression}->{kept}", *shapes)
    assert connected_parts(problem_of(network)) == [0b11111, 0b11111 << 5, 0b11111 << 10]
    for optimize in ("auto", "optimal"):
        found = plan(network, optimize=optimize)
        assert found.optimizer == "optimal in 3 parts"
        assert [step.kind for step in found.steps[-2:]] == [kinds.OUTER, kinds.OUTER]
        sides = [math.prod(sizes[letter] for letter in kept[at : at + 2]) for at in (0, 2, 4)]
        assert found.steps[-2].macs == math.prod(sorted(sides)[:2])
        alone = sum(
            plan(network_of(f"{chain}->{chain[0]}{chain[-1]}", *shapes[5 * n : 5 * n + 5])).macs
            for n, chain in enumerate(chains)
        )
        assert found.macs == alone + found.steps[-2].macs + found.steps[-1].macs


def test_greedy_is_deterministic_and_takes_hundreds() -> None:
    network = graph_network(networkx.random_regular_graph(3, 200, seed=1), 1)
    assert plan(network, optimize="greedy").path == plan(network, optimize="greedy").path
    assert plan(network, optimize="auto").macs < plan(network, optimize="greedy").macs
    assert plan(network, optimize="greedy").macs < plan(network, optimize="eager").macs


def test_many_operands_on_one_convolved_mode() -> None:
    network = network_of(",".join(["h"] * 20) + "->h|h", (500,), *[(k,) for k in range(2, 21)])
    found = plan(network)
    assert found.optimizer == "greedy, subtrees optimal"
    merged = [step.right_set.bit_count() for step in found.steps if step.left_set & 1]
    assert found.macs <= plan(network, optimize="greedy").macs < plan(network, optimize=False).macs
    assert sum(merged) == 19


# The table


TABLE = (
    "  Complete contraction:  bshw,rt,rs,rh,rw->bthw|hw\n"
    "         Naive scaling:  8\n"
    "     Optimized scaling:  5\n"
    "      Naive FLOP count:  2.416e+10\n"
    "  Optimized FLOP count:  3.513e+07\n"
    "   Theoretical speedup:  6.878e+02\n"
    "  Largest intermediate:  5.243e+05 elements\n"
    "       Multiplications:  forward 1.756e+07, backward 2.674e+07\n"
    "    Saved for backward:  3.932e+05 elements besides the operands\n"
    "             Optimizer:  optimal, by training: 4.430e+07 multiplications\n"
    "--------------------------------------------------------------------------------------------------\n"
    "scaling  kind                    current  convolved     forward   backward               remaining\n"
    "--------------------------------------------------------------------------------------------------\n"
    "      5  GEMM              rs,bshw->rbhw              8.389e+06  8.389e+06  rt,rh,rw,rbhw->bthw|hw\n"
    "      5  depthwise conv  rbhw,rw->rbhw|w  w 32*3->32  3.932e+05  7.864e+05      rt,rh,rbhw->bthw|h\n"
    "      5  depthwise conv  rbhw,rh->rbhw|h  h 32*3->32  3.932e+05  7.864e+05           rt,rbhw->bthw\n"
    "      5  GEMM              rbhw,rt->bthw              8.389e+06  1.678e+07              bthw->bthw\n"
)


def test_the_table() -> None:
    assert str(plan(network_of(*CP), needs_grad=0b11110)) + "\n" == TABLE


def test_the_table_fits_the_screen() -> None:
    x, factor = "(batch)(channels)(height)(width)", "(rank)(height)"
    network = network_of(
        f"{x},(rank)(channels),{factor}->(batch)(rank)(height)(width)|(height)", (2, 3, 8, 8), (4, 3), (4, 3)
    )
    table = str(plan(network)).splitlines()[-5:]
    assert max(map(len, table)) <= 120
    assert table[-1].strip() == f"(rank)(batch)(height)(width),{factor}->(batch)(rank)(height)(width)|(height)"
    chain = ",".join(opt_einsum.get_symbol(n) + opt_einsum.get_symbol(n + 1) for n in range(40)) + "->a"
    table = str(plan(network_of(chain, *[(2, 2)] * 40))).splitlines()[-39:]
    assert max(map(len, table)) <= 120
    assert table[0].endswith("39 values")
    assert max(map(len, table[20:])) == len(table[20])
    long = "".join(opt_einsum.get_symbol(number) for number in range(40))
    network = network_of(f"{long},{long[:20]},{long[20:]}->", (2,) * 40, (2,) * 20, (2,) * 20)
    assert max(map(len, str(plan(network)).splitlines())) <= 120


def test_numbers_without_a_bar_are_those_of_opt_einsum() -> None:
    for seed in range(30):
        equation, shapes = rand_equation(5, 3, 2, 4, seed=seed)
        path, theirs = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="greedy")
        _, ours = convein.contract_path(equation, *shapes, optimize=path)
        assert ours.path == [tuple(sorted(step)) for step in path]
        for name in ("opt_cost", "naive_cost", "largest_intermediate", "scale_list", "size_list", "speedup", "eq"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("indices", "input_subscripts", "output_subscript", "size_dict", "shapes"):
            assert getattr(ours, name) == getattr(theirs, name)
        for mine, other in zip(ours.contraction_list, theirs.contraction_list, strict=True):
            assert (mine[0], mine[1], mine[2], mine[3]) == (other[0], other[1], other[2], other[3])


# What is refused


@pytest.mark.parametrize(
    ("optimize", "message"),
    [
        ("optimum", 'optimize="optimum" is not known; did you mean "optimal"?'),
        ("zzz", 'optimize="zzz" is not known'),
        (7, "optimize=7 is neither a name, nor a path, nor an optimiser"),
        ({(0, 1)}, "optimize={(0, 1)} is neither a name, nor a path, nor an optimiser"),
        (opt_einsum.RandomGreedy, "optimize=RandomGreedy is a class, and not an optimiser"),
        ([(0, 1)], "the path is incomplete: 2 values are left at its end"),
        ([(0, 3), (0, 1)], "step 0 of the path has the position 3, and 3 values are left, 0 to 2"),
        ([(0, -1), (0, 1)], "step 0 of the path has the position -1, and 3 values are left, 0 to 2"),
        ([(0, 1), (0, 1), (0, 1)], "step 2 of the path has the position 1, and one value is left, 0"),
        ([(0, 0), (0, 1)], "step 0 of the path has the position 0 twice"),
        ([(0, 1.5), (0, 1)], "step 0 of the path has the position 1.5, which is not an integer"),
        ([(), (0, 1), (0, 1)], "step 0 of the path is empty"),
        ([(0, 1), "01"], 'step 1 of the path is "01", and not a tuple of positions'),
        ([0, 1], "step 0 of the path is 0, and not a tuple of positions"),
        (lambda *_: [(0, 1)], "the path that <lambda> gave is incomplete: 2 values are left at its end"),
        (lambda *_: None, "the path that <lambda> gave is None, and not a list of tuples"),
        (lambda *_: 1 / 0, "the optimiser <lambda> failed: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_search(optimize: Any, message: str) -> None:
    network = network_of("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5))
    with pytest.raises(convein.PlanError) as caught:
        plan(network, optimize=optimize)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("flop", 'cost="flop" is not known; did you mean "flops"?'),
        ("quickly", 'cost="quickly" is not known'),
        (3, "cost=3 is neither a name nor a callable"),
        (lambda step: -1, "the callable cost gave -1 for the step that joins [a=2 b=3], [b=3 c=4]"),
        (lambda step: float("nan"), "the callable cost gave nan for the step that joins [a=2 b=3], [b=3 c=4]"),
        (lambda step: None, "the callable cost gave None for the step that joins [a=2 b=3], [b=3 c=4]"),
    ],
)
def test_what_is_no_cost(cost: Any, message: str) -> None:
    network = network_of("ab,bc->ac", (2, 3), (3, 4))
    with pytest.raises(convein.PlanError) as caught:
        plan(network, cost=cost)
    assert caught.value.message == message


def test_optimal_says_what_it_cannot_do() -> None:
    network = network_of(",".join(["h"] * 20) + "->h|h", (500,), *[(3,)] * 19)
    with pytest.raises(convein.PlanError, match="searches up to 16 operands on one convolved mode, and 20 carry h"):
        plan(network, optimize="optimal")
