"""Bayesian quantised networks: weights are random levels, and distributions flow from layer to layer.

J. Su, "Spectral Methods for Neural Network Designs", University of Maryland, 2022, chapter 5.
"""

from convein.layers.bqn.activations import Activation, Dirac, Discrete, Gaussian, Pmf
from convein.layers.bqn.conv import Conv1d, Conv2d, Conv3d
from convein.layers.bqn.flatten import Flatten
from convein.layers.bqn.heads import GaussianHead, ScaledSoftmax, SoftmaxHead
from convein.layers.bqn.levels import LEVELS
from convein.layers.bqn.linear import Linear
from convein.layers.bqn.modes import in_mode, monte_carlo, negative_log_likelihood, set_mode
from convein.layers.bqn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from convein.layers.bqn.objective import entropy, objective
from convein.layers.bqn.plain import pack, to_plain, unpack
from convein.layers.bqn.pooling import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    RandomPool1d,
    RandomPool2d,
    RandomPool3d,
)
from convein.layers.bqn.residual import Residual, add
from convein.layers.bqn.sequential import Sequential
from convein.layers.bqn.sign import PlainSign, Sign

__all__ = [
    "LEVELS",
    "Activation",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Dirac",
    "Discrete",
    "Flatten",
    "Gaussian",
    "GaussianHead",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "PlainSign",
    "Pmf",
    "RandomPool1d",
    "RandomPool2d",
    "RandomPool3d",
    "Residual",
    "ScaledSoftmax",
    "Sequential",
    "Sign",
    "SoftmaxHead",
    "add",
    "entropy",
    "in_mode",
    "monte_carlo",
    "negative_log_likelihood",
    "objective",
    "pack",
    "set_mode",
    "to_plain",
    "unpack",
]
