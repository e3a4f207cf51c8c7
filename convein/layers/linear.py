"""Linear: nn.Linear with a factorised weight."""

from __future__ import annotations

from typing import Any

import torch

from convein.layers.conv import positive
from convein.layers.factorised import Factorised, Rank
from convein.layers.forms import Weight
from convein.layers.initial import Init


class Linear(Factorised):
    """nn.Linear with a factorised weight: (..., in) -> (..., out).

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear.
        form, rank, factors, multiple, init, **options: as for `convein.layers.Conv2d`. Without spatial modes, "svd",
            "spatial-svd", "cp" and "tt" are all products of two matrices; "rtt" is the TT-matrix (A. Novikov et al.,
            "Tensorizing Neural Networks", 2015), and "rcp" has a vector of scales besides its matrices.

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
        form: str = "cp",
        rank: Rank = 0.1,
        factors: int = 3,
        multiple: int | None = None,
        init: Init | None = "kaiming",
        **options: Any,
    ) -> None:
        self.in_features = positive("in_features", in_features)
        self.out_features = positive("out_features", out_features)
        super().__init__(
            Weight(self.in_features, self.out_features), {}, bias=bias, form=form, rank=rank, factors=factors,
            multiple=multiple, init=init, device=device, dtype=dtype, **options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Torch's arguments, then the form."""
        bias = "" if self.bias is not None else "bias=False, "
        return f"{self.in_features}, {self.out_features}, {bias}{self._repr_form()}"
