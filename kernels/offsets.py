"""How a product of two tensors is a product of matrices, wherever their numbers lie: the vectors of offsets.

The address of a number is a sum over the modes of its tensor. Grouped into those of the batch, of the rows, of the
columns and of the inner sum, the sum splits: A[b, m, k] lies at A + batch[b] + rows[m] + inner[k], in whatever order
the modes are. A convolved mode splits too: along it a filter's entry u meets the entry stride * o + dilation * u - low
of the signal for the result's entry o, so o is a mode of the rows and u one of the inner sum.

What a compiler cannot see in vectors it is told: how many entries follow each other, and what they are multiples of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

import torch
from convein.kernels.equation import grouped, terms
from convein.kernels.operators import INTERPRETED
from torch import Tensor

Sizes = tuple[int, ...]

# The longest run that a compiler is told of.
RUN = 16
# What all tiles divide, to which vectors are filled up, and from which length on they are cut into turns.
TILE, LONG = (16, 32) if INTERPRETED else (256, 2**14)


@dataclass(frozen=True, slots=True)
class Dimension:
    """A mode of an axis.

    Attributes:
        size: how many entries it has.
        x, w: its strides in both tensors, 0 in one without it.
        place: which convolved mode it moves along, -1 for none.
        step: how far.
    """

    size: int
    x: int
    w: int
    place: int = -1
    step: int = 0


@dataclass(frozen=True, slots=True)
class Axis:
    """Modes side by side, the slowest first, as one axis of a matrix.

    Attributes:
        dimensions: the modes.
        turning: whether its vectors may end before the axis does, after a number of entries of the slowest mode. Who
            goes on beyond that adds the same number every turn.
    """

    dimensions: tuple[Dimension, ...]
    turning: bool = False

    @property
    def size(self) -> int:
        """How many entries it has."""
        return prod(one.size for one in self.dimensions)

    @property
    def slowest(self) -> int:
        """How many entries the slowest mode has."""
        return self.dimensions[0].size if self.dimensions else 1

    @property
    def turn(self) -> int:
        """How many of them the vectors hold: all, or as many as make whole tiles."""
        if not self.turning or self.size <= LONG or self.dimensions[0].place >= 0:
            return self.slowest
        return min(self.slowest, TILE // gcd(TILE, prod(one.size for one in self.dimensions[1:])))

    def offsets(self, tensor: str) -> Tensor:
        """What entries add to an address in x or w, up to the first turn."""
        return self._sums([getattr(one, tensor) for one in self.dimensions])

    def step(self, tensor: str) -> int:
        """What a turn adds to an address in x or w: 0 where there is one turn only."""
        if self.turn == self.slowest:
            return 0
        return self.turn * int(getattr(self.dimensions[0], tensor))

    def places(self, at: int) -> Tensor:
        """What entries add to the place along a convolved mode, up to the first turn."""
        return self._sums([one.step if one.place == at else 0 for one in self.dimensions])

    def run(self, tensor: str) -> int:
        """How many entries follow each other in memory, in groups that begin at multiples of as many."""
        return gcd(self._run(tensor), RUN)

    def multiple(self, tensor: str, run: int) -> int:
        """What the offsets of the first entries of such groups are multiples of, up to 16."""
        length = self._run(tensor) if run > 1 else 1
        count, outer = 1, 0
        for one in reversed(self.dimensions):
            if count >= length and one.size > 1:
                outer = gcd(outer, getattr(one, tensor))
            count *= one.size
        return gcd(RUN, outer, run if length > run else 0)

    def constancy(self, tested: Sequence[int]) -> int:
        """How many entries lie at the same place along the convolved modes that are tested, in groups as above."""
        count = 1
        for one in reversed(self.dimensions):
            if one.place in tested and one.size > 1:
                break
            count *= one.size
        return gcd(count, RUN)

    def _run(self, tensor: str) -> int:
        count = 1
        for one in reversed(self.dimensions):
            if one.size == 1:
                continue
            if getattr(one, tensor) != count:
                break
            count *= one.size
        return count

    def _sums(self, steps: Sequence[int]) -> Tensor:
        """Sums of multiples, filled up to whole tiles with the last group again: what holds for groups holds there."""
        total = torch.zeros(1, dtype=torch.int64)
        for at, (one, step) in enumerate(zip(self.dimensions, steps, strict=True)):
            count = one.size if at else self.turn
            total = (total[:, None] + torch.arange(count) * step).flatten()
        group, beyond = gcd(len(total), RUN), -len(total) % TILE
        again = total[len(total) - group :].repeat(-(-beyond // group))[:beyond]
        return torch.cat((total, again)).to(torch.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A product of two tensors, a batch of matrices each. Made once for a call: one is equal to itself only.

    Attributes:
        batch, rows, columns, inner: of the products of matrices.
        start: where x is read for the first row and the first entry of the inner sum; may be outside.
        tested: convolved modes along which a place may be outside of x.
        low, high: entries of x before its first place, and how many x has, for each convolved mode.
        order: the modes of w as dimensions of a copy that is read instead; None without a copy.
    """

    batch: Axis
    rows: Axis
    columns: Axis
    inner: Axis
    start: int
    tested: Sizes
    low: Sizes
    high: Sizes
    order: Sizes | None

    def hints(self, tensor: str) -> dict[str, tuple[int, int]]:
        """For the outer axis of a tensor (rows of x, columns of w) and the inner one: the run, and what it is a
        multiple of. One of both has a run: the one that is read by the longer vectors.
        """
        choices = [self._hints(tensor, along) for along in ("inner", "outer")]
        return max(choices, key=lambda choice: self._length(tensor, choice))

    def vector(self, tensor: str) -> int:
        """How many numbers of x or w a GPU may read at once."""
        return self._length(tensor, self.hints(tensor))

    def _hints(self, tensor: str, along: str) -> dict[str, tuple[int, int]]:
        axes = {"outer": self.rows if tensor == "x" else self.columns, "inner": self.inner}
        runs = {name: axis.run(tensor) if name == along else 1 for name, axis in axes.items()}
        found = {name: (runs[name], axis.multiple(tensor, runs[name])) for name, axis in axes.items()}
        if tensor == "x":
            found["outer"] = (runs["outer"], gcd(found["outer"][1], self.start))
        return found

    def _length(self, tensor: str, hints: dict[str, tuple[int, int]]) -> int:
        multiples = [multiple for _, multiple in hints.values()]
        lengths = []
        for name, (run, _) in hints.items():
            axis = self.inner if name == "inner" else self.rows
            alike = axis.constancy(self.tested) if tensor == "x" else RUN
            exists = gcd(self.inner.size, RUN) if name == "inner" else RUN
            lengths.append(min(run, alike, exists, *multiples, self.batch.multiple(tensor, 1)))
        return max(lengths)


@lru_cache(maxsize=4096)
def layout(
    x_sizes: Sizes, x_strides: Sizes, w_sizes: Sizes, w_strides: Sizes, item: int,
    equation: str, convolved: str, stride: Sizes, dilation: Sizes, low: Sizes, size: Sizes,
) -> Layout:  # fmt: skip
    """The product of tensors with these sizes and strides, whose numbers have `item` bytes.

    If w would not be read 16 bytes at a time, a copy is read whose inner sum is contiguous.
    """
    _, W, _ = terms(equation)
    groups = grouped(x_strides, w_strides, equation, convolved, stride, dilation)
    given = (x_sizes, x_strides, w_sizes, equation, convolved, stride, dilation, low, size)
    first = _described(groups, dict(zip(W, w_strides, strict=True)), None, *given)
    if first.vector("w") * item >= 16:
        return first
    order = [*groups[0], *groups[2], *groups[3]]
    sizes, strides, count = dict(zip(W, w_sizes, strict=True)), {}, 1
    for mode in reversed(order):
        strides[mode], count = count, count * sizes[mode]
    copied = _described(groups, strides, tuple(W.index(mode) for mode in order), *given)
    return copied if copied.vector("w") > first.vector("w") else first


def _described(
    groups: Iterable[list[str]], of_w: dict[str, int], order: Sizes | None, x_sizes: Sizes, x_strides: Sizes,
    w_sizes: Sizes, equation: str, convolved: str, stride: Sizes, dilation: Sizes, low: Sizes, size: Sizes,
) -> Layout:  # fmt: skip
    X, W, _ = terms(equation)
    of_x, x_size, w_size = (
        dict(zip(modes, of, strict=True)) for modes, of in ((X, x_strides), (X, x_sizes), (W, w_sizes))
    )
    batch, rows, columns, inner = groups
    at = {mode: place for place, mode in enumerate(convolved)}

    def row(mode: str) -> Dimension:
        if mode not in at:
            return Dimension(x_size[mode], of_x[mode], 0)
        step = stride[at[mode]]
        return Dimension(size[at[mode]], of_x[mode] * step, 0, at[mode], step)

    def summed(mode: str) -> Dimension:
        step = dilation[at[mode]] if mode in at else 1
        return Dimension(w_size[mode], of_x[mode] * step, of_w[mode], at.get(mode, -1), step if mode in at else 0)

    def leaves(place: int) -> bool:
        reach = ((size[place] - 1) * stride[place], (w_size[convolved[place]] - 1) * dilation[place])
        places = [sum(min(step, 0) for step in reach), sum(max(step, 0) for step in reach)]
        return places[0] < low[place] or places[1] - low[place] >= x_size[convolved[place]]

    return Layout(
        Axis(tuple(Dimension(x_size[mode], of_x[mode], of_w[mode]) for mode in batch)),
        Axis(tuple(row(mode) for mode in rows), turning=True),
        Axis(tuple(Dimension(w_size[mode], 0, of_w[mode]) for mode in columns)),
        Axis(tuple(summed(mode) for mode in inner), turning=True),
        -sum(of_x[mode] * low[place] for mode, place in at.items()),
        tuple(place for place in range(len(convolved)) if leaves(place)),
        low,
        tuple(x_size[mode] for mode in convolved),
        order,
    )


def reach(layout: Layout) -> int:
    """The largest magnitude of an offset, counted generously."""
    dimensions = [one for axis in (layout.batch, layout.rows, layout.columns, layout.inner) for one in axis.dimensions]
    return max(
        sum((one.size - 1) * abs(one.x) for one in dimensions) + abs(layout.start),
        sum((one.size - 1) * abs(one.w) for one in dimensions),
    )
