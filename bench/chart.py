"""results/layers.csv -> the README's table and picture: `python bench/chart.py`, or `--summary` for every mean.

`--targets` prints a table of what was to be reached and what is, from the rows of all cases.

Of the rows, those count that were measured as the last one was: same commit, device, threads and versions. Where there
are several runs, a case's ratio is the median over them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import log
from pathlib import Path

from convein.drawing.svg import INK, QUIET, Box, Picture, document, dot, lettering, named, path
from rows import last_rows, medians
from summary import MEAN_FORMS, PEERS, Result, mean, results_of, shown, summary
from targets import targets

RESULTS = Path(__file__).parent / "results"
BATCH = 32
PERCENTS = (1, 10, 50, 100)
DIRECTIONS = ("forward", "forward+backward")
LAYOUTS = ("NCHW", "channels-last")

# Okabe and Ito's colours, as in convein's own pictures; the dense layer, which is another function, in grey.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", QUIET)
PANEL = complex(300, 230)
LABELS = 256
MARGIN = complex(46, 66)
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def read(file: Path) -> tuple[list[Result], Mapping[str, str], int]:
    """The results of the last setting, the setting, and how many runs it has."""
    rows = last_rows(file)
    if not rows:
        raise SystemExit(f"{file} has no rows: run python bench/run.py layers")
    return results_of(medians(rows, "ratio")), rows[-1], len({row["date"] for row in rows})


def chosen(results: Sequence[Result], peer: str, percent: int, direction: str, layout: str) -> float | None:
    """The geometric mean over forms and layers of how many times longer a peer takes."""
    return mean(
        result.over(peer)
        for result in results
        if result.case.form in MEAN_FORMS
        and (result.case.batch, result.case.percent) == (BATCH, percent)
        and (result.case.direction, result.case.layout) == (direction, layout)
    )


def table(results: Sequence[Result], setting: Mapping[str, str], runs: int) -> Iterator[str]:
    """The README's table, in Markdown."""
    columns = [(direction, percent) for direction in DIRECTIONS for percent in PERCENTS]
    for layout in LAYOUTS:
        yield f"| {layout} | " + " | ".join(f"{direction} {percent} %" for direction, percent in columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for peer, name in PEERS.items():
            cells = [shown(chosen(results, peer, percent, direction, layout)) for direction, percent in columns]
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""
    versions = f"torch {setting['torch']}, {setting['peers'].replace(';', ',')}"
    yield f"{setting['device']}, threads: {setting['threads']}, {versions}, runs: {runs}"


def picture(results: Sequence[Result]) -> Picture:
    """Two panels: forward, and forward and backward; a line for each peer, over the parameters."""
    lines = {
        direction: {
            peer: [chosen(results, peer, percent, direction, LAYOUTS[0]) for percent in PERCENTS] for peer in PEERS
        }
        for direction in DIRECTIONS
    }
    values = [value for peers in lines.values() for line in peers.values() for value in line if value is not None]
    low = max((tick for tick in TICKS if tick <= min(1, *values)), default=TICKS[0])
    high = min((tick for tick in TICKS if tick >= max(2, *values)), default=TICKS[-1])
    means = f"geometric means over {', '.join(MEAN_FORMS)} and four layers; batch {BATCH}, {LAYOUTS[0]}"
    marks = [lettering([f"How many times longer than convein: {means}"], 12 + 18j, anchor="start")]
    for number, (direction, peers) in enumerate(lines.items()):
        corner = MARGIN + number * (PANEL.real + MARGIN.real)
        marks += [*_frame(corner, direction, low, high), *_curves(corner, peers, low, high)]
    end = MARGIN + PANEL.real + MARGIN.real
    last = [line[-1] for line in lines[DIRECTIONS[-1]].values()]
    marks += _names(end, last, low, high)
    size = complex(end.real + PANEL.real + LABELS, MARGIN.imag + PANEL.imag + 44)
    return Picture(tuple(marks), Box(size / 2, size.real, size.imag))


def _height(value: float, low: float, high: float) -> float:
    """How far below a panel's upper edge a value is."""
    return PANEL.imag * (1 - log(value / low) / log(high / low))


def _across(place: int) -> float:
    return PANEL.real * (place + 0.5) / len(PERCENTS)


def _frame(corner: complex, direction: str, low: float, high: float) -> Iterator[str]:
    yield lettering([direction], corner + complex(PANEL.real / 2, -16), bold=True)
    for tick in TICKS:
        if low <= tick <= high:
            left = corner + complex(0, _height(tick, low, high))
            color, width = (INK, 1.6) if tick == 1 else ("#dddddd", 1.0)
            yield path([left, left + PANEL.real], color=color, width=width)
            yield lettering([f"{tick:g}x"], left - 20, color=QUIET)
    for place, percent in enumerate(PERCENTS):
        yield lettering([f"{percent} %"], corner + complex(_across(place), PANEL.imag + 12), color=QUIET)
    below = corner + complex(PANEL.real / 2, PANEL.imag + 30)
    yield lettering(["parameters of the dense layer"], below, color=QUIET)


def _curves(corner: complex, peers: Mapping[str, Sequence[float | None]], low: float, high: float) -> Iterator[str]:
    for (peer, line), color in zip(peers.items(), COLORS, strict=True):
        points = [
            corner + complex(_across(place), _height(value, low, high))
            for place, value in enumerate(line)
            if value is not None
        ]
        strokes = [path(pair, color=color, width=2) for pair in pairwise(points)]
        yield named(PEERS[peer], *strokes, *(dot(point, 3, fill=color) for point in points))


def _names(corner: complex, values: Sequence[float | None], low: float, high: float) -> Iterator[str]:
    """The peers' names at the right of their lines, apart from each other, and convein's at the line of 1."""
    names = [*PEERS.values(), "convein"]
    heights = [_height(1 if value is None else value, low, high) for value in (*values, 1.0)]
    lowest = -float("inf")
    for number in sorted(range(len(names)), key=lambda number: heights[number]):
        lowest = max(heights[number], lowest + 15)
        color = (*COLORS, INK)[number]
        yield lettering([names[number]], corner + complex(PANEL.real + 8, lowest), color=color, anchor="start")


def main() -> None:
    """Write the picture and print the table."""
    parser = argparse.ArgumentParser(prog="bench/chart.py", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "layers.csv", help="rows of run.py layers")
    parser.add_argument("--summary", action="store_true", help="print every mean and the worst cases instead")
    parser.add_argument("--targets", action="store_true", help="print what was to be reached, and what is, instead")
    arguments = parser.parse_args()
    if arguments.targets:
        print("\n".join(targets(arguments.file.parent)))
        return
    results, setting, runs = read(arguments.file)
    if arguments.summary:
        print(summary(results))
        return
    target = arguments.file.with_suffix(".svg")
    title = f"Times of factorised layers, {setting['device']}"
    target.write_text(document(picture(results), title), encoding="utf-8")
    print("\n".join(table(results, setting, runs)))
    print(f"\nwrote {target}")


if __name__ == "__main__":
    main()
