"""Factorised: a layer whose weight is a named form of torch's weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from convein.equation import composed
from convein.errors import OptionError
from convein.layers.base import ConvEinsum
from convein.layers.forms import Factorisation, Weight, factorise
from convein.layers.ranks import solve
from convein.options import OPTION_NAMES, shown

# What a layer of torch's kind decides itself.
_FIXED = {*OPTION_NAMES, "sizes", "convolved", "dialect", "input"}

Rank = int | float | str | tuple[int, ...]


class Factorised(ConvEinsum):
    """What the convolutions and the linear layer have in common; they are made by their own names.

    Attributes:
        form: name of the form.
        factors: into how many factors a reshaped form takes the channels apart, or the number of a form's blocks.
        ranks: the size of every bond between the factors.
        error: of the decomposition it comes from, relative to the dense weight's norm; None where it was drawn.
    """

    def __init__(
        self,
        weight: Weight,
        options: Mapping[str, Any],
        *,
        bias: bool,
        form: str,
        rank: Rank,
        factors: int,
        multiple: int | None,
        **given: Any,
    ) -> None:
        for name, value in given.items():
            if name in _FIXED:
                raise OptionError(
                    f"{name}={shown(value)}: {type(self).__name__} has no such option",
                    hint="besides torch's arguments it takes those that say how it is planned; ConvEinsum takes all",
                )
        self.form = form
        self.factors = factors
        self.dense = weight
        self.error: float | None = None
        self.factorisation: Factorisation = factorise(form, weight, factors)
        self.ranks: dict[str, int] = solve(self.factorisation, weight, rank, multiple)
        super().__init__(
            self.factorisation.layer,
            {**self.factorisation.sizes, **self.ranks},
            bias=composed(self.factorisation.target) if bias else None,
            **options,
            **given,
        )

    @property
    def rate(self) -> float:
        """Parameters of the factors over those of the dense weight; biases are not counted."""
        return self.factorisation.count(self.ranks) / self.dense.parameters

    def dense_weight(self) -> Tensor:
        """The weight of torch's layer, differentiably: (out, in / groups, ...); transposed (in, out / groups, ...)."""
        weight, value = self.dense, super().dense_weight()
        if not weight.transposed:
            return value.reshape(weight.shape)
        parts = (weight.groups, weight.outputs // weight.groups, weight.inputs // weight.groups, *weight.kernel)
        return value.reshape(parts).transpose(1, 2).reshape(weight.shape)

    def _repr_form(self) -> str:
        ranks = ", ".join(f"{bond}={size}" for bond, size in self.ranks.items())
        return f"form={self.form!r}, {ranks}{', ' if ranks else ''}rate={self.rate:.3g}\n{self.expression!r}"
