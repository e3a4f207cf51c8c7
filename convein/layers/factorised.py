"""Factorised: a layer whose weight is a named form of torch's weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convein.equation import composed
from convein.errors import ConveinError, ShapeError
from convein.layers.base import ConvEinsum
from convein.layers.forms import SPATIAL, Factorisation, Weight, factorise
from convein.layers.misfits import OF_THE_PLAN, arguments_of, input_of_another_shape, unknown_option
from convein.layers.ranks import solve
from convein.options import of_python

_OWN = ("form", "rank", "factors", "multiple", "init")
# What the classes hand on besides the planning options.
_HANDED_ON = ("init", "device", "dtype", "names")

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
            if name not in (*_HANDED_ON, *OF_THE_PLAN):
                kind = type(self)
                raise unknown_option(kind.__name__, name, value, _OWN, arguments_of(kind, _OWN))
        self.form = form
        self.factors = factors
        self.dense = weight
        self.error: float | None = None
        self.factorisation: Factorisation = factorise(form, weight, factors)
        self.ranks: dict[str, int] = solve(self.factorisation, weight, of_python(rank), multiple)
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

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """As for every module, with a word on the one attribute that torch's layer has and this one cannot have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name != "weight":
                raise
        kind, factors = type(self).__name__, ", ".join(self._parts.names)
        raise AttributeError(
            f"{kind} has no weight of its own: dense_weight() computes it, and its factors are weights ({factors})",
            name=name,
            obj=self,
        )

    def _value(self, input: Tensor, text: str, **more: Any) -> Tensor:
        # In an expression a single entry stands for as many as are needed; torch's layers refuse a single channel.
        place = -1 - len(self.dense.kernel)
        known = isinstance(input, Tensor) and input.dim() >= -place and torch._C._get_tracing_state() is None
        if known and input.shape[place] == 1 and (other := self._of_another_shape(input)) is not None:
            raise other
        return super()._value(input, text, **more)

    def _of_another_shape(self, input: Tensor) -> ShapeError | None:
        return input_of_another_shape(type(self).__name__, self.dense.inputs, SPATIAL[len(self.dense.kernel)], input)

    def _misfit(self, input: Tensor, error: ConveinError) -> ConveinError | None:
        if isinstance(error, ShapeError):
            return self._of_another_shape(input)
        return super()._misfit(input, error)

    def _repr_form(self) -> str:
        ranks = ", ".join(f"{bond}={size}" for bond, size in self.ranks.items())
        return f"form={self.form!r}, {ranks}{', ' if ranks else ''}rate={self.rate:.3g}\n{self.expression!r}"
