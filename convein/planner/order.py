"""Orders of a frame: what one costs, and how orders of parts become one.

An order numbers the leaves 0..n-1; its k-th pair makes value n+k, the last one is everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from math import prod

from convein.planner.costs import Objective, Pairs, StepSizes
from convein.planner.frame import Frame
from convein.planner.partial import Partial, join, multiplications

Order = tuple[tuple[int, int], ...]

# A time is a float: what takes longer than this takes this long.
ENDLESS = 10**90


# A step by the leaves of its sides, and the number of an objective.
Priced = dict[tuple[int, int, int], float]


def score(
    problem: Frame, order: Order, objectives: Sequence[Objective], priced: Priced | None = None
) -> tuple[float, ...]:
    """What an order costs by each objective; exact as long as the objective computes in integers.

    Steps are looked up in `priced`, and new ones added.
    """
    priced = {} if priced is None else priced
    network = problem.network
    values = list(problem.values)
    leaves = [1 << place for place in range(len(values))]
    totals: list[float] = [0] * len(objectives)
    for left, right in order:
        values.append(join(network, values[left], values[right]))
        leaves.append(leaves[left] | leaves[right])
        for number, objective in enumerate(objectives):
            key = leaves[left], leaves[right], number
            if (found := priced.get(key)) is None:
                sides = [(values[i], leaves[i]) for i in (left, right, -1)]
                found = priced[key] = _step(problem, objective, sides)
            totals[number] = max(totals[number], found) if objective.largest else totals[number] + found
    return tuple(totals)


def _step(problem: Frame, objective: Objective, sides: Sequence[tuple[Partial, int]]) -> float:
    (left, left_leaves), (right, right_leaves), (result, leaves) = sides
    grads = bool(left_leaves & problem.needs_grad), bool(right_leaves & problem.needs_grad)
    folded = leaves & ~problem.constant == 0
    if objective.each:
        return 0 if folded else float(objective.of(StepSizes(problem.network, left.operands, right.operands, *grads)))
    macs = 0 if folded else multiplications(problem.network, left, right)
    held = (0 if made & (made - 1) == 0 and made & problem.passed else value.elements for value, made in sides[:2])
    pairs = Pairs(macs, result.elements, next(held), next(held), *grads)
    if objective.timed:
        met = problem.network.join(left.operands, right.operands)
        taps = prod(c.kernel for c in met) if met else 0
        numbers = {"macs": macs, "elements": result.elements, "left": left.elements, "right": right.elements}
        limited = {name: float(min(number, ENDLESS)) for name, number in numbers.items()}
        return float(objective.of(replace(pairs, **limited, taps=taps)))
    found: float = objective.of(pairs)
    return found


def graft(steps: list[tuple[int, int]], numbers: Sequence[int], order: Order, operands: int) -> int:
    """Appends an order over the values `numbers` to the steps of an order over `operands`; returns what it makes."""
    made = list(numbers)
    for left, right in order:
        steps.append((made[left], made[right]))
        made.append(operands + len(steps) - 1)
    return made[-1]


def join_smallest(sizes: Iterable[int]) -> Order:
    """The order that always multiplies the two smallest of values that share no mode."""
    heap = [(size, number) for number, size in enumerate(sizes)]
    heapify(heap)
    order: list[tuple[int, int]] = []
    next_number = len(heap)
    while len(heap) > 1:
        (first, left), (second, right) = heappop(heap), heappop(heap)
        order.append((left, right))
        heappush(heap, (first * second, next_number))
        next_number += 1
    return tuple(order)
