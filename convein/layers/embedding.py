"""Embedding: nn.Embedding with a factorised table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.equation import composed, written
from convein.errors import OperandError, OptionError
from convein.execution.ops import is_untraced
from convein.layers import decompositions
from convein.layers.base import ConvEinsum
from convein.layers.conv import positive
from convein.layers.initial import draw
from convein.layers.misfits import OF_THE_PLAN, arguments_of, unknown_option
from convein.layers.ranks import bisect, even_factors
from convein.options import as_integer, of_python
from convein.pipeline import conv_einsum

_OWN = ("form", "rank", "factors")
_REFUSED = {
    "max_norm": "it shortens rows in place, and a factorised table has no rows of its own",
    "scale_grad_by_freq": "a factor's slice serves many rows, which occur differently often",
    "sparse": "every index reads a slice of every factor: their gradients are dense",
}


class Embedding(ConvEinsum):
    """nn.Embedding with a factorised table: indices (...) -> (..., embedding_dim).

    A row's number is written with one digit for each factor; every digit picks a slice, and their product is the row.
    The numbers need not factorise: the table has a few more rows than are asked for, which nothing reads.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as for nn.Embedding; the row `padding_idx` is zero
            and has no gradient.
        form: "tt", a tensor train whose factors carry a digit and a part of the dimension each (V. Khrulkov et al.,
            "Tensorized Embedding Layers", 2020), or "cp", a vector for each digit and a matrix for the dimension.
        rank: a number for all bonds, or a float: the most parameters, as a fraction of the table's.
        factors: the number of digits.
        **options: planning options of `conv_einsum`.

    Attributes:
        digits: the bases of a row's number, the most significant first.
        error: of the table it comes from; None where it was drawn.

    Raises:
        OptionError: what does not fit; max_norm, scale_grad_by_freq and sparse are refused.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,  # noqa: ARG002 - torch's place for it; it belongs to max_norm
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        form: str = "tt",
        rank: float = 0.1,
        factors: int = 3,
        **options: Any,
    ) -> None:
        for name, value in options.items():
            if name not in ("init", "names", *OF_THE_PLAN):
                raise unknown_option("Embedding", name, value, _OWN, arguments_of(type(self), _OWN))
        asked = {"max_norm": max_norm, "scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}
        for name, value in asked.items():
            if value:
                raise OptionError(f"{name}={value!r} of a factorised embedding", hint=_REFUSED[name])
        self.num_embeddings = positive("num_embeddings", num_embeddings)
        self.embedding_dim = positive("embedding_dim", embedding_dim)
        self.error: float | None = None
        self.padding_idx = self._row(padding_idx)
        self.form = form
        self.digits = _digits(self.num_embeddings, positive("factors", factors))
        terms, columns, bonds, sizes = self._terms()
        rows = [f"n{i}" for i in range(1, len(self.digits) + 1)]
        self.rank = _solved(rank, terms, sizes, bonds, self.num_embeddings * self.embedding_dim)
        super().__init__(
            f"...({' '.join(rows)}),{','.join(map(_written, terms))}->...{composed(columns)}",
            {**sizes, **dict.fromkeys(bonds, self.rank)},
            device=device,
            dtype=dtype,
            **options,
        )
        # What is left of the factors when every digit is known.
        slices = [f"...{_written(term[1:])}" if term[0] in rows else _written(term) for term in terms]
        self._product = f"{','.join(slices)}->...{composed(columns)}"

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None, *, seed: int = 0, **given: Any
    ) -> Self:
        """A factorised table near a given one, by singular values ("tt") or alternating least squares ("cp").

        Args:
            embeddings: (num_embeddings, embedding_dim).
            freeze: whether the factors need no gradients, as for nn.Embedding.
            padding_idx: as for nn.Embedding.
            seed: of starts that are drawn.
            **given: form, rank, factors and options.

        Returns:
            The layer; `layer.error` is the norm of what the table misses over its norm.
        """
        if embeddings.ndim != 2:
            raise OperandError(f"embeddings of shape {tuple(embeddings.shape)}", hint="(num_embeddings, embedding_dim)")
        count, size = embeddings.shape
        layer = cls(count, size, padding_idx, device=embeddings.device, dtype=embeddings.dtype, **given)
        rows = F.pad(embeddings.detach(), (0, 0, 0, math.prod(layer.digits) - count))
        with torch.no_grad():
            for mine, factor in zip(layer.weights, layer._decomposed(rows, seed), strict=True):
                mine.copy_(factor.reshape(mine.shape)).requires_grad_(not freeze)
            layer.error = decompositions.relative_error(embeddings, layer.dense_weight())
        return layer

    def _decomposed(self, rows: Tensor, seed: int) -> list[Tensor]:
        if self.form == "cp":
            return [factor.mT for factor in decompositions.cp(rows.reshape(*self.digits, -1), self.rank, seed=seed)]
        count = len(self.digits)
        columns = even_factors(self.embedding_dim, count)
        order = [axis for digit in range(count) for axis in (digit, count + digit)]
        nodes = rows.reshape(*self.digits, *columns).permute(order)
        merged = nodes.reshape([a * b for a, b in zip(self.digits, columns)])
        cores = decompositions.chain(merged, [self.rank] * (count - 1))
        if count == 1:
            return cores
        first, *inner, last = cores
        rest = zip([*inner, last], self.digits[1:])
        return [first, *(core.reshape(core.shape[0], digit, -1).transpose(0, 1) for core, digit in rest)]

    def reset_parameters(self) -> None:
        """Draws all factors, so that the table's entries have variance 1, as those of nn.Embedding have."""
        draw(self._parts, self.weights, 1.0)

    def dense_weight(self) -> Tensor:
        """The table, differentiably: (num_embeddings, embedding_dim)."""
        table = super().dense_weight().reshape(self.embedding_dim, -1).mT[: self.num_embeddings]
        if self.padding_idx is None:
            return table
        row = torch.arange(self.num_embeddings, device=table.device) == self.padding_idx
        return table.masked_fill(row.unsqueeze(1), 0)

    def forward(self, input: Tensor) -> Tensor:
        """The rows of the indices.

        Args:
            input: integers from 0 to num_embeddings - 1, of any shape.

        Raises:
            IndexError: there is no such row; on a CPU. Elsewhere nobody waits to see.
        """
        if input.device.type == "cpu" and is_untraced() and input.numel():
            self._check(input)
        weights = self.weights
        slices = []
        rest = input
        for place in reversed(range(len(self.digits))):
            digit = self.digits[place]
            # The first digit is what is left: beyond its base the look-up itself fails.
            rows = F.embedding(rest % digit if place else rest, weights[place].reshape(digit, -1))
            slices.append(rows.reshape(*input.shape, *weights[place].shape[1:]))
            rest = rest // digit
        shared = weights[len(self.digits) :]
        value: Tensor = conv_einsum(self._product, *reversed(slices), *shared, **self._parts.given)
        if self.padding_idx is None:
            return value
        return value.masked_fill((input == self.padding_idx).unsqueeze(-1), 0)

    def _check(self, input: Tensor) -> None:
        """The factors make a few rows more than the table has, and would give them."""
        for index in map(int, input.aminmax()):
            if not 0 <= index < self.num_embeddings:
                raise IndexError(f"index {index} in a table of {self.num_embeddings} rows")

    def extra_repr(self) -> str:
        """Torch's arguments, then the form."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        shape = f"{self.num_embeddings}, {self.embedding_dim}{padding}"
        return f"{shape}, form={self.form!r}, rank={self.rank}\n{self._product!r}"

    def _row(self, index: int | None) -> int | None:
        """A row's number; negative ones count from the end."""
        if index is None:
            return None
        number = as_integer(index)
        if number is None or not -self.num_embeddings <= number < self.num_embeddings:
            raise OptionError(f"padding_idx={index!r}", hint=f"a row: 0 to {self.num_embeddings - 1}")
        return number % self.num_embeddings

    def _terms(self) -> tuple[list[tuple[str, ...]], list[str], list[str], dict[str, int]]:
        """The modes of the factors, those of the dimension, the bonds, and the sizes of all but bonds."""
        count = len(self.digits)
        sizes = {f"n{i}": size for i, size in enumerate(self.digits, 1)}
        if self.form == "cp":
            return [*((mode, "r") for mode in sizes), ("d", "r")], ["d"], ["r"], {**sizes, "d": self.embedding_dim}
        if self.form != "tt":
            raise OptionError(f"form={self.form!r} of an embedding", hint='"tt" or "cp"')
        columns = {f"d{i}": size for i, size in enumerate(even_factors(self.embedding_dim, count), 1)}
        bonds = [f"a{i}" for i in range(1, count)]
        terms = [(f"n{i}", *bonds[max(i - 2, 0) : i - 1], f"d{i}", *bonds[i - 1 : i]) for i in range(1, count + 1)]
        return terms, list(columns), bonds, {**sizes, **columns}


def _written(modes: Sequence[str]) -> str:
    return "".join(map(written, modes))


def _digits(number: int, count: int) -> tuple[int, ...]:
    """Bases whose product is at least `number`, as equal and as small as they can be, ascending."""
    bases: list[int] = []
    for left in range(count, 0, -1):
        base = round(number ** (1 / left))
        while base**left < number:
            base += 1
        while base > 1 and (base - 1) ** left >= number:
            base -= 1
        bases.append(base)
        number = -(-number // base)
    return tuple(sorted(bases))


def _solved(
    rank: object, terms: Sequence[Sequence[str]], sizes: Mapping[str, int], bonds: Sequence[str], entries: int
) -> int:
    number = as_integer(rank)
    if number is not None and number > 0:
        return number
    rank = of_python(rank)
    if not isinstance(rank, float) or not 0 < rank <= 1e6:
        raise OptionError(f"rank={rank!r}", hint="a rank from 1, or a fraction of the table's entries (0.1)")

    def count(size: int) -> int:
        return sum(math.prod({**sizes, **dict.fromkeys(bonds, size)}[mode] for mode in term) for term in terms)

    return bisect(lambda size: count(size) <= rank * entries, entries)
