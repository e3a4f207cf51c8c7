"""A strip of frames: what was given, what followed, and what each network predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from video.experiment import Experiment


def draw(experiment: Experiment, strips: Mapping[str, Tensor], file: Path, rows: int = 2) -> None:
    """Writes a PNG with the first test videos.

    Args:
        experiment: whose videos they are.
        strips: predicted frames (videos, future, size, size), by network.
        file: to write to.
        rows: how many videos are shown.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    true = experiment.split()[1][:rows, :, 0]
    rows = len(true)
    # What is no number is left white.
    gap = torch.full((rows, experiment.inputs, experiment.size, experiment.size), torch.nan)
    shown = {"true": true, **{kind: torch.cat((gap, strip[:rows]), 1) for kind, strip in strips.items()}}
    width, height = true.shape[1] * 0.62, rows * len(shown) * 0.66 + 0.4
    figure, axes = plt.subplots(rows * len(shown), 1, figsize=(width, height), squeeze=False)
    for video in range(rows):
        for place, (name, frames) in enumerate(shown.items()):
            axis = axes[video * len(shown) + place, 0]
            axis.imshow(framed(frames[video]).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
    title = f"{experiment.inputs} frames are given, {experiment.future} predicted, each from the predictions before it"
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=100, metadata={"Software": None})
    plt.close(figure)


def framed(frames: Tensor) -> Tensor:
    """Frames (time, size, size) side by side, with a grey line between them."""
    line = torch.full((frames.shape[1], 1), 0.4)
    parts = [part for frame in frames for part in (frame.clamp(0, 1), line)]
    return torch.cat(parts[:-1], 1)
