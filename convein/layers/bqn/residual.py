"""Residual: the sum of two branches of random numbers."""

from __future__ import annotations

from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bqn.activations import Activation, Discrete, Gaussian, Pmf, as_activation
from convein.layers.bqn.levels import lattice
from convein.layers.bqn.sums import AFFORDABLE, distribution, indicators, support
from convein.pipeline import conv_einsum


class Residual(nn.Module):
    """body(x) + shortcut(x), for numbers and distributions.

    Args:
        body: a module that takes what the residual block takes.
        shortcut: another one; the input itself if it is not given.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """The sum, as `add`."""
        return add(self.body(input), self.shortcut(input))


def add(left: Tensor | Activation, right: Tensor | Activation) -> Tensor | Activation:
    """The sum of two activations of one shape, taken as independent.

    Of a block and its own input, and of branches that share weights, that is an approximation.

    Two tensors give a tensor. A few numbers with a common step (signs, and sums of them) give a `Pmf`, by a contraction
    of both with a table of sums; everything else a `Gaussian`, whose mean and variance are the sums.

    Raises:
        ShapeError: the shapes differ.
    """
    first, second = (one.shape if isinstance(one, Tensor) else as_activation(one).mean.shape for one in (left, right))
    if first != second:
        raise ShapeError(f"a sum of the shapes {tuple(first)} and {tuple(second)}", hint="two of one shape")
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left + right
    left, right = as_activation(left), as_activation(right)
    if isinstance(left, (Discrete, Pmf)) and isinstance(right, (Discrete, Pmf)):
        found = _exactly(left, right)
        if found is not None:
            return found
    return Gaussian(left.mean + right.mean, left.var + right.var)


def _exactly(left: Discrete | Pmf, right: Discrete | Pmf) -> Pmf | None:
    """The distribution of the sum, or None where its table is too large or the numbers have no common step."""
    first, second = support(left), support(right)
    if len(first) * len(second) > AFFORDABLE:
        return None
    try:
        numbers = lattice([a + b for a in first for b in second])
    except OptionError:
        return None
    p, q = distribution(left), distribution(right)
    table = indicators([[a + b for b in second] for a in first], numbers, p)
    return Pmf(conv_einsum("zac,...a,...c->...z", table, p, q), numbers.lowest, numbers.step)
