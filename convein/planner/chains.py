"""Network -> orders in which one operand flows through the others: what fused kernels are made for.

A kernel that applies several small factors to a large operand wants them in a row, some of them multiplied beforehand.
A search that knows a step by its sizes alone would often rather make one large factor of all.
"""

from __future__ import annotations

from collections.abc import Iterator

from convein.network import Network
from convein.planner.order import Order, graft
from convein.planner.partial import join, partial

# Factors whose 2**(n - 1) groupings are all looked at.
MOST_FACTORS = 6


def chains(network: Network) -> Iterator[Order]:
    """The orders in which the largest signal (the largest operand, if nothing is convolved) takes in the others one by
    one, with each grouping of neighbours multiplied beforehand. None if there are too many operands or too few.
    """
    count = len(network.operands)
    if not 2 < count <= MOST_FACTORS + 1:
        return
    leaves = [partial(network, 1 << position) for position in range(count)]
    signals = {convolution.signal for convolution in network.convolutions.values()} or range(count)
    start = max(signals, key=lambda position: leaves[position].elements)
    value, row, waiting = leaves[start], [], [position for position in range(count) if position != start]
    while waiting:
        # What shares a mode comes before what does not, and what leaves the smallest result before others.
        made = {j: join(network, value, leaves[j]) for j in waiting}
        apart = {j: value.sizes.keys().isdisjoint(leaves[j].sizes) for j in waiting}
        taken = min(waiting, key=lambda j: (apart[j], made[j].elements))
        value = made[taken]
        row.append(taken)
        waiting.remove(taken)
    for cuts in range(1 << (count - 2)):
        yield _grouped(start, row, cuts, count)


def _grouped(start: int, row: list[int], cuts: int, count: int) -> Order:
    """The order whose groups of factors end where a bit of `cuts` is set."""
    groups: list[list[int]] = [[row[0]]]
    for place, position in enumerate(row[1:]):
        if cuts >> place & 1:
            groups.append([position])
        else:
            groups[-1].append(position)
    steps: list[tuple[int, int]] = []
    factors = [graft(steps, group, _in_a_row(len(group)), count) for group in groups]
    graft(steps, [start, *factors], _in_a_row(len(factors) + 1), count)
    return tuple(steps)


def _in_a_row(count: int) -> Order:
    """The order that joins the first two of some values, then one after the other."""
    return tuple((0 if place == 1 else count + place - 2, place) for place in range(1, count))
