"""What can be measured: the table of cases, by the name that `run.py` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import summary
from cases import (
    contractions,
    gpu,
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
    "gpu": gpu.groups,
}
# What is counted in bytes, and not timed.
COUNTS: dict[str, Callable[[], Iterator[memory.Count]]] = {"memory": memory.counts, "gpu_memory": gpu.counts}
# What a name stands for, where that is more than one case.
TOGETHER: dict[str, tuple[str, ...]] = {"gpu": ("gpu", "gpu_memory")}
# Why a case cannot be measured on this machine, in a sentence; None if it can.
ABSENCES: dict[str, Callable[[], str | None]] = dict.fromkeys(TOGETHER["gpu"], gpu.absence)
# The columns that name the machine, where it is not the processor.
ENVIRONMENTS: dict[str, Callable[[], dict[str, str]]] = dict.fromkeys(TOGETHER["gpu"], gpu.environment)

# What is said of all groups of a case at its end.
SUMMARIES: dict[str, Callable[[list[Timing]], str]] = {
    "layers": summary.of_timings,
    "regret": regret.summary,
    "roofline": roofline.summary,
    "gpu": gpu.summary,
}
COUNT_SUMMARIES: dict[str, Callable[[Sequence[memory.Amount]], str]] = {
    "memory": memory.summary,
    "gpu_memory": gpu.memory_summary,
}
# What is written beside the rows: timings and the folder of results -> the file, if there is one.
EXPORTS: dict[str, Callable[[Sequence[Timing], Path], Path | None]] = {"gpu": gpu.export}
