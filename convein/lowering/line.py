"""One convolved mode -> how a call of torch takes it: cut, padded, convolved with its stride, and cut again."""

from __future__ import annotations

from dataclasses import dataclass

from convein.windows import Correlation


@dataclass(frozen=True, slots=True)
class Line:
    """How one spatial axis is cut, padded, convolved and cut again."""

    start: int = 0
    length: int = -1
    pad: tuple[int, int] = (0, 0)
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    output_padding: int = 0
    after: tuple[int, int] = (0, 0)
    natural: int = -1
    flip: bool = False


def forward_line(c: Correlation) -> Line:
    """Padding as the call takes it (the same on both sides), with a cut or an explicit pad for the rest."""
    start, lo = max(0, -c.lo), max(0, c.lo)
    end, hi = max(0, -c.hi), max(0, c.hi)
    length = c.n - start - end
    if length < 1:
        # Strides that jump over the whole signal: only zeros are read.
        total = c.stride * (c.size - 1) + c.reach + 1
        return Line(0, 0, (0, total), 0, c.stride, c.dilation, natural=c.size, flip=c.flip)
    padding = max(lo, hi)
    natural = (length + 2 * padding - c.reach - 1) // c.stride + 1
    # A few surplus outputs cost less than a padded copy of the signal; often the stride passes over what is too much.
    if lo != hi and ((natural - c.size) * 8 > c.size or (hi > lo and (hi - lo) % c.stride)):
        return Line(start, length, (lo, hi), 0, c.stride, c.dilation, natural=c.size, flip=c.flip)
    skip = (hi - lo) // c.stride if hi > lo else 0
    after = (-skip, c.size - natural + skip)
    return Line(start, length, (0, 0), padding, c.stride, c.dilation, after=after, natural=natural, flip=c.flip)


def transposed_line(c: Correlation) -> Line:
    """A stride-1 correlation, upsampled or not, as what F.conv_transposeNd computes: a scatter, then a crop."""
    natural = (c.n - 1) * c.upsample + c.reach + 1
    left = c.reach - c.lo
    right = natural - left - c.size
    padding = max(0, min(left, right))
    extra = 0
    if left >= 0 and 0 < left - right < max(c.upsample, c.dilation):
        padding, extra = left, left - right
    made = natural - 2 * padding + extra
    if made < 1:
        padding, extra, made = 0, 0, natural
    after = (padding - left, c.size - made - padding + left)
    return Line(0, -1, (0, 0), padding, c.upsample, c.dilation, extra, after, made, flip=not c.flip)
