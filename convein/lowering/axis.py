"""What happens along one convolved axis outside a convolution call: extending, folding, cutting, unfolding."""

from __future__ import annotations

from dataclasses import replace

from convein.lowering.values import Value
from convein.lowering.writer import Writer
from convein.windows import Correlation

# Whole copies of a signal that a circular extension writes out one by one.
MOST_WRAPS = 3


def extend(writer: Writer, x: Value, c: Correlation) -> Value:
    """Adds entries before and after a signal as the padding mode says."""
    lo, hi = c.extend
    if lo == hi == 0:
        return x
    x = writer.isolate(x, c.mode)
    dim = x.find(c.mode)
    if c.padding_mode == "circular" and lo // c.n + hi // c.n > MOST_WRAPS:
        return _wrapped(writer, x, c)
    pieces = {"circular": _circular, "reflect": _reflect, "replicate": _replicate}[c.padding_mode](c.n, lo, hi)
    shape = ["-1"] * len(x.axes)
    shape[dim] = "{size}"
    expand = f".expand({', '.join(shape)})"
    texts = []
    for start, length, change in pieces:
        text = x.name if (start, length) == (0, c.n) else f"{x.name}.narrow({dim}, {start}, {length})"
        if change == "reversed":
            text += f".flip({dim})"
        elif change.startswith("repeated"):
            text += expand.format(size=change.split()[1])
        texts.append(text)
    sizes = {**x.sizes, c.mode: c.n + lo + hi}
    return writer.emit(f"torch.cat(({', '.join(texts)}), {dim})", [x], x.axes, sizes, writer.price.elementwise(0, [x]))


def extended(c: Correlation) -> Correlation:
    """The correlation that is left once its signal is extended."""
    return replace(c, n=c.n + sum(c.extend), extend=(0, 0), padding_mode="zeros")


def fold(writer: Writer, y: Value, c: Correlation) -> Value:
    """Gathers all entries that are congruent modulo the folded length: the adjoint of a circular extension."""
    if c.fold is None:
        return y
    length, shift = c.fold
    before = -shift % length
    behind = -(before + c.size) % length
    times = (before + c.size + behind) // length
    if before or behind:
        y = pad(writer, y, c.mode, before, behind)
    y = writer.isolate(y, c.mode)
    dim = y.find(c.mode)
    return writer.emit(
        f"{y.name}.unflatten({dim}, ({times}, {length})).sum({dim}{writer.sum_option})",
        [y],
        y.axes,
        {**y.sizes, c.mode: length},
    )


def pad(writer: Writer, x: Value, mode: str, before: int, behind: int) -> Value:
    """Adds zeros before and after."""
    x = writer.isolate(x, mode)
    zeros = "0, 0, " * (len(x.axes) - 1 - x.find(mode))
    size = int(x.sizes[mode]) + before + behind
    return writer.along(x, mode, f"F.pad({{x}}, ({zeros}{before}, {behind}))", size)


def cut(writer: Writer, x: Value, mode: str, start: int, length: int) -> Value:
    """Keeps some neighbouring entries."""
    if start == 0 and length == x.sizes[mode]:
        return x
    return writer.along(x, mode, f"{{x}}.narrow({{dim}}, {start}, {length})", length)


def flip(writer: Writer, x: Value, mode: str) -> Value:
    """Reverses one axis."""
    return writer.along(x, mode, "{x}.flip({dim})", x.sizes[mode])


def upsample(writer: Writer, x: Value, c: Correlation) -> tuple[Value, Correlation]:
    """Puts the zeros of an upsampled correlation into its signal."""
    if c.upsample == 1:
        return x, c
    x = writer.isolate(x, c.mode)
    dim, u = x.find(c.mode), c.upsample
    zeros = "0, 0, " * (len(x.axes) - 1 - dim)
    call = f"F.pad({x.name}.unsqueeze({dim + 1}), ({zeros}0, {u - 1})).flatten({dim}, {dim + 1})"
    # F.pad counts axes from the last; the new axis lies right after the mode's.
    x = writer.emit(call, [x], x.axes, {**x.sizes, c.mode: c.n * u})
    length = (c.n - 1) * u + 1
    return cut(writer, x, c.mode, 0, length), replace(c, n=length, upsample=1)


def read(writer: Writer, x: Value, c: Correlation) -> Value:
    """Makes exactly the entries that a correlation reads: first its zeros and cuts, so that `lo` and `hi` become 0."""
    start, end = max(0, -c.lo), max(0, -c.hi)
    before, behind = max(0, c.lo), max(0, c.hi)
    length = c.n - start - end
    if length < 1:
        start, length, before, behind = 0, 0, c.stride * (c.size - 1) + c.reach + 1, 0
    x = cut(writer, x, c.mode, start, length)
    return pad(writer, x, c.mode, before, behind) if before or behind else x


def alone(writer: Writer, x: Value, c: Correlation) -> Value:
    """A convolved mode that no filter carries: padding, stride, upsampling."""
    x = extend(writer, x, c)
    x, c = upsample(writer, x, extended(c))
    x = read(writer, x, c)
    if c.stride > 1:
        x = writer.isolate(x, c.mode)
        index = ", ".join([":"] * x.find(c.mode) + [f"::{c.stride}"])
        x = writer.emit(f"{x.name}[{index}]", [x], x.axes, {**x.sizes, c.mode: c.size})
    return fold(writer, x, c)


def unfold(writer: Writer, x: Value, w: Value, c: Correlation) -> tuple[Value, Value]:
    """Turns a convolved pair into a summed one: x gets a view with an axis for the taps, w's axis is renamed to it."""
    x, c = upsample(writer, x, c)
    x = read(writer, x, c)
    x = writer.isolate(x, c.mode)
    tap = f"tap of {c.mode}"
    text = f"{x.name}.unfold({x.find(c.mode)}, {c.reach + 1}, {c.stride})"
    if c.dilation > 1:
        text += f"[..., ::{c.dilation}]"
    x = writer.emit(text, [x], (*x.axes, (tap,)), {**x.sizes, c.mode: c.size, tap: c.kernel})
    if c.flip:
        w = flip(writer, w, c.mode)
    axes = tuple(tuple(tap if mode == c.mode else mode for mode in axis) for axis in w.axes)
    sizes = {tap if mode == c.mode else mode: size for mode, size in w.sizes.items()}
    return x, replace(w, axes=axes, sizes=sizes)


def swap(writer: Writer, x: Value, w: Value, c: Correlation) -> tuple[Value, Value, Correlation]:
    """Lets w be the signal and x the filter of a correlation without stride, dilation and upsampling.

    ``sum_h x[o + h - lo] w[h]`` is the correlation of w reversed with x reversed, with ``lo' = n + lo - kernel``.
    """
    if not c.flip:
        w = flip(writer, w, c.mode)
    return x, w, replace(c, signal_left=not c.signal_left, n=c.kernel, kernel=c.n, lo=c.n + c.lo - c.kernel, flip=True)


def can_swap(c: Correlation) -> bool:
    """Whether `swap` applies."""
    return c.stride == c.dilation == c.upsample == 1


def _wrapped(writer: Writer, x: Value, c: Correlation) -> Value:
    """A circular extension by many times the signal's length."""
    dim = x.find(c.mode)
    start, length = -c.extend[0] % c.n, c.n + sum(c.extend)
    times = ["1"] * len(x.axes)
    times[dim] = str(-(-(start + length) // c.n))
    text = f"{x.name}.repeat({', '.join(times)}).narrow({dim}, {start}, {length})"
    return writer.emit(text, [x], x.axes, {**x.sizes, c.mode: length}, writer.price.elementwise(0, [x]))


def _circular(n: int, lo: int, hi: int) -> list[tuple[int, int, str]]:
    before, behind = divmod(lo, n), divmod(hi, n)
    pieces = [(n - before[1], before[1], ""), *[(0, n, "")] * (before[0] + 1 + behind[0]), (0, behind[1], "")]
    return [piece for piece in pieces if piece[1]]


def _reflect(n: int, lo: int, hi: int) -> list[tuple[int, int, str]]:
    pieces = [(1, lo, "reversed"), (0, n, ""), (n - 1 - hi, hi, "reversed")]
    return [piece for piece in pieces if piece[1]]


def _replicate(n: int, lo: int, hi: int) -> list[tuple[int, int, str]]:
    return [(0, 1, f"repeated {lo}")] * (lo > 0) + [(0, n, "")] + [(n - 1, 1, f"repeated {hi}")] * (hi > 0)
