"""Frame -> order, by all sets of leaves: exact, outer products included.

Every set of leaves is planned once, small sets first: the cheapest way to make it is the cheapest of its splits in two.
This is exact for a sum of step costs that are not negative, and for the largest of them. n leaves have about 3^n / 2
splits; those of all sets of one size are evaluated together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from convein.planner.costs import Objective, Pairs, StepSizes
from convein.planner.frame import Frame
from convein.planner.meeting import Array, tabulate, taps_of
from convein.planner.order import Order

MOST_LEAVES = 12


def search_all(problem: Frame, objectives: Sequence[Objective]) -> Order:
    """The best order."""
    count = len(problem.values)
    if count <= 2:
        return ((0, 1),) if count == 2 else ()
    splits = splits_of(count)
    allowed: Array = None
    chosen: Array = None
    for number, (objective, steps) in enumerate(zip(objectives, evaluate_splits(problem, objectives, splits))):
        possible = steps if allowed is None else np.where(allowed, steps, np.inf)
        totals, chosen = _fill(splits, possible, objective.largest)
        if number + 1 < len(objectives):
            allowed = _stays_best(splits, possible, totals, objective.largest)
    return _order(chosen, count)


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """All splits of all sets of two or more leaves: first the sets of two, then of three...

    Attributes:
        left, right: the two halves, one entry a split; those of one set stand together.
        levels: for each number of leaves, where its splits start and end, and its sets.
    """

    left: Array
    right: Array
    levels: tuple[tuple[int, int, Array], ...]


@lru_cache(maxsize=MOST_LEAVES)
def splits_of(count: int) -> Splits:
    """The splits of so many leaves."""
    subsets = np.arange(1 << count)
    bits = subsets[:, None] >> np.arange(count) & 1
    lefts, rights, levels, start = [], [], [], 0
    for size in range(2, count + 1):
        members = bits[bits.sum(axis=1) == size]
        values = (1 << np.nonzero(members)[1]).reshape(-1, size)
        patterns = np.arange(1, 1 << size - 1)[:, None] >> np.arange(size - 1) & 1
        left = values[:, :-1] @ patterns.T
        whole = values.sum(axis=1)
        lefts.append(left.ravel())
        rights.append((whole[:, None] - left).ravel())
        levels.append((start, start + left.size, whole))
        start += left.size
    return Splits(np.concatenate(lefts), np.concatenate(rights), tuple(levels))


class _Sets:
    """W and E of every set of leaves, as `meeting` defines them."""

    def __init__(self, problem: Frame) -> None:
        self.problem = problem
        count = len(problem.values)
        self.subsets = np.arange(1 << count)
        touched, gone = np.ones(1 << count), np.ones(1 << count)
        for plain in problem.plain:
            touched[plain.leaves] *= plain.size
            if not plain.open:
                gone[plain.leaves] *= plain.size
        for place in range(count):
            for table in (touched, gone):
                halves = table.reshape(-1, 2, 1 << place)
                halves[:, 1] *= halves[:, 0]
        # A set touches all modes but those that live in the other leaves only.
        self.work = touched[-1] / touched[::-1]
        self.gone = gone
        self.meetings = [tabulate(problem, meeting) for meeting in problem.meetings]
        self.indices: list[Array] = []
        for meeting in self.meetings:
            index = np.zeros_like(self.subsets)
            for j, place in enumerate(meeting.leaves):
                index |= (self.subsets >> place & 1) << j
            self.indices.append(index)
            self.work *= meeting.work[index]
            self.gone *= meeting.gone[index]
        self.elements = self.work / self.gone

    def pairs(self, left: Array, right: Array, *, timed: bool) -> Pairs:
        """What the costs want to know of these splits."""
        problem, subsets = self.problem, self.subsets
        share = 1.0 / self.gone
        macs = self.work[left | right] * share[left] * share[right]
        for meeting, index in zip(self.meetings, self.indices, strict=True):
            if meeting.shorter is not None:
                first, second = index[left], index[right]
                starts = ((first == meeting.signal) & (second != 0)) | ((second == meeting.signal) & (first != 0))
                macs = np.where(starts, macs * meeting.shorter[first | second], macs)
        # Constants are joined once and for all.
        if problem.constant & (problem.constant - 1):
            macs = np.where((left | right) & ~problem.constant == 0, 0.0, macs)
        graded = subsets & problem.needs_grad != 0
        held = np.where((subsets & (subsets - 1) == 0) & (subsets & problem.passed != 0), 0.0, self.elements)
        found = Pairs(macs, self.elements[left | right], held[left], held[right], graded[left], graded[right])
        if not timed:
            return found
        firsts, seconds = ([index[side] for index in self.indices] for side in (left, right))
        taps = taps_of(self.meetings, firsts, seconds)
        return replace(found, left=self.elements[left], right=self.elements[right], taps=taps)


def evaluate_splits(problem: Frame, objectives: Sequence[Objective], splits: Splits) -> list[Array]:
    """What the step of every split costs, by each objective."""
    timed = any(objective.timed for objective in objectives)
    pairs = _Sets(problem).pairs(splits.left, splits.right, timed=timed)
    return [_evaluate(problem, objective, pairs, splits) for objective in objectives]


def _evaluate(problem: Frame, objective: Objective, pairs: Pairs, splits: Splits) -> Array:
    if not objective.each:
        return objective.of(pairs)
    sets = [problem.operands(subset) for subset in range(1 << len(problem.values))]
    found = np.zeros(len(splits.left))
    for place, (left, right) in enumerate(zip(splits.left.tolist(), splits.right.tolist(), strict=True)):
        if (left | right) & ~problem.constant:
            grads = bool(left & problem.needs_grad), bool(right & problem.needs_grad)
            found[place] = objective.of(StepSizes(problem.network, sets[left], sets[right], *grads))
    return found


def _fill(splits: Splits, steps: Array, largest: bool) -> tuple[Array, Array]:
    """The best value of every set, and the left half of the split that reaches it."""
    size = int(splits.levels[-1][2][0]) + 1
    totals, chosen = np.zeros(size), np.zeros(size, dtype=np.int64)
    for start, end, sets in splits.levels:
        left, right = splits.left[start:end], splits.right[start:end]
        values = combined(totals[left], totals[right], steps[start:end], largest).reshape(len(sets), -1)
        best = values.argmin(axis=1)
        rows = np.arange(len(sets))
        totals[sets] = values[rows, best]
        chosen[sets] = left.reshape(len(sets), -1)[rows, best]
    return totals, chosen


def combined(left: Array, right: Array, steps: Array, largest: bool) -> Array:
    """What values cost from what their halves and the steps that join these cost."""
    return np.maximum(np.maximum(left, right), steps) if largest else left + right + steps


def _stays_best(splits: Splits, steps: Array, totals: Array, largest: bool) -> Array:
    """Which splits an order may use and still reach the minimum."""
    if largest:
        return steps <= totals[-1]
    values = combined(totals[splits.left], totals[splits.right], steps, largest)
    return values <= totals[splits.left | splits.right] * (1 + 1e-12)


def _order(chosen: Array, count: int) -> Order:
    steps: list[tuple[int, int]] = []

    def make(subset: int) -> int:
        if subset & (subset - 1) == 0:
            return subset.bit_length() - 1
        left = int(chosen[subset])
        steps.append((make(left), make(subset ^ left)))
        return count + len(steps) - 1

    make((1 << count) - 1)
    return tuple(steps)
