"""The sets of leaves that a search has finished, one column each: one of them is joined with many others at once."""

from __future__ import annotations

import numpy as np

from convein.planner.frame import Frame
from convein.planner.meeting import Array, tabulate, taps_of

# Sets are kept in words of 60 bits, each four pieces of 15: a table has the products of all subsets of a piece's modes.
WORD, PIECE = 60, 15
TOTAL, ELEMENTS, HELD, SHARE, GRAD, CONSTANT = range(6)


class FinishedSets:
    """Sets of leaves in the order in which they were finished, cheapest first.

    Attributes:
        problem: the frame.
        leaves, kept: each set as a bit mask, and the modes its value has.
        bits: columns of words: the set, the modes, and the set's index into the tables of each meeting.
        numbers: columns of `TOTAL` (its cost), `ELEMENTS` and `HELD` (those that a step may have to save; both only
            where a cost looks at them), `SHARE` (1 / E of all meetings), `GRAD` and `CONSTANT` (0 or 1).
    """

    def __init__(self, problem: Frame, *, timed: bool) -> None:
        self.problem = problem
        self._sized = timed or problem.needs_grad != 0
        self._meetings = [tabulate(problem, meeting) for meeting in problem.meetings]
        meetings = [sum(1 << leaf for leaf in meeting.leaves) for meeting in problem.meetings]
        self._carriers = [plain.leaves for plain in problem.plain] + meetings
        self._closable = sum(1 << bit for bit, plain in enumerate(problem.plain) if not plain.open)
        # The bit of a meeting says who shares it; its sizes are in its own tables.
        sizes = [float(plain.size) for plain in problem.plain] + [1.0] * len(meetings) or [1.0]
        self._tables = [_products(sizes[start : start + PIECE]) for start in range(0, len(sizes), PIECE)]
        self.leaves: list[int] = []
        self.kept: list[int] = []
        self._modes = -(-len(problem.values) // WORD)
        self._indices = self._modes + -(-len(sizes) // WORD)
        self.bits = np.zeros((self._indices + len(meetings), 256), np.int64)
        self.numbers = np.zeros((6, 256))

    def touching(self, leaf: int) -> int:
        """The modes of a leaf."""
        return sum(1 << bit for bit, carriers in enumerate(self._carriers) if carriers >> leaf & 1)

    def kept_by(self, left: int, right: int) -> int:
        """The modes that the join of two finished sets still has."""
        leaves, kept = self.leaves[left] | self.leaves[right], self.kept[left] | self.kept[right]
        shared = self.kept[left] & self.kept[right] & self._closable
        while shared:
            bit = shared & -shared
            if not self._carriers[bit.bit_length() - 1] & ~leaves:
                kept ^= bit
            shared ^= bit
        return kept

    def read(self, kept: int) -> float:
        """The least multiplications of a step that reads a value with these modes; how it is convolved is left out."""
        found = 1.0
        for table in self._tables:
            found *= float(table[kept & (1 << PIECE) - 1])
            kept >>= PIECE
        return found

    def size(self, leaves: int, kept: int) -> float:
        """Elements of the value of a set that has these modes."""
        found = self.read(kept)
        for meeting in self._meetings:
            index = _index(leaves, meeting.leaves)
            found *= meeting.work[index] / meeting.gone[index]
        return found

    def add(self, leaves: int, kept: int, total: float) -> int:
        """Finishes a set; returns its column."""
        problem, column = self.problem, len(self.leaves)
        if column == self.bits.shape[1]:
            self.bits = np.concatenate([self.bits, np.zeros_like(self.bits)], axis=1)
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)], axis=1)
        indices = [_index(leaves, meeting.leaves) for meeting in self._meetings]
        share = 1.0
        for meeting, index in zip(self._meetings, indices, strict=True):
            share /= float(meeting.gone[index])
        self.leaves.append(leaves)
        self.kept.append(kept)
        words = [*_words(leaves, self._modes), *_words(kept, self._indices - self._modes), *indices]
        for row, word in enumerate(words):
            self.bits[row, column] = word
        self.numbers[TOTAL, column] = total
        self.numbers[SHARE, column] = share
        if self._sized:
            passed = leaves & (leaves - 1) == 0 and leaves & problem.passed
            elements = self.size(leaves, kept)
            self.numbers[ELEMENTS, column] = elements
            self.numbers[HELD, column] = 0.0 if passed else elements
            self.numbers[GRAD, column] = leaves & problem.needs_grad != 0
        self.numbers[CONSTANT, column] = leaves & ~problem.constant == 0
        return column

    def partners(self, one: int, below: float, outer: bool) -> Array:
        """The columns with a total up to `below` that are disjoint from one and, unless `outer`, touch it."""
        count = int(self.numbers[TOTAL, : len(self.leaves)].searchsorted(below, side="right"))
        chosen = self._common(range(self._modes), one, count) == 0
        if not outer:
            chosen &= self._common(range(self._modes, self._indices), one, count) != 0
        return chosen.nonzero()[0]

    def _common(self, rows: range, one: int, count: int) -> Array:
        """What one set has in common with the first `count`: not 0 if there is something."""
        found = self.bits[rows[0], :count] & self.bits[rows[0], one]
        for row in rows[1:]:
            found |= self.bits[row, :count] & self.bits[row, one]
        return found

    def macs(self, one: int, others: Array) -> Array:
        """Multiplications of joining one column with others."""
        rows = self.bits[self._modes : self._indices]
        both = [row.take(others) | row[one] for row in rows]
        found = self._tables[0].take(both[0] & (1 << PIECE) - 1)
        for number, table in enumerate(self._tables[1:], 1):
            word, shift = divmod(number * PIECE, WORD)
            found *= table.take(both[word] >> shift & (1 << PIECE) - 1)
        for row, meeting in enumerate(self._meetings, self._indices):
            first, second = self.bits[row, one], self.bits[row, others]
            found *= meeting.work[first | second]
            if meeting.shorter is not None:
                starts = second != 0 if first == meeting.signal else (second == meeting.signal) & (first != 0)
                found[starts] *= meeting.shorter[first | second[starts]]
        if self._meetings:
            found *= self.numbers[SHARE, others] * self.numbers[SHARE, one]
        if self.numbers[CONSTANT, one]:
            found[self.numbers[CONSTANT, others] != 0] = 0.0
        return found

    def taps(self, one: int, others: Array) -> Array:
        """Entries of the filters that meet where one column is joined with others."""
        rows = range(self._indices, len(self.bits))
        firsts = [np.full(len(others), self.bits[row, one]) for row in rows]
        return np.broadcast_to(taps_of(self._meetings, firsts, [self.bits[row, others] for row in rows]), others.shape)


class Joins:
    """Joins of one finished set with others, as the costs see `Pairs`: numbers are worked out when asked for."""

    def __init__(self, sets: FinishedSets, one: int, others: Array) -> None:
        self.sets, self.one, self.others = sets, one, others

    @property
    def macs(self) -> Array:
        """Multiplications forward."""
        return self.sets.macs(self.one, self.others)

    @property
    def elements(self) -> Array:
        """Sizes of the results."""
        sets, one = self.sets, self.one
        leaves = sets.leaves[one]
        return np.array([sets.size(leaves | sets.leaves[j], sets.kept_by(one, j)) for j in self.others.tolist()])

    @property
    def left_held(self) -> Array:
        """The size of the one, if a step may have to save it."""
        return self.sets.numbers[HELD, self.one]

    @property
    def right_held(self) -> Array:
        """The sizes of the others, where a step may have to save them."""
        return self.sets.numbers[HELD, self.others]

    @property
    def left(self) -> Array:
        """The size of the one."""
        return self.sets.numbers[ELEMENTS, self.one]

    @property
    def right(self) -> Array:
        """The sizes of the others."""
        return self.sets.numbers[ELEMENTS, self.others]

    @property
    def taps(self) -> Array:
        """Entries of the filters that meet."""
        return self.sets.taps(self.one, self.others)

    @property
    def left_grad(self) -> Array:
        """Whether the one needs its gradient."""
        return self.sets.numbers[GRAD, self.one]

    @property
    def right_grad(self) -> Array:
        """Whether the others need theirs."""
        return self.sets.numbers[GRAD, self.others]


def _products(sizes: list[float]) -> Array:
    table = np.ones(1)
    for size in sizes:
        table = np.concatenate([table, table * size])
    return table


def _index(leaves: int, carrying: tuple[int, ...]) -> int:
    return sum((leaves >> place & 1) << j for j, place in enumerate(carrying))


def _words(bits: int, count: int) -> list[int]:
    return [bits >> WORD * word & (1 << WORD) - 1 for word in range(count)]
