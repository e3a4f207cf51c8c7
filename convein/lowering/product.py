"""Steps without a convolved pair: matrix products, and products entry by entry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from convein.lowering.price import SMALL
from convein.lowering.target import Target
from convein.lowering.values import Axis, Size, Value
from convein.lowering.writer import Writer
from convein.planner import rates

# Products of fewer entries are not worth a look at how their gradients are made.
LARGE = 2**14


def contract(writer: Writer, left: Value, right: Value, kept: frozenset[str], way: str = "plain") -> Value:
    """Multiplies two values and sums over the modes that both have and nobody needs any more.

    Args:
        writer: where to write.
        left: one value.
        right: the other.
        kept: the modes that are needed afterwards.
        way: how, where one side is a plain matrix: one of `ways`.
    """
    target = writer.target
    left, right = _rows_first(left, right, target)
    summed = tuple(mode for mode in left.modes if mode in right.modes and mode not in kept)
    batch = tuple(mode for mode in left.modes if mode in right.modes and mode in kept)
    if not (summed or batch) and _pays_as_matrix(writer, left, right):
        return _outer(writer, left, right)
    if way == "inner":
        return _multiply_inner(writer, left, right, batch)
    if not summed or not target.has_matmul:
        return writer.sum_out(multiply(writer, left, right), summed)
    if len(summed) == len(left.modes) == len(right.modes):
        a, b = (writer.arrange(value, (summed,)) for value in (left, right))
        # Unlike torch.dot, torch.matmul takes two dtypes under autocast.
        return writer.emit(f"torch.matmul({a.name}, {b.name})", [a, b], (), {}, writer.price.elementwise(0, [a, b]))
    if batch:
        return _batched(writer, left, right, batch, summed)
    return _single(writer, left, right, summed, way)


def ways(left: Value, right: Value, kept: frozenset[str], target: Target) -> tuple[str, ...]:
    """How `contract` can do a step: which of them is fastest depends on what follows.

    `"plain"` leaves the side with the rows as it lies where its summed modes are neighbours, `"rows"` brings them last,
    and `"columns"` makes the transposed result of a small side where they are last. Where nothing is summed, `"inner"`
    leaves the modes that both have last.
    """
    x, w = _rows_first(left, right, target)
    shared = [mode for mode in x.modes if mode in w.modes]
    last = slice(-len(shared), None)
    if shared and kept.issuperset(shared) and x.modes[last] == w.modes[last] == tuple(shared):
        several = target.chooses_layouts and len(shared) < min(len(x.modes), len(w.modes))
        return ("plain", "inner") if several else ("plain",)
    if not target.chooses_layouts or not shared or any(mode in kept for mode in shared) or len(shared) == len(x.modes):
        return ("plain",)
    if set(x.modes[-len(shared) :]) != set(shared):
        return ("plain", "rows")
    return ("plain", "columns") if target.count(x) <= SMALL and len(shared) < len(w.modes) else ("plain",)


def _rows_first(left: Value, right: Value, target: Target) -> tuple[Value, Value]:
    """The side whose entries are rows first: the one that comes from a signal, else the larger one."""
    if left.signal != right.signal:
        return (left, right) if left.signal else (right, left)
    return (left, right) if target.count(left) >= target.count(right) else (right, left)


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
    sizes = {**right.sizes, **left.sizes}
    made = _count(writer.target, sizes, sizes)
    return writer.emit(f"{a.name} * {b.name}", [a, b], [*axes, *tail], sizes, writer.price.elementwise(made, [a, b]))


def _multiply_inner(writer: Writer, left: Value, right: Value, shared: Axis) -> Value:
    """The same where the modes that both have are the last ones of both: they are the last ones of the result.

    The side that has the first mode of the expression's result is first.
    """
    if writer.place(right) < writer.place(left):
        left, right = right, left
    first, second = left.modes[: -len(shared)], right.modes[: -len(shared)]
    a, b = writer.arrange(left, (first, (), shared)), writer.arrange(right, (second, shared))
    sizes = {**right.sizes, **left.sizes}
    made = _count(writer.target, sizes, (*first, *second, *shared))
    price = writer.price.elementwise(made, [a, b])
    return writer.emit(f"{a.name} * {b.name}", [a, b], (first, second, shared), sizes, price)


def _pays_as_matrix(writer: Writer, left: Value, right: Value) -> bool:
    """Whether all products of two sides are best a product of matrices: torch's gradient of a broadcast product makes
    a tensor as large as the result for each side, and sums it then.
    """
    target = writer.target
    rows, free = target.count(left), target.count(right)
    if not (target.is_inexact and (left.grad or right.grad)) or min(rows, free) == 1 or rows * free < LARGE:
        return False
    price = writer.price.matrix(rates.MATRIX, 1, rows, 1, free, (left, right))
    return price < writer.price.elementwise(rows * free, [left, right])


def _outer(writer: Writer, left: Value, right: Value) -> Value:
    """All products of two sides, as matrices of one column and one row."""
    a, b = writer.arrange(left, (left.modes, ())), writer.arrange(right, ((), right.modes))
    price = writer.price.matrix(rates.MATRIX, 1, writer.target.count(a), 1, writer.target.count(b), (a, b))
    call = f"torch.mm({a.name}, {b.name})"
    return writer.emit(call, [a, b], (left.modes, right.modes), {**right.sizes, **left.sizes}, price)


def _single(writer: Writer, x: Value, w: Value, summed: Axis, way: str) -> Value:
    """No batch mode: one matrix on one side."""
    target, sizes = writer.target, {**w.sizes, **x.sizes}
    before, after = _around(x.modes, summed)
    free = writer.own(w, x)
    numbers = [_count(target, sizes, modes) for modes in (before, after, summed, free)]
    if way == "rows" and before and after:
        price = writer.price.pointwise(x, numbers[0] * numbers[1], numbers[2], numbers[3], w)
        if price < math.inf:
            a, b = writer.arrange(x, (before, summed, after)), writer.arrange(w, (free, summed))
            return writer.emit(f"pointwise({a.name}, {b.name})", [a, b], (before, after, free), sizes, price)
    if way == "columns" or (way == "plain" and not before):
        return _product(writer, x, w, before + after, summed, free, columns=True)
    if way == "rows" or not after:
        return _rows(writer, x, w, before + after, summed, free)
    b = writer.arrange(x, (before, summed, after))
    price = writer.price.matrix(rates.BATCHED, numbers[0], numbers[3], numbers[2], numbers[1], (w, x))
    if target.prefers_pointwise_conv:
        flat = writer.price.matrix(rates.POINTWISE, 1, numbers[0] * numbers[1], numbers[2], numbers[3], (x, w))
        if flat < price:
            a = writer.weight(w, (free, summed, ()))
            return writer.emit(f"F.conv1d({b.name}, {a.name})", [b, a], (before, free, after), sizes, flat)
    a = writer.arrange(w, (free, summed))
    call = f"torch.bmm({a.name}.expand({x.size(before)}, -1, -1), {b.name})"
    return writer.emit(call, [a, b], (before, free, after), sizes, price)


def _rows(writer: Writer, x: Value, w: Value, before: Axis, summed: Axis, free: Axis) -> Value:
    """The product of two matrices, by whichever of the machine's ways is faster at this size."""
    target, sizes = writer.target, {**w.sizes, **x.sizes}
    numbers = [_count(target, sizes, modes) for modes in (before, summed, free)]
    linear = writer.price.matrix(rates.ROWS, 1, numbers[0], numbers[1], numbers[2], (x, w))
    # oneDNN copies what is transposed, slowly: the signal of a convolution is copied here.
    turned = x.signal and x.modes == (*summed, *before)
    copy = min(writer.price.copy(x), writer.price.transposed(x)) if turned else 0.0
    order = _best_order(writer, x, w, before, summed, free, columns=False)
    if not target.chooses_layouts or linear + copy >= order.price + order.copy:
        return _product(writer, x, w, before, summed, free, columns=False)
    a, b = writer.arrange(x, (before, summed), dense=turned), writer.arrange(w, (free, summed))
    return writer.emit(f"linear({a.name}, {b.name})", [a, b], (before, free), sizes, linear)


def _product(writer: Writer, x: Value, w: Value, rest: Axis, summed: Axis, free: Axis, *, columns: bool) -> Value:
    """The product of x and w as matrices, (rest, free), or transposed, (free, rest)."""
    choice = _best_order(writer, x, w, rest, summed, free, columns=columns)
    left = writer.arrange(x, (summed, rest) if columns else (rest, summed))
    right = writer.arrange(w, (free, summed) if choice.own_first else (summed, free), dense=choice.copy > 0)
    if choice.own_first is not columns:
        right = writer.transpose(right, (1, 0))
    a, b = (right, left) if columns else (left, right)
    axes = (free, rest) if columns else (rest, free)
    return writer.emit(f"torch.mm({a.name}, {b.name})", [a, b], axes, {**w.sizes, **x.sizes}, choice.price)


@dataclass(frozen=True, slots=True)
class _Order:
    """How the memory of weights has their modes when they are multiplied.

    Attributes:
        own_first: whether their own modes are before the summed ones.
        price: of the product.
        copy: of bringing them there, where they lie the other way round.
    """

    own_first: bool
    price: float
    copy: float


def _best_order(writer: Writer, x: Value, w: Value, rest: Axis, summed: Axis, free: Axis, *, columns: bool) -> _Order:
    sizes = {**w.sizes, **x.sizes}
    m, k, n = (_count(writer.target, sizes, modes) for modes in (rest, summed, free))
    turned = x.modes == ((*rest, *summed) if columns else (*summed, *rest))
    found = []
    for own_first in (columns, not columns):
        if columns:
            price = writer.price.product(w, x, (n, k, m), (not own_first, turned))
        else:
            price = writer.price.product(x, w, (m, k, n), (turned, own_first))
        copied = w.modes == ((*summed, *free) if own_first else (*free, *summed))
        found.append(_Order(own_first, price, writer.price.copy(w) if copied else 0.0))
    return min(found, key=lambda order: order.price + order.copy)


def _batched(writer: Writer, x: Value, w: Value, batch: Axis, summed: Axis) -> Value:
    """Batch modes: bmm, with the modes of x before the batch as further batch where moving them would copy x."""
    target, shared = writer.target, {*batch, *summed}
    first = next(place for place, mode in enumerate(x.modes) if mode in shared)
    lead = x.modes[:first]
    inner = tuple(mode for mode in x.modes[first:] if mode not in shared)
    free = writer.own(w, x)
    sizes = {**w.sizes, **x.sizes}
    numbers = [_count(target, sizes, modes) for modes in (lead, batch, inner, summed, free)]
    if lead and inner:
        a, b = writer.arrange(x, (lead, batch, inner, summed)), writer.arrange(w, (batch, summed, free))
        price = writer.price.matrix(rates.BATCHED, numbers[0] * numbers[1], numbers[2], numbers[3], numbers[4], (a, b))
        return writer.emit(f"torch.matmul({a.name}, {b.name})", [a, b], (lead, batch, inner, free), sizes, price)
    rows = lead or inner
    # Matrices whose entries are not neighbours one way or the other are copied anyway.
    a = writer.arrange(x, (batch, rows, summed), dense=x.modes[-1] in batch)
    b = writer.arrange(w, (batch, summed, free), dense=w.modes[-1] in batch)
    price = writer.price.matrix(rates.BATCHED, numbers[1], numbers[0] * numbers[2], numbers[3], numbers[4], (a, b))
    return writer.emit(f"torch.bmm({a.name}, {b.name})", [a, b], (batch, rows, free), sizes, price)


def _around(modes: Axis, summed: Axis) -> tuple[Axis, Axis]:
    """The modes before and after the summed ones where those are neighbours; else all the others before."""
    first = modes.index(summed[0])
    if modes[first : first + len(summed)] == summed:
        return modes[:first], modes[first + len(summed) :]
    return tuple(mode for mode in modes if mode not in summed), ()


def _count(target: Target, sizes: Mapping[str, Size], modes: Iterable[str]) -> int:
    return prod(target.number(mode, sizes[mode]) for mode in modes)
