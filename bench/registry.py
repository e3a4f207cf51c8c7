"""What can be measured: the table of cases, by the name that `run.py` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import summary
from cases import (
    contractions,
    imports,
    layers,
    memory,
    modules,
    orthogonal,
    overhead,
    planner,
    recurrent,
    regret,
    roofline,
)
from measure import Group, Timing

CASES: dict[str, Callable[[], Iterator[Group]]] = {
    "overhead": overhead.groups,
    "imports": imports.groups,
    "planner": planner.groups,
    "layers": layers.groups,
    "modules": modules.groups,
    "orthogonal": orthogonal.groups,
    "recurrent": recurrent.groups,
    "contractions": contractions.groups,
    "regret": regret.groups,
    "roofline": roofline.groups,
}
# What is counted in bytes, and not timed.
COUNTS: dict[str, Callable[[], Iterator[memory.Count]]] = {"memory": memory.counts}

# What is said of all groups of a case at its end.
SUMMARIES: dict[str, Callable[[list[Timing]], str]] = {
    "layers": summary.of_timings,
    "regret": regret.summary,
    "roofline": roofline.summary,
}
