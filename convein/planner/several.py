"""Frame -> the best few orders, by all sets of leaves: exact for a sum of step costs, outer products included.

As in `exhaustive`, every set of leaves is planned once, small sets first. The k cheapest trees of a set are among those
that join one of the k cheapest trees of its left half with one of the k cheapest of its right half, and of these the
i-th and the j-th only where (i + 1) * (j + 1) <= k: all pairs of earlier ones are at least as cheap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convein.planner.costs import Objective
from convein.planner.exhaustive import combined, evaluate_splits, splits_of
from convein.planner.frame import Frame
from convein.planner.meeting import Array
from convein.planner.order import Order

MOST_LEAVES = 8

# A step costs at most this: what is not there costs more.
MOST = 1e290


def search_several(problem: Frame, objectives: Sequence[Objective], count: int) -> tuple[Order, ...]:
    """The `count` best orders, the best one first; all orders if there are fewer.

    Where two orders are equally good by one objective, the next one decides. Of orders with the same largest step, an
    objective of that kind may leave out some that are better by the next one.
    """
    leaves = len(problem.values)
    if leaves <= 2:
        return (((0, 1),) if leaves == 2 else (),)
    splits = splits_of(leaves)
    steps = [
        np.clip(np.nan_to_num(found, nan=MOST), None, MOST) for found in evaluate_splits(problem, objectives, splits)
    ]
    first, second = np.array([(i, j) for i in range(count) for j in range(count) if (i + 1) * (j + 1) <= count]).T
    # For each set its trees, cheapest first: what they cost, the left half, and the ranks of the halves' trees.
    totals = np.full((len(objectives), 1 << leaves, count), np.inf)
    totals[:, 1 << np.arange(leaves), 0] = 0.0
    chosen = np.zeros((3, 1 << leaves, count), dtype=np.int64)
    for start, end, sets in splits.levels:
        left, right = splits.left[start:end], splits.right[start:end]
        values = [
            combined(mine[left][:, first], mine[right][:, second], own[start:end, None], objective.largest)
            for mine, own, objective in zip(totals, steps, objectives, strict=True)
        ]
        rows = [value.reshape(len(sets), -1) for value in values]
        best = np.lexsort(rows[::-1], axis=-1)[:, :count]
        for mine, row in zip(totals, rows, strict=True):
            mine[sets] = np.take_along_axis(row, best, axis=1)
        split, pair = np.divmod(best, len(first))
        halves = np.take_along_axis(left.reshape(len(sets), -1), split, axis=1)
        for table, part in zip(chosen, (halves, first[pair], second[pair]), strict=True):
            table[sets] = part
    there = int((totals[0, -1] < np.inf).sum())
    return tuple(_order(chosen, leaves, rank) for rank in range(there))


def _order(chosen: Array, leaves: int, rank: int) -> Order:
    steps: list[tuple[int, int]] = []

    def make(subset: int, place: int) -> int:
        if subset & (subset - 1) == 0:
            return subset.bit_length() - 1
        left, first, second = chosen[:, subset, place].tolist()
        steps.append((make(left, first), make(subset ^ left, second)))
        return leaves + len(steps) - 1

    make((1 << leaves) - 1, rank)
    return tuple(steps)
