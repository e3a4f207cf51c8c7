"""An explicit path -> its steps over numbered values: every mistake in it is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from convein.errors import PlanError
from convein.options import shown

NUMBERING = (
    "a path is opt_einsum's: a list of tuples, each of positions in the list of values that are left; "
    "what a step makes goes to the end of that list"
)


def read_path(path: Any, count: int, source: str = "the path") -> tuple[tuple[int, ...], ...]:
    """The values that each step joins, numbered operands first, then what the steps make.

    Args:
        path: a linear path; steps may name one, two or more positions, and a first word "einsum_path" is numpy's.
        count: the number of operands.
        source: what to call it.

    Raises:
        PlanError: it is no path, or no path for so many operands.
    """
    path = as_list(path)
    if not isinstance(path, Sequence) or isinstance(path, str | bytes):
        raise PlanError(f"{source} is {shown(path)}, and not a list of tuples", hint=NUMBERING)
    alive = list(range(count))
    steps = []
    for number, step in enumerate(path[1:] if list(path[:1]) == ["einsum_path"] else path):
        places = _places(step, f"step {number} of {source}", len(alive))
        steps.append(tuple(alive[place] for place in places))
        for place in sorted(places, reverse=True):
            del alive[place]
        alive.append(count + number)
    if len(alive) > 1:
        raise PlanError(f"{source} is incomplete: {len(alive)} values are left at its end", hint=NUMBERING)
    return tuple(steps)


def as_list(path: Any) -> Any:
    """A path whose steps, or which itself, may be arrays, with lists in their place; anything else as it is."""
    if hasattr(path, "tolist"):
        return path.tolist()
    if isinstance(path, list | tuple) and any(hasattr(step, "tolist") for step in path):
        return [step.tolist() if hasattr(step, "tolist") else step for step in path]
    return path


def _places(step: Any, name: str, left: int) -> tuple[int, ...]:
    if not isinstance(step, Sequence) or isinstance(step, str | bytes):
        raise PlanError(f"{name} is {shown(step)}, and not a tuple of positions", hint=NUMBERING)
    if not step:
        raise PlanError(f"{name} is empty", hint=NUMBERING)
    places: list[int] = []
    for given in step:
        try:
            place = index(given)
        except TypeError:
            raise PlanError(
                f"{name} has the position {shown(given)}, which is not an integer", hint=NUMBERING
            ) from None
        if not 0 <= place < left:
            values = f"{left} values are left, 0 to {left - 1}" if left > 1 else "one value is left, 0"
            raise PlanError(f"{name} has the position {shown(place)}, and {values}", hint=NUMBERING)
        if place in places:
            raise PlanError(f"{name} has the position {place} twice", hint=NUMBERING)
        places.append(place)
    return tuple(places)
