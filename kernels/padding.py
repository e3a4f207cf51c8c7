"""What a convolution reads of an image: how far its filter reaches, and what lies around the image."""

from __future__ import annotations

from collections.abc import Sequence

ONES = (1, 1)


def reach(taps: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How many rows and columns the taps of a filter span, less one."""
    return [(k - 1) * step for k, step in zip(taps, dilation, strict=True)]


def sides(
    image: Sequence[int], taps: Sequence[int], low: Sequence[int], size: Sequence[int], dilation: Sequence[int],
    stride: Sequence[int] = ONES,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Pixels on every side of an image, as F.pad takes them, for a result of a size; negative ones are left out.

    Args:
        image: its rows and columns.
        taps: rows and columns of the filter.
        low: pixels before the first row and column.
        size: rows and columns of the result.
        dilation: of the convolution.
        stride: of the convolution.
    """
    counted = zip(size, stride, reach(taps, dilation), image, low, strict=True)
    high = [(rows - 1) * step + span + 1 - n - lo for rows, step, span, n, lo in counted]
    return low[1], high[1], low[0], high[0]
