"""What flows between Bayesian layers: independent random numbers, one distribution for each entry of a tensor.

A layer whose weights are random gives one of these values; a plain tensor is an input that is known, or the activation
of a network whose weights were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convein.errors import OperandError


@dataclass(frozen=True, slots=True)
class Dirac:
    """Known numbers; with noise, numbers known up to it (the published code gives every input the variance 0.01).

    Attributes:
        value: any shape.
        noise: variance of every entry.
    """

    value: Tensor
    noise: float = 0.0

    @property
    def mean(self) -> Tensor:
        """The numbers."""
        return self.value

    @property
    def var(self) -> Tensor:
        """The same variance everywhere."""
        return torch.full_like(self.value, self.noise)


@dataclass(frozen=True, slots=True)
class Discrete:
    """Signs: -1 or 1.

    Attributes:
        minus: the probability of -1, any shape.
    """

    minus: Tensor

    @property
    def mean(self) -> Tensor:
        """1 - 2p."""
        return 1 - 2 * self.minus

    @property
    def var(self) -> Tensor:
        """4p(1 - p), which rounding does not make negative as it does 1 - mean^2."""
        return 4 * self.minus * (1 - self.minus)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Normal numbers.

    Attributes:
        mean, var: of the same shape.
    """

    mean: Tensor
    var: Tensor


@dataclass(frozen=True, slots=True)
class Pmf:
    """Numbers of a lattice: lowest, lowest + step, and so on.

    Attributes:
        probabilities: the last dimension runs over the lattice, the others are those of the entries.
        lowest: the first number of the lattice.
        step: the distance between neighbours.
    """

    probabilities: Tensor
    lowest: float
    step: float

    @property
    def values(self) -> Tensor:
        """The lattice."""
        like = self.probabilities
        return self.lowest + self.step * torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)

    @property
    def mean(self) -> Tensor:
        """The expectation of every entry."""
        return self.probabilities @ self.values

    @property
    def var(self) -> Tensor:
        """The variance of every entry, from the distances to its mean."""
        distances = self.values - self.mean.unsqueeze(-1)
        return (self.probabilities * distances.square()).sum(-1)


Activation = Dirac | Discrete | Gaussian | Pmf

# Compiled, exported and transformed networks find the tensors inside.
for _kind in (Dirac, Discrete, Gaussian, Pmf):
    torch.export.register_dataclass(_kind, serialized_type_name=f"convein.layers.bqn.{_kind.__name__}")


def as_activation(input: Tensor | Activation) -> Activation:
    """What a layer with random weights takes: a tensor is known numbers.

    Raises:
        OperandError: the input is neither a tensor nor an activation.
    """
    if isinstance(input, Tensor):
        return Dirac(input)
    if not isinstance(input, (Dirac, Discrete, Gaussian, Pmf)):
        raise OperandError(
            f"a Bayesian layer takes a tensor or an activation, not {type(input).__name__}",
            hint="the activations of convein.layers.bqn are Dirac, Discrete, Gaussian and Pmf",
        )
    return input


def as_point(input: Tensor | Activation) -> Tensor:
    """What a layer with drawn weights takes.

    Raises:
        OperandError: the input is random.
    """
    if isinstance(input, Dirac):
        return input.value
    if not isinstance(input, Tensor):
        raise OperandError(
            f"a layer whose weights are drawn takes a tensor, not {type(input).__name__}",
            hint='set_mode(network, "analytic") propagates distributions',
        )
    return input


def as_gaussian(input: Activation) -> Gaussian:
    """The normal distribution with the same mean and variance."""
    return input if isinstance(input, Gaussian) else Gaussian(input.mean, input.var)
