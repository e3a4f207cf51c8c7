"""The statements of a program, and those that move values between layouts.

A `Value` knows which modes each axis of a variable holds, in the order the memory has them. A rule asks for the axes it
needs with `arrange`; permutes and reshapes are written only then, from what is there to what is needed, so two of them
never follow each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count, pairwise

from convein.lowering.price import Pricer
from convein.lowering.program import Statement
from convein.lowering.target import Target
from convein.lowering.values import Axis, Size, Value, tuple_text


class Writer:
    """Collects statements.

    Args:
        target: what the program will run on.
        names: numbers for the variables; writers that work on one program share them.
        output: the modes of the program's result, in order.
    """

    def __init__(self, target: Target, names: count[int] | None = None, output: tuple[str, ...] = ()) -> None:
        self.target = target
        self._output = {mode: place for place, mode in enumerate(output)}
        self.price = Pricer(target)
        self.statements: list[Statement] = []
        self._names = names or count(1)
        # torch would widen the sums of small integers.
        self.sum_option = "" if target.is_inexact else f", dtype={target.dtype}"

    def emit(
        self,
        expression: str,
        uses: Iterable[Value],
        axes: Iterable[Axis],
        sizes: Mapping[str, Size],
        price: float = 0.0,
    ) -> Value:
        """Writes `name = expression` and returns the new value; sizes of modes that are gone are dropped."""
        name = f"v{next(self._names)}"
        named, used = tuple(axes), list(uses)
        self.statements.append(Statement(name, expression, tuple(value.name for value in used), price))
        grad, signal = any(value.grad for value in used), any(value.signal for value in used)
        return Value(name, named, {mode: sizes[mode] for axis in named for mode in axis}, grad, signal)

    def arrange(self, value: Value, axes: Iterable[Axis], *, dense: bool = False) -> Value:
        """The value with exactly these axes (every mode it has, each once; `()` for axes of size 1).

        Args:
            value: what to look at differently.
            axes: how.
            dense: whether its memory must have this order too.
        """
        wanted = tuple(axes)
        if value.axes == wanted:
            return value
        text = value.name
        pieces = _runs(value.modes, wanted)
        if pieces != list(value.axes):
            text += f".reshape({', '.join(str(value.size(piece)) for piece in pieces)})" if pieces else ".reshape(())"
        order = sorted(range(len(pieces)), key=lambda place: _rank(pieces[place], wanted))
        moves = order != sorted(order)
        if moves:
            text += f".permute({', '.join(map(str, order))})"
        sorted_pieces = [pieces[place] for place in order]
        merges = [axis for axis in wanted if axis] != sorted_pieces
        if sorted_pieces != list(wanted):
            text += self._merge(value, sorted_pieces, wanted)
        copies = moves and (merges or dense)
        cuts = _exchanged(order) if copies else None
        if cuts is not None and self.price.transposed(value) < self.price.copy(value):
            return self._transposed(value, pieces, cuts, wanted)
        # A reshape need not copy: axes of size 1 move freely, and neighbours may be merged as they lie.
        if copies and (dense or not merges):
            text += ".contiguous()"
        return self.emit(text, [value], wanted, value.sizes, self.price.copy(value) if copies else 0.0)

    def _transposed(self, value: Value, pieces: list[Axis], cuts: tuple[int, int], wanted: tuple[Axis, ...]) -> Value:
        """A copy in which two neighbouring groups of axes, the last ones, change places."""
        first, second = cuts
        groups = [
            value.size(mode for piece in part for mode in piece)
            for part in (pieces[:first], pieces[first:second], pieces[second:])
        ]
        text = f"transposed({value.name}.reshape({', '.join(map(str, groups))}))"
        axes = [*pieces[:first], *pieces[second:], *pieces[first:second]]
        moved = self.emit(text, [value], axes, value.sizes, self.price.transposed(value))
        shape = ", ".join(str(value.size(axis)) for axis in wanted)
        return self.emit(f"{moved.name}.reshape({shape})", [moved], wanted, value.sizes)

    def weight(self, value: Value, axes: Iterable[Axis], *, always: bool = False) -> Value:
        """The value as weights of a convolution, contiguous where torch relies on it.

        Args:
            value: the weights.
            axes: as for `arrange`.
            always: also where no gradient is needed: torch's second derivatives want contiguous weights.
        """
        arranged = self.arrange(value, axes, dense=True)
        passed = value.name.startswith("x") and arranged.axes
        copied = bool(self.statements) and self.statements[-1].expression.endswith(".contiguous()")
        if not passed or copied or not (value.grad or always):
            return arranged
        return self.emit(f"{arranged.name}.contiguous()", [arranged], arranged.axes, arranged.sizes)

    def transpose(self, value: Value, order: tuple[int, ...]) -> Value:
        """A view with the axes in another order than the memory's, for calls that look at the strides."""
        text = f"{value.name}.permute({', '.join(map(str, order))})"
        return self.emit(text, [value], [value.axes[place] for place in order], value.sizes)

    def own(self, w: Value, x: Value) -> Axis:
        """The modes that only w has, in the order of the result: w is weights, which are cheap to rearrange.

        What comes of weights alone and is no result is rearranged later anyway.
        """
        found = tuple(mode for mode in w.modes if mode not in x.modes)
        if not x.signal and any(mode not in self._output for mode in found):
            return found
        return tuple(sorted(found, key=lambda mode: self._output.get(mode, -1)))

    def repeat(self, w: Value, modes: Axis, x: Value) -> Value:
        """The same value for every entry of some modes of x, which come first."""
        size = x.size(modes)
        text = f"{w.name}.repeat({', '.join([str(size), *('1' for _ in w.axes)])})"
        made = replace(w, axes=(modes, *w.axes), sizes={**w.sizes, **{mode: x.sizes[mode] for mode in modes}})
        return self.emit(text, [w], made.axes, made.sizes, self.price.copy(made))

    def place(self, value: Value) -> int:
        """Where the expression's result has the first of a value's modes; behind all others if it has none."""
        return min((self._output[mode] for mode in value.modes if mode in self._output), default=len(self._output))

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
        call = f"{value.name}.sum({tuple_text(places)}{self.sum_option})"
        return self.emit(call, [value], kept, value.sizes, self.price.elementwise(0, [value]))

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
        text = call.format(x=value.name, dim=value.find(mode))
        copies = self.price.elementwise(0, [value]) if "F.pad" in call or "flip" in call else 0.0
        return self.emit(text, [value], value.axes, {**value.sizes, mode: size}, copies)

    @staticmethod
    def _merge(value: Value, pieces: list[Axis], wanted: tuple[Axis, ...]) -> str:
        added = [place for place, axis in enumerate(wanted) if not axis]
        if [axis for axis in wanted if axis] == pieces and len(added) <= 2:
            return "".join(f".unsqueeze({place})" for place in added)
        return f".reshape({', '.join(str(value.size(axis)) for axis in wanted)})"


def _exchanged(order: list[int]) -> tuple[int, int] | None:
    """Where two groups begin that change places, if that is all that an order of axes does: the second one ends it."""
    first = next(place for place, source in enumerate(order) if source != place)
    second = order[first]
    return (first, second) if order[first:] == [*range(second, len(order)), *range(first, second)] else None


def _runs(modes: Axis, wanted: tuple[Axis, ...]) -> list[Axis]:
    """Modes cut only where the wanted axes need it: neighbours that stay neighbours are merged."""
    follows = {(first, second) for w in wanted for first, second in pairwise(w)}
    runs: list[list[str]] = []
    for mode in modes:
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
