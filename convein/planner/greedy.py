"""Frame -> order, one pair at a time, for networks of any size.

What is joined next is decided by a rule; several are tried and the best order is kept. The rules see exact sizes, those
of convolved modes included. Values that share no mode are joined when nothing else is left, smallest first. Nothing is
random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import log2

from convein.planner.costs import Objective
from convein.planner.frame import Frame
from convein.planner.order import Order, graft, join_smallest, score
from convein.planner.partial import Partial, join, multiplications

# (elements of left, right and result, multiplications) -> the smaller, the sooner.
Rule = Callable[[int, int, int, int], float]

RULES: tuple[Rule, ...] = (
    lambda left, right, result, _macs: result - left - right,
    lambda left, right, result, _macs: log2(max(result, 1)) - log2(max(left + right, 1)),
    lambda _left, _right, _result, macs: macs,
    lambda _left, _right, result, _macs: result,
)


def search_greedily(problem: Frame, objectives: Sequence[Objective]) -> Order:
    """The best of the orders that the rules make."""
    known: dict[tuple[int, int], tuple[int, int]] = {}
    orders = dict.fromkeys(_one_at_a_time(problem, rule, known) for rule in RULES)
    return min(orders, key=lambda order: score(problem, order, objectives))


def _one_at_a_time(problem: Frame, rule: Rule, known: dict[tuple[int, int], tuple[int, int]]) -> Order:
    network = problem.network
    values = list(problem.values)
    sizes = [value.elements for value in values]
    everywhere = set.intersection(*({*value.sizes} for value in values)) & {*network.output}
    holders: dict[str, set[int]] = {}
    alive: set[int] = set()
    queue: list[tuple[float, int, int]] = []

    def add(number: int) -> None:
        for other in sorted({other for mode in values[number].sizes for other in holders.get(mode, ())}):
            result, macs = _joined(problem, values[other], values[number], known)
            heappush(queue, (rule(sizes[other], sizes[number], result, macs), other, number))
        for mode in values[number].sizes:
            if mode not in everywhere:  # all pairs share it, to the end: it says nothing about which to join
                holders.setdefault(mode, set()).add(number)
        alive.add(number)

    for number in range(len(values)):
        add(number)
    order: list[tuple[int, int]] = []
    while queue:
        _, left, right = heappop(queue)
        if left in alive and right in alive:
            order.append((left, right))
            for number in (left, right):
                alive.remove(number)
                for mode in values[number].sizes:
                    holders.get(mode, set()).discard(number)
            values.append(join(network, values[left], values[right]))
            sizes.append(values[-1].elements)
            add(len(values) - 1)
    rest = sorted(alive)
    graft(order, rest, join_smallest(sizes[number] for number in rest), len(problem.values))
    return tuple(order)


def _joined(
    problem: Frame, left: Partial, right: Partial, known: dict[tuple[int, int], tuple[int, int]]
) -> tuple[int, int]:
    """Elements of the result and multiplications of a pair."""
    pair = left.operands, right.operands
    if pair not in known:
        known[pair] = join(problem.network, left, right).elements, multiplications(problem.network, left, right)
    return known[pair]
