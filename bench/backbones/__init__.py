"""Networks to compress, written against torch alone: residual networks for pictures, convolution modules for speech."""

from __future__ import annotations

from backbones.backbone import Backbone
from backbones.conformer import ConvolutionModule, convolution_stack
from backbones.resnet import BasicBlock, Subsample, resnet34, resnet_cifar
from backbones.wide import WideBlock, wide_resnet

__all__ = [
    "Backbone",
    "BasicBlock",
    "ConvolutionModule",
    "Subsample",
    "WideBlock",
    "convolution_stack",
    "resnet34",
    "resnet_cifar",
    "wide_resnet",
]
