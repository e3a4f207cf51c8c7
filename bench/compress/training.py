"""Training with labels, for the teacher and for networks that have none; accuracy on pictures that were held back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

BATCH = 64
# The recipe of residual networks for CIFAR, but for a weight decay that suits a fiftieth of its pictures: with less of
# it most of a trained weight is still the noise that it began as, and no form can come near to it.
OPTIMIZER = partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-3)
# Products of factors are rough ground for SGD: as in distillation, a network of factors learns by Adam.
FACTORS_OPTIMIZER = partial(AdamW, lr=3e-3, weight_decay=1e-2)


def shuffled(pictures: TensorDataset, seed: int) -> DataLoader[Any]:
    """Batches in an order of its own for every epoch, always the same ones for a seed."""
    order = RandomSampler(pictures, generator=torch.Generator().manual_seed(seed))
    return DataLoader(pictures, sampler=BatchSampler(order, BATCH, drop_last=False), batch_size=None)


def train(
    model: nn.Module, batches: Iterable[Any], epochs: int, steps: int, optimizer: partial[Any] = OPTIMIZER
) -> None:
    """Teaches a model the labels, in place; the learning rate rises and falls once.

    Args:
        model: gives scores (b, classes).
        batches: pictures and labels, the same number of batches every epoch.
        epochs: how often they are gone through.
        steps: batches in an epoch.
        optimizer: with all its settings; its learning rate is the highest one.
    """
    made = optimizer(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(made, optimizer.keywords["lr"], total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for pictures, labels in batches:
            made.zero_grad()
            F.cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]
            made.step()
            rate.step()


@torch.no_grad()
def accuracy(model: nn.Module, pictures: TensorDataset) -> float:
    """Share of the pictures, in percent, whose highest score is the label's; the model is left in eval mode."""
    model.eval()
    right = sum(
        int((model(inputs).argmax(1) == labels).sum())
        for inputs, labels in (pictures[start : start + 500] for start in range(0, len(pictures), 500))
    )
    return 100 * right / len(pictures)
