"""OrthogonalLinear: nn.Linear with a weight of orthonormal rows or columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bias import biased
from convein.layers.conv import positive
from convein.layers.sc_fac.base import OrthogonalLayer, check_channels
from convein.layers.sc_fac.exponential import Map
from convein.layers.sc_fac.factors import Factor, Rotation, Subspace
from convein.layers.sc_fac.starts import STARTS, Start, start_matrices
from convein.options import one_of
from convein.pipeline import conv_einsum


class OrthogonalLinear(OrthogonalLayer):
    """A linear layer all of whose singular values are one: (..., in) -> (..., out).

    The weight is a rotation of the smaller side, and a subspace of the larger one: every matrix with orthonormal rows
    or columns is such a product, and no exponential is larger than the smaller side.

    Args:
        in_features, out_features, bias: as for nn.Linear; the bias starts at zero.
        init: of the rotation, as for `OrthogonalConv2d`; the subspace is drawn uniformly, or with "identity" the first
            features.
        map, device, dtype: as for `OrthogonalConv2d`.

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: Start = "uniform",
        map: Map = "exponential",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = positive("in_features", in_features)
        self.out_features = positive("out_features", out_features)
        self.init: Start = one_of("init", init, STARTS, "initialisation")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise OptionError(f"dtype={dtype!r} of orthogonal matrices", hint="dtype=torch.float32, torch.float64")
        small, large = sorted((self.in_features, self.out_features))
        self.rotation = Rotation(torch.empty(1, small, small, device=device, dtype=dtype), map)
        self.subspace = None
        if small < large:
            self.subspace = Subspace(torch.empty(1, large, large, device=device, dtype=dtype), small, map)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the matrices anew, as `init` says; the bias is zero."""
        if self.bias is not None:
            self.bias.zero_()
        if self.rotation.base.is_meta:
            return
        self.rotation.assign(start_matrices(self.init, 1, self.rotation.size))
        if self.subspace is not None:
            whole: Start = "identity" if self.init == "identity" else "uniform"
            self.subspace.assign(start_matrices(whole, 1, self.subspace.size))

    def factors(self) -> list[Factor]:
        """The rotation, and the subspace if the sides differ."""
        return [self.rotation] if self.subspace is None else [self.rotation, self.subspace]

    def assembled(self, matrices: Sequence[Tensor]) -> Tensor:
        """(out, in)."""
        rotation = matrices[0][0]
        if self.subspace is None:
            return rotation
        basis = matrices[1][0]
        tall: Tensor = conv_einsum("ln,nm->lm", basis, rotation)
        return tall if self.out_features > self.in_features else tall.mT

    def forward(self, input: Tensor) -> Tensor:
        """The product with the weight, and the bias.

        Raises:
            ShapeError: other features.
        """
        check_channels("features", input.shape[-1], self.in_features)
        value: Tensor = conv_einsum("...s,ts->...t", input, self.dense_weight())
        return value if self.bias is None else biased(value, self.bias)

    def adjoint(self, output: Tensor) -> Tensor:
        """The product with the transposed weight, without bias: (..., out) -> (..., in)."""
        check_channels("features", output.shape[-1], self.out_features)
        value: Tensor = conv_einsum("...t,ts->...s", output, self.dense_weight())
        return value

    def inverse(self, output: Tensor) -> Tensor:
        """The input that gives this output; of what is no output, the input whose output is nearest.

        Raises:
            ShapeError: several inputs give the same output.
        """
        if self.out_features < self.in_features:
            raise ShapeError(
                f"{self.in_features} features become {self.out_features}: inputs that differ give the same output",
                hint="an inverse needs out_features >= in_features; `adjoint` is there always",
            )
        return self.adjoint(output if self.bias is None else output - self.bias)

    def extra_repr(self) -> str:
        """Torch's arguments and the initialisation."""
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}, init={self.init!r}{bias}"
