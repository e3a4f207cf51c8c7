"""A pair of partial results -> the kind of step that joins them. The table prints it, and the lowering emits it."""

from __future__ import annotations

from convein.network import Network
from convein.planner.partial import Partial, partial

GEMM = "GEMM"
BATCHED_GEMM = "batched GEMM"
ELEMENTWISE = "elementwise"
OUTER = "outer"
DENSE = "dense conv"
DEPTHWISE = "depthwise conv"
GROUPED = "grouped conv"
MERGE = "merge filters"


def classify(network: Network, left: int, right: int) -> str:
    """The kind of the step that joins two disjoint sets of operands.

    With modes convolved here: `MERGE` if no signal is met; else by the other modes that both sides share: `DENSE` if
    all of them are summed, `GROUPED` if some are kept, and `DEPTHWISE` if the filter's side has nothing but kept ones.
    Without: `GEMM` and `BATCHED_GEMM` sum something, `ELEMENTWISE` only shares modes, `OUTER` shares none.

    Modes of size 1 do not count.
    """
    return kind_of(network, partial(network, left), partial(network, right))


def kind_of(network: Network, left: Partial, right: Partial) -> str:
    """As `classify`, for partial results that are known already."""
    joined = left.operands | right.operands
    shared = [mode for mode in left.sizes if mode in right.sizes and mode not in network.singles]
    convolved = [network.convolutions[mode] for mode in shared if mode in network.convolutions]
    plain = [mode for mode in shared if mode not in network.convolutions]
    batched = any(network.carriers[mode] & ~joined or mode in network.output for mode in plain)
    summed = any(not network.carriers[mode] & ~joined and mode not in network.output for mode in plain)
    if not convolved:
        if summed:
            return BATCHED_GEMM if batched else GEMM
        return ELEMENTWISE if batched else OUTER
    signals = [c.signal for c in convolved if joined >> c.signal & 1]
    if not signals:
        return MERGE
    if not batched:
        return DENSE
    filters = right if left.operands >> signals[0] & 1 else left
    own = [mode for mode in filters.sizes if mode not in shared and mode not in network.singles]
    return GROUPED if summed or own else DEPTHWISE
