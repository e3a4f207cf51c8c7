"""How distributions pass a sum of products: by two moments, by direct contraction, or by convolution of their pmfs.

All three treat the summed products as independent. The moments are then exact, and only that the sum is called normal
is an approximation (the central limit theorem); the other two ways give the distribution itself. J. Su, "Spectral
Methods for Neural Network Designs", University of Maryland, 2022, chapter 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.errors import OptionError
from convein.layers.bqn.activations import Activation, Dirac, Discrete, Gaussian, Pmf
from convein.layers.bqn.levels import Lattice, lattice
from convein.layers.bqn.stencil import Stencil
from convein.layers.constants import constant
from convein.pipeline import conv_einsum

Propagation = Literal["auto", "clt", "contraction", "convolution"]
PROPAGATIONS: tuple[Propagation, ...] = get_args(Propagation)

# The exact ways are taken as long as one output costs no more multiplications than this: 32 summands that are signs.
AFFORDABLE = 1024
# Entries of a direct contraction's table, at most.
LARGEST_TABLE = 2**18
_LETTERS = "abcdefghijklmnopqrstuvwxy"


def table_entries(products: int, size: int) -> int:
    """Of the table that a direct contraction of so many distributions over `size` numbers takes."""
    return (products * (size - 1) + 1) * int(size**products)


def multiplications(way: str, products: int, size: int) -> int:
    """What one output costs.

    Args:
        way: "contraction" or "convolution".
        products: summands, every one a distribution over `size` numbers.
        size: see above.
    """
    if way == "contraction":
        return table_entries(products, size)
    total = 0
    while products > 1:
        pairs = products // 2
        total += pairs * size * size
        products, size = products - pairs, 2 * size - 1
    return total


def choose(propagation: Propagation, products: int, size: int) -> str:
    """The way that is taken: the cheapest exact one as long as it is affordable, else the central limit theorem.

    Raises:
        OptionError: a direct contraction was asked for, and its table would be too large.
    """
    if propagation == "contraction" and table_entries(products, size) > LARGEST_TABLE:
        raise OptionError(
            f'propagation="contraction" of {products} distributions over {size} numbers needs a table of '
            f"{table_entries(products, size):.3g} entries, and {LARGEST_TABLE:,} are the most",
            hint='propagation="convolution" gives the same distribution',
        )
    if propagation != "auto":
        return propagation
    exact = min(("contraction", "convolution"), key=lambda way: multiplications(way, products, size))
    return exact if multiplications(exact, products, size) <= AFFORDABLE else "clt"


def moments(
    stencil: Stencil, input: Activation, mean: Tensor, var: Tensor, bias: tuple[Tensor, Tensor] | None
) -> Gaussian:
    """The sums by the central limit theorem: mean m E[W] and variance v E[W]^2 + (m^2 + v) Var[W], and the bias's.

    Three products; of known inputs (v = 0) and of signs (m^2 + v = 1, so that the second term depends on no input) two.

    Args:
        stencil: which products are summed.
        input: (..., inputs, *sizes).
        mean: of the weights.
        var: of the weights.
        bias: mean and variance, (outputs,).
    """
    middle = stencil.apply(input.mean, mean)
    if isinstance(input, Dirac) and input.noise == 0:
        width = stencil.apply(input.value.square(), var)
    elif isinstance(input, Discrete):
        sizes = input.minus.shape[input.minus.ndim - len(stencil.kernel) :]
        width = stencil.spread(input.var, mean) + weight_variances(stencil, sizes, var)
    else:
        width = stencil.spread(input.var, mean) + stencil.apply(input.mean.square() + input.var, var)
    if bias is None:
        return Gaussian(middle, width)
    return Gaussian(middle + stencil.at_outputs(bias[0]), width + stencil.at_outputs(bias[1]))


def weight_variances(stencil: Stencil, sizes: Sequence[int], var: Tensor) -> Tensor:
    """What the variances of weights give the sums of signs, whose squares are 1: (outputs, *sizes').

    Args:
        stencil: which products are summed.
        sizes: of the input.
        var: of the weights.
    """
    # All inputs of a group are the same, so their weights are added first.
    alone = replace(stencil, inputs=stencil.groups)
    return alone.apply(var.new_ones(stencil.groups, *sizes), var.sum(1, keepdim=True))


def support(input: Discrete | Pmf) -> tuple[float, ...]:
    """The numbers that an activation can be."""
    if isinstance(input, Discrete):
        return (-1.0, 1.0)
    return tuple(input.lowest + input.step * k for k in range(input.probabilities.shape[-1]))


def product_lattice(levels: tuple[float, ...], values: tuple[float, ...], *, has_bias: bool, has_zero: bool) -> Lattice:
    """The numbers that a product can be, a bias and what is outside of an input among them.

    Raises:
        OptionError: they have no common step.
    """
    numbers = [level * value for level in levels for value in values]
    return lattice([*numbers, *(levels if has_bias else ()), *([0.0] if has_zero else ())])


def products(
    stencil: Stencil,
    input: Discrete | Pmf,
    weight: Tensor,
    levels: tuple[float, ...],
    bias: Tensor | None,
    numbers: Lattice,
) -> Tensor:
    """The distribution of every product that an output sums.

    Args:
        stencil: which products are summed.
        input: (..., inputs, *sizes).
        weight: probabilities of the levels, (*weight_shape, levels).
        levels: the numbers that weights can be.
        bias: probabilities of the levels, (outputs, levels).
        numbers: what products can be.

    Returns:
        (..., *sizes', outputs, products, numbers); the bias is the last of the products.
    """
    values, read = support(input), stencil.patches(distribution(input))
    if stencil.pads_zeros:
        # Inside, the probabilities sum to one; what is outside is the number 0 for certain.
        read, values = torch.cat([read, 1 - read.sum(-1, keepdim=True)], -1), (*values, 0.0)
    table = indicators([[level * value for value in values] for level in levels], numbers, weight)
    grouped = weight.reshape(stencil.groups, -1, stencil.fan_in, len(levels))
    taps: Tensor = conv_einsum("...gnc,gtna,zac->...gtnz", read, grouped, table)
    taps = taps.flatten(-4, -3)
    if bias is None:
        return taps
    alone: Tensor = conv_einsum("za,ta->tz", indicators([list(levels)], numbers, bias)[:, 0], bias)
    return torch.cat([taps, alone.unsqueeze(1).expand(*taps.shape[:-3], -1, 1, -1)], -2)


def indicators(table: list[list[float]], numbers: Lattice, like: Tensor) -> Tensor:
    """T[z, a, c]: 1 where the table's entry (a, c) is number z of a lattice, else 0."""
    places = constant(tuple(tuple(map(numbers.index, row)) for row in table), torch.long, like)
    return (torch.arange(numbers.size, device=like.device).view(-1, 1, 1) == places).to(like.dtype)


def distribution(input: Discrete | Pmf) -> Tensor:
    """The probabilities of the numbers of its support, along a new last dimension."""
    return torch.stack([input.minus, 1 - input.minus], -1) if isinstance(input, Discrete) else input.probabilities


def convolved(taps: Tensor) -> Tensor:
    """The distribution of sums: (..., products, numbers) -> (..., products * (numbers - 1) + 1).

    Adding independent numbers convolves their distributions: pairs, then pairs of pairs; the engine takes FFTs where
    they are faster.
    """
    longest = taps.shape[-2] * (taps.shape[-1] - 1) + 1
    while (count := taps.shape[-2]) > 1:
        half = count // 2
        left, right, rest = taps[..., :half, :], taps[..., half : 2 * half, :], taps[..., 2 * half :, :]
        taps = conv_einsum("...d,...d->...d|d", left, right, padding="full", flip=True, signal="first")
        if count % 2:
            # Numbers above the last one of a shorter distribution are impossible.
            taps = torch.cat([taps, F.pad(rest, (0, taps.shape[-1] - rest.shape[-1]))], -2)
    return taps[..., 0, :longest]


def contracted(taps: Tensor) -> Tensor:
    """The same as `convolved`, by one contraction with the table of all combinations."""
    count, size = taps.shape[-2:]
    sums = torch.zeros((), dtype=torch.long, device=taps.device)
    for _ in range(count):
        sums = sums.unsqueeze(-1) + torch.arange(size, device=taps.device)
    numbers = torch.arange(count * (size - 1) + 1, device=taps.device).view(-1, *(1 for _ in range(count)))
    letters = _LETTERS[:count]
    text = f"z{letters},{','.join(f'...{letter}' for letter in letters)}->...z"
    value: Tensor = conv_einsum(text, (sums == numbers).to(taps.dtype), *taps.unbind(-2))
    return value


def exact(taps: Tensor, numbers: Lattice, way: str) -> Pmf:
    """The distribution of the sums of products.

    Args:
        taps: (..., products, numbers).
        numbers: their lattice.
        way: "contraction" or "convolution".
    """
    summed = contracted(taps) if way == "contraction" else convolved(taps)
    return Pmf(summed, taps.shape[-2] * numbers.lowest, numbers.step)
