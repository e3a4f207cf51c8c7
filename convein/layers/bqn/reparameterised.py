"""Layers of normal random weights, whose outputs are drawn instead of the weights (local reparameterisation).

The real-valued baseline of Bayesian quantised networks. D. P. Kingma, T. Salimans and M. Welling, "Variational Dropout
and the Local Reparameterization Trick", 2015.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.bqn.stencil import Size, Stencil, convolution, linear

# Weights are nearly known at the start: deviations of 0.01.
_LOG_VAR = 2 * math.log(0.01)


class GaussianLinear(nn.Module):
    """A linear layer of independent normal weights: (..., in) -> (..., out).

    Every call draws outputs, for every example anew, from the normal distribution with their mean and variance; that is
    the distribution of the outputs of drawn weights, and its gradient is less noisy.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear.
        prior: standard deviation of the weights before any data is seen.

    Raises:
        OptionError: the prior is not above zero.
    """

    bias: nn.Parameter | None
    bias_log_var: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        prior: float = 1.0,
    ) -> None:
        super().__init__()
        self._made(linear(in_features, out_features), bias, prior, {"device": device, "dtype": dtype})

    def _made(self, stencil: Stencil, bias: bool, prior: float, given: dict[str, Any]) -> None:
        if not 0 < prior < math.inf:
            raise OptionError(f"prior={prior!r} is the standard deviation of weights", hint="a number above 0")
        self.stencil, self.prior = stencil, prior
        self.weight = nn.Parameter(torch.empty(stencil.weight_shape, **given))
        self.weight_log_var = nn.Parameter(torch.empty(stencil.weight_shape, **given))
        for name in ("bias", "bias_log_var"):
            self.register_parameter(name, nn.Parameter(torch.empty(stencil.outputs, **given)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the means with variance 2 / fan-in; biases are zero, and all deviations small."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.stencil.fan_in))
        nn.init.constant_(self.weight_log_var, _LOG_VAR)
        if self.bias is not None and self.bias_log_var is not None:
            nn.init.zeros_(self.bias)
            nn.init.constant_(self.bias_log_var, _LOG_VAR)

    def forward(self, input: Tensor) -> Tensor:
        """One draw of the outputs."""
        mean = self.stencil.apply(input, self.weight)
        var = self.stencil.spread(input.square(), self.weight_log_var.div(2).exp())
        if self.bias is not None and self.bias_log_var is not None:
            mean = mean + self.stencil.at_outputs(self.bias)
            var = var + self.stencil.at_outputs(self.bias_log_var.exp())
        # Its root has a derivative also where an input of zeros leaves no variance.
        deviation = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()
        return mean + deviation * torch.randn_like(mean)

    def divergence(self) -> Tensor:
        """The Kullback-Leibler divergence of the weights from the prior, in nats: a scalar."""
        total = self._divergence(self.weight, self.weight_log_var)
        if self.bias is not None and self.bias_log_var is not None:
            total = total + self._divergence(self.bias, self.bias_log_var)
        return total

    def _divergence(self, mean: Tensor, log_var: Tensor) -> Tensor:
        ratio = log_var - 2 * math.log(self.prior)
        return (ratio.exp() + (mean / self.prior).square() - 1 - ratio).sum() / 2

    def extra_repr(self) -> str:
        """Torch's arguments and the prior."""
        return f"{self.stencil}{'' if self.bias is not None else ', bias=False'}, prior={self.prior}"


class GaussianConv2d(GaussianLinear):
    """A convolution of independent normal weights: (..., in, h, w) -> (..., out, h', w').

    The outputs of one call are drawn as if they had no weights in common, as the trick has it for convolutions.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as for
            nn.Conv2d, padded with zeros.
        prior: as for `GaussianLinear`.

    Raises:
        OptionError: what does not fit.
    """

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        prior: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        stencil = convolution(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, "zeros", 2)
        self._made(stencil, bias, prior, {"device": device, "dtype": dtype})


def divergence(network: nn.Module) -> Tensor:
    """The divergence of all normal weights of a network from their priors, in nats.

    Raises:
        OptionError: the network has none.
    """
    found = [layer.divergence() for layer in network.modules() if isinstance(layer, GaussianLinear)]
    if not found:
        raise OptionError(f"{type(network).__name__} has no layers of normal random weights")
    return torch.stack(found).sum()
