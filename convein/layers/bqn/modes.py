"""What a network's random weights stand for: their distribution, one draw for every call, or the likeliest levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convein.errors import OptionError

ANALYTIC, SAMPLED, MAP = MODES = ("analytic", "sampled", "map")

# Keeps the logarithm of a probability that no sample gives finite, as the published code does.
_LEAST = 1e-6


class Layer(nn.Module, ABC):
    """A layer of a Bayesian network, and what stands in its place once the weights are numbers."""

    @abstractmethod
    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:
        """A module of torch that does to tensors what this one does in a mode; see `to_plain`.

        Args:
            mode: "sampled" or "map".
            generator: what weights are drawn from.
        """


class Moded(Layer):
    """A layer that is something else in every mode.

    Attributes:
        mode: "analytic" propagates distributions, "sampled" draws weights for every call (one draw for a whole
            minibatch), "map" takes the likeliest level of every weight.
    """

    mode: str = ANALYTIC


def set_mode(network: nn.Module, mode: str) -> None:
    """Puts all layers of a network into a mode.

    Only the analytic mode trains weights: in "sampled" and "map" they are levels, and their log-probabilities get no
    gradient.

    Args:
        network: holds layers of this package.
        mode: "analytic", "sampled" or "map".

    Raises:
        OptionError: there is no such mode, or no layer that has one.
    """
    if mode not in MODES:
        raise OptionError(
            f"mode={mode!r} is no mode of a Bayesian network", hint=f"one of {', '.join(map(repr, MODES))}"
        )
    layers = [layer for layer in network.modules() if isinstance(layer, Moded)]
    if not layers:
        raise OptionError(f"{type(network).__name__} has no Bayesian layers, so it has no modes")
    for layer in layers:
        layer.mode = mode


@contextmanager
def in_mode(network: nn.Module, mode: str) -> Iterator[None]:
    """A network in a mode, as long as the block runs.

    Raises:
        OptionError: as `set_mode`.
    """
    before = [(layer, layer.mode) for layer in network.modules() if isinstance(layer, Moded)]
    set_mode(network, mode)
    try:
        yield
    finally:
        for layer, mode_before in before:
            layer.mode = mode_before


def monte_carlo(network: nn.Module, input: Tensor, samples: int = 10) -> Tensor:
    """The mean of the probabilities that a network gives with weights drawn anew `samples` times.

    Args:
        network: gives probabilities (..., classes), as one that ends in a `SoftmaxHead` does.
        input: what it takes.
        samples: number of draws, from torch's own generator.

    Raises:
        OptionError: `samples` is less than one, or the network gives no probabilities.
    """
    if samples < 1:
        raise OptionError(f"samples={samples!r} draws of the weights", hint="a number from 1")
    with in_mode(network, SAMPLED):
        drawn = [network(input) for _ in range(samples)]
    if not all(isinstance(one, Tensor) and _are_probabilities(one) for one in drawn):
        raise OptionError(
            f"{type(network).__name__} gives no probabilities that sum to one",
            hint="nn.Sequential(network, SoftmaxHead(...)) does",
        )
    return torch.stack(drawn).mean(0)


def _are_probabilities(values: Tensor) -> bool:
    # Of bfloat16 every one is rounded by up to 1/256 of itself.
    return values.ndim > 0 and bool((values >= 0).all() and ((values.float().sum(-1) - 1).abs() < 1e-2).all())


def negative_log_likelihood(probabilities: Tensor, targets: Tensor) -> Tensor:
    """-log(p + 1e-6) of every target: (b, classes), (b,) -> (b,)."""
    return -(probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1) + _LEAST).log()
