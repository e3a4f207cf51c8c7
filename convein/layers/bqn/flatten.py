"""Flatten: between convolutions and linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convein.layers.bqn.activations import Activation, Dirac, Discrete, Gaussian, Pmf, as_activation
from convein.layers.bqn.modes import Layer


class Flatten(Layer):
    """(batch, ...) -> (batch, entries), as nn.Flatten, of tensors and of activations."""

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """The same numbers in two dimensions."""
        if isinstance(input, Tensor):
            return input.flatten(1)
        input = as_activation(input)
        if isinstance(input, Discrete):
            return Discrete(input.minus.flatten(1))
        if isinstance(input, Pmf):
            return Pmf(input.probabilities.flatten(1, -2), input.lowest, input.step)
        if isinstance(input, Dirac):
            return Dirac(input.value.flatten(1), input.noise)
        return Gaussian(input.mean.flatten(1), input.var.flatten(1))

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """nn.Flatten."""
        return nn.Flatten()
