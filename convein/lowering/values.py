"""Values with named axes: what a variable of the program holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

# A size is a number, or the name of a variable that holds it where it is only known at run time.
Size = int | str
Axis = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A variable of the program and what its axes mean, in the order that the memory has them.

    Attributes:
        name: the variable.
        axes: for each axis the modes merged in it, first slowest; `()` is an axis of size 1.
        sizes: the size of every mode.
        grad: whether it depends on an operand whose gradient is needed.
        signal: whether it depends on an operand that is the signal of a convolution.
    """

    name: str
    axes: tuple[Axis, ...]
    sizes: Mapping[str, Size] = field(hash=False)
    grad: bool = False
    signal: bool = False

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
