"""Pictures: what outputs see, a heat map for each stack, with their radii; and losses while networks learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arma.fields import Field
from arma.training import CHANCE, Outcome
from convein.layers import ARMAStage, theoretical_radius

COLORS = ("#0072b2", "#009e73", "#e69f00", "#d55e00")
# Points at each side of the middle that a heat map shows.
SHOWN = 24
HIGHEST = 1e4


def draw_fields(found: Sequence[Field], file: Path) -> None:
    """A row of heat maps for every coefficient, a column for every depth; right of them radii against both.

    Args:
        found: two-sided fields in two dimensions.
        file: to write, a PNG.
    """
    coefficients = sorted({each.stage.coefficient for each in found})
    depths = sorted({each.depth for each in found})
    by_place = {(each.stage.coefficient, each.depth): each for each in found}
    figure, grid = _figure((3.0 + 1.7 * len(depths) + 2, 1.75 * len(coefficients)))
    layout = grid.GridSpec(len(coefficients), len(depths) + 2, figure=figure)
    for row, coefficient in enumerate(coefficients):
        for column, depth in enumerate(depths):
            axes = figure.add_subplot(layout[row, column])
            _heat(axes, by_place[coefficient, depth])
            if row == 0:
                axes.set_title(f"{depth} layer{'s' if depth > 1 else ''}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"a = {coefficient:g}" if coefficient else "convolutions", fontsize=9)
    half = len(coefficients) // 2 or 1
    against_depth = figure.add_subplot(layout[:half, -2:])
    against_a = figure.add_subplot(layout[half:, -2:])
    for color, a in zip(COLORS, coefficients):
        theory = {float(depth): _theory(depth, a) for depth in range(1, max(depths) + 1)}
        measured = {float(depth): by_place[a, depth].radius for depth in depths}
        _curve(against_depth, theory, measured, color, f"a = {a:g}")
    for color, depth in zip(COLORS, depths):
        theory = {a / 100: _theory(depth, a / 100) for a in range(round(100 * max(coefficients)) + 1)}
        measured = {a: by_place[a, depth].radius for a in coefficients}
        _curve(against_a, theory, measured, color, f"{depth} layer{'s' if depth > 1 else ''}")
    _finish(against_depth, "layers")
    _finish(against_a, "a")
    figure.suptitle(
        "each layer, along each dimension: y[i] - a/2 (y[i - 1] + y[i + 1]) = (1 - a) mean of x[i - 1], x[i], x[i + 1]",
        fontsize=9,
    )
    figure.savefig(file, dpi=75)


def _heat(axes: Any, field: Field) -> None:
    """Square roots of the field, so that its tails are seen; a circle has the radius."""
    middle = field.values.shape[0] // 2
    near = slice(middle - SHOWN, middle + SHOWN + 1)
    axes.imshow(field.values[near, near].sqrt().numpy(), cmap="magma", extent=(-SHOWN - 0.5, SHOWN + 0.5) * 2)
    axes.add_patch(_circle(field.radius))
    axes.set_xlabel(f"r = {field.radius:.2f}", fontsize=8, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _circle(radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), radius, fill=False, color="white", linewidth=0.8)


def _theory(depth: int, coefficient: float) -> float:
    return theoretical_radius([ARMAStage(3, coefficient, two_sided=True)] * depth)


def _curve(axes: Any, theory: Mapping[float, float], measured: Mapping[float, float], color: str, name: str) -> None:
    axes.plot([*theory], [*theory.values()], color=color, linewidth=1.2)
    axes.plot([*measured], [*measured.values()], "o", color=color, markersize=4, label=name)


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel(label, fontsize=8, labelpad=1)
    axes.set_ylabel("radius: measured (dots), theory", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)


def draw_losses(outcomes: Sequence[Outcome], file: Path) -> None:
    """A panel for every learning rate: training losses by epoch, a line for every seed.

    Args:
        outcomes: of all jobs.
        file: to write, a PNG.
    """
    rates = sorted({each.job.rate for each in outcomes})
    names = list(dict.fromkeys(each.job.stability for each in outcomes))
    figure, grid = _figure((3.4 * len(rates), 3.2))
    layout = grid.GridSpec(1, len(rates), figure=figure)
    for column, rate in enumerate(rates):
        axes = figure.add_subplot(layout[0, column])
        for color, name in zip(COLORS, names):
            mine = [each for each in outcomes if (each.job.rate, each.job.stability) == (rate, name)]
            for number, each in enumerate(mine):
                losses = [min(loss, HIGHEST) if loss == loss else HIGHEST for loss in each.losses]  # noqa: PLR0124
                epochs = range(1, len(losses) + 1)
                axes.plot(epochs, losses, color=color, linewidth=1, alpha=0.8, label=None if number else name)
        axes.axhline(CHANCE, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_ylim(0.01, HIGHEST)
        axes.set_title(f"learning rate {rate:g}", fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        if column == 0:
            axes.set_ylabel("training loss (dashed: guessing)", fontsize=8)
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=90)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that needs no screen, and matplotlib's grids."""
    from matplotlib import gridspec
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, gridspec
