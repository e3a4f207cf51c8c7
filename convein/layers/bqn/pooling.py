"""Pooling of random numbers: their average, the largest of them, or one of them at random."""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from convein.errors import OperandError, OptionError
from convein.layers.bqn.activations import Activation, Dirac, Discrete, Gaussian, Pmf, as_activation, as_gaussian
from convein.layers.bqn.levels import lattice
from convein.layers.bqn.stencil import Size
from convein.layers.bqn.sums import PROPAGATIONS, choose, distribution, exact, indicators, support
from convein.layers.bqn.windows import Pool
from convein.options import one_of
from convein.pipeline import conv_einsum


class _AvgPool(Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        count_include_pad: bool = True,
        *,
        propagation: str = "auto",
        variance: Literal["exact", "published"] = "exact",
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1)
        self.count_include_pad = count_include_pad
        self.propagation = one_of("propagation", propagation, PROPAGATIONS)
        if variance not in {"exact", "published"}:
            raise OptionError(f"variance={variance!r} of an average", hint='"exact" or "published"')
        if variance == "published" and propagation not in {"auto", "clt"}:
            raise OptionError(f'variance="published" with propagation="{propagation}", whose variance is exact')
        self.variance = variance

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """The average of every window: (..., *sizes) -> (..., *sizes').

        Raises:
            OperandError: the propagation that was asked for cannot take this input.
        """
        if isinstance(input, Tensor):
            return self._sums(input) / self._counts(input)
        input = as_activation(input)
        if isinstance(input, (Discrete, Pmf)) and self.variance == "exact" and self.propagation != "clt":
            found = self._exactly(input)
            if found is not None:
                return found
        elif self.propagation not in {"auto", "clt"}:
            raise OperandError(
                f'propagation="{self.propagation}" sums numbers of a lattice, and the input is {type(input).__name__}',
                hint='propagation="auto" is exact where that is possible',
            )
        counts = self._counts(input.mean)
        squares = counts.square() if self.variance == "exact" else counts
        return Gaussian(self._sums(input.mean) / counts, self._sums(input.var) / squares)

    def _exactly(self, input: Discrete | Pmf) -> Pmf | None:
        """The distribution of the averages, or None where their moments are to do."""
        count, padded = prod(self.kernel_size), any(self.padding)
        if padded and not self.count_include_pad:
            if self.propagation == "auto":
                return None
            raise OperandError(
                f'propagation="{self.propagation}" with count_include_pad=False: averages of different numbers of '
                "entries lie on different lattices",
                hint='count_include_pad=True, or propagation="clt"',
            )
        values = support(input)
        try:
            numbers = lattice([*values, *([0.0] if padded else [])])
        except OptionError:
            if self.propagation != "auto":
                raise
            return None
        way = choose(self.propagation, count, numbers.size)
        if way == "clt":
            return None
        read = self.stencil.patches(distribution(input).unsqueeze(-2 - self.dimensions)).squeeze(-3)
        if padded:
            read, values = torch.cat([read, 1 - read.sum(-1, keepdim=True)], -1), (*values, 0.0)
        taps: Tensor = conv_einsum("zc,...c->...z", indicators([list(values)], numbers, read)[:, 0], read)
        found = exact(taps, numbers, way)
        return Pmf(found.probabilities, found.lowest / count, found.step / count)

    def _sums(self, input: Tensor) -> Tensor:
        ones = torch.ones(1, 1, *self.kernel_size, dtype=input.dtype, device=input.device)
        place = -1 - self.dimensions
        return self.stencil.apply(input.unsqueeze(place), ones).squeeze(place)

    def _counts(self, input: Tensor) -> Tensor:
        """How many entries every window has."""
        if self.count_include_pad or not any(self.padding):
            return torch.full((), float(prod(self.kernel_size)), dtype=input.dtype, device=input.device)
        return self._sums(input.new_ones(input.shape[input.ndim - self.dimensions :]))

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """Torch's average pooling."""
        made: nn.Module = getattr(nn, f"AvgPool{self.dimensions}d")(
            self.kernel_size, self.stride, self.padding, count_include_pad=self.count_include_pad
        )
        return made


class AvgPool1d(_AvgPool):
    """The average of windows of random numbers: (..., length) -> (..., length'); arguments as `AvgPool2d`."""

    dimensions = 1


class AvgPool2d(_AvgPool):
    """The average of windows of random numbers: (..., h, w) -> (..., h', w').

    Of n independent numbers its variance is the sum of theirs over n^2, and entries are taken as independent. The
    positions of one picture after a convolution are not, as they share its weights: there the variance over drawn
    weights is usually larger, for windows of 2 x 2 up to four times.

    Args:
        kernel_size, stride, padding, count_include_pad: as for nn.AvgPool2d.
        propagation: of signs and of numbers of a lattice: "clt" by mean and variance; "contraction" or "convolution"
            to the distribution itself; "auto" as for `Linear`.
        variance: "exact", or "published" for that of the published code, which is n times as large.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class AvgPool3d(_AvgPool):
    """The average of windows of random numbers: (..., d, h, w) -> (..., d', h', w'); arguments as `AvgPool2d`."""

    dimensions = 3


class _MaxPool(Pool):
    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1) -> None:
        super().__init__(kernel_size, stride, padding, dilation)

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """The largest number of every window: (..., *sizes) -> (..., *sizes'); what is outside does not count."""
        if isinstance(input, Tensor):
            return self.windows(input, -torch.inf).amax(-1)
        input = as_activation(input)
        if isinstance(input, Dirac) and input.noise == 0:
            return self.windows(input.value, -torch.inf).amax(-1)
        if isinstance(input, Discrete):
            return Discrete(self.windows(input.minus, 1).prod(-1))
        if isinstance(input, Pmf):
            # All are at most z with the product of the probabilities that each is.
            below = self.windows(input.probabilities.cumsum(-1).movedim(-1, 0), 1).prod(-1).movedim(0, -1)
            return Pmf(below.diff(dim=-1, prepend=torch.zeros_like(below[..., :1])), input.lowest, input.step)
        return self.largest(as_gaussian(input))

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """Torch's maximum pooling."""
        kind = getattr(nn, f"MaxPool{self.dimensions}d")
        made: nn.Module = kind(self.kernel_size, self.stride, self.padding, self.dilation)
        return made


class MaxPool1d(_MaxPool):
    """The largest of windows of random numbers: (..., length) -> (..., length'); arguments as `MaxPool2d`."""

    dimensions = 1


class MaxPool2d(_MaxPool):
    """The largest of windows of random numbers: (..., h, w) -> (..., h', w').

    Exact for signs (-1 with the product of their probabilities) and for numbers of a lattice. The largest of two normal
    numbers is taken as normal, with its exact mean and variance (C. E. Clark, 1961), and so on: first along w, in pairs
    of neighbours, then along h.

    Args:
        kernel_size, stride, padding, dilation: as for nn.MaxPool2d.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class MaxPool3d(_MaxPool):
    """The largest of windows of random numbers: (..., d, h, w) -> (..., d', h', w'); arguments as `MaxPool2d`."""

    dimensions = 3


class _RandomPool(Pool):
    def __init__(self, kernel_size: Size, stride: Size | None = None) -> None:
        super().__init__(kernel_size, stride, 0, 1)

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """An entry of every window, all with the same probability: (..., *sizes) -> (..., *sizes')."""
        if isinstance(input, Tensor):
            windows = self.windows(input, 0)
            chosen = torch.randint(windows.shape[-1], windows.shape[:-1], device=input.device)
            return windows.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        input = as_activation(input)
        if isinstance(input, Discrete):
            return Discrete(self.windows(input.minus, 0).mean(-1))
        if isinstance(input, Pmf):
            mixed = self.windows(input.probabilities.movedim(-1, 0), 0).mean(-1)
            return Pmf(mixed.movedim(0, -1), input.lowest, input.step)
        means = self.windows(input.mean, 0)
        mean = means.mean(-1)
        # A mixture's variance: the mean of the variances and the variance of the means.
        spread = self.windows(input.var, 0) + (means - mean.unsqueeze(-1)).square()
        return Gaussian(mean, spread.mean(-1))

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """The same: it pools tensors, too."""
        return type(self)(self.kernel_size, self.stride)


class RandomPool1d(_RandomPool):
    """One number of every window at random: (..., length) -> (..., length'); arguments as `RandomPool2d`."""

    dimensions = 1


class RandomPool2d(_RandomPool):
    """Probabilistic pooling, one number of every window at random: (..., h, w) -> (..., h', w'). J. Su, 2022.

    Of signs the probability of -1 is the average. In a network of drawn weights, too, numbers are chosen anew for every
    call.

    Args:
        kernel_size, stride: as for nn.AvgPool2d.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class RandomPool3d(_RandomPool):
    """One number of every window at random: (..., d, h, w) -> (..., d', h', w'); arguments as `RandomPool2d`."""

    dimensions = 3
