"""Why a kernel does not compute a run of steps: what is known while a program is written, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# More lines are not read.
MOST = 8


@dataclass(frozen=True, slots=True)
class Note:
    """One kernel and one run.

    Attributes:
        reason: a clause.
        kernel: its name; "" for all of them.
        run: the operands, as "x0 by x1, (x2 x3)".
        fits: whether the kernel could compute the run.
    """

    reason: str
    kernel: str = ""
    run: str = ""
    fits: bool = False


def told(notes: Iterable[Note]) -> list[str]:
    """The first notes as lines, those of one kernel with one reason together."""
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for note in notes:
        runs.setdefault((note.kernel, note.reason), {})[note.run] = None
    lines = []
    for (kernel, reason), found in runs.items():
        first, *others = found
        more = f" and {len(others)} more" if others else ""
        lines.append(f"{kernel}, {first}{more}: {reason}" if kernel else reason)
    return lines[:MOST]
