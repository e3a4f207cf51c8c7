"""Sign: the activation function of quantised networks, of numbers and of distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from convein.layers.bqn.activations import Activation, Dirac, Discrete, Gaussian, Pmf, as_activation
from convein.layers.bqn.modes import Layer

# Stands beside a standard deviation, as in the published code: a variance of zero divides nothing by zero.
_BESIDE = 1e-6


class Sign(Layer):
    """-1, 0 or 1 as `torch.sign`; of a normal number the probability of -1, (1 - erf(mean / sqrt(2 var))) / 2.

    Takes a tensor, or an activation. A `Gaussian` gives a `Discrete`: that it is exactly zero has no probability. A
    `Pmf` gives a `Discrete`, or where zero is one of its numbers a `Pmf` over -1, 0 and 1, so that ties are exact.
    """

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """The sign of every entry, in the shape of the input."""
        if isinstance(input, Tensor):
            return torch.sign(input)
        input = as_activation(input)
        if isinstance(input, Discrete):
            return input
        if isinstance(input, Pmf):
            return _of_numbers(input)
        if isinstance(input, Dirac) and input.noise == 0:
            return torch.sign(input.value)
        return _of_normal(Gaussian(input.mean, input.var))

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """`PlainSign`."""
        return PlainSign()


class PlainSign(nn.Module):
    """`torch.sign` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """-1, 0 or 1."""
        return torch.sign(input)


def _of_normal(input: Gaussian) -> Discrete:
    # The smallest normal number has a root whose derivative is finite; zero has not.
    deviation = (2 * input.var.clamp_min(torch.finfo(input.var.dtype).tiny)).sqrt()
    return Discrete(torch.special.erfc(input.mean / (deviation + _BESIDE)) / 2)


def _of_numbers(input: Pmf) -> Discrete | Pmf:
    size = input.probabilities.shape[-1]
    # Rounding may leave a transform's probabilities a little outside of 0 to 1.
    below = max(0, min(size, math.ceil(-input.lowest / input.step - 1e-6)))
    zero = abs(input.lowest + below * input.step) < 1e-6 * input.step
    minus = input.probabilities[..., :below].sum(-1).clamp(0, 1)
    if not zero or below == size:
        return Discrete(minus)
    tie = input.probabilities[..., below].clamp(0, 1)
    return Pmf(torch.stack([minus, tie, (1 - minus - tie).clamp_min(0)], -1), -1.0, 1.0)
