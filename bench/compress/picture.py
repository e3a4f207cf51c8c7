"""Results -> a picture: accuracy against parameters, a panel for each way of distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log

from compress.costs import DENSE
from compress.experiment import END_TO_END, SEQUENTIAL
from compress.filling import PAIRS
from compress.tables import Results, accuracy_of
from convein.drawing.svg import INK, QUIET, Box, Picture, dot, lettering, named, path

COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
PANEL = complex(380, 300)
MARGIN = complex(56, 66)
NAMES = 96  # room at the right of a panel
APART = 14.0
GRID = "#dddddd"


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a number of parameters and an accuracy are in a panel, from its upper left corner."""

    few: float
    many: float
    low: float
    high: float

    def at(self, parameters: float, accuracy: float) -> complex:
        """The parameters on a scale of logarithms."""
        across = log(parameters / self.few) / log(self.many / self.few)
        return complex(PANEL.real * across, PANEL.imag * (self.high - accuracy) / (self.high - self.low))


@dataclass(frozen=True, slots=True)
class Line:
    """A form: its points (parameters, accuracy), fewest parameters first."""

    form: str
    points: tuple[tuple[int, float], ...]

    @property
    def color(self) -> str:
        """The same for a form and its reshaped one; grey for those that have none."""
        for color, pair in zip(COLORS, PAIRS.items(), strict=True):
            if self.form in pair:
                return color
        return QUIET


def lines(results: Results, method: str) -> list[Line]:
    """What a panel shows."""
    points: dict[str, list[tuple[int, float]]] = {}
    for fill in (False, True):
        for form, outcomes in results.forms(fill=fill).items():
            accuracy = accuracy_of(outcomes, method)
            if accuracy is not None:
                points.setdefault(form, []).append((outcomes[0].parameters, accuracy))
    return [Line(form, tuple(sorted(found))) for form, found in points.items()]


def picture(results: Results) -> Picture:
    """Both panels. The dense network is a line across; reshaped forms are drawn through, the others dashed."""
    panels = {method: lines(results, method) for method in (END_TO_END, SEQUENTIAL)}
    points = [point for panel in panels.values() for line in panel for point in line.points]
    parameters = [each for each, _ in points]
    accuracies = [results.teacher, *(accuracy for _, accuracy in points)]
    high = ceil(max(accuracies))
    low = min(floor(min(accuracies)), high - 1)
    axes = Axes(0.85 * min(parameters), 1.1 * max(parameters), low, high)
    marks = [
        lettering(["Accuracy on held-back pictures, %: full lines reshaped, dashed not"], 12 + 18j, anchor="start")
    ]
    for number, (method, panel) in enumerate(panels.items()):
        corner = MARGIN + number * (PANEL.real + NAMES + MARGIN.real)
        marks += [*_frame(corner, method, axes, results), *_curves(corner, panel, axes)]
    size = complex(2 * (MARGIN.real + PANEL.real + NAMES), MARGIN.imag + PANEL.imag + 48)
    return Picture(tuple(marks), Box(size / 2, size.real, size.imag))


def _frame(corner: complex, method: str, axes: Axes, results: Results) -> Iterator[str]:
    yield lettering([method], corner + complex(PANEL.real / 2, -18), bold=True)
    step = max(1, ceil((axes.high - axes.low) / 8))
    for tick in range(int(axes.low), int(axes.high) + 1, step):
        left = corner + 1j * axes.at(axes.few, tick).imag
        yield path([left, left + PANEL.real], color=GRID, width=1)
        yield lettering([f"{tick}"], left - 18, color=QUIET)
    left = corner + 1j * axes.at(axes.few, results.teacher).imag
    dense = f"dense, {results.costs[DENSE].parameters // 4:,}"
    yield named(f"{dense}: {results.teacher:.1f} %", path([left, left + PANEL.real], color=INK, width=1.6))
    yield lettering([dense], left + complex(4, -8), anchor="start")
    ticks = [base * 10**power for power in range(9) for base in (1, 1.5, 2, 3, 5, 7)]
    for parameters in ticks:
        if axes.few <= parameters <= axes.many:
            below = corner + complex(axes.at(parameters, axes.low).real, PANEL.imag)
            yield path([below, below + 4j], color=QUIET, width=1)
            yield lettering([f"{parameters / 1e3:g}k"], below + 14j, color=QUIET)
    yield lettering(["parameters of the network"], corner + complex(PANEL.real / 2, PANEL.imag + 33), color=QUIET)


def _curves(corner: complex, panel: Sequence[Line], axes: Axes) -> Iterator[str]:
    lowest = -float("inf")
    for line in sorted(panel, key=lambda line: -line.points[-1][1]):
        points = [corner + axes.at(*point) for point in line.points]
        strokes = [
            path([start, end], color=line.color, width=2, dashed=line.form not in PAIRS)
            for start, end in pairwise(points)
        ]
        dots = [dot(point, 3.5, fill=line.color if line.form in PAIRS else "#ffffff", outline=line.color)
                for point in points]  # fmt: skip
        values = ", ".join(f"{accuracy:.1f} % with {parameters:,}" for parameters, accuracy in line.points)
        yield named(f"{line.form}: {values}", *strokes, *dots)
        lowest = max(points[-1].imag, lowest + APART)
        name = complex(corner.real + PANEL.real + 8, lowest)
        yield lettering([line.form], name, color=line.color, anchor="start")
