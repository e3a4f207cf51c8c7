"""Weights drawn so that the dense weight they make together has a wanted variance.

Independent factors of variance v give entries of the dense weight the variance R v^N, with N factors and R summed
combinations of the modes between them. One draw is off by up to its half, because the entries share factors; so every
factor is scaled by the same number until the norm of the dense weight is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.parts import Parts
from convein.pipeline import conv_einsum

Init = Literal["kaiming", "lecun", "torch"] | float
_GAINS = {"kaiming": math.sqrt(2), "lecun": 1.0, "torch": 1 / math.sqrt(3)}


def standard_deviation(parts: Parts, init: Init) -> float:
    """Of the entries of the dense weight.

    Raises:
        OptionError: nothing has this name.
    """
    gain = _GAINS.get(init) if isinstance(init, str) else init
    if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain < math.inf:
        raise OptionError(
            f"init={init!r}: there is no such initialisation", hint=f"{', '.join(map(repr, _GAINS))}, or a gain above 0"
        )
    return gain / math.sqrt(parts.fan_in)


@torch.no_grad()
def draw(parts: Parts, weights: Sequence[Tensor], deviation: float) -> None:
    """Draws all weights from normal distributions; the mean square of the dense weight is then `deviation` squared."""
    each = (deviation / math.sqrt(parts.summed)) ** (1 / len(weights))
    for weight in weights:
        nn.init.normal_(weight, std=each)
    if any(weight.is_meta for weight in weights):
        return
    found = _mean_square(parts, weights)
    if found > 0:
        factor = (deviation / math.sqrt(found)) ** (1 / len(weights))
        for weight in weights:
            weight.mul_(factor)


def _mean_square(parts: Parts, weights: Sequence[Tensor]) -> float:
    """Of the entries of the dense weight, computed without it where that is possible."""
    wide = [weight.to(torch.complex128 if weight.is_complex() else torch.float64) for weight in weights]
    sizes = parts.given.get("sizes")
    if parts.norm is None:
        return float(conv_einsum(parts.dense, *wide, sizes=sizes).abs().square().mean())
    squared = conv_einsum(parts.norm, *wide, *(one.conj() for one in wide), sizes=sizes, cost="flops")
    return max(float(squared.real), 0.0) / parts.entries
