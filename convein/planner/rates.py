"""What a machine does per second, by class of step: the table behind `cost="time"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The class of a call decides its rates; "first" and "last" say where its channels lie in memory.
ROWS = "rows"
MATRIX = "matrix"
BATCHED = "batched matrix"
POINTWISE = "pointwise, first"
DENSE_FIRST = "dense, first"
DENSE_LAST = "dense, last"
GROUPED_FIRST = "grouped, first"
GROUPED_LAST = "grouped, last"
DEPTHWISE_FIRST = "depthwise, first"
DEPTHWISE_LAST = "depthwise, last"
ELEMENTWISE = "elementwise"
COPY = "copy"
TRANSPOSED = "transposed copy"
FUSED = "fused kernel"


@dataclass(frozen=True, slots=True)
class Rate:
    """One class: `overhead` in microseconds a call, `flops` in GFLOP/s, `bandwidth` in GB/s.

    `overlaps` says whether numbers are moved while others are computed with, so that the longer of both counts.
    """

    overhead: float
    flops: float
    bandwidth: float
    overlaps: bool = False

    def time(self, flops: float, moved: float) -> float:
        """Microseconds of a call that does `flops` operations and moves `moved` bytes: numbers, or arrays of them."""
        computing, moving = flops / (1e3 * self.flops), moved / (1e3 * self.bandwidth)
        # Half of sum and difference is the larger one, of arrays too.
        both = (computing + moving + abs(computing - moving)) / 2 if self.overlaps else computing + moving
        return self.overhead + both


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of one machine, forward, and for the two products of the backward pass together.

    Attributes:
        name: what was measured, printed with every plan.
        forward, backward: class -> rate.
        itemsize: bytes of a number.
    """

    name: str
    forward: Mapping[str, Rate] = field(hash=False)
    backward: Mapping[str, Rate] = field(hash=False)
    itemsize: int = 4


# An AMD EPYC of 2025 (Zen 5), one thread, float32, torch 2.13: the table where nothing was measured.
SHIPPED = Rates(
    "shipped: AMD EPYC (Zen 5), 1 thread",
    forward={
        ROWS: Rate(10, 233, 80),
        MATRIX: Rate(2, 112, 46),
        BATCHED: Rate(4, 150, 50),
        POINTWISE: Rate(27, 206, 24),
        DENSE_FIRST: Rate(31, 253, 20),
        DENSE_LAST: Rate(30, 280, 29),
        GROUPED_FIRST: Rate(30, 25, 20),
        GROUPED_LAST: Rate(30, 150, 20),
        DEPTHWISE_FIRST: Rate(26, 20, 20),
        DEPTHWISE_LAST: Rate(22, 74, 70),
        ELEMENTWISE: Rate(4, 1e6, 27),
        COPY: Rate(4, 1e6, 14),
        TRANSPOSED: Rate(8, 1e6, 65),
    },
    backward={
        ROWS: Rate(90, 232, 34),
        MATRIX: Rate(15, 117, 24),
        BATCHED: Rate(19, 72, 28),
        POINTWISE: Rate(64, 154, 14),
        DENSE_FIRST: Rate(71, 266, 7.8),
        DENSE_LAST: Rate(72, 278, 8.9),
        GROUPED_FIRST: Rate(80, 20, 10),
        GROUPED_LAST: Rate(80, 130, 20),
        DEPTHWISE_FIRST: Rate(71, 15, 10),
        DEPTHWISE_LAST: Rate(66, 52, 17),
        ELEMENTWISE: Rate(21, 1e6, 8.5),
        COPY: Rate(10, 1e6, 10),
        TRANSPOSED: Rate(25, 1e6, 40),
    },
)
