"""Training with margins, and what a trained network certifies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.layers.sc_fac import certified_accuracy, certified_radius, margin_loss
from datasets.handwriting import labelled_digits
from lipschitz.networks import FREE, lipschitz_bound

BATCH = 64
RATE = 1e-2
RADII = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)

Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a network.

    Attributes:
        kind: of its layers.
        seed: of its numbers and of the order of the pictures.
        bound: of its Lipschitz constant.
        certified: fractions of the test pictures with the right answer within each of `RADII`.
        radii: certified for each test picture.
        epoch: seconds, the median.
    """

    kind: str
    seed: int
    parameters: int
    bound: float
    certified: tuple[float, ...]
    radii: Tensor
    epoch: float


def digits() -> Data:
    """Training and test pictures (n, 1, 8, 8) from 0 to 1 less the mean picture, which changes no distance."""
    (train, train_labels), (test, test_labels) = labelled_digits()
    mean = train.float().mean(0) / 16
    return (train.float() / 16 - mean, train_labels), (test.float() / 16 - mean, test_labels)


def train(model: nn.Module, data: Data, kind: str, seed: int, epochs: int, radius: float,
          progress: Callable[[], object]) -> float:  # fmt: skip
    """Teach a network, in place; the median seconds of an epoch.

    The rate rises for two fifths of the epochs and falls to a twentieth, then to zero, piece by piece.

    Args:
        model: gives scores.
        data: of which it sees the first part.
        kind: a free network learns by cross entropy, the others by margins.
        seed: of the order of the pictures.
        epochs: how often it sees them.
        radius: that the margins are to certify.
        progress: called after every epoch.
    """
    pictures, labels = data[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE if kind != FREE else RATE / 5)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: triangle(step / steps))
    order, seconds = torch.Generator().manual_seed(seed), []
    model.train()
    for _ in range(epochs):
        start = time.perf_counter()
        for rows in torch.randperm(len(labels), generator=order)[: len(labels) // BATCH * BATCH].view(-1, BATCH):
            scores = model(pictures[rows])
            loss = F.cross_entropy(scores, labels[rows]) if kind == FREE else margin_loss(scores, labels[rows], radius)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)
        progress()
    return median(seconds)


def triangle(part: float) -> float:
    """The learning rate after a part of the training, as a part of the highest."""
    if part < 0.4:
        return 0.02 + part / 0.4 * 0.98
    if part < 0.8:
        return 1 - (part - 0.4) / 0.4 * 0.95
    return max(0.0, (1 - part) / 0.2 * 0.05)


@torch.no_grad()
def outcome(model: nn.Module, data: Data, kind: str, seed: int, epoch: float) -> Outcome:
    """What a trained network certifies of the test pictures."""
    model.eval()
    pictures, labels = data[1]
    scores, bound = model(pictures), lipschitz_bound(model)
    return Outcome(
        kind, seed, sum(parameter.numel() for parameter in model.parameters()), bound,
        tuple(certified_accuracy(scores, labels, radius, bound) for radius in RADII),
        certified_radius(scores, labels, bound), epoch,
    )  # fmt: skip
