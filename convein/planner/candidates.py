"""Network -> the best few Plans, for whoever knows better than the planner's costs which of them is the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from convein.network import Network
from convein.planner.chains import chains
from convein.planner.costs import COSTS, Objective, choose_cost
from convein.planner.frame import Frame, frame
from convein.planner.order import Order, Priced, score
from convein.planner.partial import partial
from convein.planner.plan import Plan, steps_of
from convein.planner.rates import Rates
from convein.planner.search import SEARCHES, Found
from convein.planner.several import MOST_LEAVES, search_several


def candidates(
    network: Network,
    count: int,
    *,
    cost: Any = "auto",
    needs_grad: int = 0,
    constants: int = 0,
    rates: Rates | None = None,
) -> tuple[Plan, ...]:
    """The `count` best orders of a network, or all if it has fewer; the best one first, no tree twice.

    Up to 8 operands they are the best of all orders, outer products included. By cost="memory" many orders may be
    equally good until their multiplications are counted: the very best is there, others like it may be missing. For
    more operands they are what the searches find, by every cost that is known.

    Args:
        network: what is planned.
        count: how many, 1 or more.
        cost: what is minimised, as for `plan`.
        needs_grad: the operands whose gradients are needed, as a bit set.
        constants: the operands that never change, as a bit set.
        rates: what the machine does per second, if that is known.

    Raises:
        PlanError: no such cost, or one that fails.
    """
    name, objectives = choose_cost(cost, needs_grad, rates)
    problem = _problem(network, needs_grad, constants)
    found: Iterable[Found] = _by_searches(problem, objectives, needs_grad, rates)
    if len(problem.values) <= MOST_LEAVES:
        found = [(order, "optimal") for order in search_several(problem, objectives, count)]
        found += [SEARCHES["optimal"](problem, objectives)] if len(objectives) > 1 else []
    trees: dict[frozenset[int], Found] = {}
    for order, optimizer in found:
        trees.setdefault(_tree(order, len(problem.values)), (order, optimizer))
    priced: Priced = {}
    ranked = sorted(trees.values(), key=lambda pair: score(problem, pair[0], objectives, priced))
    return tuple(_plan(problem, pair, (name, objectives, rates), (needs_grad, constants)) for pair in ranked[:count])


def chained(
    network: Network,
    count: int,
    *,
    cost: Any = "auto",
    needs_grad: int = 0,
    constants: int = 0,
    rates: Rates | None = None,
) -> tuple[Plan, ...]:
    """The `count` best of the orders that fused kernels are made for; arguments as for `candidates`."""
    name, objectives = choose_cost(cost, needs_grad, rates)
    problem = _problem(network, needs_grad, constants)
    found = ((order, "chain") for order in chains(network))
    plans = [_plan(problem, pair, (name, objectives, rates), (needs_grad, constants)) for pair in found]
    return tuple(sorted(plans, key=lambda plan: plan.total)[:count])


def _problem(network: Network, needs_grad: int, constants: int) -> Frame:
    leaves = [partial(network, 1 << position) for position in range(len(network.operands))]
    return frame(network, leaves, needs_grad, constants)


def _plan(
    problem: Frame, found: Found, cost: tuple[str, Sequence[Objective], Rates | None], operands: tuple[int, int]
) -> Plan:
    (order, optimizer), (name, objectives, rates) = found, cost
    steps = steps_of(problem.network, order, *operands)
    total = score(problem, order, objectives)[0]
    table = rates.name if rates is not None and name == "time" else ""
    return Plan(problem.network, steps, optimizer, name, total, *operands, rates=table)


def _by_searches(
    problem: Frame, objectives: Sequence[Objective], needs_grad: int, rates: Rates | None
) -> Iterator[Found]:
    """What `auto` finds by the cost that is asked for and by the others, what `greedy` finds, and left to right."""
    for name in ("auto", "greedy", "left-to-right"):
        yield SEARCHES[name](problem, objectives)
    for name, choose in COSTS.items():
        if name != "time" or rates is not None:
            yield SEARCHES["auto"](problem, choose(needs_grad, rates))


def _tree(order: Order, count: int) -> frozenset[int]:
    """The sets of leaves that an order makes: equal for orders that differ only in when and in which hand."""
    made = [1 << leaf for leaf in range(count)]
    for left, right in order:
        made.append(made[left] | made[right])
    return frozenset(made)
