"""What can be measured: the table of cases, by the name that `run.py` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import summary
from cases import contractions, imports, layers, overhead, planner
from measure import Group, Timing

CASES: dict[str, Callable[[], Iterator[Group]]] = {
    "overhead": overhead.groups,
    "imports": imports.groups,
    "planner": planner.groups,
    "layers": layers.groups,
    "contractions": contractions.groups,
}

# What is said of all groups of a case at its end.
SUMMARIES: dict[str, Callable[[list[Timing]], str]] = {"layers": summary.of_timings}
