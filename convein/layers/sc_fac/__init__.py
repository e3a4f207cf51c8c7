"""Orthogonal convolutions by separable complete factorisation (SC-Fac), and Lipschitz networks made of them."""

from convein.layers.sc_fac.activations import GroupSort, LipSwish
from convein.layers.sc_fac.base import OrthogonalLayer, orthogonal_weights
from convein.layers.sc_fac.certificates import certified_accuracy, certified_radius, margin_loss
from convein.layers.sc_fac.convolution import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
)
from convein.layers.sc_fac.factors import Rotation, Subspace, orthogonal_matrices, rebase
from convein.layers.sc_fac.flow import ResidualFlow, flow_block
from convein.layers.sc_fac.linear import OrthogonalLinear
from convein.layers.sc_fac.pooling import LipschitzPool2d
from convein.layers.sc_fac.skips import ConcatenativeSkip, ResidualSkip
from convein.layers.sc_fac.spectrum import singular_values
from convein.layers.sc_fac.wide_resnet import LipschitzWideResNet

__all__ = [
    "ConcatenativeSkip",
    "GroupSort",
    "LipSwish",
    "LipschitzPool2d",
    "LipschitzWideResNet",
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConvTranspose1d",
    "OrthogonalConvTranspose2d",
    "OrthogonalLayer",
    "OrthogonalLinear",
    "ResidualFlow",
    "ResidualSkip",
    "Rotation",
    "Subspace",
    "certified_accuracy",
    "certified_radius",
    "flow_block",
    "margin_loss",
    "orthogonal_matrices",
    "orthogonal_weights",
    "rebase",
    "singular_values",
]
