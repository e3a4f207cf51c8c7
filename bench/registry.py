"""What can be measured: the table of cases, by the name that `run.py` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cases import layer, overhead, planner
from measure import Group

CASES: dict[str, Callable[[], Iterator[Group]]] = {
    "overhead": overhead.groups,
    "planner": planner.groups,
    "layer": layer.groups,
}
