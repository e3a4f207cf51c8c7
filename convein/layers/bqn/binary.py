"""Deterministic binary layers, trained straight through the sign: the members of an ensemble (E-QNN).

The baseline that Bayesian quantised networks are compared with. M. Courbariaux, Y. Bengio and J.-P. David,
"BinaryConnect: Training Deep Neural Networks with binary weights during propagations", 2015.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.bqn.stencil import Size, Stencil, convolution, linear


class BinaryLinear(nn.Module):
    """A linear layer whose weights are the signs of real ones: (..., in) -> (..., out).

    The gradient of a weight between -1 and 1 is that of its sign, of all others zero; `clip` keeps them between.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the bias is binary, too.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._made(linear(in_features, out_features), bias, {"device": device, "dtype": dtype})

    def _made(self, stencil: Stencil, bias: bool, given: dict[str, Any]) -> None:
        self.stencil = stencil
        self.weight = nn.Parameter(torch.empty(stencil.weight_shape, **given))
        self.register_parameter("bias", nn.Parameter(torch.empty(stencil.outputs, **given)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all real weights from -1 to 1, each far enough from zero to be moved."""
        for one in self.parameters(recurse=False):
            nn.init.uniform_(one, -1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """The sums."""
        value = self.stencil.apply(input, binary(self.weight))
        return value if self.bias is None else value + self.stencil.at_outputs(binary(self.bias))

    def extra_repr(self) -> str:
        """Torch's arguments."""
        return f"{self.stencil}{'' if self.bias is not None else ', bias=False'}"


class BinaryConv2d(BinaryLinear):
    """A convolution whose weights are the signs of real ones: (..., in, h, w) -> (..., out, h', w').

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for nn.Conv2d; the bias is binary, too.

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
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        stencil = convolution(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, 2
        )  # fmt: skip
        self._made(stencil, bias, {"device": device, "dtype": dtype})


class BinarySign(nn.Module):
    """The sign of activations, -1 or 1; its gradient is that of the activation where that is from -1 to 1."""

    def forward(self, input: Tensor) -> Tensor:
        """Signs, in the shape of the input; zero counts as positive."""
        return binary(input)


class Ensemble(nn.Module):
    """The mean of the logits of networks that were trained each by itself.

    Args:
        members: networks with one kind of output.

    Raises:
        OptionError: there are none.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not self.members:
            raise OptionError("an ensemble of no members", hint="networks, each trained on its own bootstrap")

    def forward(self, input: Tensor) -> Tensor:
        """The mean of what the members give."""
        return torch.stack([member(input) for member in self.members]).mean(0)


def binary(value: Tensor) -> Tensor:
    """-1 or 1, with the gradient of the value from -1 to 1, and no gradient outside (straight through)."""
    clipped = value.clamp(-1, 1)
    signs = torch.where(value >= 0, 1.0, -1.0).to(value.dtype)
    return clipped + (signs - clipped).detach()


@torch.no_grad()
def clip(network: nn.Module) -> None:
    """Puts the real weights of all binary layers back between -1 and 1; to be called after a step of the optimizer."""
    for layer in network.modules():
        if isinstance(layer, BinaryLinear):
            for one in layer.parameters(recurse=False):
                one.clamp_(-1, 1)


def bootstrap(examples: int, generator: torch.Generator) -> Tensor:
    """As many indices as there are examples, drawn with replacement: what one member of an ensemble is trained on."""
    return torch.randint(examples, (examples,), generator=generator)
