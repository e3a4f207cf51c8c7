"""One step of a plan -> statements: the pair's convolved modes are brought to one direction, then one call does it."""

from __future__ import annotations

from convein.lowering import axis, convnd, fft
from convein.lowering.product import contract
from convein.lowering.product import ways as ways_to_multiply
from convein.lowering.target import Target
from convein.lowering.values import Value
from convein.lowering.writer import Writer
from convein.windows import Correlation

PASSING = ("images", "groups")


def ways(
    left: Value, right: Value, correlations: tuple[Correlation, ...], kept: frozenset[str], target: Target
) -> tuple[str, ...]:
    """How `join` can do a step: `"first"` and `"last"` say where a convolution's channels lie in memory.

    With `"images"` and `"groups"` they are last, and modes that only pass are what the word says.
    """
    if not correlations:
        return ways_to_multiply(left, right, kept, target)
    if not target.chooses_layouts:
        return ("first",)
    x, w = (left, right) if correlations[0].signal_left else (right, left)
    return ("last", "first", *PASSING) if convnd.passes(x, w, correlations) else ("last", "first")


def join(
    writer: Writer,
    left: Value,
    right: Value,
    correlations: tuple[Correlation, ...],
    kept: frozenset[str],
    way: str,
) -> Value:
    """One step: the pair's convolved modes are brought to one direction, then the call that fits does it."""
    target, original = writer.target, correlations
    for c in correlations:
        if c.signal_left:
            left = axis.extend(writer, left, c)
        else:
            right = axis.extend(writer, right, c)
    correlations = tuple(axis.extended(c) for c in correlations)
    x, w, correlations = _orient(writer, left, right, correlations)
    needed = kept | {c.mode for c in correlations}
    if correlations and fft.pays(x, w, correlations, kept, target):
        y = fft.convolve(writer, x, w, correlations, needed)
    else:
        x, w, correlations = _direct(writer, x, w, correlations, target)
        if correlations:
            y = convnd.convolve(
                writer, x, w, correlations, needed, last=way != "first", passing=way if way in PASSING else ""
            )
        else:
            y = contract(writer, x, w, needed, way)
    for c in original:
        y = axis.fold(writer, y, c)
    return writer.sum_out(y, [mode for mode in y.modes if mode not in kept])


def _orient(
    writer: Writer, left: Value, right: Value, correlations: tuple[Correlation, ...]
) -> tuple[Value, Value, tuple[Correlation, ...]]:
    """One value as the signal side of every convolved mode: modes that disagree exchange roles, or are unfolded."""
    sides = {c.signal_left for c in correlations}
    if len(sides) == 1:
        return (left, right, correlations) if sides == {True} else (right, left, correlations)
    if not sides:
        return left, right, ()
    votes = {side: max(c.n for c in correlations if c.signal_left is side) for side in sides}
    main = votes[True] >= votes[False]
    x, w = (left, right) if main else (right, left)
    same_way = []
    for c in correlations:
        if c.signal_left is main:
            same_way.append(c)
        elif axis.can_swap(c):
            w, x, c = axis.swap(writer, w, x, c)
            same_way.append(c)
        else:
            w, x = axis.unfold(writer, w, x, c)
    return x, w, tuple(same_way)


def _direct(
    writer: Writer, x: Value, w: Value, correlations: tuple[Correlation, ...], target: Target
) -> tuple[Value, Value, tuple[Correlation, ...]]:
    """What torch's convolutions cannot take is unfolded: integers, more than three modes, stride with upsampling."""
    if target.has_convolution:
        by_cost = sorted(correlations, key=lambda c: c.kernel)
        excess = by_cost[: max(0, len(correlations) - convnd.MAX_SPATIAL)]
    else:
        excess = list(correlations)
    for c in excess:
        x, w = axis.unfold(writer, x, w, c)
    rest = tuple(c for c in correlations if c not in excess)
    if any(c.upsample > 1 for c in rest) and any(c.stride > 1 for c in rest):
        ready = []
        for c in rest:
            x, c = axis.upsample(writer, x, c)
            ready.append(c)
        rest = tuple(ready)
    return x, w, rest
