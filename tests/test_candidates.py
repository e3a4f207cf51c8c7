"""The best few plans: against all orders of small networks, and what they are of large ones."""

from __future__ import annotations

from typing import Any

import networkx
import opt_einsum
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convein.planner import Plan, plan
from convein.planner.candidates import candidates
from convein.planner.costs import COSTS
from convein.planner.rates import SHIPPED
from strategies import Case, cases
from test_planner import CP, Order, every_order, graph_network, network_of, random_network, value

pytestmark = pytest.mark.filterwarnings("ignore::convein.ConveinWarning")


def tree(found: Plan) -> frozenset[int]:
    """The sets of operands that a plan makes."""
    return frozenset(step.result_set for step in found.steps)


def key(order: Order, count: int) -> frozenset[int]:
    made = [1 << operand for operand in range(count)]
    for left, right in order:
        made.append(made[left] | made[right])
    return frozenset(made[count:])


@pytest.mark.parametrize("cost", COSTS)
@settings(max_examples=60)
@given(
    case=cases(operands=(2, 5)), count=st.integers(1, 12), needs_grad=st.integers(0, 31), constants=st.integers(0, 31)
)
def test_they_are_the_best_of_all_orders(case: Case, cost: str, count: int, needs_grad: int, constants: int) -> None:
    network = network_of(case.expression, *case.shapes, **case.options)
    assume(not network.is_zero)
    needs_grad &= network.everything
    constants &= network.everything & ~needs_grad
    found = candidates(network, count, cost=cost, needs_grad=needs_grad, constants=constants, rates=SHIPPED)
    arguments = cost, needs_grad, constants
    every = sorted(value(network, order, *arguments) for order in every_order(len(network.operands)))
    assert len(found) == min(count, len(every)) == len(set(map(tree, found)))
    got = [value(network, each.ssa_path, *arguments) for each in found]
    assert got == sorted(got)
    assert got[0] == pytest.approx(every[0], rel=1e-9)
    assert [first for first, *_ in got] == pytest.approx([first for first, *_ in every[: len(got)]], rel=1e-9)
    assert [each.total for each in found] == pytest.approx([first for first, *_ in got], rel=1e-9)
    if cost != "memory":
        assert found[0] == plan(network, **_options(cost, needs_grad, constants), optimize="optimal")


def _options(cost: str, needs_grad: int, constants: int) -> dict[str, Any]:
    return {"cost": cost, "needs_grad": needs_grad, "constants": constants, "rates": SHIPPED}


@pytest.mark.parametrize("seed", range(6))
def test_of_seven_operands_each_one_that_is_missing_costs_more(seed: int) -> None:
    network = random_network(seed, 7)
    found = candidates(network, 10, cost="flops")
    trees = {key(order, 7): value(network, order, "flops", 0, 0) for order in every_order(7)}
    assert len(trees) == 10_395
    kept = [trees.pop(tree(each)) for each in found]
    assert len(kept) == 10
    assert max(kept) <= min(trees.values())


def test_a_callable_cost_is_called_for_every_step() -> None:
    network = network_of(*CP)
    found = candidates(network, 5, cost=lambda step: float(sum(step.result.values())))
    totals = sorted(
        sum(network.extent(mode, made) for made in key(order, 5) for mode in network.modes(made))
        for order in every_order(5)
    )
    assert [each.total for each in found] == totals[:5]


def test_of_many_operands_they_are_what_the_searches_find() -> None:
    network = graph_network(networkx.random_regular_graph(3, 12, seed=1), 0)
    found = candidates(network, 10, cost="flops", rates=SHIPPED)
    assert 1 < len(found) == len(set(map(tree, found)))
    totals = [each.total for each in found]
    assert totals == sorted(totals)
    assert totals[0] == plan(network, cost="flops").total
    assert "left-to-right" in {each.optimizer for each in found}
    assert candidates(network, 2, cost="flops", rates=SHIPPED) == found[:2]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_orders_that_cost_more_than_a_float_can_tell_are_orders_too(cost: str) -> None:
    bonds = ["".join(opt_einsum.get_symbol(20 * bond + place) for place in range(20)) for bond in range(4)]
    terms = [one + other for one, other in zip(bonds, [*bonds[1:], bonds[0]])]
    network = network_of(f"{','.join(terms)}->", *[(2**30,) * 40] * 4)
    assert len(candidates(network, 20, cost=cost, rates=SHIPPED)) == 15
