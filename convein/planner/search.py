"""Network -> Plan: the searches in one table, and what each `optimize` means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from operator import index
from typing import Any

from convein.errors import PlanError
from convein.network import Network
from convein.options import shown
from convein.planner import exhaustive, meeting
from convein.planner.borrowed import NAMES, ask, named
from convein.planner.costs import Objective, choose_cost
from convein.planner.exhaustive import search_all
from convein.planner.frame import Frame, connected_parts, frame, regroup
from convein.planner.greedy import search_greedily
from convein.planner.netcon import search_connected
from convein.planner.order import Order, graft, join_smallest, score
from convein.planner.partial import Partial, join, partial
from convein.planner.paths import NUMBERING, as_list, read_path
from convein.planner.plan import Path, Plan, steps_of
from convein.planner.rates import Rates
from convein.planner.subtrees import improve

# Pairs of sets that `optimal` looks at when it tries outer products, and `auto` in all: about 2 and 100 ms.
OUTER_PAIRS = 10_000
AUTO_PAIRS = 600_000
# A callable cost is called once for each pair: it counts so many times as much.
CALLABLE_COST = 100
MOST_BY_CALLABLE = 8

CONNECTED = "optimal without outer products"
IMPROVED = "greedy, subtrees optimal"

# An order, and the name of the search that found it.
Found = tuple[Order, str]
Search = Callable[[Frame, Sequence[Objective]], Found]


def plan(
    network: Network,
    *,
    optimize: Any = "auto",
    cost: Any = "auto",
    needs_grad: int = 0,
    constants: int = 0,
    rates: Rates | None = None,
) -> Plan:
    """The order in which the operands meet, one pair at a time.

    Args:
        network: what is planned.
        optimize: the search. "optimal" is exact: up to 12 operands among all orders. Above that, values which share no
            mode are joined only where a search of a few milliseconds can see through all such orders too, and parts
            that share none come last. "greedy" tries a few rules, for any size.
            "auto" (also True and None) is "optimal" as far as it is fast, then greedy with its subtrees searched.
            "measure" is the same here: only a call can measure.
            "left-to-right" (also False) takes the operands as they stand. Any other name of opt_einsum's searches; an
            optimiser of opt_einsum or cotengra, or a function with their arguments; or a path as opt_einsum writes it,
            whose steps of more than two operands are searched inside.
        cost: what it minimises. "flops": multiplications forward. "training": those of the gradients too. "memory":
            the largest result, or where gradients are needed the sum of the results kept for them; among the orders
            that reach this minimum the fewest multiplications. A callable `cost(step: StepSizes) -> float`: the sum
            over all steps. "time": microseconds by the machine's rates, with the backward pass where a gradient is
            needed. "auto": "time" where rates are known, else "training" if a gradient is needed, else "flops".
        needs_grad: the operands whose gradients are needed, as a bit set.
        constants: the operands that never change, as a bit set: what joins only these is done once, and costs nothing.
        rates: what the machine does per second, if that is known.

    Raises:
        PlanError: no such search or cost, or a path that does not fit.
    """
    name, objectives = choose_cost(cost, needs_grad, rates)
    values = [partial(network, 1 << position) for position in range(len(network.operands))]
    problem = frame(network, values, needs_grad, constants)
    order, optimizer, given = _found(problem, optimize, objectives)
    steps = steps_of(network, order, needs_grad, constants)
    total = score(problem, order, objectives)[0]
    table = rates.name if rates is not None and name == "time" else ""
    return Plan(network, steps, optimizer, name, total, needs_grad, constants, given=given, rates=table)


def _found(problem: Frame, optimize: Any, objectives: Sequence[Objective]) -> tuple[Order, str, Path]:
    """The order that `optimize` means, the name of what found it, and the path as given where it says more."""
    if optimize is None or isinstance(optimize, bool):
        optimize = "left-to-right" if optimize is False else "auto"
    name = getattr(optimize, "__name__", type(optimize).__name__)
    if isinstance(optimize, str):
        name = optimize.lower()
        if name in SEARCHES:
            return *SEARCHES[name](problem, objectives), ()
        found = named(name)
        if found is None:
            raise _unknown(optimize)
        optimize = found
    if isinstance(optimize, type):
        raise PlanError(f"optimize={name} is a class, and not an optimiser", hint=f"make one: optimize={name}()")
    if callable(optimize):
        if len(problem.values) <= 2:
            return _left_to_right(problem, objectives)[0], name, ()
        steps = read_path(ask(problem, optimize, name), len(problem.values), f"the path that {name} gave")
        return _along(problem, steps, objectives), name, ()
    optimize = as_list(optimize)
    if not isinstance(optimize, Sequence) or isinstance(optimize, bytes):
        hint = f"it is one of {_listed()}; a function (inputs, output, sizes, memory_limit); or a path: {NUMBERING}"
        raise PlanError(f"optimize={shown(optimize)} is neither a name, nor a path, nor an optimiser", hint=hint)
    steps = read_path(optimize, len(problem.values))
    given: Path = ()
    if steps and len(problem.values) > 1 and min(map(len, steps)) == 1 and max(map(len, steps)) == 2:
        given = tuple(tuple(map(index, step)) for step in optimize if step != "einsum_path")
    return _along(problem, steps, objectives), "path", given


def _along(problem: Frame, steps: Path, objectives: Sequence[Objective]) -> Order:
    """The order of a path; steps of one value do nothing, steps of more than two are searched."""
    count = len(problem.values)
    values: list[Partial] = list(problem.values)
    numbers = list(range(count))
    order: list[tuple[int, int]] = []
    for step in steps:
        joined = [values[value] for value in step]
        inner = ((0, 1),) if len(step) == 2 else _auto(regroup(problem, joined), objectives)[0]
        numbers.append(graft(order, [numbers[value] for value in step], inner, count))
        values.append(_joined(problem, joined))
    return tuple(order)


def _joined(problem: Frame, values: Iterable[Partial]) -> Partial:
    return reduce(lambda left, right: join(problem.network, left, right), values)


def _optimal(problem: Frame, objectives: Sequence[Objective]) -> Found:
    if len(problem.values) <= _most_for_all(objectives):
        return search_all(problem, objectives), "optimal"
    for met in problem.meetings:
        if len(met.leaves) > meeting.MOST_LEAVES:
            raise PlanError(
                f'optimize="optimal" searches up to {meeting.MOST_LEAVES} operands on one convolved mode, '
                f"and {len(met.leaves)} carry {met.convolution.mode}",
                hint='"auto" and "greedy" take any number',
            )
    parts = connected_parts(problem)
    if len(parts) > 1:
        return _apart(problem, parts, objectives, _optimal)
    known = improve(problem, search_greedily(problem, objectives), objectives)
    most = OUTER_PAIRS // CALLABLE_COST if objectives[0].each else OUTER_PAIRS
    found = search_connected(problem, objectives, known, outer=True, most=most)
    if found is not None:
        return found, "optimal"
    found = search_connected(problem, objectives, known)
    return (known, IMPROVED) if found is None else (found, CONNECTED)


def _auto(problem: Frame, objectives: Sequence[Objective]) -> Found:
    if len(problem.values) <= _most_for_all(objectives):
        return search_all(problem, objectives), "optimal"
    parts = connected_parts(problem)
    if len(parts) > 1:
        return _apart(problem, parts, objectives, _auto)
    known = improve(problem, search_greedily(problem, objectives), objectives)
    found = None
    if all(len(met.leaves) <= meeting.MOST_LEAVES for met in problem.meetings):
        most = AUTO_PAIRS // CALLABLE_COST if objectives[0].each else AUTO_PAIRS
        found = search_connected(problem, objectives, known, most=most)
    return (known, IMPROVED) if found is None else (found, CONNECTED)


def _most_for_all(objectives: Sequence[Objective]) -> int:
    return MOST_BY_CALLABLE if objectives[0].each else exhaustive.MOST_LEAVES


def _apart(problem: Frame, parts: Sequence[int], objectives: Sequence[Objective], search: Search) -> Found:
    """Parts that share no mode are searched one by one, and joined smallest first."""
    order: list[tuple[int, int]] = []
    made, sizes, used = [], [], set()
    for part in parts:
        places = [place for place in range(len(problem.values)) if part >> place & 1]
        inner, name = search(regroup(problem, (problem.values[place] for place in places)), objectives)
        used.add(name)
        made.append(graft(order, places, inner, len(problem.values)))
        sizes.append(_joined(problem, [problem.values[place] for place in places]).elements)
    graft(order, made, join_smallest(sizes), len(problem.values))
    return tuple(order), f"{', '.join(sorted(used))} in {len(parts)} parts"


def _greedy(problem: Frame, objectives: Sequence[Objective]) -> Found:
    return search_greedily(problem, objectives), "greedy"


def _left_to_right(problem: Frame, objectives: Sequence[Objective]) -> Found:  # noqa: ARG001 - a search like the others
    count = len(problem.values)
    return tuple((0 if step == 1 else count + step - 2, step) for step in range(1, count)), "left-to-right"


SEARCHES: Mapping[str, Search] = {
    "auto": _auto,
    "optimal": _optimal,
    "greedy": _greedy,
    "left-to-right": _left_to_right,
    "measure": _auto,
}


def _unknown(optimize: str) -> PlanError:
    close = get_close_matches(optimize.lower(), [*SEARCHES, *NAMES], n=1)
    guess = f"; did you mean {shown(close[0])}?" if close else ""
    hint = f"it is one of {_listed()}; a path; or an optimiser"
    return PlanError(f"optimize={shown(optimize)} is not known{guess}", hint=hint)


def _listed() -> str:
    return ", ".join(map(shown, [*SEARCHES, *NAMES]))
