"""results/*.csv -> rows and medians."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

SETTING = ("commit", "device", "threads", "python", "torch", "peers", "heap")
Row = dict[str, str]


def last_rows(file: Path) -> list[Row]:
    """The rows that were measured as the last one was: same commit, device, threads and versions."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if all(row[key] == rows[-1][key] for key in SETTING)]


def medians(rows: Sequence[Row], column: str) -> list[tuple[str, str, float]]:
    """Group, variant, and the median over the runs of a column."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["group"], row["variant"]].append(float(row[column]))
    return [(*key, statistics.median(found)) for key, found in values.items()]
