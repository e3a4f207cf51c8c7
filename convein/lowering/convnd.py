"""Steps with convolved pairs as F.convNd and F.conv_transposeNd.

Batch modes become groups, summed modes input channels, the filter's own modes output channels. Modes that only the
signal has stay where they are as spatial axes with kernel size 1, as far as torch's three spatial axes reach: no
permute for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from convein.lowering.line import Line, forward_line, transposed_line
from convein.lowering.values import Axis, Size, Value
from convein.lowering.writer import Writer
from convein.windows import Correlation

MAX_SPATIAL = 3
# What torch leaves to oneDNN on a CPU has groups, or several images, or more entries, or a larger kernel both ways. Of
# three axes it does not count the last.
FEW_ENTRIES = 20480
SMALL_KERNEL = 3
# Images of one channel are channels of one image from so many entries on, for filters of at most so many taps a mode:
# for longer ones torch's convolutions of single channels have only slow code, channels first.
MANY_ENTRIES = 2**14
LONGEST_FILTER = 11
# Along three axes, a row of the last one takes as long as one of so many entries.
ROW = 16
# Weights of so many entries are brought to the layout of the signal by ourselves: torch would take longer.
LARGE_WEIGHT = 2**16


@dataclass(frozen=True, slots=True)
class _Roles:
    """What each mode of a pair is to a convolution call."""

    batch: Axis
    groups: Axis
    summed: Axis
    free: Axis
    spatial: tuple[Axis, ...]


def convolve(
    writer: Writer,
    x: Value,
    w: Value,
    correlations: tuple[Correlation, ...],
    kept: frozenset[str],
    *,
    last: bool = False,
    passing: str = "",
) -> Value:
    """One convolution call for all convolved pairs, of which x is the signal side; at most three of them.

    Args:
        writer: where to write.
        x: the signal side.
        w: the filter side.
        correlations: the convolved pairs.
        kept: the modes that are needed afterwards.
        last: whether channels shall be neighbours in memory, before and after.
        passing: what modes are that only pass, if no spatial axes: `"images"` of their own, or `"groups"` of channels.
    """
    by_mode = {correlation.mode: correlation for correlation in correlations}
    roles = _assign(x, w, by_mode, kept, writer.own(w, x))
    alone = _is_single_channel(writer, x, roles, by_mode)
    if passing or alone:
        passed = tuple(mode for axis in roles.spatial for mode in axis if mode not in by_mode)
        spatial = tuple(axis for axis in roles.spatial if axis[0] in by_mode)
        if alone:
            # One channel is a fraction of a vector; images beside each other fill it. Those that come first stay first.
            passed, last, roles = roles.batch + passed, last and not roles.batch, replace(roles, batch=())
        if alone or passing == "groups":
            w = writer.repeat(w, passed, x)
            roles = replace(roles, groups=passed + roles.groups, spatial=spatial)
        else:
            roles = replace(roles, batch=roles.batch + passed, spatial=spatial)
    if last and len(roles.spatial) == 1:
        # torch has no such layout for one spatial axis.
        passed = roles.batch[1:]
        roles = replace(roles, batch=roles.batch[:1], spatial=(passed, *roles.spatial))
    transposed = any(correlation.upsample > 1 for correlation in correlations)
    lines = [
        (transposed_line if transposed else forward_line)(by_mode[axis[0]]) if axis and axis[0] in by_mode else Line()
        for axis in roles.spatial
    ]
    channels = roles.groups + roles.summed
    last = last and not _is_misread(writer, x, channels, lines[-1])
    layout = (roles.batch, *roles.spatial, channels) if last else (roles.batch, channels, *roles.spatial)
    first_spatial = 1 if last else 2
    x = writer.arrange(x, layout, dense=True)
    x = _cut(writer, x, lines, first_spatial)
    w = _weight(writer, w, roles, by_mode, transposed=transposed, last=last)
    flips = [place + 2 for place, line in enumerate(lines) if line.flip]
    if flips:
        w = writer.emit(f"{w.name}.flip({', '.join(map(str, flips))})", [w], w.axes, w.sizes)
    sizes = {**w.sizes, **x.sizes}
    for axis, line in zip(roles.spatial, lines, strict=True):
        if axis and axis[0] in by_mode:
            sizes[axis[0]] = line.natural
    made = roles.groups + roles.free
    price = _price(writer, x, w, roles, sizes, by_mode, last=last)
    if last:
        x = writer.transpose(x, (0, len(lines) + 1, *range(1, len(lines) + 1)))
    call = _call(x.name, w.name, x.size(roles.groups), lines, transposed)
    y = writer.emit(call, [x, w], (roles.batch, made, *roles.spatial), sizes, price)
    if last:
        y = writer.transpose(y, (0, *range(2, len(lines) + 2), 1))
    return _trim(writer, y, lines, by_mode, roles, first_spatial)


def _is_single_channel(writer: Writer, x: Value, roles: _Roles, by_mode: Mapping[str, Correlation]) -> bool:
    """Whether there are images of one channel, of so many entries, and with so small a filter, that they are best
    channels of one image.
    """
    target = writer.target
    if roles.groups or roles.summed or roles.free or not (target.chooses_layouts and target.device == "cpu"):
        return False
    images = set(x.modes) - set(by_mode)
    many = target.count(x) >= MANY_ENTRIES and prod(target.number(m, x.sizes[m]) for m in images) > 1
    return many and max(c.kernel for c in by_mode.values()) <= LONGEST_FILTER


def _is_misread(writer: Writer, x: Value, channels: Axis, line: Line) -> bool:
    """Whether oneDNN, told that channels are last, reads the wrong pixels: of one channel, where a stride along the
    last axis leaves one pixel.
    """
    return line.stride > 1 and line.natural == 1 and prod(writer.target.number(m, x.sizes[m]) for m in channels) == 1


def passes(x: Value, w: Value, correlations: tuple[Correlation, ...]) -> bool:
    """Whether x has modes between or behind those that meet w, and more than one of these are convolved."""
    met = {*w.modes, *(c.mode for c in correlations)}
    first = next(place for place, mode in enumerate(x.modes) if mode in met)
    return len(correlations) > 1 and any(mode not in met for mode in x.modes[first:])


def _price(
    writer: Writer,
    x: Value,
    w: Value,
    roles: _Roles,
    sizes: Mapping[str, Size],
    by_mode: Mapping[str, Correlation],
    *,
    last: bool,
) -> float:
    def number(modes: Iterable[str]) -> int:
        return prod(writer.target.number(mode, sizes[mode]) for mode in modes)

    pixels = number(mode for axis in roles.spatial for mode in axis if mode not in by_mode) * number(roles.batch)
    groups, summed, free = number(roles.groups), number(roles.summed), number(roles.free)
    # A scatter multiplies every entry of the signal, a gather every entry of the result.
    counted = prod(c.n if c.upsample > 1 else c.size for c in by_mode.values())
    made = pixels * groups * free * counted
    image = pixels // number(roles.batch) * counted
    kernel = [by_mode[axis[0]].kernel if axis and axis[0] in by_mode else 1 for axis in roles.spatial]
    ignored = number(roles.spatial[-1]) if len(roles.spatial) == MAX_SPATIAL else 1
    few = groups == number(roles.batch) == 1 and writer.target.count(x) // ignored <= FEW_ENTRIES
    if writer.target.device == "cpu" and few and min([1, *kernel][-2:]) <= SMALL_KERNEL:
        return writer.price.small_convolution(x, w, made, summed, prod(kernel), len(kernel), last=last)
    if len(roles.spatial) == MAX_SPATIAL:
        # Calls along three axes work on rows of the last one.
        row = number(roles.spatial[-1])
        made = made * max(row, ROW) // row
    return writer.price.convolution(
        x, w, made, groups, summed, free, prod(c.kernel for c in by_mode.values()), image, last=last
    )


def _assign(x: Value, w: Value, by_mode: dict[str, Correlation], kept: frozenset[str], free: Axis) -> _Roles:
    shared = [mode for mode in x.modes if mode in w.modes and mode not in by_mode]
    groups = tuple(mode for mode in shared if mode in kept)
    summed = tuple(mode for mode in shared if mode not in kept)
    involved = {*shared, *by_mode}
    first = next(place for place, mode in enumerate(x.modes) if mode in involved)
    batch = list(x.modes[:first])
    spatial: list[list[str]] = []
    previous = -2
    for place, mode in enumerate(x.modes[first:]):
        if mode in shared:
            continue
        joins = mode not in by_mode and spatial and spatial[-1][-1] not in by_mode and previous == place - 1
        if joins:
            spatial[-1].append(mode)
        else:
            spatial.append([mode])
        previous = place
    while len(spatial) > MAX_SPATIAL:
        moved = next(place for place, axis in enumerate(spatial) if axis[0] not in by_mode)
        batch.extend(spatial.pop(moved))
    return _Roles(tuple(batch), groups, summed, free, tuple(tuple(axis) for axis in spatial))


def _cut(writer: Writer, x: Value, lines: list[Line], first: int) -> Value:
    text, sizes = x.name, dict(x.sizes)
    for place, line in enumerate(lines, first):
        mode = x.axes[place]
        if line.length >= 0 and (line.start or line.length != x.sizes[mode[0]]):
            text += f".narrow({place}, {line.start}, {line.length})"
            sizes[mode[0]] = line.length
    if text != x.name:
        x = writer.emit(text, [x], x.axes, sizes)
    if any(line.pad != (0, 0) for line in lines):
        pads = [line.pad for line in lines] + [(0, 0)] * (len(x.axes) - first - len(lines))
        for axis, pad in zip(x.axes[first:], pads, strict=True):
            if pad != (0, 0):
                sizes[axis[0]] = int(sizes[axis[0]]) + sum(pad)  # a convolved size is always a number
        copy = writer.price.elementwise(0, [x])
        x = writer.emit(f"F.pad({x.name}, {_pad_text(pads)})", [x], x.axes, sizes, copy)
    return x


def _pad_text(pads: list[tuple[int, int]]) -> str:
    """F.pad's argument: pairs from the last axis back, up to the first that needs any."""
    first = next(place for place, pad in enumerate(pads) if pad != (0, 0))
    flat = [str(number) for pad in reversed(pads[first:]) for number in pad]
    return f"({', '.join(flat)})"


def _weight(
    writer: Writer, w: Value, roles: _Roles, by_mode: Mapping[str, Correlation], *, transposed: bool, last: bool
) -> Value:
    taps: list[Axis] = [axis if axis and axis[0] in by_mode else () for axis in roles.spatial]
    channels = (roles.summed, roles.free) if transposed else (roles.free, roles.summed)
    target = writer.target
    if last and not (transposed or roles.groups) and target.count(w) >= LARGE_WEIGHT:
        placed = writer.arrange(w, (roles.free, *taps, roles.summed), dense=True)
        return writer.transpose(placed, (0, len(taps) + 1, *range(1, len(taps) + 1)))
    # oneDNN reads permuted weights of groups wrongly where an axis has size 1.
    surprising = target.chooses_layouts and not target.knows_memory and bool(roles.groups or transposed)
    return writer.weight(w, (roles.groups + channels[0], channels[1], *taps), always=surprising)


def _call(x: str, w: str, groups: Size, lines: list[Line], transposed: bool) -> str:
    rank = len(lines)
    arguments = [x, w]
    settings: list[tuple[str, list[int], int]] = [
        ("stride", [line.stride for line in lines], 1),
        ("padding", [line.padding for line in lines], 0),
        ("output_padding", [line.output_padding for line in lines], 0),
        ("dilation", [line.dilation for line in lines], 1),
    ]
    for name, numbers, default in settings:
        if any(number != default for number in numbers):
            same = len(set(numbers)) == 1
            arguments.append(f"{name}={numbers[0] if same else tuple(numbers)}")
    if groups != 1:
        arguments.append(f"groups={groups}")
    return f"F.conv{'_transpose' if transposed else ''}{rank}d({', '.join(arguments)})"


def _trim(
    writer: Writer, y: Value, lines: list[Line], by_mode: Mapping[str, Correlation], roles: _Roles, first: int
) -> Value:
    """Cuts surplus outputs off, or adds zeros where nothing was scattered."""
    sizes = dict(y.sizes)
    text, pads = y.name, []
    for place, (axis, line) in enumerate(zip(roles.spatial, lines, strict=True), first):
        if not axis or axis[0] not in by_mode:
            pads.append((0, 0))
            continue
        before, behind = line.after
        start = max(0, -before)
        length = line.natural - start - max(0, -behind)
        if length < 1:
            # Nothing that was scattered is read.
            start, length, before, behind = 0, 0, by_mode[axis[0]].size, 0
        if length != line.natural:
            text += f".narrow({place}, {start}, {length})"
        pads.append((max(0, before), max(0, behind)))
        sizes[axis[0]] = by_mode[axis[0]].size
    if any(pad != (0, 0) for pad in pads):
        pads += [(0, 0)] * (len(y.axes) - first - len(lines))
        text = f"F.pad({text}, {_pad_text(pads)})"
    return y if text == y.name else writer.emit(text, [y], y.axes, sizes)
