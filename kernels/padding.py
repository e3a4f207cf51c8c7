"""What a convolution reads of an image: how far its filter reaches, and what lies around the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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


def around(x: Tensor, given: Sequence[int], *, circular: bool) -> Tensor:
    """An image (batch, channels, h, w) with its `sides`: zeros, or the image again."""
    return wrapped(x, given) if circular else F.pad(x, given)


def wrapped(x: Tensor, given: Sequence[int]) -> Tensor:
    """An image among its copies, of which `sides` are shown: any number of pixels."""
    for dimension, (before, behind) in ((3, given[:2]), (2, given[2:])):
        n = x.shape[dimension]
        x = x.index_select(dimension, torch.arange(-before, n + behind, device=x.device) % n)
    return x


def folded(y: Tensor, size: Sequence[int]) -> Tensor:
    """What of `y` falls on each pixel of an image whose copies lie under it side by side, added up.

    Args:
        y: (batch, channels, h, w), of any size.
        size: rows and columns of the result.
    """
    for dimension, n in ((2, size[0]), (3, size[1])):
        missing = -y.shape[dimension] % n
        if missing or y.shape[dimension] != n:
            y = F.pad(y, (0, missing) if dimension == 3 else (0, 0, 0, missing))
            y = y.unflatten(dimension, (-1, n)).sum(dimension)
    return y
