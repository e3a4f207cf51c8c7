"""The sizes of all modes, solved from the dimensions they appear in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from convein.equation import ELLIPSIS, Equation, written
from convein.errors import ShapeError, Span
from convein.network import SymbolicSize

Axes = tuple[tuple[str, ...], ...]
Shape = tuple[int, ...]
# In a shape that is given instead of a tensor, None is a free size.
OpenShape = tuple[int | None, ...]
# A size is one per network, or one per operand for a convolved mode (a signal and its filters differ).
Key = str | tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Fact:
    """One dimension of one operand: the product of these keys is `size`, where that is known."""

    operand: int
    axis: int
    keys: tuple[Key, ...]
    size: int | None


class SizeSolver:
    """Finds the size of every mode.

    Args:
        equation: where the modes stand.
        axes: for each operand the modes of each dimension, `...` expanded.
        shapes: their sizes.
    """

    def __init__(
        self,
        equation: Equation,
        axes: tuple[Axes, ...],
        shapes: Sequence[OpenShape],
    ) -> None:
        self.equation = equation
        self.axes = axes
        self.convolved = convolved = frozenset(piece.mode for piece in equation.convolved)
        self.known: dict[Key, int] = {}
        self.source: dict[Key, tuple[int, int]] = {}
        self.facts = [
            _Fact(j, a, tuple((m, j) if m in convolved else m for m in modes), size)
            for j, (operand, shape) in enumerate(zip(axes, shapes, strict=True))
            for a, (modes, size) in enumerate(zip(operand, shape, strict=True))
        ]
        composed = {key for fact in self.facts if len(fact.keys) != 1 for key in fact.keys}
        self.rigid = composed | set(_output_composed(equation))

    def solve(self, sizes: Mapping[str, int], free_hint: int) -> None:
        """Fills `known`, from the shapes and what was given by name; raises a ShapeError where they do not fit."""
        for mode, size in sizes.items():
            if mode not in self.convolved:
                self.known[mode] = size
        self._single()
        self._free(free_hint)
        for mode in self.convolved & set(sizes):
            self._signal_size(mode, sizes[mode])
        pending = [fact for fact in self.facts if len(fact.keys) > 1]
        while pending:
            waiting = [fact for fact in pending if not self._composed(fact)]
            if len(waiting) == len(pending):
                self._planned(waiting, free_hint)
            pending = waiting

    def kept_modes(self, operand: int) -> tuple[str, ...]:
        """The distinct modes of an operand, without those that broadcast along it."""
        kept: dict[str, None] = {}
        for fact in self.facts:
            if fact.operand == operand:
                for key in fact.keys:
                    mode = key if isinstance(key, str) else key[0]
                    if len(fact.keys) > 1 or fact.size in (None, self.known[key]):
                        kept[mode] = None
        return tuple(kept)

    def shape(self, operand: int) -> Shape:
        """The sizes of an operand's dimensions, free ones as they are planned."""
        facts = [fact for fact in self.facts if fact.operand == operand]
        return tuple(prod(self.known[key] for key in f.keys) if f.size is None else f.size for f in facts)

    def symbolic_sizes(self, symbolic: frozenset[tuple[int, int]]) -> tuple[SymbolicSize, ...]:
        """Modes whose size only symbolic dimensions tell; those of a composed dimension that is fixed are fixed too."""
        found = []
        for key, (operand, axis) in self.source.items():
            if isinstance(key, str) and (operand, axis) in symbolic:
                modes = self.axes[operand][axis]
                if not any(mode in self.convolved for mode in modes):
                    divisors = tuple(mode for mode in modes if mode != key)
                    found.append(SymbolicSize(key, operand, axis, divisors))
        fixed = {
            key
            for fact in self.facts
            if (fact.operand, fact.axis) not in symbolic and (len(fact.keys) > 1 or fact.size != 1)
            for key in fact.keys
        }
        return tuple(size for size in found if size.mode not in fixed)

    def _free(self, hint: int) -> None:
        """Free dimensions of one mode: another operand knows the size, or it is read at run time."""
        for fact in self.facts:
            if fact.size is not None:
                continue
            for key in fact.keys:
                if not isinstance(key, str):
                    raise ShapeError(
                        f"the size of mode {key[0]} is free in operand {fact.operand}, and it is convolved",
                        text=self.equation.text,
                        spans=_places(self.equation, fact.operand, key[0]),
                        hint="only modes that are not convolved can have None as their size",
                    )
            unknown = {key for key in fact.keys if key not in self.source}
            if len(fact.keys) == 1 and unknown:
                self.known.setdefault(fact.keys[0], hint)
                self.source[fact.keys[0]] = (fact.operand, fact.axis)

    def _single(self) -> None:
        """Dimensions of one mode; a size of 1 broadcasts against any other."""
        for fact in self.facts:
            if len(fact.keys) != 1 or fact.size is None:
                continue
            key = fact.keys[0]
            before = self.known.get(key)
            if before is None or (before == 1 and fact.size != 1 and self._broadcasts(key)):
                self.known[key] = fact.size
                self.source[key] = (fact.operand, fact.axis)
            elif before != fact.size and not (fact.size == 1 and self._broadcasts(key)):
                self._clash(key, before, fact)
        self._diagonals()

    def _diagonals(self) -> None:
        """A mode twice in one operand is its diagonal: there a 1 does not broadcast."""
        seen: dict[tuple[int, Key], int] = {}
        for fact in self.facts:
            if len(fact.keys) == 1 and fact.size is not None:
                first = seen.setdefault((fact.operand, fact.keys[0]), fact.size)
                if first != fact.size:
                    mode = _name(fact.keys[0])
                    raise ShapeError(
                        f"mode {mode} is {first} and {fact.size} in operand {fact.operand}",
                        text=self.equation.text,
                        spans=_places(self.equation, fact.operand, mode),
                        hint="a mode that is repeated in one operand is its diagonal, so both sizes must be equal",
                    )

    def _broadcasts(self, key: Key) -> bool:
        return isinstance(key, str) and key not in self.rigid

    def _signal_size(self, mode: str, size: int) -> None:
        """`sizes` of a convolved mode is its signal's: the operand that the option names, else the first one open."""
        carriers = [fact.operand for fact in self.facts if any(_name(key) == mode for key in fact.keys)]
        option = next(c.options.signal for c in self.equation.convolved if c.mode == mode)
        open_ones = [j for j in carriers if (mode, j) not in self.known]
        signal = carriers[0]
        if isinstance(option, int) and option in carriers:
            signal = option
        elif option == "largest" and open_ones:
            signal = open_ones[0]
        before = self.known.setdefault((mode, signal), size)
        if before != size and option != "largest":
            raise ShapeError(
                f"the signal's mode {mode} is {size} in sizes= and {before} in operand {signal}",
                text=self.equation.text,
                spans=_places(self.equation, signal, mode),
            )

    def _composed(self, fact: _Fact) -> bool:
        """Checks a composed dimension, or solves its one unknown; False while more than one is open."""
        unknown = {key for key in fact.keys if key not in self.known}
        if len(unknown) > 1:
            return False
        if fact.size is None:
            return not unknown
        rest = prod(self.known[key] for key in fact.keys if key in self.known)
        if not unknown:
            if rest != fact.size:
                self._wrong_product(fact)
            return True
        (key,) = unknown
        times = Counter(fact.keys)[key]
        size = _root(fact.size // rest, times) if rest else 0
        if rest * size**times != fact.size or rest == 0:
            self._wrong_product(fact)
        self.known[key] = size
        self.source[key] = (fact.operand, fact.axis)
        return True

    def _planned(self, waiting: Sequence[_Fact], hint: int) -> None:
        """Free dimensions tell nothing now: the one unknown mode of one of them is read from it at run time."""
        for fact in waiting:
            unknown = [key for key in fact.keys if key not in self.known]
            if fact.size is None and len(unknown) == 1:
                self.known[unknown[0]] = hint
                self.source[unknown[0]] = (fact.operand, fact.axis)
                return
        self._underdetermined(waiting[0])

    def _clash(self, key: Key, before: int, fact: _Fact) -> NoReturn:
        mode = _name(key)
        text = self.equation.text
        if key not in self.source:
            raise ShapeError(
                f"mode {mode} is {before} in sizes= and {fact.size} in operand {fact.operand}",
                text=text,
                spans=_places(self.equation, fact.operand, mode),
            )
        other = self.source[key][0]
        if other == fact.operand:
            self._diagonals()
        hint = None
        if isinstance(key, str) and not mode.startswith(ELLIPSIS) and mode not in self.rigid:
            bar = "".join(written(name) for name in [*(c.mode for c in self.equation.convolved), mode])
            hint = f"to convolve along {mode}, write it after the bar: |{bar}"
        elif key in self.rigid:
            hint = "a mode that is part of a composed dimension does not broadcast"
        raise ShapeError(
            f"mode {_described(mode)} is {before} in operand {other} and {fact.size} in operand {fact.operand}",
            text=text,
            spans=[*_places(self.equation, other, mode), *_places(self.equation, fact.operand, mode)],
            hint=hint,
        )

    def _wrong_product(self, fact: _Fact) -> NoReturn:
        parts = ", ".join(
            f"{_name(key)}={self.known[key]}" if key in self.known else f"{_name(key)}=?" for key in fact.keys
        )
        raise ShapeError(
            f"dimension {fact.axis} of operand {fact.operand} has size {fact.size}, "
            f"which is not the product of its modes ({parts})",
            text=self.equation.text,
            spans=_dimension_spans(self.equation, fact),
        )

    def _underdetermined(self, fact: _Fact) -> NoReturn:
        open_modes = list(dict.fromkeys(_name(key) for key in fact.keys if key not in self.known))
        filters = [m for m in open_modes if m in self.convolved]
        spare = next((mode for mode in open_modes if not mode.isdecimal()), open_modes[0])
        given = [mode for mode in open_modes if mode != spare] or open_modes
        suggestion = ", ".join(f'"{mode}": {mode if mode.isdecimal() else "..."}' for mode in given)
        hint = f"give {'all but one of them' if len(open_modes) > 1 else 'it'}: sizes={{{suggestion}}}"
        if numbers := [mode for mode in open_modes if mode.isdecimal()]:
            hint += f"; {numbers[0]} is a name here, not a size"
        if filters and len(open_modes) == 1:
            hint = f"sizes= is the signal's size of {filters[0]}; a filter's is read from its own dimension"
        raise ShapeError(
            f"dimension {fact.axis} of operand {fact.operand} "
            f"{'is free' if fact.size is None else f'has size {fact.size}'}, and nothing tells how it splits "
            f"into {' and '.join(open_modes)}",
            text=self.equation.text,
            spans=_dimension_spans(self.equation, fact),
            hint=hint,
        )


def _output_composed(equation: Equation) -> list[str]:
    return [mode for d in equation.output.dimensions if len(d.modes) > 1 for mode in d.modes]


def _places(equation: Equation, operand: int, mode: str) -> list[Span]:
    """Where an operand names a mode."""
    dimensions = equation.inputs[operand].dimensions
    if mode.startswith(ELLIPSIS):
        mode = ELLIPSIS
    return [span for d in dimensions for name, span in zip(d.modes, d.spans, strict=True) if name == mode]


def _dimension_spans(equation: Equation, fact: _Fact) -> list[Span]:
    """The place of a composed dimension in the text (an ellipsis before it shifts its axis)."""
    wanted = tuple(_name(key) for key in fact.keys)
    dimensions = [d for d in equation.inputs[fact.operand].dimensions if d.modes == wanted]
    return [d.span for d in dimensions[:1]]


def _root(power: int, times: int) -> int:
    """The number whose `times`-th power this is, if there is one: floats do not hold every size."""
    if times == 1:
        return power
    near: int = round(float(power) ** (1 / times))
    return next((root for root in (near - 1, near + 1) if root**times == power), near)


def _name(key: Key) -> str:
    return key if isinstance(key, str) else key[0]


def _described(mode: str) -> str:
    return f"... (dimension {int(mode[3:]) + 1} from the right)" if mode.startswith(ELLIPSIS) else mode
