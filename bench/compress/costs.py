"""What a training step costs: its time, measured in turns, and the memory that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch.nn.functional as F
from torch import Tensor, nn

from compress.experiment import Experiment, Job, compressed
from compress.training import BATCH
from convein.metering import SavedMemory
from measure import Group, measure

DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one network.

    Attributes:
        epoch: seconds for forward and backward of one epoch, on one thread.
        saved: bytes that autograd keeps for the backward pass of a batch, beside the parameters.
        parameters: bytes of them.
    """

    epoch: float
    saved: int
    parameters: int


def step(model: nn.Module, pictures: Tensor, labels: Tensor) -> None:
    """Forward and backward of one batch."""
    model.zero_grad()
    F.cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]


def saved_bytes(model: nn.Module, pictures: Tensor, labels: Tensor) -> int:
    """What autograd keeps for the backward pass of a batch, beside the parameters and the batch itself."""
    with SavedMemory([*model.parameters(), *model.buffers(), pictures, labels]) as saved:
        F.cross_entropy(model(pictures), labels)
    return saved.bytes


def models(experiment: Experiment, jobs: Mapping[str, Job]) -> Iterator[tuple[str, nn.Module]]:
    """The dense network and those of the jobs, ready for training."""
    yield DENSE, experiment.dense(0).train()
    for name, job in jobs.items():
        yield name, compressed(experiment.dense(0), job, decompose=False).train()


def costs(
    experiment: Experiment, jobs: Mapping[str, Job], rounds: int, progress: Callable[[], object]
) -> dict[str, Cost]:
    """What the dense network and those of the jobs cost, by name; `progress` is called after every round."""
    pictures, labels = experiment.split()[0][:BATCH]
    steps = ceil(len(experiment.split()[0]) / BATCH)
    made = dict(models(experiment, jobs))
    group = Group("training step", {name: partial(step, model, pictures, labels) for name, model in made.items()})
    found = {}
    for timing in measure(group, rounds, seconds=3.0):
        if timing is None:
            progress()
            continue
        model = made[timing.variant]
        parameters = sum(each.numel() * each.element_size() for each in model.parameters())
        found[timing.variant] = Cost(timing.median * steps, saved_bytes(model, pictures, labels), parameters)
    return found
