"""Network + disjoint sets of operands -> Frame: the small problem that a search solves, as numbers.

The values to join are the leaves: sets of operands, single ones at first. Inside a frame a set of leaves is a bit mask.
For every set S of leaves two numbers are enough to know sizes and costs, W (work) and E (what is gone):

    elements(S) = W(S) / E(S)            multiplications(L, R) = W(L | R) / (E(L) * E(R))

A mode that is not convolved adds its size to W as soon as S touches it, and to E once it is summed. A convolved mode
fits the same form: with k_j the length of the j-th filter met, product K, a set of filters has W = K and E = K / (length
of the merged filter), a set with the signal has W = (output size) * K and E = K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from convein.network import Network
from convein.planner.partial import Partial, is_passed
from convein.windows import Convolution

# NumPy's arrays of floats and of masks; their shapes differ from line to line.
Array = Any


@dataclass(frozen=True, slots=True)
class Plain:
    """All modes with the same fate: carried by `leaves`, `open` if also needed elsewhere; `size` is their product."""

    leaves: int
    open: bool
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """A mode that is convolved within the frame, by tables over the subsets of the leaves that carry it.

    Attributes:
        leaves: those leaves, in order: bit j of a table's index stands for `leaves[j]`.
        work, gone: W and E.
        shorter: None, or for a transposed mode the table of min(signal size, output size) / output size.
        signal: the table index of the signal's leaf; 0 if no leaf has the signal.
    """

    leaves: tuple[int, ...]
    work: Array
    gone: Array
    shorter: Array | None
    signal: int


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a search needs to know.

    Attributes:
        network: where it comes from.
        values: the partial results to be joined: the leaves.
        plain: modes that no step of this frame convolves, those with the same fate merged.
        meetings: modes that steps of this frame convolve.
        needs_grad: leaves with an operand that needs its gradient; `constant`: leaves of constants only;
            `passed`: leaves that are operands used as they are passed.
    """

    network: Network
    values: tuple[Partial, ...]
    plain: tuple[Plain, ...]
    meetings: tuple[Meeting, ...]
    needs_grad: int
    constant: int
    passed: int

    def operands(self, subset: int) -> int:
        """The operands in a set of leaves."""
        return reduce(or_, (value.operands for place, value in enumerate(self.values) if subset >> place & 1), 0)


def frame(network: Network, values: Iterable[Partial], needs_grad: int = 0, constants: int = 0) -> Frame:
    """The problem of joining these partial results of disjoint sets of operands."""
    values = tuple(values)
    carrying: dict[str, int] = {}
    inside = 0
    for place, value in enumerate(values):
        inside |= value.operands
        for mode in value.sizes:
            carrying[mode] = carrying.get(mode, 0) | 1 << place
    output = frozenset(network.output)
    merged: dict[tuple[int, bool], int] = {}
    meetings = []
    for mode, leaves in carrying.items():
        is_open = mode in output or network.carriers[mode] & ~inside != 0
        convolution = network.convolutions.get(mode)
        if convolution is None or leaves & (leaves - 1) == 0:
            size = values[leaves.bit_length() - 1].sizes[mode]
            merged[leaves, is_open] = merged.get((leaves, is_open), 1) * max(size, 1)
        else:
            meetings.append(_meeting(convolution, values, leaves, is_open))
    return Frame(
        network,
        values,
        tuple(Plain(leaves, is_open, size) for (leaves, is_open), size in merged.items()),
        tuple(meetings),
        needs_grad=_mask(value.operands & needs_grad for value in values),
        constant=_mask(value.operands & ~constants == 0 for value in values),
        passed=_mask(is_passed(network, value) for value in values) if needs_grad else 0,
    )


def _mask(flags: Iterable[object]) -> int:
    return sum(1 << place for place, flag in enumerate(flags) if flag)


def _meeting(convolution: Convolution, values: Sequence[Partial], carrying: int, is_open: bool) -> Meeting:
    places = tuple(place for place in range(len(values)) if carrying >> place & 1)
    sets, reach, taps, signal = [0], [1], [1.0], 0
    for j, place in enumerate(places):
        leaf = values[place].operands
        holds = leaf >> convolution.signal & 1
        signal |= holds << j
        own = 1 if holds else convolution.taps(leaf)
        sets += [subset | leaf for subset in sets]
        reach += [length + own - 1 for length in reach]
        taps += [product * own for product in taps]
    last = len(sets) - 1
    complete = convolution.join(sets[signal], sets[last ^ signal]) if signal else None
    # Between the signal alone and all together an extent depends on how far the filters reach, not on which they are.
    extents: dict[int, int] = {}
    work, gone = [1.0], [1.0]
    for index in range(1, last + 1):
        if not index & signal:
            size = reach[index]
        elif index in (signal, last):
            size = convolution.extent(sets[index])
        else:
            size = extents.get(reach[index], 0) or extents.setdefault(reach[index], convolution.extent(sets[index]))
        size = max(size, 1)
        read = max(complete.size, 1) if complete and index == last else size
        work.append(read * taps[index] if index & signal else taps[index])
        gone.append(work[index] if index == last and not is_open else work[index] / size)
    product = np.array(work)
    shorter = None
    if complete and complete.upsample > 1:
        shorter = np.minimum(max(complete.n, 1) * np.array(taps) / product, 1.0)
    return Meeting(places, product, np.array(gone), shorter, signal)
