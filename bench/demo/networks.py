"""A small convolutional network whose every layer is an expression, and the dense network of the same shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convein


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as a value: its string, the shapes of its factors, and what its initialisation needs.

    Attributes:
        name: what the layer is called in print.
        expression: the whole layer; the first operand is the input.
        factors: the shapes of the other operands.
        bonds: product of the sizes of all modes that are summed among the factors (the ranks).
        fan_in: inputs that one output reads.
        dense: shape of the convolution's weight that the factors stand for.
        stride: stride of that convolution.
    """

    name: str
    expression: str
    factors: tuple[tuple[int, ...], ...]
    bonds: int
    fan_in: int
    dense: tuple[int, int, int, int]
    stride: int = 1


LAYERS = (
    Layer("dense", "bshw,tshw->bthw|hw", ((16, 1, 3, 3),), 1, 9, (16, 1, 3, 3)),
    Layer("CP", "bshw,rt,rs,rh,rw->bthw|hw", ((16, 32), (16, 16), (16, 3), (16, 3)), 16, 16 * 9, (32, 16, 3, 3)),
    Layer(
        "Tucker-2",
        "bshw,sq,rqhw,tr->bthw|h[stride=2],w[stride=2]",
        ((32, 16), (16, 16, 3, 3), (64, 16)),
        16 * 16,
        32 * 9,
        (64, 32, 3, 3),
        stride=2,
    ),
    Layer(
        "tensor-train",
        "bshw,sa,hac,wcd,td->bthw|hw",
        ((64, 16), (3, 16, 16), (3, 16, 16), (64, 16)),
        16**3,
        64 * 9,
        (64, 64, 3, 3),
    ),
    Layer(
        "reshaped CP",
        "b(s1 s2)hw,r(t1)(s1),r(t2)(s2),rhw->b(t1 t2)hw|hw",
        ((16, 8, 8), (16, 8, 8), (16, 3, 3)),
        16,
        64 * 9,
        (64, 64, 3, 3),
    ),
)


class ExpressionLayer(nn.Module):
    """One layer of the network: its factors, and the call that evaluates its string.

    Args:
        layer: the string and the sizes.
        searched: evaluate in the searched order; otherwise from left to right.
    """

    def __init__(self, layer: Layer, *, searched: bool) -> None:
        super().__init__()
        self.layer = layer
        self.optimize = "auto" if searched else "left-to-right"
        # Entries of variance sigma^2 in each of N factors give the dense weight the variance bonds * sigma^(2N):
        # sigma is chosen so that this is 2 / fan_in, as for a dense layer before a ReLU.
        sigma = (math.sqrt(2 / layer.fan_in) / math.sqrt(layer.bonds)) ** (1 / len(layer.factors))
        self.factors = nn.ParameterList([sigma * torch.randn(shape) for shape in layer.factors])

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the string."""
        y: Tensor = convein.conv_einsum(self.layer.expression, x, *self.factors, optimize=self.optimize)
        return y


class DenseLayer(nn.Module):
    """The same layer without factors: F.conv2d with the whole weight."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.stride = layer.stride
        self.weight = nn.Parameter(math.sqrt(2 / layer.fan_in) * torch.randn(layer.dense))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.weight, stride=self.stride, padding=1)


class Network(nn.Module):
    """Layers with batch norm and ReLU between them, an average over the picture, and a last linear map to ten classes.

    Args:
        kind: `"searched"`, `"left to right"` or `"dense"`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks: list[nn.Module] = []
        for layer in LAYERS:
            dense = kind == "dense"
            convolution = DenseLayer(layer) if dense else ExpressionLayer(layer, searched=kind == "searched")
            blocks += [convolution, nn.BatchNorm2d(layer.dense[0]), nn.ReLU()]
        self.features = nn.Sequential(*blocks)
        self.classes = nn.Linear(LAYERS[-1].dense[0], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (b, 1, h, w) to scores (b, 10)."""
        scores: Tensor = self.classes(self.features(x).mean(dim=(2, 3)))
        return scores
