"""Candidate steps -> microseconds: what a step should take with the layout that suits it, before it is lowered.

The lowering prices the real calls. A search needs a value for every pair of partial results long before that, from few
numbers: a step's multiplications and the sizes of its two sides and of its result tell how many modes are summed, kept
from either side, or shared, since with G shared, K summed, M and N own entries

    sides G*K*M and G*K*N,  result G*M*N,  multiplications G*K*M*N

and for a convolved step the same holds with the signal's, filter's and output's lengths as factors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convein.planner import rates
from convein.planner.rates import Rates

BLOCK = 16


def step_time(table: Rates, pairs: Any) -> Any:
    """Microseconds of steps, forward and with the backward products that are needed.

    Args:
        table: what the machine does per second.
        pairs: the steps, as `costs.Pairs` has them.
    """
    macs = np.maximum(np.asarray(pairs.macs, float), 1.0)
    made, taps = np.maximum(pairs.elements, 1.0), np.maximum(pairs.taps, 1.0)
    convolved = np.asarray(pairs.taps) > 0
    large = np.maximum(np.maximum(pairs.left, pairs.right), 1.0)
    small = np.maximum(np.minimum(pairs.left, pairs.right), 1.0)
    moved = table.itemsize * (large + small + made)
    gradients = np.asarray(pairs.left_grad, float) + np.asarray(pairs.right_grad, float)
    summed = np.maximum(macs / made / taps, 1.0)
    # The smaller side is G*K*N*taps.
    free = np.maximum(np.where(convolved, macs / large / taps, macs / large), 1.0)
    groups = np.maximum(small / (summed * free * taps), 1.0)
    flops = 2 * macs * _blocks(free) / free
    depthwise = summed * free < 1.5
    classes = (
        (rates.DEPTHWISE_LAST, convolved & depthwise, 2 * macs * _blocks(groups) / groups),
        (rates.GROUPED_LAST, convolved & ~depthwise & (groups > 1.5), flops),
        (rates.DENSE_LAST, convolved & ~depthwise & (groups <= 1.5), flops),
        (rates.ELEMENTWISE, ~convolved & (summed < 1.5), made),
        (rates.BATCHED, ~convolved & (summed >= 1.5) & (groups > 1.5), flops),
    )
    found = np.minimum(*(_time(table, kind, flops, moved, gradients) for kind in (rates.ROWS, rates.MATRIX)))
    for kind, where, work in classes:
        found = np.where(where, _time(table, kind, work, moved, gradients), found)
    return np.where(np.asarray(pairs.macs) > 0, found, 0.0)


def _time(table: Rates, kind: str, flops: Any, moved: Any, gradients: Any) -> Any:
    ahead, back = table.forward[kind], table.backward[kind]
    return ahead.time(flops, moved) + np.where(gradients > 0, back.time(flops * gradients, moved * gradients), 0.0)


def _blocks(channels: Any) -> Any:
    return np.ceil(channels / BLOCK - 1e-9) * BLOCK
