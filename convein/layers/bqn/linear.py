"""Linear: a linear layer of quantised random weights."""

from __future__ import annotations

import torch
from torch import nn

from convein.layers.bqn.categorical import Categorical
from convein.layers.bqn.levels import Levels
from convein.layers.bqn.stencil import linear


class Linear(Categorical):
    """nn.Linear whose weights are random levels: (..., in) -> (..., out). J. Su, 2022, section 5.3.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear.
        levels: "binary" (-1, 1), "ternary" (-1, 0, 1), "quaternary" (-3, -1, 1, 3), or the numbers themselves.
        propagation: how the distributions of an input, whose entries are taken as independent, pass the sum. "clt" by
            its mean and variance, which then are exact, and a normal distribution, which is the central limit
            theorem's; exactly, where inputs are signs or numbers of a lattice, by "contraction" (one table of all
            combinations: up to some eight summands) or "convolution" (of the summands' distributions); "auto" takes
            the cheaper of these while an output costs at most about a thousand multiplications (32 signs), else "clt".

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        levels: Levels = "binary",
        propagation: str = "auto",
    ) -> None:
        super().__init__(
            linear(in_features, out_features),
            bias=bias,
            levels=levels,
            propagation=propagation,
            device=device,
            dtype=dtype,
        )

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:
        """nn.Linear with the weights of a mode; see `to_plain`."""
        made = nn.Linear(self.stencil.inputs, self.stencil.outputs, self.theta_bias is not None, device="meta")
        return self.filled(made, mode, generator)
