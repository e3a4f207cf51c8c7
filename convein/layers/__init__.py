"""Layers that are strings: nn.Modules made of factors and an expression."""

from convein.layers.arma import ARMA1d, ARMA2d, ARMA3d
from convein.layers.autoregression import autoregress, whiten
from convein.layers.base import ConvEinsum
from convein.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from convein.layers.conv_tt_lstm import ConvLSTM, ConvLSTMCell, ConvTensorTrain, ConvTTLSTM, ConvTTLSTMCell
from convein.layers.embedding import Embedding
from convein.layers.explanation import explain
from convein.layers.forms import FORMS
from convein.layers.linear import Linear
from convein.layers.pretrained import from_conv, from_linear, to_torch
from convein.layers.receptive_field import ARMAStage, field_radius, receptive_field, theoretical_radius
from convein.layers.video import FramePredictor

__all__ = [
    "FORMS",
    "ARMA1d",
    "ARMA2d",
    "ARMA3d",
    "ARMAStage",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvEinsum",
    "ConvLSTM",
    "ConvLSTMCell",
    "ConvTTLSTM",
    "ConvTTLSTMCell",
    "ConvTensorTrain",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "FramePredictor",
    "Linear",
    "autoregress",
    "explain",
    "field_radius",
    "from_conv",
    "from_linear",
    "receptive_field",
    "theoretical_radius",
    "to_torch",
    "whiten",
]
