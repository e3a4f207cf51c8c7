"""The same network trained with and without a stable parametrisation: losses by epoch, until they are no numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from compress.training import accuracy, shuffled
from convein.layers import ARMA2d

CLASSES = 10
MOMENTUM = 0.9
# The largest norm of a gradient: without it a single step may end everything, whatever keeps the taps stable.
CLIP = 10.0
# A training loss like this is no progress at all: all classes are equally likely.
CHANCE = math.log(CLASSES)
# The network without its autoregressions, which stay as they begin.
CONVOLUTIONS = "convolutions"


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """What is trained: a parametrisation, by a learning rate, from a seed."""

    stability: str
    rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Attributes:
        losses: mean training loss of every epoch; the last one is no number if training ended there.
        accuracy: on the test set, in percent; 0 if training ended in numbers that are none.
        largest: the largest |f(-1) + f(1)| of all taps in the end: below 1 they are stable.
    """

    job: Job
    losses: tuple[float, ...]
    accuracy: float
    largest: float

    @property
    def diverged(self) -> bool:
        """Whether training came to nothing: some epoch's loss is ten times that of guessing, or no number."""
        return any(not loss <= 10 * CHANCE for loss in self.losses)

    @property
    def unstable(self) -> bool:
        """Whether some of the linear systems are no longer stable in the end."""
        return not self.largest < 1


def network(stability: str, width: int) -> nn.Sequential:
    """Four ARMA layers without normalisation, which would hide how large their results are.

    Args:
        stability: how the autoregressions are parametrised, or `CONVOLUTIONS`.
        width: channels of the first layers.
    """

    def block(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        named = "bounded" if stability == CONVOLUTIONS else stability
        layer = ARMA2d(inputs, outputs, 3, stride, 1, stability=named)
        layer.alpha.requires_grad_(stability != CONVOLUTIONS)
        return layer, nn.ReLU()

    return nn.Sequential(
        *block(1, width), *block(width, width), *block(width, 2 * width, 2), *block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES),
    )  # fmt: skip


def attempt(job: Job, split: tuple[TensorDataset, TensorDataset], epochs: int, width: int) -> Outcome:
    """Trains one network by SGD at a constant rate; all parametrisations of a seed start as the same function."""
    train, test = split
    torch.manual_seed(job.seed)
    model = network(job.stability, width)
    optimizer = SGD(model.parameters(), lr=job.rate, momentum=MOMENTUM)
    batches = shuffled(train, job.seed)
    losses: list[float] = []
    while len(losses) < epochs and all(math.isfinite(loss) for loss in losses):
        found = []
        for pictures, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(pictures), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            found.append(loss.item())
        losses.append(sum(found) / len(found))
    sums = torch.cat([layer.coefficients()[0].flatten() for layer in model if isinstance(layer, ARMA2d)])
    return Outcome(job, tuple(losses), accuracy(model, test), float(sums.detach().abs().max()))
