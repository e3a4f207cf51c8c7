"""The convolution that torch's own layer would call with the same weight: nothing to parse, to plan or to add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.layers.sc_fac.geometry import Geometry

_CALLS = {1: F.conv1d, 2: F.conv2d}


@dataclass(frozen=True, slots=True)
class Ordinary:
    """A call of torch's convolution.

    Attributes:
        wrapped: before and behind, the last axis first, of a periodic input; all zero of one with zeros around.
        padding: zeros along each axis.
        stride, dilation, groups: torch's.
    """

    wrapped: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def takes(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether it is for these: numbers of one type, one batch dimension or none, periods no shorter than a side."""
        axes = len(self.stride)
        return bool(
            input.dim() - axes in (1, 2)
            and input.dtype is weight.dtype
            and (bias is None or bias.dtype is weight.dtype)
            and input.device == weight.device
            and input.numel()
            and not torch.is_autocast_enabled(input.device.type)
            and all(side <= input.shape[-1 - place // 2] for place, side in enumerate(self.wrapped))
        )

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        if any(self.wrapped):
            input = F.pad(input, self.wrapped, "circular")
        value: Tensor = _CALLS[len(self.stride)](
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
        return value


def ordinary_convolution(geometry: Geometry) -> Ordinary:
    """Torch's convolution of this geometry."""
    zeros = (0,) * len(geometry.kernel)
    sides = geometry.paddings
    rest = (geometry.stride, geometry.dilation, geometry.groups)
    if geometry.padding_mode == "circular":
        return Ordinary(tuple(side for pair in reversed(sides) for side in pair), zeros, *rest)
    return Ordinary(zeros, tuple(before for before, _ in sides), *rest)
