"""The same perceptron three times: of random binary weights, of binary weights, of normal random weights."""

from __future__ import annotations

from torch import Tensor, nn

from convein.layers import bqn
from convein.layers.bqn.binary import BinaryLinear, BinarySign
from convein.layers.bqn.reparameterised import GaussianLinear

PIXELS, CLASSES = 64, 10


def bayesian(width: int) -> nn.Sequential:
    """Random binary weights; gives probabilities, and before its last layer random logits.

    Args:
        width: entries of the second hidden layer; the first has twice as many.
    """
    return nn.Sequential(
        bqn.Flatten(),
        bqn.Linear(PIXELS, 2 * width),
        bqn.BatchNorm1d(2 * width),
        bqn.Sign(),
        bqn.Linear(2 * width, width),
        bqn.BatchNorm1d(width),
        bqn.Sign(),
        bqn.Linear(width, CLASSES),
        bqn.SoftmaxHead(scale=width),
    )


def binary(width: int, *, scaled: bool) -> nn.Sequential:
    """Binary weights, trained straight through the sign; gives logits.

    Args:
        width: as for `bayesian`.
        scaled: whether logits are divided by a learned scale, as they are in the head of the Bayesian network;
            without it they are whole numbers.
    """
    return nn.Sequential(
        nn.Flatten(),
        BinaryLinear(PIXELS, 2 * width),
        nn.BatchNorm1d(2 * width),
        BinarySign(),
        BinaryLinear(2 * width, width),
        nn.BatchNorm1d(width),
        BinarySign(),
        BinaryLinear(width, CLASSES),
        Scaled(width) if scaled else nn.Identity(),
    )


def gaussian(width: int) -> nn.Sequential:
    """Normal random weights and rectified activations; gives logits that are drawn anew with every call."""
    return nn.Sequential(
        nn.Flatten(),
        GaussianLinear(PIXELS, 2 * width),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        GaussianLinear(2 * width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        GaussianLinear(width, CLASSES),
    )


class Scaled(nn.Module):
    """Logits over a learned scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.head = bqn.SoftmaxHead(scale)

    def forward(self, logits: Tensor) -> Tensor:
        """(b, classes) -> (b, classes)."""
        return logits / self.head.log_scale.exp()
