"""Tiles of `pointwise_depthwise`: how many strips of an image, and of what size, fit into a program's registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
from convein.kernels.operators import INTERPRETED

# Channels before, between (twice) and behind the convolutions.
Channels = tuple[int, int, int, int]

# Multiprocessors of a GPU.
PROCESSORS = 132
# Columns of a strip, the usual number first: those around it are computed again.
WIDTHS = (14, 28, 7)


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one program: so many strips, rows and columns of each; warps, and columns of the input on their way."""

    lanes: int
    high: int
    wide: int
    warps: int
    stages: int = 1

    def fitted(self, size: Sequence[int]) -> Tile:
        """No higher and no wider than strips of one size must be that cover an image of `size`."""
        high, wide = (-(-n // max(1, -(-n // most))) for n, most in zip(size, (self.high, self.wide), strict=True))
        return replace(self, high=max(1, high), wide=max(1, wide))


def configurations(
    channels: Channels, reach: Sequence[int], dense: bool, dtype: torch.dtype, images: int, size: Sequence[int]
) -> tuple[Tile, ...]:
    """Tiles for a layer, that which should be the fastest first; none if no strip fits into registers.

    Time goes with the pixels of the input, those around the strips too, that the busiest multiprocessor reads.

    Args:
        channels: s, r, q, t.
        reach: rows and columns that the taps of d span, less one.
        dense: whether d is.
        dtype: of the factors.
        images: how many there are.
        size: rows and columns of the output.
    """
    if INTERPRETED:
        return (Tile(16, 2, 3, 4),)
    base = largest(channels, reach[1] + 1, dense, dtype)
    if base is None:
        return ()
    offered = [replace(base, wide=wide) for wide in WIDTHS]
    offered += [replace(base, high=max(1, base.high // 2)), replace(base, stages=1)]

    def busiest(tile: Tile) -> int:
        fitted = tile.fitted(size)
        strips = images * triton.cdiv(size[0], fitted.high) * triton.cdiv(size[1], fitted.wide)
        rounds = triton.cdiv(triton.cdiv(strips, tile.lanes), PROCESSORS)
        return int(rounds * tile.lanes * (fitted.high + reach[0]) * (fitted.wide + reach[1]))

    return tuple(sorted(dict.fromkeys(offered), key=busiest))


def largest(channels: Channels, span: int, dense: bool, dtype: torch.dtype) -> Tile | None:
    """The tile whose ring fits into registers beside everything else, as compiling has shown; None if none does.

    Args:
        channels: s, r, q, t.
        span: columns of the output that one column of the input reaches.
        dense: whether d is.
        dtype: of the factors.
    """
    inner, full = padded(max(channels[1:3])), dtype is torch.float32
    if dense and inner <= 32 and not full:
        lanes, warps, ring = 64, 4, 96 if max(channels) <= 64 else 48
    else:
        lanes, warps, ring = 16, 4 if inner <= 32 else 8, 24 if dense or full else 48
    # A thread keeps so many numbers of the ring.
    high = min(4, ring * 32 * warps // (span * lanes * inner))
    return Tile(lanes, high, WIDTHS[0], warps, 1 if dense or full else 2) if high else None


def padded(channels: int) -> int:
    """The next power of two that the matrix units take."""
    return max(16, int(triton.next_power_of_2(channels)))
