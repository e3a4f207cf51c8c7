"""How far an output sees: the effective receptive field of any module, its radius, and what theory says of ARMA stacks.

J. Su, 2022, chapter 6. A convolution's radius grows with the square root of its depth, whatever its weights are; the
autoregression of an ARMA layer adds a / (1 - a)^2 to the square of the radius, which has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError


@dataclass(frozen=True, slots=True)
class ARMAStage:
    """A linear layer along one dimension: y[i] - a y[i - 1] is the mean of x[i], x[i - d], ..., times 1 - a.

    Attributes:
        kernel_size: of the moving average, whose weights are equal.
        coefficient: a, from 0 to below 1; with `two_sided`, half of it stands on either side of y[i].
        dilation: d.
        two_sided: whether the autoregression looks both ways.
    """

    kernel_size: int
    coefficient: float = 0.0
    dilation: int = 1
    two_sided: bool = False

    @property
    def variance(self) -> float:
        """What the layer adds to the square of the radius."""
        a = self.coefficient
        moving = self.dilation**2 * (self.kernel_size**2 - 1) / 12
        return moving + (a / (1 - a) if self.two_sided else a / (1 - a) ** 2)


def theoretical_radius(stages: Iterable[ARMAStage]) -> float:
    """The radius of a stack of linear layers, in points: r^2 = sum of d^2 (K^2 - 1) / 12 + a / (1 - a)^2 (theorem 6.3).

    Args:
        stages: the layers. Where they are two-sided, a / (1 - a) takes the place of a / (1 - a)^2.

    Raises:
        OptionError: a coefficient is not stable or negative, or there is one stage and no list.
    """
    if isinstance(stages, ARMAStage):
        raise OptionError(f"stages={stages!r} is one layer", hint="a list of layers: [ARMAStage(...)]")
    stages = tuple(stages)
    for stage in stages:
        if not 0 <= stage.coefficient < 1:
            raise OptionError(f"coefficient={stage.coefficient!r} of a stage", hint="a number from 0, and below 1")
    return math.sqrt(math.fsum(stage.variance for stage in stages))


def receptive_field(module: nn.Module, input: Tensor, position: Sequence[int] | None = None) -> Tensor:
    """How much of one output comes from where: magnitudes of gradients, that add up to 1.

    Args:
        module: any, (b, c, *space) -> (b, c', *space'). It runs as it is: call `.eval()` first where that matters.
        input: where the gradients are taken, (b, c, *space); of a linear module any values do.
        position: of the output, in space'; the middle by default.

    Returns:
        (*space): the magnitude of every output channel's gradient at each point, added up over channels and the batch.

    Raises:
        ShapeError: the output has other dimensions, or no such position.
        OptionError: the output depends on no input.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        # What inference mode made is copied: no gradient can pass through it.
        leaf = (input.clone() if input.is_inference() else input.detach()).requires_grad_()
        output = module(leaf)
        space = output.shape[2:]
        if output.dim() != input.dim() or input.dim() < 3:
            raise ShapeError(
                f"the module makes {tuple(output.shape)} of {tuple(input.shape)}", hint="(b, c, *space) of both"
            )
        place = tuple(size // 2 for size in space) if position is None else tuple(position)
        if len(place) != len(space) or not all(-size <= one < size for one, size in zip(place, space)):
            raise ShapeError(f"position={place} of an output with the sizes {tuple(space)}")
        channels = output[(slice(None), slice(None), *place)].sum(0)
        field = torch.zeros(input.shape[2:], dtype=input.dtype, device=input.device)
        for channel in channels.unbind():
            (gradient,) = torch.autograd.grad(channel, leaf, retain_graph=True, allow_unused=True)
            if gradient is not None:
                field += gradient.abs().sum((0, 1))
    total = field.sum()
    if not total > 0:
        raise OptionError(f"position={place}: the output depends on no input there")
    return field / total


def field_radius(field: Tensor, center: Sequence[int] | None = None) -> tuple[float, ...]:
    """The radius of a receptive field along each dimension, in points.

    Args:
        field: (*space), magnitudes: what counts is the share that each has of their sum.
        center: the point that distances are measured from: r^2 is the mean of |p|^2 less the square of the mean of |p|
            (definition 6.3). For fields that look one way only, such as those of theorem 6.3, that is the standard
            deviation. None is the standard deviation of any field.

    Raises:
        ShapeError: the center has other dimensions.
        OptionError: a magnitude is negative or no number, or all are zero.
    """
    weights = field.double()
    total = float(weights.sum())
    if not (0 < total < math.inf and bool((weights >= 0).all())):
        raise OptionError(
            f"the field adds up to {total:g}" + ", with values below 0" * bool((weights < 0).any()),
            hint="magnitudes, such as those that receptive_field returns",
        )
    if center is not None and len(center) != field.dim():
        raise ShapeError(f"center={tuple(center)} of a field with the sizes {tuple(field.shape)}")
    found = []
    for axis, size in enumerate(field.shape):
        others = [other for other in range(field.dim()) if other != axis]
        share = (weights.sum(others) if others else weights) / total
        distance = torch.arange(size, dtype=torch.float64, device=field.device)
        if center is not None:
            distance = (distance - range(size)[center[axis]]).abs()
        mean = (share * distance).sum()
        found.append(math.sqrt(float((share * (distance - mean).square()).sum())))
    return tuple(found)
