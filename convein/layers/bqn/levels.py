"""The numbers that a quantised weight can be, and the lattice on which sums of their products lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convein.errors import OptionError
from convein.options import shown

LEVELS: dict[str, tuple[float, ...]] = {
    "binary": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "quaternary": (-3.0, -1.0, 1.0, 3.0),
}
Levels = str | Sequence[float]

LONGEST = 4096
# Part of the range of numbers by which they may miss their lattice: rounding, and far less than a step.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Lattice:
    """`size` numbers: lowest, lowest + step, ...; of one number the step is 1."""

    lowest: float
    step: float
    size: int

    def index(self, value: float) -> int:
        """Where a number of the lattice stands in it."""
        return round((value - self.lowest) / self.step)


def read_levels(levels: Levels) -> tuple[float, ...]:
    """The levels, sorted.

    Args:
        levels: a name of `LEVELS`, or two different numbers or more.

    Raises:
        OptionError: nothing has this name, or these are not such numbers.
    """
    if isinstance(levels, str):
        if levels not in LEVELS:
            raise OptionError(
                f"levels={levels!r}: no levels have this name",
                hint=f"{', '.join(map(repr, LEVELS))}, or the numbers themselves, as levels=(-1, 1)",
            )
        return LEVELS[levels]
    numbers = list(levels) if isinstance(levels, Sequence) else []
    real = [float(one) for one in numbers if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(real) < 2 or len(real) != len(numbers) or len(set(real)) != len(real) or not all(map(math.isfinite, real)):
        raise OptionError(
            f"levels={shown(levels)} of a quantised weight", hint="two different numbers or more, as levels=(-1, 0, 1)"
        )
    return tuple(sorted(real))


def lattice(values: Iterable[float]) -> Lattice:
    """The coarsest lattice that holds all values.

    Raises:
        OptionError: they have no common step, or one so fine that the lattice has more than 4,096 numbers.
    """
    numbers = sorted(set(values))
    width = numbers[-1] - numbers[0]
    step = 0.0
    for number in numbers[1:]:
        step = _common(step, number - numbers[0], width * _ROUNDING)
    size = round(width / step) + 1 if step else 1
    if size > LONGEST:
        raise OptionError(
            f"{shown(numbers)} have no common step that divides their range into {LONGEST} parts or fewer",
            hint='propagation="clt" takes any levels',
        )
    return Lattice(numbers[0], step or 1.0, size)


def _common(a: float, b: float, rounding: float) -> float:
    """The largest number of which both are multiples up to rounding, by Euclid's algorithm."""
    while b > rounding:
        rest = a % b
        # A remainder just below b is one just below zero.
        a, b = b, min(rest, b - rest)
    return a
