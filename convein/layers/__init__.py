"""Layers that are strings: nn.Modules made of factors and an expression."""

from convein.layers.base import ConvEinsum
from convein.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from convein.layers.forms import FORMS
from convein.layers.linear import Linear

__all__ = [
    "FORMS",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvEinsum",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
]
