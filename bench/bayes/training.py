"""How the networks learn: one schedule for all, and the loss that each has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes.networks import bayesian, binary, gaussian
from convein.layers import bqn
from convein.layers.bqn.binary import bootstrap, clip
from convein.layers.bqn.reparameterised import divergence
from datasets import load

BAYESIAN, MEMBER, SCALED, NORMAL = KINDS = ("bayesian", "member", "scaled member", "normal")
MEMBERS = (MEMBER, SCALED)


WARM_UP = -1e-4


@dataclass(frozen=True, slots=True)
class Settings:
    """What all networks of a run share. The numbers were chosen on a part of the training pictures.

    Attributes:
        width: of the second hidden layer; the first is twice as wide.
        epochs: of the Bayesian networks; the members of the ensemble learn for as long.
        rate: the highest learning rate of Adam for log-probabilities, which fall from there as a cosine.
        plain_rate: the same for the weights of the other networks.
        entropy: lambda, the weight of the entropy.
        warm_up: epochs before it, in which the weight is -1e-4, as in the published code: it pushes weights apart.
        divergence: the weight of the divergence of normal weights from their prior, in all epochs.
        batch: pictures in a minibatch.
        validation: whether the last part of the training pictures is held back in the place of the test pictures.
    """

    width: int = 128
    epochs: int = 60
    rate: float = 0.1
    plain_rate: float = 1e-2
    entropy: float = 3e-3
    warm_up: int = 5
    divergence: float = 0.1
    batch: int = 64
    validation: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One network to train.

    Attributes:
        kind: one of `KINDS`.
        seed: of its start and of the order of the pictures; of a member, of its bootstrap, too.
    """

    kind: str
    seed: int


def pictures(validation: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pictures to learn from and pictures that are held back, with their labels."""
    train, test = load("digits")
    inputs, labels = train.tensors
    if not validation:
        return (inputs, labels), (test.tensors[0], test.tensors[1])
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(5))
    rest, held = order[: -len(order) // 4], order[-len(order) // 4 :]
    return (inputs[rest], labels[rest]), (inputs[held], labels[held])


def fresh(kind: str, width: int) -> nn.Sequential:
    """A network before training."""
    if kind in MEMBERS:
        return binary(width, scaled=kind == SCALED)
    return bayesian(width) if kind == BAYESIAN else gaussian(width)


def train(job: Job, settings: Settings) -> dict[str, Tensor]:
    """The state_dict of a job's network after its training."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    network = fresh(job.kind, settings.width)
    (inputs, labels), _ = pictures(settings.validation)
    generator = torch.Generator().manual_seed(job.seed)
    if job.kind in MEMBERS:
        drawn = bootstrap(len(inputs), generator)
        inputs, labels = inputs[drawn], labels[drawn]
    rate = settings.rate if job.kind == BAYESIAN else settings.plain_rate
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    for epoch in range(settings.epochs):
        weight = settings.entropy if epoch >= settings.warm_up else WARM_UP
        if job.kind == NORMAL:
            weight = settings.divergence
        for batch in batches(len(inputs), settings.batch, generator):
            optimizer.zero_grad()
            value: Any = loss(job.kind, network, inputs[batch], labels[batch], len(inputs), weight)
            value.backward()
            optimizer.step()
            clip(network)
        schedule.step()
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All examples in a random order, none of them alone: a batch of one has no moments."""
    order = torch.randperm(count, generator=generator)
    yield from (part for part in torch.split(order, size) if len(part) > 1)


def loss(kind: str, network: nn.Sequential, inputs: Tensor, labels: Tensor, examples: int, weight: float) -> Tensor:
    """The loss of a minibatch, for each example; `weight` is that of the entropy or of the divergence."""
    if kind == BAYESIAN:
        *body, head = network
        losses = head(nn.Sequential(*body)(inputs), labels)
        return bqn.objective(losses, network, examples, weight) / len(labels)
    value = F.cross_entropy(network(inputs), labels)
    return value if kind in MEMBERS else value + weight * divergence(network) / examples
