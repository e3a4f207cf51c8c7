"""Trained networks -> a picture: the singular values of every layer, and what is certified by radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lipschitz.training import Outcome

COLORS = ("#1b6ca8", "#c8553d", "#6b6b6b")


def draw(spectra: Mapping[str, Sequence[Tensor]], outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes the picture.

    Args:
        spectra: of every kind, the singular values of each layer.
        outcomes: of one network of each kind.
        path: a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for place, ((kind, layers), color) in enumerate(zip(spectra.items(), COLORS)):
        for number, values in enumerate(layers, 1):
            at = number + (place - 1) * 0.22
            left.vlines(at, float(values.min().clamp_min(1e-3)), float(values.max()), color=color, linewidth=1.5)
            levels = values.clamp_min(1e-3).quantile(values.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
            left.plot([at] * 5, levels, ".", color=color, markersize=5, label=kind if number == 1 else None)
    left.axhline(1, color="black", linewidth=0.6)
    left.set(yscale="log", xlabel="layer", ylabel="singular values at all frequencies", ylim=(1e-3, None))
    left.legend()
    for found, color in zip(outcomes, COLORS):
        radii = found.radii.sort().values.tolist()
        right.step(
            radii, [100 * (1 - number / len(radii)) for number in range(len(radii))], color=color, label=found.kind
        )
    right.set(xlabel="radius (pixels are from 0 to 1)", ylabel="certified accuracy, %", xlim=(0, 1.5), ylim=(0, 101))
    right.legend()
    figure.savefig(path, dpi=120)
