"""Runs of steps that one Triton kernel does: the rules that say which, and the calls.

A kernel that takes a run may still refuse its sizes: what it says then is passed on, for `Expression.explain()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from string import ascii_letters

import torch

from convein.lowering import axis
from convein.lowering.chain import Factor, Run
from convein.lowering.image import filters, finish, image
from convein.lowering.values import Size, Value, tuple_text
from convein.lowering.writer import Writer


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is asked about where there is no tensor with these sizes: all of one that is known.

    Attributes:
        shape, dtype, device: as of a tensor.
        strides: entries between neighbours along each dimension.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def stride(self, dimension: int | None = None) -> tuple[int, ...] | int:
        """The strides, or one of them, as of a tensor."""
        return self.strides if dimension is None else self.strides[dimension]


def _shape(writer: Writer, value: Value | None, order: Sequence[int] = ()) -> Shape | None:
    """A value as it will be; `order` has its dimensions, the slowest first, where they lie otherwise."""
    if value is None:
        return None
    target = writer.target
    sizes = torch.Size(target.count(Value("", (place,), {m: value.sizes[m] for m in place})) for place in value.axes)
    strides, step = [0] * len(sizes), 1
    for place in reversed(order or range(len(sizes))):
        strides[place], step = step, step * max(sizes[place], 1)
    return Shape(sizes, target.dtype, torch.device(target.device), tuple(strides))


def _pointwise_depthwise(writer: Writer, run: Run, x: Value, factors: Sequence[Value]) -> Value | str:
    """A CP, Tucker-2 or tensor-train layer: x by a, d and c, of which a or c may be missing."""
    at = next(place for place, factor in enumerate(run.factors) if factor.letter in "CD")
    core, dense = run.factors[at], run.factors[at].letter == "C"
    first, last = (run.factors[at - 1] if at else None), (run.factors[at + 1] if at + 1 < len(run.factors) else None)
    if reason := _no_image(core, strided=False):
        return reason
    inner, middle = (core.summed, core.own) if dense else (core.shared, core.shared)
    if (first and first.own != inner) or (last and last.summed != middle):
        return _PARTLY
    r, q = (tuple(mode for mode in factors[at].modes if mode in modes) for modes in (inner, middle))
    s = tuple(mode for mode in factors[0].modes if mode in first.summed) if first else r
    t = writer.own(factors[-1], factors[at]) if last else q
    given = image(writer, x, core, s)
    view = writer.transpose(given.value, (0, 3, 1, 2))
    a = writer.arrange(factors[0], (r, s)) if first else None
    d = filters(writer, factors[at], (q, r) if dense else (r,), given)
    c = writer.arrange(factors[-1], (t, q)) if last else None
    low, dilation = given.numbers("lo", 0), given.numbers("dilation", 1)
    shapes = [_shape(writer, view, (0, 2, 3, 1)), *(_shape(writer, value) for value in (a, d, c))]
    if reason := _refusal(writer, "pointwise_depthwise", *shapes, low, given.size, dilation):
        return reason
    price = writer.price.pointwise_depthwise(given.value, a, d, c, given.pixels(writer), dense=dense)
    call = _call("pointwise_depthwise", (view, a, d, c), (low, given.size, dilation))
    sizes = {**_sizes((a, d, c)), **_reached(given.value, core)}
    y = writer.emit(call, _present(view, a, d, c), (given.value.axes[0], t, *given.places), sizes, price)
    return finish(writer, y, core, run)


def _depthwise_pointwise(writer: Writer, run: Run, x: Value, factors: Sequence[Value]) -> Value | str:
    """A depthwise convolution as the prologue of a product of matrices."""
    core, point = run.factors
    if reason := _no_image(core, strided=True):
        return reason
    if point.summed != core.shared:
        return _PARTLY
    r = tuple(mode for mode in factors[0].modes if mode in core.shared)
    t = writer.own(factors[1], factors[0])
    given = image(writer, x, core, r)
    view = writer.transpose(given.value, (0, 3, 1, 2))
    d, c = filters(writer, factors[0], (r,), given), writer.arrange(factors[1], (t, r))
    numbers: list[Sequence[Size]] = [
        given.numbers("stride", 1),
        given.numbers("lo", 0),
        given.size,
        given.numbers("dilation", 1),
    ]
    shapes = [_shape(writer, view, (0, 2, 3, 1)), _shape(writer, d), _shape(writer, c)]
    if reason := _refusal(writer, "depthwise_pointwise", *shapes, *numbers):
        return reason
    price = writer.price.depthwise_pointwise(given.value, d, c, given.pixels(writer))
    call = _call("depthwise_pointwise", (view, d, c), numbers)
    sizes = {**_sizes((d, c)), **_reached(given.value, core)}
    y = writer.emit(call, [view, d, c], (given.value.axes[0], t, *given.places), sizes, price)
    return finish(writer, y, core, run)


def _product_reduce(writer: Writer, run: Run, x: Value, factors: Sequence[Value]) -> Value | str:
    """Products entry by entry that are summed, or of three tensors: in memory once."""
    gone = [mode for mode in x.modes if mode not in run.kept]
    if not gone and len(factors) == 1:
        return "nothing is summed"
    x = writer.split(x)
    laid = [writer.arrange(w, tuple((mode,) if mode in w.modes else () for mode in x.modes)) for w in factors]
    tensors = [x, *laid]
    summed = [place for place, mode in enumerate(x.modes) if mode in gone]
    three = (*tensors, *[None] * (3 - len(tensors)))
    if reason := _refusal(writer, "product_reduce", *(_shape(writer, one) for one in three), summed):
        return reason
    price = writer.price.product_reduce(tensors, gone)
    kept = [(mode,) for mode in x.modes if mode not in gone]
    return writer.emit(_call("product_reduce", three, (summed,)), tensors, kept, x.sizes, price)


def _pair(writer: Writer, run: Run, x: Value, factors: Sequence[Value]) -> Value | str:
    """One product, convolved or not, of operands that lie as they do: no copy of either."""
    (core,) = run.factors
    if any(c.upsample > 1 for c in core.correlations):
        return "the convolution is transposed"
    for c in core.correlations:
        x = axis.extend(writer, x, c)
    w = factors[0]
    for c in core.correlations:
        w = axis.flip(writer, w, c.mode) if c.flip else w
    x, w = writer.split(x), writer.split(w)
    lines = [axis.extended(c) for c in core.correlations]
    convolved = {line.mode: line.size for line in lines}
    made = (
        *(mode for mode in w.modes if mode in core.shared),
        *(mode for mode in x.modes if mode not in core.shared | core.summed),
        *(mode for mode in w.modes if mode in core.own),
    )
    letters = dict(zip(dict.fromkeys((*x.modes, *w.modes)), ascii_letters, strict=False))
    if len(letters) < len({*x.modes, *w.modes}):
        return "there are more modes than letters"
    terms = ["".join(letters[mode] for mode in modes) for modes in (x.modes, w.modes, made)]
    numbers = [[getattr(line, name) for line in lines] for name in ("stride", "dilation", "lo", "size")]
    texts = f"{terms[0]},{terms[1]}->{terms[2]}", "".join(letters[line.mode] for line in lines)
    if reason := _refusal(writer, "pair", _shape(writer, x), _shape(writer, w), *texts, *numbers):
        return reason
    sizes = {**w.sizes, **x.sizes, **convolved}
    entries = [writer.target.number(mode, sizes[mode]) for mode in made]
    summed = [writer.target.number(mode, w.sizes[mode]) for mode in w.modes if mode in core.summed or mode in convolved]
    price = writer.price.pair(x, w, entries, prod(summed))
    quoted = [f'"{text}"' for text in texts]
    call = f'kernel("pair", {", ".join([x.name, w.name, *quoted, *map(tuple_text, numbers)])})'
    y = writer.emit(call, [x, w], [(mode,) for mode in made], sizes, price)
    for c in core.correlations:
        y = axis.fold(writer, y, c)
    return writer.sum_out(y, [mode for mode in y.modes if mode not in run.kept])


@dataclass(frozen=True, slots=True)
class Rule:
    """A kernel, the letters of the runs that it is for, and what writes the call, or says why not."""

    kernel: str
    letters: re.Pattern[str]
    write: Callable[[Writer, Run, Value, Sequence[Value]], Value | str]


RULES = (
    Rule("pointwise_depthwise", re.compile("P[DC]P?|[DC]P"), _pointwise_depthwise),
    Rule("depthwise_pointwise", re.compile("DP"), _depthwise_pointwise),
    Rule("product_reduce", re.compile("HH?"), _product_reduce),
    Rule("pair", re.compile("[PBCG]"), _pair),
)


def rules(run: Run) -> Iterator[Rule]:
    """The rules that a run is for, in order."""
    return (rule for rule in RULES if rule.letters.fullmatch(run.letters))


_PARTLY = "the factors share only some of their channels"


def _refusal(writer: Writer, kernel: str, *arguments: object) -> str | None:
    """Why the kernel does not take these."""
    assert writer.target.refusal is not None
    return writer.target.refusal(kernel, *arguments)


def _no_image(core: Factor, *, strided: bool) -> str | None:
    """Why a convolution is none of images by plain filters, in a clause."""
    if len(core.correlations) > 2:
        return f"{len(core.correlations)} modes are convolved, and the kernel is for images"
    if any(c.upsample > 1 for c in core.correlations):
        return "the convolution is transposed"
    if not strided and any(c.stride > 1 for c in core.correlations):
        return "the convolution has a stride"
    return None


def _call(kernel: str, tensors: Sequence[Value | None], numbers: Sequence[Sequence[Size]]) -> str:
    names = ["None" if value is None else value.name for value in tensors]
    return f'kernel("{kernel}", {", ".join([*names, *map(tuple_text, numbers)])})'


def _present(*values: Value | None) -> list[Value]:
    return [value for value in values if value is not None]


def _sizes(values: Sequence[Value | None]) -> dict[str, Size]:
    return {mode: size for value in _present(*values) for mode, size in value.sizes.items()}


def _reached(x: Value, core: Factor) -> dict[str, Size]:
    """The sizes of an image after its convolution."""
    return {**x.sizes, **{c.mode: c.size for c in core.correlations}}
