"""Conv1d, Conv2d, Conv3d: convolutions of quantised random weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from convein.layers.bqn.categorical import Categorical
from convein.layers.bqn.levels import Levels
from convein.layers.bqn.stencil import Size, Stencil, convolution

# Torch's names for the modules that stand before a convolution which cannot pad by itself.
_PADS = {"zeros": "ZeroPad", "circular": "CircularPad", "reflect": "ReflectionPad", "replicate": "ReplicationPad"}


class _ConvNd(Categorical):
    """Arguments of torch's convolution and of quantised weights."""

    dimensions: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        levels: Levels = "binary",
        propagation: str = "auto",
    ) -> None:
        stencil = convolution(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            self.dimensions,
        )
        super().__init__(stencil, bias=bias, levels=levels, propagation=propagation, device=device, dtype=dtype)

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:
        """Torch's convolution with the weights of a mode, behind a module that pads if it cannot; see `to_plain`."""
        made, pads = plain_convolution(self.stencil, bias=self.theta_bias is not None)
        convolution = self.filled(made, mode, generator)
        return convolution if pads is None else nn.Sequential(pads, convolution)


class Conv1d(_ConvNd):
    """nn.Conv1d whose weights are random levels: (..., in, length) -> (..., out, length')."""

    dimensions = 1


class Conv2d(_ConvNd):
    """nn.Conv2d whose weights are random levels: (..., in, h, w) -> (..., out, h', w'). J. Su, 2022, section 5.3.

    What lies outside of an input is zero for certain, or a copy of what lies inside: mean and variance of every output
    are exact with every padding, for inputs that are independent. The outputs of one picture are not: all positions
    share their weights. Later layers take them as independent, and give a sum over positions too small a variance.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for nn.Conv2d; padding="same" also with a stride. Any number of batch dimensions.
        levels, propagation: as for `Linear`. Where an output reads copies of one entry, the exact ways are refused, and
            "auto" takes "clt".

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class Conv3d(_ConvNd):
    """nn.Conv3d whose weights are random levels: (..., in, d, h, w) -> (..., out, d', h', w')."""

    dimensions = 3


def plain_convolution(stencil: Stencil, *, bias: bool) -> tuple[nn.Module, nn.Module | None]:
    """Torch's convolution of a stencil, and what pads before it where the two sides are padded differently.

    The convolution has no numbers yet: they would be drawn, from the source that is the user's.
    """
    count = len(stencil.kernel)
    even = all(lo == hi for lo, hi in stencil.padding)
    given: dict[str, Any] = {"stride": stencil.stride, "dilation": stencil.dilation, "groups": stencil.groups}
    if even:
        given |= {"padding": tuple(lo for lo, _ in stencil.padding), "padding_mode": stencil.padding_mode}
    kind = getattr(nn, f"Conv{count}d")
    made: nn.Module = kind(stencil.inputs, stencil.outputs, stencil.kernel, bias=bias, device="meta", **given)
    if even:
        return made, None
    sides = tuple(side for pair in reversed(stencil.padding) for side in pair)
    pads: nn.Module = getattr(nn, f"{_PADS[stencil.padding_mode]}{count}d")(sides)
    return made, pads
