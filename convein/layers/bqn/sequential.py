"""Sequential: layers one after the other, those known that only a sign waits for."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from convein.layers.bqn.activations import Activation
from convein.layers.bqn.categorical import Categorical
from convein.layers.bqn.sign import Sign


class Sequential(nn.Sequential):
    """nn.Sequential, in which a linear layer or a convolution right before a `Sign` may be one kernel with it.

    The kernel then writes the probabilities of the signs alone, and nothing but them is kept for the backward pass.
    Where no kernel runs this is nn.Sequential. Names in the state_dict are the same.
    """

    def forward(self, input: Tensor | Activation) -> Tensor | Activation:
        """What the last layer gives."""
        for layer, after in pairwise([*self, None]):
            signed = isinstance(layer, Categorical) and type(after) is Sign
            input = layer(input, signs=True) if signed else layer(input)
        return input
