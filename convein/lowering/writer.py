"""Values with named axes, and the statements that move between their layouts.

A `Value` knows which modes each axis of a variable holds, in the order the memory has them. A rule asks for the axes it
needs with `arrange`; permutes and reshapes are written only then, from what is there to what is needed, so two of them
never follow each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch

from convein.lowering.program import Statement

# A size is a number, or the name of a variable that holds it where it is only known at run time.
Size = int | str
Axis = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A variable of the program and what its axes mean.

    Attributes:
        name: the variable.
        axes: for each axis the modes merged in it, first slowest; `()` is an axis of size 1.
        sizes: the size of every mode.
    """

    name: str
    axes: tuple[Axis, ...]
    sizes: Mapping[str, Size] = field(hash=False)

    @property
    def modes(self) -> tuple[str, ...]:
        """All modes, in memory order."""
        return tuple(mode for axis in self.axes for mode in axis)

    def size(self, modes: Iterable[str]) -> Size:
        """Product of the sizes of some modes."""
        return product(self.sizes[mode] for mode in modes)

    def find(self, mode: str) -> int:
        """The axis that holds a mode."""
        return next(place for place, axis in enumerate(self.axes) if mode in axis)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes, as a number if all of them are."""
    listed = list(sizes)
    number = prod(size for size in listed if isinstance(size, int))
    names = [size if size.isidentifier() else f"({size})" for size in listed if isinstance(size, str)]
    if not names:
        return number
    return " * ".join(names if number == 1 else [*names, str(number)])


def tuple_text(items: Iterable[object]) -> str:
    """Python text of a tuple."""
    listed = [str(item) for item in items]
    return f"({listed[0]},)" if len(listed) == 1 else f"({', '.join(listed)})"


class Writer:
    """Collects the statements of one program.

    Args:
        sum_dtype: what sums are told to return, where torch would widen it.
    """

    def __init__(self, sum_dtype: torch.dtype | None = None) -> None:
        self.statements: list[Statement] = []
        self.sum_option = f", dtype={sum_dtype}" if sum_dtype is not None else ""

    def emit(self, expression: str, uses: Iterable[Value], axes: Iterable[Axis], sizes: Mapping[str, Size]) -> Value:
        """Writes `name = expression` and returns the new value; sizes of modes that are gone are dropped."""
        name = f"v{len(self.statements) + 1}"
        named = tuple(axes)
        self.statements.append(Statement(name, expression, tuple(value.name for value in uses)))
        return Value(name, named, {mode: sizes[mode] for axis in named for mode in axis})

    def arrange(self, value: Value, axes: Iterable[Axis]) -> Value:
        """The value with exactly these axes (every mode it has, each once; `()` for axes of size 1)."""
        wanted = tuple(axes)
        if value.axes == wanted:
            return value
        text = value.name
        pieces = [piece for axis in value.axes for piece in _runs(axis, wanted)]
        if pieces != list(value.axes):
            text += f".reshape({', '.join(str(value.size(piece)) for piece in pieces)})" if pieces else ".reshape(())"
        order = sorted(range(len(pieces)), key=lambda place: _rank(pieces[place], wanted))
        if order != sorted(order):
            text += f".permute({', '.join(map(str, order))})"
        sorted_pieces = [pieces[place] for place in order]
        if sorted_pieces != list(wanted):
            text += self._merge(value, sorted_pieces, wanted)
        return self.emit(text, [value], wanted, value.sizes)

    def split(self, value: Value) -> Value:
        """The value with one axis for each mode and no others, in memory order."""
        return self.arrange(value, tuple((mode,) for mode in value.modes))

    def sum_out(self, value: Value, modes: Iterable[str]) -> Value:
        """Sums over some modes."""
        gone = set(modes)
        if not gone:
            return value
        if any(gone & set(axis) and not gone.issuperset(axis) for axis in value.axes):
            value = self.split(value)
        places = [place for place, axis in enumerate(value.axes) if axis and gone.issuperset(axis)]
        kept = [axis for place, axis in enumerate(value.axes) if place not in places]
        return self.emit(f"{value.name}.sum({tuple_text(places)}{self.sum_option})", [value], kept, value.sizes)

    def isolate(self, value: Value, mode: str) -> Value:
        """The value with an axis for this mode alone."""
        place = value.find(mode)
        if value.axes[place] == (mode,):
            return value
        axis = value.axes[place]
        cut = axis.index(mode)
        parts = [part for part in (axis[:cut], (mode,), axis[cut + 1 :]) if part]
        return self.arrange(value, (*value.axes[:place], *parts, *value.axes[place + 1 :]))

    def along(self, value: Value, mode: str, call: str, size: Size) -> Value:
        """Applies a call written with `{x}` and `{dim}` along the axis of one mode, which gets a new size."""
        value = self.isolate(value, mode)
        text = call.format(x=value.name, dim=value.find(mode), behind=len(value.axes) - 1 - value.find(mode))
        return self.emit(text, [value], value.axes, {**value.sizes, mode: size})

    @staticmethod
    def _merge(value: Value, pieces: list[Axis], wanted: tuple[Axis, ...]) -> str:
        added = [place for place, axis in enumerate(wanted) if not axis]
        if [axis for axis in wanted if axis] == pieces and len(added) <= 2:
            return "".join(f".unsqueeze({place})" for place in added)
        return f".reshape({', '.join(str(value.size(axis)) for axis in wanted)})"


def _runs(axis: Axis, wanted: tuple[Axis, ...]) -> list[Axis]:
    """An axis cut only where the wanted axes need it: neighbours that stay neighbours stay merged."""
    follows = {(first, second) for w in wanted for first, second in pairwise(w)}
    runs: list[list[str]] = []
    for mode in axis:
        if runs and (runs[-1][-1], mode) in follows:
            runs[-1].append(mode)
        else:
            runs.append([mode])
    return [tuple(run) for run in runs]


def _rank(piece: Axis, wanted: tuple[Axis, ...]) -> tuple[int, int]:
    for place, axis in enumerate(wanted):
        if piece[0] in axis:
            return place, axis.index(piece[0])
    raise AssertionError(f"{piece} is in none of {wanted}")
