"""Meeting -> tables over the subsets of its leaves: what a convolved mode multiplies and leaves behind.

For a set S of leaves two numbers are enough to know sizes and costs, W (work) and E (what is gone):

    elements(S) = W(S) / E(S)            multiplications(L, R) = W(L | R) / (E(L) * E(R))

A mode that is not convolved is in W as soon as S touches it, and in E once it is summed. A convolved mode fits the same
form: with K the product of the lengths of the filters met, a set of filters has W = K and E = K / (length of the merged
filter), and a set with the signal has W = (output size) * K and E = K.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convein.planner.frame import Frame, Meeting

# NumPy's arrays of floats and of masks; their shapes differ from line to line.
Array = Any

MOST_LEAVES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """W and E of a meeting.

    Attributes:
        leaves: of the meeting: bit j of an index stands for `leaves[j]`.
        work, gone: W and E.
        shorter: None, or for a transposed mode the table of min(signal size, output size) / output size.
        signal: the index of the signal's leaf; 0 if no leaf has the signal.
        reach: the lengths of the merged filters, the signal left out.
    """

    leaves: tuple[int, ...]
    work: Array
    gone: Array
    shorter: Array | None
    signal: int
    reach: Array

    def taps(self, first: Array, second: Array) -> Array:
        """Entries of the filters that a join of two indices slides along the other side; 0 where no two sides meet."""
        one, other = self.reach[first], self.reach[second]
        found = np.minimum(one, other)
        if self.signal:
            found = np.where(first & self.signal != 0, other, np.where(second & self.signal != 0, one, found))
        return np.where((first != 0) & (second != 0), found, 0)


def taps_of(tables: Iterable[Tables], firsts: Iterable[Array], seconds: Iterable[Array]) -> Array:
    """Entries of all filters that joins slide, all meetings together; 0 where nothing is convolved."""
    found: Array = 0
    for table, first, second in zip(tables, firsts, seconds, strict=True):
        taps = table.taps(first, second)
        found = np.where(taps > 0, np.maximum(found, 1) * taps, found)
    return found


def tabulate(problem: Frame, meeting: Meeting) -> Tables:
    """The tables of a meeting of at most `MOST_LEAVES` leaves."""
    convolution = meeting.convolution
    sets, reach, taps, signal = [0], [1], [1.0], 0
    for j, place in enumerate(meeting.leaves):
        leaf = problem.values[place].operands
        holds = leaf >> convolution.signal & 1
        signal |= holds << j
        own = 1 if holds else convolution.taps(leaf)
        sets += [subset | leaf for subset in sets]
        reach += [length + own - 1 for length in reach]
        taps += [product * own for product in taps]
    last = len(sets) - 1
    complete = convolution.join(sets[signal], sets[last ^ signal]) if signal else None
    # Between the signal alone and all together an extent depends on how far the filters reach, not on which they are.
    extents: dict[int, int] = {}
    work, gone = [1.0], [1.0]
    for index in range(1, last + 1):
        if not index & signal:
            size = reach[index]
        elif index in (signal, last):
            size = convolution.extent(sets[index])
        else:
            size = extents.get(reach[index], 0) or extents.setdefault(reach[index], convolution.extent(sets[index]))
        size = max(size, 1)
        read = max(complete.size, 1) if complete and index == last else size
        work.append(read * taps[index] if index & signal else taps[index])
        gone.append(work[index] if index == last and not meeting.open else work[index] / size)
    product = np.array(work)
    shorter = None
    if complete and complete.upsample > 1:
        shorter = np.minimum(max(complete.n, 1) * np.array(taps) / product, 1.0)
    return Tables(meeting.leaves, product, np.array(gone), shorter, signal, np.array(reach))
