"""Frame -> order, by sets of leaves, cheapest first: exact for many operands that are sparsely connected.

Sets of leaves are finished in the order of what it costs to make them, as in Knuth's generalisation of Dijkstra's
algorithm: a finished set is joined with every finished set that is disjoint from it and shares a mode. Once all leaves
are finished as one set, its cost is the minimum, because the sum (or the largest) of step costs that are not negative
never falls by joining. What costs more than an order that is known already is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from convein.planner.costs import Objective, StepSizes
from convein.planner.finished import TOTAL, FinishedSets, Joins
from convein.planner.frame import Frame
from convein.planner.meeting import Array
from convein.planner.order import Order, score

# Sums of floats in another order differ in their last digits.
SLACK = 1 + 1e-9
# Finishing a set takes as long as looking at so many pairs.
PAIRS_A_SET = 100
MOST = 1e300


def search_connected(
    problem: Frame, objectives: Sequence[Objective], known: Order, *, outer: bool = False, most: int | None = None
) -> Order | None:
    """The best order, or `known` if none is better; None if finding it looks at more than `most` pairs of sets.

    None, too, if even `known` costs more than floats can tell.

    Args:
        problem: a connected network.
        objectives: what to minimise.
        known: any order; the cheaper it is, the faster the search.
        outer: whether values that share no mode may be joined, too.
        most: how many pairs may be looked at.
    """
    rules: list[_Rule] = []
    for objective in objectives:
        bound = score(problem, known, [objective])[0]
        if bound > MOST:
            return None
        search = _Search(problem, objective, bound, rules, outer)
        last = objective is objectives[-1]
        with np.errstate(over="ignore"):
            if not search.run(most, beyond=not last):
                return None
        known = search.order() or known
        if not last:
            rules.append(_Rule(objective, score(problem, known, [objective])[0], search.totals))
    return known


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """Which steps keep an earlier objective at its `minimum`; `totals` are its least values for sets of leaves."""

    objective: Objective
    minimum: float
    totals: Mapping[int, float]


class _Search:
    """One pass, for one objective."""

    def __init__(self, problem: Frame, objective: Objective, bound: float, rules: Sequence[_Rule], outer: bool) -> None:
        self.problem, self.objective, self.rules, self.outer = problem, objective, rules, outer
        self.bound = bound * SLACK
        self.everything = (1 << len(problem.values)) - 1
        self.sets = FinishedSets(
            problem, timed=any(rule.timed for rule in (objective, *(rule.objective for rule in rules)))
        )
        self.totals: dict[int, float] = {}
        self.made: dict[int, tuple[int, int]] = {}
        self.queue: list[tuple[float, int, int, int]] = []
        self.pairs = 0
        # Whether the step that reads a value costs something in any case.
        self.reads = objective.at_least_elements and not problem.constant

    def run(self, most: int | None, *, beyond: bool) -> bool:
        """Finishes sets until all leaves are one; `beyond`: all sets that cost no more. False if `most` is reached."""
        best: dict[int, float] = {}
        for leaf in range(len(self.problem.values)):
            self._finish(1 << leaf, self.sets.touching(leaf), 0.0, best)
        while self.queue:
            total, leaves, left, right = heappop(self.queue)
            if leaves in self.made or total > self.bound:
                continue
            if most is not None and self.pairs > most:
                return False
            self.made[leaves] = left, right
            if leaves != self.everything:
                self._finish(leaves, self.sets.kept_by(left, right), total, best)
                continue
            self.totals[leaves] = total
            if not beyond:
                break
            self.bound = total * SLACK
        return True

    def order(self) -> Order | None:
        """The best order that was found."""
        if self.everything not in self.made:
            return None
        steps: list[tuple[int, int]] = []

        def make(leaves: int) -> int:
            if leaves not in self.made:
                return leaves.bit_length() - 1
            left, right = (make(self.sets.leaves[column]) for column in self.made[leaves])
            steps.append((left, right))
            return len(self.problem.values) + len(steps) - 1

        make(self.everything)
        return tuple(steps)

    def _finish(self, leaves: int, kept: int, total: float, best: dict[int, float]) -> None:
        """Adds a set to the finished ones and joins it with them."""
        sets = self.sets
        if self.reads and total + sets.read(kept) > self.bound:
            return
        self.totals[leaves] = total
        column = sets.add(leaves, kept, total)
        others = sets.partners(column, self.bound if self.objective.largest else self.bound - total, self.outer)
        self.pairs += len(others) + PAIRS_A_SET
        if len(others) == 0:
            return
        values = self._values(column, others)
        chosen = values <= self.bound
        if self.rules:
            chosen &= self._allowed(column, others)
        for other, value in zip(others[chosen].tolist(), values[chosen].tolist(), strict=True):
            joined = leaves | sets.leaves[other]
            if value < best.get(joined, np.inf):
                best[joined] = value
                heappush(self.queue, (value, joined, column, other))

    def _values(self, one: int, others: Array) -> Array:
        """What the joined sets would cost, made so."""
        sets, objective = self.sets, self.objective
        steps = self._steps(objective, one, others)
        first, second = sets.numbers[TOTAL, one], sets.numbers[TOTAL, others]
        return np.maximum(np.maximum(first, second), steps) if objective.largest else first + second + steps

    def _steps(self, objective: Objective, one: int, others: Array) -> Array:
        sets, problem = self.sets, self.problem
        joins = Joins(sets, one, others)
        if not objective.each:
            return objective.of(joins)
        found = []
        for other in others.tolist():
            left, right = sets.leaves[one], sets.leaves[other]
            step = StepSizes(
                problem.network,
                problem.operands(left),
                problem.operands(right),
                bool(left & problem.needs_grad),
                bool(right & problem.needs_grad),
            )
            found.append(objective.of(step) if (left | right) & ~problem.constant else 0.0)
        return np.array(found)

    def _allowed(self, one: int, others: Array) -> Array:
        """Which joins keep the earlier objectives at their minimum."""
        allowed = np.ones(len(others), bool)
        for rule in self.rules:
            steps = self._steps(rule.objective, one, others)
            if rule.objective.largest:
                allowed &= steps <= rule.minimum * SLACK
                continue
            leaves, totals = self.sets.leaves, rule.totals
            for place, other in enumerate(others.tolist()):
                least = totals.get(leaves[one] | leaves[other], -1.0)
                allowed[place] &= totals[leaves[one]] + totals[leaves[other]] + steps[place] <= least * SLACK
        return allowed
