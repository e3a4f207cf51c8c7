"""Partial results: which modes are left in one, their sizes, and what joining two of them multiplies, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from convein.network import Network
from convein.windows import Convolution


@dataclass(frozen=True, slots=True)
class Partial:
    """The partial result of a set of operands: the modes it still has, with their sizes."""

    operands: int
    sizes: Mapping[str, int]

    @property
    def elements(self) -> int:
        """Its number of elements."""
        return prod(self.sizes.values())


def partial(network: Network, operands: int) -> Partial:
    """The partial result of a set of operands."""
    modes: Iterable[str]
    if operands & (operands - 1):
        modes = network.modes(operands)
    else:
        output, carriers = network.output, network.carriers
        modes = [m for m in network.operands[operands.bit_length() - 1].modes if carriers[m] != operands or m in output]
    return Partial(operands, {mode: max(network.extent(mode, operands), 0) for mode in modes})


def join(network: Network, left: Partial, right: Partial) -> Partial:
    """The partial result of both sets together."""
    operands = left.operands | right.operands
    sizes = dict(left.sizes)
    for mode, size in right.sizes.items():
        if mode not in sizes:
            sizes[mode] = size
        elif not network.carriers[mode] & ~operands and mode not in network.output:
            del sizes[mode]
        elif mode in network.convolutions:
            sizes[mode] = max(network.extent(mode, operands), 0)
    return Partial(operands, sizes)


def multiplications(network: Network, left: Partial, right: Partial) -> int:
    """What joining two partial results multiplies: the product of the sizes of all modes that either still has.

    A mode counts once. A mode that is convolved here counts as (output size) x (filter size); merging filters, and a
    transposed mode where the signal is shorter than the output, as (size of one) x (size of the other).
    """
    found = 1
    for mode, size in left.sizes.items():
        convolution = network.convolutions.get(mode)
        if convolution is None or mode not in right.sizes:
            found *= size
        else:
            found *= taps_read(convolution, left.operands, right.operands)
    for mode, size in right.sizes.items():
        if mode not in left.sizes:
            found *= size
    return found


def taps_read(convolution: Convolution, left: int, right: int) -> int:
    """Multiplications of one correlation along its own mode."""
    correlation = convolution.join(left, right)
    length = max(correlation.size, 0)
    if correlation.upsample > 1 or not (left | right) >> convolution.signal & 1:
        length = min(length, correlation.n)
    return length * correlation.kernel


def is_passed(network: Network, value: Partial) -> bool:
    """Whether a partial result is an operand that is used as it is passed, nothing summed or strided in it alone."""
    if value.operands & (value.operands - 1):
        return False
    operand = network.operands[value.operands.bit_length() - 1]
    alone = (network.convolutions[mode] for mode in operand.modes if mode in network.convolutions)
    return len(value.sizes) == len(operand.modes) and all(c.filters or c.is_trivial for c in alone)
