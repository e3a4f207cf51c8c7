"""The loss of a whole network: what its head expects, less the entropy of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bqn.categorical import Categorical


def entropy(network: nn.Module) -> Tensor:
    """The entropy of all weights of a network, in nats; a layer that stands in it twice counts once.

    Raises:
        OptionError: the network has no quantised random weights.
    """
    found = [layer.entropy() for layer in network.modules() if isinstance(layer, Categorical)]
    if not found:
        raise OptionError(f"{type(network).__name__} has no layers with quantised random weights")
    return torch.stack(found).sum()


def objective(losses: Tensor, network: nn.Module, examples: int, weight: float = 1e-3) -> Tensor:
    """The loss of a minibatch: its losses' sum less `weight` times its share of the entropy, H B / N.

    With a uniform prior over the levels, the divergence from it is a constant less the entropy. J. Su, 2022, equation
    5.15.

    Args:
        losses: of the B examples of the minibatch, (b,), as a head with targets gives them.
        network: whose weights are regularised.
        examples: N, of the whole training set.
        weight: lambda; negative ones, for a few epochs, push the weights apart, as the published code does first.

    Raises:
        OptionError: the minibatch has more examples than the training set.
        ShapeError: the losses are not one for each example.
    """
    if losses.ndim != 1:
        raise ShapeError(
            f"losses of the shape {tuple(losses.shape)} are not one for each example",
            hint="head(logits, labels), with the labels and without a mean: (b,)",
        )
    if losses.numel() > examples:
        raise OptionError(
            f"examples={examples!r} of a training set, and the minibatch has {losses.numel()}",
            hint="the number of examples of the whole training set",
        )
    return losses.sum() - weight * entropy(network) * (losses.numel() / examples)
