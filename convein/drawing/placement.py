"""Free places: how a line bends around boxes, where a leg points, where a label stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convein.drawing.svg import Box

# NumPy's arrays of points.
Array = Any

_BENDS = (0.0, 22.0, -22.0, 44.0, -44.0, 70.0, -70.0, 100.0, -100.0, 140.0, -140.0)
_LEG = 24.0
_DIRECTIONS = 24


@dataclass(frozen=True, slots=True)
class LegPlace:
    """Where a leg begins and ends, and the box of its label."""

    start: complex
    tip: complex
    label: Box


def sampled(curve: Sequence[complex], count: int = 25) -> Array:
    """Points along a line or a quadratic Bezier curve."""
    t = np.linspace(0, 1, count)
    start, control, end = (curve[0], sum(curve) / 2, curve[1]) if len(curve) == 2 else curve
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def joined(arrays: Iterable[Array]) -> Array:
    """The points of all arrays."""
    return np.concatenate([np.zeros(0, complex), *arrays])


def visible(curve: Sequence[complex], ends: Sequence[Box]) -> Array:
    """The points of a curve that its two ends do not cover."""
    points = sampled(curve, 61)
    shown = [point for point in points if not any(box.holds(complex(point)) for box in ends)]
    return np.array(shown or points[30:31])


def bent(
    start: complex, end: complex, obstacles: Sequence[Box], taken: Sequence[float]
) -> tuple[float, tuple[complex, ...]]:
    """The curve between two points that meets the fewest boxes: how far it bends, and its points.

    Args:
        start: where it begins.
        end: where it ends.
        obstacles: boxes that it should not cross.
        taken: bends of the lines that join the same points already.
    """
    bends = [bend for bend in _BENDS if bend not in taken] or [max(taken) + 22.0]
    across = 2j * (end - start) / abs(end - start)
    curves = [(start, (start + end) / 2 + bend * across, end) if bend else (start, end) for bend in bends]

    def badness(choice: int) -> float:
        met = _inside(sampled(curves[choice]), obstacles, 7)
        return 10.0 * met + abs(bends[choice]) / 2

    best = min(range(len(bends)), key=badness)
    return bends[best], curves[best]


def free_label(label: Box, places: Sequence[complex], boxes: Sequence[Box], ink: Array) -> Box:
    """A label at the place where it covers least; places are in order of preference."""
    found = [Box(center, label.width, label.height) for center in places]

    def badness(rank: int) -> float:
        covered = 2.0 * sum(found[rank].overlap(other, 3) for other in boxes)
        return covered + 6.0 * _inside(ink, [found[rank]]) + 3.0 * rank

    return found[min(range(len(found)), key=badness)]


def leg_place(owner: Box, label: Box, boxes: Sequence[Box], ink: Array, *, up: bool) -> LegPlace:
    """A short line out of a box in the freest direction, up or down if it can be, with a label at its end."""
    first = -1j if up else 1j

    def badness(along: complex) -> float:
        place = _leg(owner, label, along)
        line = sampled((place.start, place.tip), 7)[1:]
        covered = sum(place.label.overlap(other, 4) for other in boxes) + 60.0 * _inside(line, boxes, 3)
        crossed = 14.0 * _inside(ink, [place.label]) + 25.0 * _near(ink, line, 7)
        aslant = min(abs(along - first), 0.2 + abs(along + first), 0.5 + abs(abs(along.real) - 1))
        return covered + crossed + 26 * aslant

    directions = [1j ** (1 + 4 * step / _DIRECTIONS) for step in range(_DIRECTIONS)]
    return _leg(owner, label, min(directions, key=badness))


def _leg(owner: Box, label: Box, along: complex) -> LegPlace:
    start = owner.center + along * _reach(owner, along)
    tip = start + along * _LEG
    return LegPlace(start, tip, Box(tip + along * (_reach(label, along) + 3), label.width, label.height))


def _reach(box: Box, along: complex) -> float:
    """How far it is from a box's centre to its border in a direction of length one."""
    across = box.width / 2 / abs(along.real) if along.real else float("inf")
    down = box.height / 2 / abs(along.imag) if along.imag else float("inf")
    return min(across, down)


def _inside(points: Array, boxes: Sequence[Box], margin: float = 0.0) -> int:
    """How many pairs of a point and a box there are with the point in the box."""
    if not len(points) or not boxes:
        return 0
    centers = np.array([box.center for box in boxes])
    wide = np.array([box.width / 2 + margin for box in boxes])
    high = np.array([box.height / 2 + margin for box in boxes])
    away = points[:, None] - centers
    return int(((np.abs(away.real) < wide) & (np.abs(away.imag) < high)).sum())


def _near(ink: Array, points: Array, distance: float) -> int:
    """How many of the points have ink nearer than the distance."""
    if not len(ink):
        return 0
    return int((np.abs(points[:, None] - ink[None, :]).min(axis=1) < distance).sum())
