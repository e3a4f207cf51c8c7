"""Pointwise, depthwise or small dense, pointwise: a CP, Tucker-2 or tensor-train layer in one kernel.

What lies between them stays on the chip. A lane is a strip of an image, TH rows and TW columns of the output; a program
works on several lanes, column by column. Every pixel of the input goes through the first pointwise convolution when its
column comes, and is added to the columns of the output that it reaches, which wait in a ring of registers: no pixel is
ever shifted. The pixels around a strip are computed by its neighbours too.

The gradient of x is the same kernel with the same factors in reverse. Those of the factors come from the gradient of
the one dense kernel that they make: one call of torch, and x is all that is kept.

There is no stride: a network has few such layers, and of these the first convolution, which goes through all pixels,
is most of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from convein.kernels import operators, padding, strips, tuning
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from convein.kernels.strips import Channels, Tile
from torch import Tensor
from torch.nn.grad import conv2d_weight

# The most channels of the input or the output. In between, 128 with a depthwise convolution.
OUTER = 128
# The most taps of d: a loop over them is unrolled.
TAPS = 25

Pair = tuple[int, int]


def reference(
    x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, low: Sequence[int], size: Sequence[int], dilation: Pair,
    circular: bool = False,
) -> Tensor:  # fmt: skip
    """What the kernel computes, (batch, t, *size): pixel o of the output reads from o - low on.

    Args:
        x: (batch, s, h, w).
        a: (r, s), the first pointwise convolution; None if there is none, and s is r.
        d: (r, kh, kw), depthwise, and q is r; or dense, (q, r, kh, kw).
        c: (t, q), the second pointwise convolution; None if there is none, and t is q.
        low: zeros before the first row and column; a negative number leaves out as many.
        size: rows and columns of the output, what is missing behind the last ones is zero too.
        dilation: of d.
        circular: whether the image goes on with itself on all sides instead of with zeros.
    """
    x = padding.around(x, padding.sides(x.shape[2:], d.shape[-2:], low, size, dilation), circular=circular)
    if a is not None:
        x = F.conv2d(x, a[:, :, None, None])
    weight, groups = (d[:, None], d.shape[0]) if d.ndim == 3 else (d, 1)
    x = F.conv2d(x, weight, dilation=dilation, groups=groups)
    return x if c is None else F.conv2d(x, c[:, :, None, None])


def composed(a: Tensor | None, d: Tensor, c: Tensor | None) -> Tensor:
    """The one dense kernel (t, s, kh, kw) that the factors make."""
    core = "qab" if d.ndim == 3 else "qrab"
    inner = "q" if d.ndim == 3 else "r"
    terms = [(c, "tq"), (d, core), (a, f"{inner}s")]
    inputs = ",".join(modes for x, modes in terms if x is not None)
    output = ("q" if c is None else "t") + (inner if a is None else "s") + "ab"
    return torch.einsum(f"{inputs}->{output}", *[x for x, _ in terms if x is not None])


def pointwise_depthwise(
    x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, *, low: Pair = (0, 0), size: Pair,
    dilation: Pair = (1, 1), circular: bool = False,
) -> Tensor:  # fmt: skip
    """`reference` by one kernel, channels last, with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    arguments = x, a, d, c, low, size, dilation, circular
    operators.demand(refusal(*arguments))
    result: Tensor = torch.ops.convein.pointwise_depthwise(*arguments)
    return result


def refusal(
    x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, low: Sequence[int], size: Sequence[int], dilation: Pair,  # noqa: ARG001
    circular: bool = False,
) -> str | None:  # fmt: skip
    """Why the kernel does not take these, in a clause; None if it does."""
    if a is None and c is None:
        return "there is no pointwise convolution"
    if x.ndim != 4 or d.ndim not in (3, 4) or any(m is not None and m.ndim != 2 for m in (a, c)):
        return "x has four dimensions, d three or four, and a and c two"
    s, r, q, t = _channels(x, d, c)
    if (a is not None and a.shape != (r, s)) or (a is None and r != s) or (c is not None and c.shape != (t, q)):
        shapes = ", ".join(str(None if m is None else tuple(m.shape)) for m in (x, a, d, c))
        return f"x, a, d and c are {shapes}, and their channels do not fit"
    tensors = [m for m in (x, a, d, c) if m is not None]
    inner = 128 if d.ndim == 3 else 32 if d.dtype is torch.float32 else 64
    count, most, where = (max(s, t), OUTER, "outside") if max(s, t) > OUTER else (max(r, q), inner, "inside")
    if count > most:
        return f"there are {count} channels {where}, more than {most}"
    if d.shape[-2] * d.shape[-1] > TAPS:
        return f"d has {d.shape[-2] * d.shape[-1]} taps, more than {TAPS}"
    if sum((n - 1) * step for n, step in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31:
        return "an image spans more than 2**31 numbers"
    if circular and not prod(x.shape[2:]):
        return "an image without pixels does not go on"
    if strips.largest((s, r, q, t), padding.reach(d.shape[-2:], dilation)[1] + 1, d.ndim == 4, d.dtype) is None:
        return f"a row of {d.shape[-1]} taps with dilation {dilation[1]} does not fit into registers"
    reason: str | None = operators.refusal_of_products(*tensors)
    return reason


def _channels(x: Tensor, d: Tensor, c: Tensor | None) -> Channels:
    r, q = d.shape[-3], d.shape[0]
    return x.shape[1], r, q, q if c is None else c.shape[0]


@triton.jit
def _kernel(  # noqa: C901 - one nest of loops, most of them unrolled
    x, a, d, c, y, lanes, high, wide, rows, columns, tiles_down, tiles_across, low_h, low_w,
    xn, xs, xh, xw, ar, as_, dq, dr, da, db, ct, cq,
    S: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
    SP: tl.constexpr, RP: tl.constexpr, QP: tl.constexpr, TP: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    FIRST: tl.constexpr, DENSE: tl.constexpr, LAST: tl.constexpr, CIRCULAR: tl.constexpr,
    LANES: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    TYPE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    n = lane // (tiles_down * tiles_across)
    top = lane // tiles_across % tiles_down * TH
    left = lane % tiles_across * TW
    s, r, q, t = tl.arange(0, SP), tl.arange(0, RP), tl.arange(0, QP), tl.arange(0, TP)
    image = x + n.to(tl.int64) * xn
    result = y + n.to(tl.int64) * (rows * columns * T)
    if FIRST:
        first = tl.load(a + s[:, None] * as_ + r[None] * ar, mask=(s[:, None] < S) & (r[None] < R), other=0).to(FACTOR)
    if LAST:
        last = tl.load(c + q[:, None] * cq + t[None] * ct, mask=(q[:, None] < Q) & (t[None] < T), other=0).to(FACTOR)
    # Columns of the output that are not finished, oldest first: those of the strip's first row, then of the next one.
    SPAN: tl.constexpr = (KW - 1) * DW + 1
    ring = ()
    for _ in tl.static_range(TH * SPAN):
        ring += (tl.full((LANES, QP), 0, TYPE),)  # type: ignore[assignment]
    for j in range(TW + SPAN - 1):
        column = left + j - low_w
        for i in tl.static_range(TH + (KH - 1) * DH):
            row = top + i - low_h
            real = lane < lanes
            if CIRCULAR:
                # A remainder has the sign of what is divided.
                row, column = (row % high + high) % high, (column % wide + wide) % wide
            else:
                real = real & (row >= 0) & (row < high) & (column >= 0) & (column < wide)
            at = image + row * xh + column * xw
            h = tl.load(at[:, None] + s[None] * xs, mask=real[:, None] & (s[None] < S), other=0)
            if FIRST:
                h = tl.dot(h.to(FACTOR), first, input_precision=PRECISION, out_dtype=TYPE)
            h = h.to(FACTOR if DENSE else TYPE)
            for u in tl.static_range(KH):
                for v in tl.static_range(KW):
                    if i - u * DH >= 0 and i - u * DH < TH:
                        tap = d + u * da + v * db
                        if DENSE:
                            m = tl.load(
                                tap + r[:, None] * dr + q[None] * dq, mask=(r[:, None] < R) & (q[None] < Q), other=0
                            )
                            part = tl.dot(
                                h,
                                m.to(FACTOR),
                                acc=ring[(i - u * DH + 1) * SPAN - 1 - v * DW],
                                input_precision=PRECISION,
                                out_dtype=TYPE,
                            )
                        else:
                            m = tl.load(tap + q * dq, mask=q < Q, other=0).to(TYPE)
                            part = ring[(i - u * DH + 1) * SPAN - 1 - v * DW] + h * m[None]
                        ring = (
                            ring[: (i - u * DH + 1) * SPAN - 1 - v * DW]
                            + (part,)
                            + ring[(i - u * DH + 1) * SPAN - v * DW :]
                        )
        out = left + j - (SPAN - 1)
        if j >= SPAN - 1:
            for o in tl.static_range(TH):
                value = ring[o * SPAN]  # type: ignore[var-annotated]
                if LAST:
                    value = tl.dot(value.to(FACTOR), last, input_precision=PRECISION, out_dtype=TYPE)
                real = (lane < lanes) & (top + o < rows) & (out < columns)
                at = result + ((top + o) * columns + out) * T
                tl.store(at[:, None] + t[None], value.to(y.dtype.element_ty), mask=real[:, None] & (t[None] < T))
        moved = ()
        for o in tl.static_range(TH):
            moved += ring[o * SPAN + 1 : (o + 1) * SPAN] + (tl.full((LANES, QP), 0, TYPE),)  # type: ignore[assignment]
        ring = moved


def _constants(
    channels: Channels, d: Sequence[int], dilation: Pair, circular: bool, first: bool, last: bool, dtype: torch.dtype,
    tile: Tile,
) -> dict[str, Any]:  # fmt: skip
    """The compile-time arguments."""
    names = ("S", "R", "Q", "T")
    constants = dict(zip(names, channels, strict=True))
    constants |= {f"{name}P": strips.padded(count) for name, count in zip(names, channels, strict=True)}
    constants |= {"KH": d[-2], "KW": d[-1], "DH": dilation[0], "DW": dilation[1]}
    constants |= {"FIRST": first, "DENSE": len(d) == 4, "LAST": last, "CIRCULAR": circular}
    constants |= {"LANES": tile.lanes, "TH": tile.high, "TW": tile.wide}
    TYPE = tl.float64 if dtype is torch.float64 else tl.float32
    # The interpreter cannot compute with bfloat16, only load and store it.
    FACTOR = TYPE if INTERPRETED and dtype is torch.bfloat16 else FLOATS[dtype]
    return constants | {"TYPE": TYPE, "FACTOR": FACTOR, "PRECISION": "ieee" if INTERPRETED else "tf32"}


def _allocate(
    x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, low: Sequence[int], size: Sequence[int], dilation: Pair,  # noqa: ARG001
    circular: bool = False,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    memory: Tensor = operators.empty((x.shape[0], *size, _channels(x, d, c)[3]), x.dtype, x.device)
    return memory.movedim(-1, 1)


def _launch(
    x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, low: Sequence[int], size: Sequence[int], dilation: Pair,
    circular: bool = False,
) -> Tensor:  # fmt: skip
    y = _allocate(x, a, d, c, low, size, dilation)
    if not y.numel():
        return y
    channels = _channels(x, d, c)
    key = (str(x.dtype), *map(triton.next_power_of_2, (*channels, *d.shape[-2:], x.shape[0], *size)), *dilation, d.ndim)
    reach = padding.reach(d.shape[-2:], dilation)
    tiles = strips.configurations(channels, reach, d.ndim == 4, d.dtype, x.shape[0], size)
    tile = tuning.chosen("pointwise_depthwise", key, tiles).fitted(size)
    down, across = (triton.cdiv(n, m) for n, m in zip(size, (tile.high, tile.wide), strict=True))
    lanes = x.shape[0] * down * across
    dq, dr, da, db = d.stride() if d.ndim == 4 else (d.stride(0), 0, *d.stride()[1:])
    strides = [*x.stride(), *(a.stride() if a is not None else (0, 0)), dq, dr, da, db]
    _kernel[(triton.cdiv(lanes, tile.lanes),)](
        x, x if a is None else a, d, x if c is None else c, y, lanes, *x.shape[2:], *size, down, across, *low,
        *strides, *(c.stride() if c is not None else (0, 0)),
        **_constants(channels, d.shape, dilation, circular, a is not None, c is not None, x.dtype, tile),
        **_options(tile),
    )  # fmt: skip
    return y


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def _pull(
    needs: Sequence[bool], x: Tensor, a: Tensor | None, d: Tensor, c: Tensor | None, low: Sequence[int],
    size: Sequence[int], dilation: Pair, circular: bool, gradient: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of x, a, d, c."""
    to_x = None
    if needs[0]:
        turned = d.flip(-2, -1)
        before = [reach - lo for reach, lo in zip(padding.reach(d.shape[-2:], dilation), low, strict=True)]
        to_x = torch.ops.convein.pointwise_depthwise(
            padding.folded(gradient, x.shape[2:]) if circular else gradient,
            None if c is None else c.t(), turned.transpose(0, 1) if d.ndim == 4 else turned,
            None if a is None else a.t(), before, x.shape[2:], dilation, circular,
        )  # fmt: skip
    if not any(needs[1:4]):
        return (to_x, *[None] * 7)
    shape = (gradient.shape[1], x.shape[1], *d.shape[-2:])
    image = padding.around(x, padding.sides(x.shape[2:], d.shape[-2:], low, size, dilation), circular=circular)
    dense = conv2d_weight(image, shape, gradient, dilation=dilation)
    given = [m for m in (a, d, c) if m is not None]

    def of(*factors: Tensor) -> Tensor:
        left = list(factors)
        return composed(*[None if m is None else left.pop(0) for m in (a, d, c)])  # type: ignore[arg-type]

    to_factors = iter(torch.func.vjp(of, *given)[1](dense))
    return (to_x, *[None if m is None else next(to_factors) for m in (a, d, c)], *[None] * 4)


operators.register(
    "pointwise_depthwise(Tensor x, Tensor? a, Tensor d, Tensor? c, SymInt[] low, SymInt[] size, int[] dilation,"
    " bool circular=False) -> Tensor",
    _launch,
    _allocate,
)
operators.differentiate("pointwise_depthwise", _pull)


# The largest layers of each tile that the kernel is made for: channels, filter size, whether d is dense and the image
# circular, type.
LARGEST = [
    ((64, 16, 16, 64), 3, False, False, torch.bfloat16),
    ((128, 64, 64, 128), 3, False, False, torch.float16),
    ((128, 128, 128, 128), 3, False, True, torch.bfloat16),
    ((64, 64, 64, 64), 5, False, False, torch.bfloat16),
    ((128, 128, 128, 128), 3, False, False, torch.float32),
    ((64, 32, 32, 64), 3, True, True, torch.bfloat16),
    ((128, 32, 32, 128), 3, True, False, torch.float16),
    ((128, 64, 64, 128), 3, True, False, torch.bfloat16),
    ((128, 32, 32, 128), 3, True, False, torch.float32),
]


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU, for the layers above, channels last.

    Each tile in one width: that is only the number of rounds of a loop.
    """
    for channels, k, dense, circular, dtype in LARGEST:
        for tile in strips.configurations(channels, (k - 1, k - 1), dense, dtype, 128, (56, 56)):
            if tile.wide != strips.WIDTHS[0]:
                continue
            d = (*channels[2:0:-1], k, k) if dense else (channels[1], k, k)
            constants = _constants(channels, d, (1, 1), circular, True, True, dtype, tile)
            constants |= {"xs": 1, "as_": 1, "cq": 1, "db": 1}
            names = [name for name in _kernel.arg_names if name not in constants]
            kind = f"*{FLOATS[dtype].name}"
            types = {name: kind if name in "xadcy" else "i32" for name in names}
            yield Build(_kernel, types, constants, _options(tile), matrix=True)
