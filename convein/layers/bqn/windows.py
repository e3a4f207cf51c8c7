"""Windows over the last dimensions of a tensor, and the largest of independent normal numbers in them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.errors import OptionError
from convein.layers.bqn.activations import Gaussian
from convein.layers.bqn.modes import Layer
from convein.layers.bqn.stencil import Size, Stencil
from convein.layers.conv import each


class Pool(Layer):
    """What all pooling has in common: windows of a size, a stride, a padding and a dilation."""

    dimensions: ClassVar[int]

    def __init__(self, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size) -> None:
        super().__init__()
        self.kernel_size = each("kernel_size", kernel_size, self.dimensions)
        self.stride = self.kernel_size if stride is None else each("stride", stride, self.dimensions)
        self.padding = each("padding", padding, self.dimensions, 0)
        self.dilation = each("dilation", dilation, self.dimensions)
        if any(2 * side > size for side, size in zip(self.padding, self.kernel_size)):
            raise OptionError(
                f"padding={padding!r} of windows of {self.kernel_size}", hint="at most half of the window on every side"
            )

    @property
    def stencil(self) -> Stencil:
        """The sums of the windows, for one channel."""
        sides = tuple((one, one) for one in self.padding)
        return Stencil(1, 1, self.kernel_size, self.stride, sides, self.dilation)

    def windows(self, input: Tensor, outside: float) -> Tensor:
        """(..., *sizes) -> (..., *sizes', entries of a window), with a number for what is outside."""
        start = input.ndim - self.dimensions
        for index in range(self.dimensions):
            input = self._along(input, index, start, outside)
        return input.flatten(-self.dimensions)

    def largest(self, input: Gaussian) -> Gaussian:
        """The largest number of every window, along the last dimension first, as `larger` two by two."""
        start = input.mean.ndim - self.dimensions
        mean, var = input.mean, input.var
        inside = torch.ones_like(mean, dtype=torch.bool)
        for index in reversed(range(self.dimensions)):
            lines = (self._along(one, index, start, 0) for one in (mean, var, inside))
            mean, var, inside = _reduced(*lines)
        return Gaussian(mean, var)

    def _along(self, input: Tensor, index: int, start: int, outside: float) -> Tensor:
        """The windows along one of the dimensions from `start` on, as a new last dimension."""
        place, side = start + index, self.padding[index]
        if side:
            input = F.pad(input, [0, 0] * (input.ndim - 1 - place) + [side, side], value=outside)
        span = self.dilation[index] * (self.kernel_size[index] - 1) + 1
        return input.unfold(place, span, self.stride[index])[..., :: self.dilation[index]]

    def extra_repr(self) -> str:
        """The arguments of torch's module."""
        usual: dict[str, Any] = {"padding": (0,) * self.dimensions, "dilation": (1,) * self.dimensions}
        parts = [f"kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"] if self.stride != self.kernel_size else []
        return ", ".join([*parts, *(f"{n}={getattr(self, n)}" for n, v in usual.items() if getattr(self, n) != v)])


def larger(left: Gaussian, right: Gaussian) -> Gaussian:
    """The larger one of two independent normal numbers: its mean and variance, taken as a normal number's.

    C. E. Clark, "The greatest of a finite set of random variables", Operations Research 9(2), 1961, with all numbers
    less the larger mean, which loses no digits. Where both variances are zero, it is the larger number.
    """
    first = left.mean >= right.mean
    top, top_var = torch.where(first, left.mean, right.mean), torch.where(first, left.var, right.var)
    behind, other_var = top - torch.where(first, right.mean, left.mean), torch.where(first, right.var, left.var)
    least = torch.finfo(left.var.dtype).eps ** 2
    width = (left.var + right.var).clamp_min(least).sqrt()
    ratio = behind / width
    wins, loses = torch.special.ndtr(ratio), torch.special.ndtr(-ratio)
    bump = width * torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    mean = bump - behind * loses
    second = top_var * wins + (behind.square() + other_var) * loses - behind * bump
    return Gaussian(top + mean, (second - mean.square()).clamp_min(0))


def _reduced(mean: Tensor, var: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest along the last dimension, neighbours first; what is not inside does not count."""
    while (count := mean.shape[-1]) > 1:
        even = count - count % 2
        left, right = (tuple(one[..., side:even:2] for one in (mean, var, inside)) for side in (0, 1))
        both = larger(Gaussian(left[0], left[1]), Gaussian(right[0], right[1]))
        found = (
            torch.where(left[2], torch.where(right[2], both.mean, left[0]), right[0]),
            torch.where(left[2], torch.where(right[2], both.var, left[1]), right[1]),
            left[2] | right[2],
        )
        mean, var, inside = (
            torch.cat([new, old[..., even:]], -1) for new, old in zip(found, (mean, var, inside), strict=True)
        )
    return mean[..., 0], var[..., 0], inside[..., 0]
