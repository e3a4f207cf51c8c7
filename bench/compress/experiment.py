"""One experiment: a teacher, a form at a rank, and what its students come to."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import datasets
from backbones import Backbone, resnet_cifar
from compress.filling import overrides
from compress.training import FACTORS_OPTIMIZER, accuracy, shuffled, train
from convein import distill, tensorize
from convein.layers.factorised import Factorised

DECOMPOSED, END_TO_END, SEQUENTIAL, SCRATCH = METHODS = ("decomposed", "E2E-KD", "Seq-KD", "from scratch")
RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Experiment:
    """What all jobs of a run share.

    Attributes:
        data: name of the pictures, as `datasets.load` has it.
        folder: where they are, if they are read from files.
        depth, width: of the residual network.
        teacher_epochs: of the dense network.
        epochs: of a student that is distilled end to end, and of one that is taught the labels from random factors.
        block_epochs: of every block in sequential distillation.
    """

    data: str = "digits"
    folder: Path | None = None
    depth: int = 8
    width: int = 32
    teacher_epochs: int = 25
    epochs: int = 10
    block_epochs: int = 8

    def split(self) -> datasets.Split:
        """Pictures to learn from, and those that are held back."""
        return _split(self.data, self.folder)

    def dense(self, seed: int) -> Backbone:
        """The network with random weights."""
        torch.manual_seed(seed)
        return resnet_cifar(self.depth, width=self.width, channels=self.split()[0].tensors[0].shape[1])


@dataclass(frozen=True, slots=True)
class Job:
    """A form at a rank, for one teacher.

    Attributes:
        form: name of the form.
        fraction: of the parameters of the dense layers.
        seed: of the teacher, and of the order of the pictures.
        fill: whether ranks may differ within a layer, so that all forms have the same number of parameters.
    """

    form: str
    fraction: float
    seed: int = 0
    fill: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        parameters: of the whole student.
        share: of the parameters of the replaced layers.
        accuracies: in percent, by method.
    """

    job: Job
    parameters: int
    share: float
    accuracies: Mapping[str, float]


@cache
def _split(data: str, folder: Path | None) -> datasets.Split:
    return datasets.load(data, folder)


def teach(experiment: Experiment, seed: int, target: Path) -> float:
    """Trains a teacher, writes its weights to a file, and returns its accuracy in percent."""
    pictures, held_back = experiment.split()
    model, batches = experiment.dense(seed), shuffled(pictures, seed)
    train(model, batches, experiment.teacher_epochs, len(batches))
    torch.save(model.state_dict(), target)
    return accuracy(model, held_back)


def compressed(model: nn.Module, job: Job, *, decompose: bool = True) -> nn.Module:
    """The model with all layers but the first and the last factorised; without `decompose`, from random factors."""
    given: dict[str, Any] = {"form": job.form, "rank": job.fraction, "seed": job.seed}
    if job.fill:
        equal, _ = tensorize(model, **given, decompose=False)
        given["overrides"] = overrides(equal, job.fraction)
    student, _ = tensorize(model, **given, decompose=decompose)
    return student


def share(student: nn.Module) -> float:
    """The part of the parameters of the dense layers that the factorised layers have."""
    layers = [layer for layer in student.modules() if isinstance(layer, Factorised)]
    dense = sum(layer.dense.parameters for layer in layers)
    return sum(layer.factorisation.count(layer.ranks) for layer in layers) / dense


def attempt(experiment: Experiment, job: Job, weights: Path) -> Outcome:
    """Decomposes a teacher and distils it in both ways; and teaches the labels to the same network of random factors.

    Args:
        experiment: of which the teacher is.
        job: what its student is to be.
        weights: the teacher's, as `teach` writes them.
    """
    pictures, held_back = experiment.split()
    teacher = experiment.dense(job.seed)
    teacher.load_state_dict(torch.load(weights, weights_only=True))
    student = compressed(teacher.eval(), job)
    found = {DECOMPOSED: accuracy(student, held_back)}

    learner, batches = deepcopy(student), shuffled(pictures, job.seed)
    schedule: dict[str, Any] = {"lr": RATE, "every": _two_thirds(experiment.epochs), "progress": False}
    distill.end_to_end(learner, teacher, batches, epochs=experiment.epochs, **schedule)
    found[END_TO_END] = accuracy(learner, held_back)

    # The stem is the teacher's own. The last layer is, too, but reads what the blocks before it came to.
    blocks = [*(f"blocks.{number}" for number in range(len(teacher.blocks))), "head"]
    learner, batches = deepcopy(student), shuffled(pictures, job.seed)
    schedule["every"] = _two_thirds(experiment.block_epochs)
    distill.sequential(learner, teacher, batches, epochs=experiment.block_epochs, blocks=blocks, **schedule)
    found[SEQUENTIAL] = accuracy(learner, held_back)

    learner, batches = compressed(experiment.dense(job.seed), job, decompose=False), shuffled(pictures, job.seed)
    train(learner, batches, experiment.epochs, len(batches), FACTORS_OPTIMIZER)
    found[SCRATCH] = accuracy(learner, held_back)
    return Outcome(job, sum(each.numel() for each in student.parameters()), share(student), found)


def _two_thirds(epochs: int) -> int:
    """The learning rate falls once: the dissertation's schedule, shortened."""
    return max(1, round(epochs * 2 / 3))
