"""Network -> the same for a chunk of one mode, and the loop over the chunks: less is alive at a time."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from convein.lowering.looping import Loop
from convein.network import Network, SymbolicSize


def loops(network: Network, constants: int = 0, *, recorded: bool = False) -> tuple[Loop, ...]:
    """A loop of one chunk for each mode that can be sliced; the modes that the result has come first.

    These are the modes that are not convolved, and that are the slowest part of the dimensions they are in. No constant
    may have one, because what constants make is computed once.

    Args:
        network: what is computed.
        constants: the operands that never change, as a bit set.
        recorded: whether a graph will hold the calls: one loop of it cannot serve several sizes.
    """
    fixed = constants | sum(1 << j for j, operand in enumerate(network.operands) if operand.constant is not None)
    varying = {known.mode for known in network.symbolic} if recorded else set()
    found = []
    for mode, size in network.sizes.items():
        if mode in varying:
            continue
        splits = _splits(network, mode)
        axes = [axis for axis, modes in enumerate(network.output_axes) if mode in modes]
        leads = all(network.output_axes[axis][0] == mode for axis in axes)
        if splits and leads and size > 1 and not network.is_zero and not network.carriers[mode] & fixed:
            found.append(Loop(mode, size, size, splits, axes[0] if axes else None))
    return tuple(sorted(found, key=lambda loop: loop.axis is None))


def chunked(network: Network, loop: Loop) -> Network:
    """The network of one chunk; how long the mode is there, the program reads from its operands."""
    mode, chunk = loop.mode, loop.chunk
    operands = list(network.operands)
    for position, axis, rest in loop.splits:
        shape = list(operands[position].shape)
        shape[axis] = chunk * rest
        operands[position] = replace(operands[position], shape=tuple(shape))
    symbolic = network.symbolic
    if all(known.mode != mode for known in symbolic):
        position, axis, _ = loop.splits[0]
        symbolic = (*symbolic, SymbolicSize(mode, position, axis, operands[position].axes[axis][1:]))
    return replace(network, operands=tuple(operands), sizes={**network.sizes, mode: chunk}, symbolic=symbolic)


def _splits(network: Network, mode: str) -> tuple[tuple[int, int, int], ...]:
    """For each operand that has the mode: its position, the axis, and how many entries of the axis are one of the mode.

    Empty where it is not so simple.
    """
    free = {known.mode for known in network.symbolic}
    found = []
    for position, operand in enumerate(network.operands):
        if mode not in operand.modes:
            continue
        axes = [axis for axis, modes in enumerate(operand.axes) if mode in modes]
        modes = operand.axes[axes[0]]
        rest = modes[1:]
        if len(axes) > 1 or modes[0] != mode or free.intersection(rest) or (rest and mode in free):
            return ()
        found.append((position, axes[0], prod(_size(network, position, other) for other in rest)))
    return tuple(found)


def _size(network: Network, position: int, mode: str) -> int:
    convolution = network.convolutions.get(mode)
    return network.sizes[mode] if convolution is None else convolution.operand_size(position)
