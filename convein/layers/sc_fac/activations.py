"""Activations of Lipschitz constant one: GroupSort, which keeps norms of gradients, and LipSwish, which is smooth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.errors import ShapeError
from convein.layers.conv import positive
from convein.layers.sc_fac.base import channel_axis


class GroupSort(nn.Module):
    """Sorts groups of channels (C. Anil et al., "Sorting out Lipschitz function approximation", 2019): a permutation.

    Channels i, i + C/size, i + 2 C/size, ... are a group. Groups of two are the maxima, then the minima; larger ones
    ascend.

    Args:
        size: of a group, from 2.
        dim: of the channels. It is 1 in an input (batch, channels, ...); -3 is that of pictures (..., channels, h, w)
            with any number of batch dimensions or none, -1 that of vectors (..., channels).
    """

    def __init__(self, size: int = 2, dim: int = 1) -> None:
        super().__init__()
        self.size = positive("size", size)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """The input with its channels sorted within groups.

        Raises:
            ShapeError: the channels are no multiple of the size, or the input has no such dimension.
        """
        dim = channel_axis(input, self.dim)
        channels = input.shape[dim]
        if channels % self.size:
            raise ShapeError(f"{channels} channels in groups of {self.size}", hint="a multiple of the group's size")
        if self.size == 2:
            first, second = input.chunk(2, dim)
            return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim)
        groups = input.reshape(*input.shape[:dim], self.size, channels // self.size, *input.shape[dim + 1 :])
        return groups.sort(dim).values.reshape(input.shape)

    def extra_repr(self) -> str:
        """The size of a group."""
        return f"{self.size}, dim={self.dim}"


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1, of slopes from -0.1 to 1 for any beta > 0, which is learned.

    R. T. Q. Chen et al., "Residual flows for invertible generative modeling" (2019), section 3.3; beta is the softplus
    of the parameter and starts at 0.5 there, as here.
    """

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((), 0.5, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """The activation of every entry."""
        return input * torch.sigmoid(input * F.softplus(self.raw)) / 1.1
