"""The reliability diagram: how often a network is right, over how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayes.uncertainty import Score


def draw(scores: Sequence[Score], target: Path) -> None:
    """Write the diagram as a PNG: one panel for each score, the size of a point the share of the pictures.

    Args:
        scores: at most six of them.
        target: the file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(3 * columns, 3.1 * rows), squeeze=False, sharey=True)
    for panel, score in zip(panels.flat, scores):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        sure, right = [one.confidence for one in score.bins], [one.accuracy for one in score.bins]
        panel.plot(sure, right, color="C0", linewidth=1)
        panel.scatter(sure, right, s=[12 + 300 * one.share for one in score.bins], color="C0", alpha=0.7)
        panel.set_title(f"{score.name}\nNLL {score.nll:.3f}, ECE {score.ece:.1f} %", fontsize=9)
        panel.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for panel in list(panels.flat)[len(scores) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("highest probability")
    for panel in panels[:, 0]:
        panel.set_ylabel("share classified right")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
