"""The planner: exact searches against all orders, costs, paths, what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Case, cases

import convein
from convein.network import Network
from convein.planner import Plan, plan
from convein.planner.plan import assemble

Order = tuple[tuple[int, int], ...]


def network_of(expression: str, *shapes: tuple[int, ...], **options: Any) -> Network:
    return convein.contract_path(expression, *shapes, **options)[1].plan.network


def every_order(count: int) -> Iterator[Order]:
    """All trees over `count` operands: (2n-3)!! of them."""

    def trees(members: tuple[int, ...]) -> Iterator[Any]:
        if len(members) == 1:
            yield members[0]
        for pattern in range(1, 1 << len(members) - 1):
            left = tuple(m for place, m in enumerate(members) if pattern >> place & 1)
            right = tuple(m for place, m in enumerate(members) if not pattern >> place & 1)
            yield from ((one, two) for one in trees(left) for two in trees(right))

    def steps(tree: Any, found: list[tuple[int, int]]) -> int:
        if isinstance(tree, int):
            return tree
        found.append((steps(tree[0], found), steps(tree[1], found)))
        return count + len(found) - 1

    for tree in trees(tuple(range(count))):
        found: list[tuple[int, int]] = []
        steps(tree, found)
        yield tuple(found)


def value(planned: Plan, cost: str) -> tuple[int, ...]:
    if cost == "memory" and planned.needs_grad:
        return planned.saved, planned.training_macs
    return {
        "flops": (planned.macs,),
        "training": (planned.training_macs,),
        "memory": (planned.largest, planned.macs),
    }[cost]


@pytest.mark.filterwarnings("ignore::convein.ConveinWarning")
@pytest.mark.parametrize("cost", ["flops", "training", "memory"])
@given(case=cases(operands=(3, 5)), needs_grad=st.integers(0, 31), constants=st.integers(0, 31))
def test_optimal_is_the_best_of_all_orders(case: Case, cost: str, needs_grad: int, constants: int) -> None:
    network = network_of(case.expression, *case.shapes, **case.options)
    assume(not network.is_zero)
    everything = network.everything
    needs_grad &= everything
    constants &= everything & ~needs_grad
    found = plan(network, optimize="optimal", cost=cost, needs_grad=needs_grad, constants=constants)
    best = min(
        value(assemble(network, order, optimizer="", cost="", needs_grad=needs_grad, constants=constants), cost)
        for order in every_order(len(network.operands))
    )
    assert value(found, cost) == best
