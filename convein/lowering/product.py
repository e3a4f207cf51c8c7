"""Steps without a convolved pair: matrix products, and products entry by entry."""

from __future__ import annotations

from convein.lowering.target import Target
from convein.lowering.writer import Axis, Value, Writer


def contract(writer: Writer, left: Value, right: Value, kept: frozenset[str], target: Target) -> Value:
    """Multiplies two values and sums over the modes that both have and nobody needs any more."""
    if target.count(left) < target.count(right):
        left, right = right, left
    summed = [mode for mode in left.modes if mode in right.modes and mode not in kept]
    batch = [mode for mode in left.modes if mode in right.modes and mode in kept]
    if not summed or not target.has_matmul:
        return writer.sum_out(multiply(writer, left, right), summed)
    if len(summed) == len(left.modes) == len(right.modes):
        a, b = (writer.arrange(value, (tuple(summed),)) for value in (left, right))
        return writer.emit(f"torch.dot({a.name}, {b.name})", [a, b], (), {})
    if batch:
        return _batched(writer, left, right, tuple(batch), tuple(summed))
    return _single(writer, left, right, tuple(summed), target)


def multiply(writer: Writer, left: Value, right: Value) -> Value:
    """The product entry by entry, broadcast over the modes that only one side has; left's axes come first."""
    axes: list[Axis] = []
    for axis in left.axes:
        for mode in axis:
            alone = mode not in right.modes
            if alone and axes and mode in axis[1:] and axes[-1][-1] not in right.modes and axes[-1][-1] in axis:
                axes[-1] = (*axes[-1], mode)
            else:
                axes.append((mode,))
    rest = tuple(mode for mode in right.modes if mode not in left.modes)
    tail: list[Axis] = [rest] if rest else []
    a = writer.arrange(left, [*axes, *(() for _ in tail)])
    matching: list[Axis] = [axis if axis[0] in right.modes else () for axis in axes]
    while matching and not matching[0]:  # leading axes of size 1 are added by broadcasting
        matching.pop(0)
    b = writer.arrange(right, [*matching, *tail])
    return writer.emit(f"{a.name} * {b.name}", [a, b], [*axes, *tail], {**right.sizes, **left.sizes})


def _single(writer: Writer, x: Value, w: Value, summed: Axis, target: Target) -> Value:
    """No batch mode: one matrix on one side, so x need not move where its summed modes are neighbours."""
    before, after = _around(x.modes, summed)
    free = tuple(mode for mode in w.modes if mode not in summed)
    sizes = {**w.sizes, **x.sizes}
    if not after:
        a, b = writer.arrange(x, (before, summed)), writer.arrange(w, (summed, free))
        return writer.emit(f"torch.mm({a.name}, {b.name})", [a, b], (before, free), sizes)
    if not before:
        a, b = writer.arrange(w, (free, summed)), writer.arrange(x, (summed, after))
        return writer.emit(f"torch.mm({a.name}, {b.name})", [a, b], (free, after), sizes)
    b = writer.arrange(x, (before, summed, after))
    if target.prefers_pointwise_conv:
        a = writer.arrange(w, (free, summed, ()))
        return writer.emit(f"F.conv1d({b.name}, {a.name})", [b, a], (before, free, after), sizes)
    a = writer.arrange(w, (free, summed))
    call = f"torch.bmm({a.name}.expand({x.size(before)}, -1, -1), {b.name})"
    return writer.emit(call, [a, b], (before, free, after), sizes)


def _batched(writer: Writer, x: Value, w: Value, batch: Axis, summed: Axis) -> Value:
    """Batch modes: bmm, with the modes of x before the batch as further batch where moving them would copy x."""
    shared = {*batch, *summed}
    first = next(place for place, mode in enumerate(x.modes) if mode in shared)
    lead = x.modes[:first]
    inner = tuple(mode for mode in x.modes[first:] if mode not in shared)
    free = tuple(mode for mode in w.modes if mode not in shared)
    sizes = {**w.sizes, **x.sizes}
    if lead and inner:
        a, b = writer.arrange(x, (lead, batch, inner, summed)), writer.arrange(w, (batch, summed, free))
        return writer.emit(f"torch.matmul({a.name}, {b.name})", [a, b], (lead, batch, inner, free), sizes)
    rows = lead or inner
    a, b = writer.arrange(x, (batch, rows, summed)), writer.arrange(w, (batch, summed, free))
    return writer.emit(f"torch.bmm({a.name}, {b.name})", [a, b], (batch, rows, free), sizes)


def _around(modes: Axis, summed: Axis) -> tuple[Axis, Axis]:
    """The modes before and after the summed ones where those are neighbours; else all the others before."""
    first = modes.index(summed[0])
    if modes[first : first + len(summed)] == summed:
        return modes[:first], modes[first + len(summed) :]
    return tuple(mode for mode in modes if mode not in summed), ()
