"""Network + disjoint sets of operands -> Frame: the small problem that a search solves, as numbers.

The values to join are the leaves: single operands, or partial results. Inside a frame a set of leaves is a bit mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from convein.network import Network
from convein.planner.partial import Partial, is_passed
from convein.windows import Convolution


@dataclass(frozen=True, slots=True)
class Plain:
    """All modes with the same fate: carried by `leaves`, `open` if also needed elsewhere; `size` is their product."""

    leaves: int
    open: bool
    size: int


@dataclass(frozen=True, slots=True)
class Meeting:
    """A mode that is convolved within the frame: carried by two or more `leaves`, `open` if also needed elsewhere."""

    convolution: Convolution
    leaves: tuple[int, ...]
    open: bool


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a search needs to know.

    Attributes:
        network: where it comes from.
        values: the partial results to be joined: the leaves.
        plain: modes that no step of this frame convolves, those with the same fate merged.
        meetings: modes that steps of this frame convolve.
        needs_grad: leaves with an operand that needs its gradient; `constant`: leaves of constants only;
            `passed`: leaves that are operands used as they are passed.
    """

    network: Network
    values: tuple[Partial, ...]
    plain: tuple[Plain, ...]
    meetings: tuple[Meeting, ...]
    needs_grad: int
    constant: int
    passed: int

    @property
    def magnitude(self) -> int:
        """No product of sizes has more bits than this."""
        return sum(value.elements.bit_length() for value in self.values)

    def operands(self, subset: int) -> int:
        """The operands in a set of leaves."""
        return reduce(or_, (value.operands for place, value in enumerate(self.values) if subset >> place & 1), 0)


def frame(network: Network, values: Iterable[Partial], needs_grad: int = 0, constants: int = 0) -> Frame:
    """The problem of joining these partial results of disjoint sets of operands."""
    values = tuple(values)
    carrying: dict[str, int] = {}
    inside = 0
    for place, value in enumerate(values):
        inside |= value.operands
        for mode in value.sizes:
            carrying[mode] = carrying.get(mode, 0) | 1 << place
    output = frozenset(network.output)
    merged: dict[tuple[int, bool], int] = {}
    meetings = []
    for mode, leaves in carrying.items():
        is_open = mode in output or network.carriers[mode] & ~inside != 0
        convolution = network.convolutions.get(mode)
        if convolution is None or leaves & (leaves - 1) == 0:
            size = values[leaves.bit_length() - 1].sizes[mode]
            merged[leaves, is_open] = merged.get((leaves, is_open), 1) * max(size, 1)
        else:
            places = tuple(place for place in range(len(values)) if leaves >> place & 1)
            meetings.append(Meeting(convolution, places, is_open))
    return Frame(
        network,
        values,
        tuple(Plain(leaves, is_open, size) for (leaves, is_open), size in merged.items()),
        tuple(meetings),
        needs_grad=_mask(value.operands & needs_grad for value in values),
        constant=_mask(value.operands & ~constants == 0 for value in values),
        passed=_mask(is_passed(network, value) for value in values) if needs_grad else 0,
    )


def _mask(flags: Iterable[object]) -> int:
    return sum(1 << place for place, flag in enumerate(flags) if flag)


def _bits(places: Iterable[int]) -> int:
    return sum(1 << place for place in places)


def regroup(problem: Frame, values: Iterable[Partial]) -> Frame:
    """The problem of joining some values that are made of a frame's leaves."""
    return frame(problem.network, values, problem.operands(problem.needs_grad), problem.operands(problem.constant))


def connected_parts(problem: Frame) -> list[int]:
    """Sets of leaves that share no mode with each other."""
    parts: list[int] = []
    shared = [plain.leaves for plain in problem.plain] + [_bits(meeting.leaves) for meeting in problem.meetings]
    for leaves in [*shared, *(1 << place for place in range(len(problem.values)))]:
        touching = [part for part in parts if part & leaves]
        parts = [part for part in parts if not part & leaves] + [reduce(or_, touching, leaves)]
    return sorted(parts, key=lambda part: part & -part)
