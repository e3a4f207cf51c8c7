"""BatchNorm1d, 2d and 3d: batch normalisation of random numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bqn.activations import Activation, Gaussian, as_activation, as_gaussian, as_point
from convein.layers.bqn.modes import ANALYTIC, Moded
from convein.layers.conv import positive


class _BatchNorm(Moded):
    """Moments of the channels, over the batch and over what every entry could be."""

    ranks: ClassVar[tuple[int, ...]]
    running_mean: Tensor
    running_var: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = positive("num_features", num_features)
        if not 0 <= momentum <= 1 or eps < 0:
            raise OptionError(f"momentum={momentum!r}, eps={eps!r}", hint="a momentum from 0 to 1, and eps from 0")
        self.eps = eps
        self.momentum = momentum
        for name in ("weight", "bias"):
            made = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(made) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No scale, no shift, and nothing seen yet."""
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor | Activation) -> Tensor | Gaussian:
        """The input with every channel (dimension 1) normalised.

        In the analytic mode of a layer in training, by the mean m of the batch's means and by the mean of
        (mean - m)^2 + var, which also move the running ones; otherwise always by the running ones.

        Raises:
            ShapeError: the input has another number of dimensions or channels.
        """
        if self.mode != ANALYTIC:
            point = as_point(input)
            scale, shift, _ = self._affine(point, self.running_mean, self.running_var)
            return point * scale + shift
        found = as_gaussian(as_activation(input))
        self._check(found.mean)
        mean, var = self.running_mean, self.running_var
        if self.training and found.mean.numel():
            dimensions = [0, *range(2, found.mean.ndim)]
            mean = found.mean.mean(dimensions)
            var = ((found.mean - self._at_channels(mean, found.mean)).square() + found.var).mean(dimensions)
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach(), self.momentum)
        scale, shift, square = self._affine(found.mean, mean, var)
        return Gaussian(found.mean * scale + shift, found.var * square)

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """Torch's module, which adds eps within the root: (deviation + eps)^2 is a running variance, and eps^2."""
        kind = getattr(nn, type(self).__name__)
        made: nn.Module = kind(self.num_features, self.eps**2, self.momentum, self.weight is not None)
        made.to(self.running_var.device, self.running_var.dtype)
        state = {**self.state_dict(), "running_var": self.running_var + 2 * self.eps * self.running_var.sqrt()}
        made.load_state_dict({**made.state_dict(), **state})
        return made

    def _affine(self, like: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What means are multiplied by, what is added, and what variances are multiplied by.

        Eps stands beside the root for means and within it for variances, as in the published code.
        """
        self._check(like)
        scale, square = 1 / (var.sqrt() + self.eps), 1 / (var + self.eps)
        shift = -mean * scale
        if self.weight is not None and self.bias is not None:
            scale, square, shift = scale * self.weight, square * self.weight.square(), shift * self.weight + self.bias
        return self._at_channels(scale, like), self._at_channels(shift, like), self._at_channels(square, like)

    def _at_channels(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector.reshape(-1, *(1 for _ in range(like.ndim - 2)))

    def _check(self, like: Tensor) -> None:
        if like.ndim not in self.ranks or like.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__} of {self.num_features} channels got the shape {tuple(like.shape)}",
                hint=f"a batch, then the channels, {' or '.join(map(str, self.ranks))} dimensions in all",
            )

    def extra_repr(self) -> str:
        """Torch's arguments."""
        affine = "" if self.weight is not None else ", affine=False"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}{affine}"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (batch, channels) or (batch, channels, length); arguments as `BatchNorm2d`."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of random numbers, (batch, channels, h, w). J. Su, 2022, section 5.3.

    Args:
        num_features: number of channels.
        eps: added to the standard deviation that means are divided by, and to the variance that variances are.
        momentum: how far the running moments move; the running variance is the biased one.
        affine: whether channels are scaled and shifted by learned numbers.
        device, dtype: of parameters and buffers.

    Raises:
        OptionError: a number is out of its range.
    """

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (batch, channels, d, h, w); arguments as `BatchNorm2d`."""

    ranks = (5,)
