"""Steps with convolved pairs by fast Fourier transforms, where filters are so long that this is faster."""

from __future__ import annotations

from math import log2, prod

from convein.lowering import axis
from convein.lowering.product import contract
from convein.lowering.target import Target
from convein.lowering.values import Value
from convein.lowering.writer import Writer
from convein.windows import Correlation

# Floating point operations per nanosecond that transforms, pointwise complex products and convolutions reach on one
# core; a convolution's rate grows with the channels it sums and makes, up to a limit that is lower in one dimension.
# Groups whose channels are neighbours in memory have a rate of their own, and then one dimension is as fast as two.
# Spectra are moved so that frequencies come first: bytes per nanosecond. The last number: what a few more calls cost,
# in nanoseconds. Only ratios matter, near the point where both ways are equal.
TRANSFORM_RATE, PRODUCT_RATE = 8.0, 20.0
CHANNEL_RATE, DENSE_RATE, DENSE_RATE_1D = 4.0, 240.0, 85.0
NEIGHBOUR_RATE = 40.0
MOVE_RATE = 3.0
OVERHEAD = 20_000.0
MIN_TAPS = 16


def pays(x: Value, w: Value, correlations: tuple[Correlation, ...], kept: frozenset[str], target: Target) -> bool:
    """Whether transforms are faster than the direct convolution."""
    taps = prod(c.kernel for c in correlations)
    if not target.is_inexact or target.dtype.itemsize < 4 or taps < MIN_TAPS or len(correlations) > 3:
        return False
    if any(c.dilation > 1 or c.upsample > 1 for c in correlations):
        return False
    convolved = {c.mode for c in correlations}
    shared = [mode for mode in x.modes if mode in w.modes and mode not in convolved]
    rest = {m: target.number(m, s) for v in (x, w) for m, s in v.sizes.items() if m not in convolved}
    products = prod(rest.values())
    outputs = prod(size for mode, size in rest.items() if mode not in shared or mode in kept)
    channels = prod(size for mode, size in rest.items() if mode not in kept or mode not in x.modes)
    fast = len(correlations) > 1 or target.chooses_layouts
    rate = min(DENSE_RATE if fast else DENSE_RATE_1D, CHANNEL_RATE * channels)
    if target.chooses_layouts:
        groups = prod(rest[mode] for mode in shared if mode in kept)
        rate = max(rate, NEIGHBOUR_RATE * min(1.0, groups / 16))
    points = prod(fast_length(_span(c)) for c in correlations)
    direct = 2 * products * taps * prod(c.size for c in correlations) / rate
    signals = (target.count(x) // prod(c.n for c in correlations), target.count(w) // taps, outputs)
    transforms = sum(signals) * 2.5 * points * log2(max(points, 2)) / TRANSFORM_RATE
    if target.chooses_layouts:
        transforms += sum(signals) * points * 2 * target.dtype.itemsize / MOVE_RATE
    return direct > OVERHEAD + transforms + 4 * products * points / PRODUCT_RATE


def convolve(writer: Writer, x: Value, w: Value, correlations: tuple[Correlation, ...], kept: frozenset[str]) -> Value:
    """Transforms both sides, multiplies and sums the other modes for each frequency, transforms back."""
    points = [fast_length(_span(c)) for c in correlations]
    for c in correlations:
        x = axis.read(writer, x, c)
        if c.flip:
            w = axis.flip(writer, w, c.mode)
    real = not writer.target.dtype.is_complex
    modes = tuple(c.mode for c in correlations)
    half = {c.mode: n for c, n in zip(correlations, points, strict=True)}
    if real:
        half[modes[-1]] = points[-1] // 2 + 1
    spectra: list[Value] = []
    # A correlation multiplies by the transform at the negative frequency: the conjugate of that of the conjugate.
    for value, before, behind in ((x, "", ""), (w, "" if real else ".conj()", ".conj()")):
        value = writer.arrange(value, [*((m,) for m in value.modes if m not in half), *((m,) for m in modes)])
        call = _call("rfftn" if real else "fftn", value.name + before, points) + behind
        spectra.append(writer.emit(call, [value], value.axes, {**value.sizes, **half}))
    y = contract(writer, spectra[0], spectra[1], kept | set(modes))
    y = writer.arrange(y, [*((m,) for m in y.modes if m not in half), *((m,) for m in modes)])
    y = writer.emit(_call("irfftn" if real else "ifftn", y.name, points), [y], y.axes, y.sizes)
    index = ", ".join(f":{c.stride * (c.size - 1) + 1}{f':{c.stride}' if c.stride > 1 else ''}" for c in correlations)
    return writer.emit(f"{y.name}[..., {index}]", [y], y.axes, {**y.sizes, **{c.mode: c.size for c in correlations}})


def fast_length(n: int) -> int:
    """The smallest product of 2, 3 and 5 that is at least n."""
    best = 1 << (n - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(0, (-(-n // three) - 1).bit_length())
            best = min(best, two)
            three *= 3
        five *= 5
    return best


def _span(c: Correlation) -> int:
    """Entries that are read, from the first to the last: no wrap-around reaches an output then."""
    return c.stride * (c.size - 1) + c.reach + 1


def _call(name: str, argument: str, points: list[int]) -> str:
    dims = ", ".join(str(place - len(points)) for place in range(len(points)))
    return f"torch.fft.{name}({argument}, s=({', '.join(map(str, points))},), dim=({dims},))"
