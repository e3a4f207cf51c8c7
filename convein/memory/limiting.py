"""Sketches of a call -> the first draft whose bytes stay within a limit: as it is, recomputed, in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from convein.execution import load
from convein.lowering.checkpoint import choices, rewrite
from convein.lowering.looping import Loop
from convein.memory.fitting import Draft
from convein.memory.observing import observe
from convein.metering import predict

# Into how many chunks a mode is cut, and how many there may be in all.
COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_CHUNKS = 128
# So many ways of keeping values are tried, and so many modes sliced at once.
MOST_KEPT = 6
MOST_LOOPS = 3

Loops = tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Sketch:
    """One order of a call.

    Attributes:
        draft: its program, without loops.
        loops: for each mode that can be sliced a loop of one chunk, the whole mode.
        sliced: makes the draft with loops over smaller chunks.
    """

    draft: Draft
    loops: Loops
    sliced: Callable[[Loops], Draft]


def limited(sketches: Sequence[Sketch], limit: int, budget: int | None) -> Draft | int:
    """The way to run one of these that should be the fastest among those within a limit; else the smallest limit.

    What is tried does not depend on the limit, so that the smallest one is kept when it is asked for: all ways without
    loops; then loops over one mode, from its smallest chunks to larger ones; then, in what took the fewest bytes so
    far, loops over one more mode.

    Args:
        sketches: orders to choose from.
        limit: bytes that may be alive during a call and its backward pass, operands excluded.
        budget: bytes that may be kept for the backward pass, if that is limited too.
    """
    smallest: int | None = None
    ways = [way for sketch in sketches for way in _recomputed(sketch.draft, budget)]
    for _, draft in sorted(ways, key=lambda way: way[0]):
        peak = _peak(draft)
        if peak <= limit:
            return draft
        smallest = peak if smallest is None else min(smallest, peak)
    assert smallest is not None
    bases: list[tuple[Sketch, Loops]] = [(sketch, ()) for sketch in sketches]
    for _ in range(MOST_LOOPS):
        found = []
        for sketch, outer in bases:
            for loop in sketch.loops:
                cuts = _cuts(loop, outer)
                if cuts:
                    found.append((_peak(sketch.sliced(cuts[-1])), sketch, cuts))
        fitting = [(sketch, cuts) for peak, sketch, cuts in found if peak <= limit]
        if fitting:
            return _coarsest(fitting, limit)
        best = min(found, key=lambda one: one[0], default=None)
        if best is None or best[0] >= smallest:
            break
        smallest = best[0]
        bases = [(best[1], best[2][-1])]
    return smallest


def _recomputed(draft: Draft, budget: int | None) -> Iterator[tuple[float, Draft]]:
    """What the whole may take in microseconds, and how: what is kept for the backward pass makes the difference."""
    found = choices(draft.rest, observe(draft.rest, draft.samples))
    allowed = [choice for choice in found if budget is None or choice.kept <= budget]
    step = -(-len(allowed) // MOST_KEPT)
    for choice in [*allowed[:-1:step], allowed[-1]]:
        yield draft.rest.price + choice.time, replace(draft, rest=rewrite(draft.rest, choice))


def _cuts(loop: Loop, outer: Loops) -> list[Loops]:
    """The loops with one more, whose chunks get smaller."""
    if any(other.mode == loop.mode for other in outer):
        return []
    most = MOST_CHUNKS // prod(other.count for other in outer)
    chunks = dict.fromkeys(-(-loop.size // count) for count in COUNTS if count <= min(most, loop.size))
    return [(*outer, replace(loop, chunk=chunk)) for chunk in chunks]


def _coarsest(fitting: Sequence[tuple[Sketch, list[Loops]]], limit: int) -> Draft:
    """The draft of the fewest chunks that fits; of each mode the smallest chunks do."""
    cuts = [(loops[-1].count, place, sketch, loops) for place, (sketch, found) in enumerate(fitting) for loops in found]
    for *_, sketch, loops in sorted(cuts, key=lambda cut: cut[:2]):
        draft = sketch.sliced(loops)
        if _peak(draft) <= limit:
            break
    return draft


def _peak(draft: Draft) -> int:
    return predict(load(draft.rest), draft.samples, autocast_off=bool(draft.rest.autocast_off)).peak
