"""Orthogonal convolutions by separable complete factorisation (SC-Fac), and Lipschitz networks made of them."""

from convein.layers.sc_fac.activations import GroupSort, LipSwish
from convein.layers.sc_fac.base import OrthogonalLayer, orthogonal_weights
from convein.layers.sc_fac.convolution import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
)
from convein.layers.sc_fac.factors import Rotation, Subspace, orthogonal_matrices, rebase
from convein.layers.sc_fac.linear import OrthogonalLinear
from convein.layers.sc_fac.spectrum import singular_values

__all__ = [
    "GroupSort",
    "LipSwish",
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConvTranspose1d",
    "OrthogonalConvTranspose2d",
    "OrthogonalLayer",
    "OrthogonalLinear",
    "Rotation",
    "Subspace",
    "orthogonal_matrices",
    "orthogonal_weights",
    "rebase",
    "singular_values",
]
