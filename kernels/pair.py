"""The product of two tensors, summed and convolved along any of their modes, wherever their numbers lie.

A product of matrices whose entries are found by vectors of offsets (`offsets.py`): no operand is brought into another
order first, and no window is copied. The gradients are products of the same kind: with i = s o + d u - lo for places i
of the signal, u of the filter and o of the result, any of the three may be what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from convein.kernels import adjoint, operators, tuning
from convein.kernels.equation import grouped, misfit, terms
from convein.kernels.offsets import Layout, layout, reach
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor

# Programs that fill a GPU, and steps at least that a program makes before sums are split.
PROGRAMS, STEPS = (4, 2) if INTERPRETED else (132, 8)


def reference(
    x: Tensor, w: Tensor, equation: str, convolved: str, stride: Sequence[int], dilation: Sequence[int],
    low: Sequence[int], size: Sequence[int],
) -> Tensor:  # fmt: skip
    """What the kernel computes.

    Args:
        x: the first operand, along convolved modes the signal.
        w: the second one, the filter. Nothing is reversed.
        equation: "bshw,tshw->bthw", a letter a mode. A mode is in two of the three terms at least, and in none twice.
        convolved: the modes that are convolved, each in all three terms: "hw".
        stride: s for each convolved mode: the result's entry o reads the signal at s * o + d * u - low for all entries
            u of the filter, and a zero where the signal has none. May be negative.
        dilation: d, likewise.
        low: zeros before the signal.
        size: of the result.
    """
    X, W, out = terms(equation)
    names = dict(zip(convolved, _unused(equation), strict=False))
    for mode, s, d, lo, n in zip(convolved, stride, dilation, low, size, strict=True):
        at, given = X.index(mode), x.shape[X.index(mode)]
        places = s * torch.arange(n)[:, None] + d * torch.arange(w.shape[W.index(mode)]) - lo
        # What is outside reads the zero behind the last entry.
        places = places.where((places >= 0) & (places < given), given).to(x.device)
        x = F.pad(x, [0, 0] * (x.ndim - at - 1) + [0, 1]).index_select(at, places.flatten())
        x = x.unflatten(at, places.shape)
        X = X[:at] + mode + names[mode] + X[at + 1 :]
    taps = "".join(names.get(mode, mode) for mode in W)
    return torch.einsum(f"{X},{taps}->{out}", x, w)


def _unused(equation: str) -> list[str]:
    return [letter for letter in map(chr, [*range(65, 91), *range(97, 123)]) if letter not in equation]


def pair(
    x: Tensor, w: Tensor, equation: str, convolved: Mapping[str, tuple[int, int, int, int]] | None = None
) -> Tensor:
    """`reference` by one kernel, with gradients of any order; the modes of w alone are the fastest of the result.

    Args:
        x: the first operand.
        w: the second one.
        equation: as there.
        convolved: (stride, dilation, low, size) of the convolved modes.

    Raises:
        ValueError: `refusal` says why.
    """
    options = convolved or {}
    modes, steps = "".join(options), [[one[at] for one in options.values()] for at in range(4)]
    operators.demand(refusal(x, w, equation, modes, *steps))
    result: Tensor = torch.ops.convein.pair(x, w, equation, modes, *steps)
    return result


def refusal(
    x: Tensor, w: Tensor, equation: str, convolved: str, stride: Sequence[int], dilation: Sequence[int],
    low: Sequence[int], size: Sequence[int],
) -> str | None:  # fmt: skip
    """Why the kernel does not take these, in a clause; None if it does."""
    options = (stride, dilation, low, size)
    reason: str | None = misfit(x, w, equation, convolved, options) or operators.refusal_of_products(x, w)
    if reason is not None:
        return reason
    plan = _layout(x, w, equation, convolved, *options)
    if max(reach(plan), plan.batch.size * plan.rows.size * plan.columns.size) >= 2**31:
        return "a tensor spans more than 2**31 numbers"
    for name in "xw" if x.device.type == "cuda" else ():
        read = plan.vector(name) * x.dtype.itemsize
        if read < 16:
            return f"{name} could be read {read} bytes at a time, not 16, as its numbers lie"
    if x.device.type == "cuda" and plan.order is not None and 4 * prod(w.shape) > prod(x.shape):
        return "w would be copied first, as its numbers lie, and it is not small"
    return None


def _layout(x: Tensor, w: Tensor, equation: str, convolved: str, *options: Sequence[int]) -> Layout:
    plan: Layout = layout(
        tuple(x.shape), tuple(x.stride()), tuple(w.shape), tuple(w.stride()), x.dtype.itemsize,
        equation, convolved, *map(tuple, options),
    )  # fmt: skip
    return plan


@triton.jit
def _kernel(
    x, w, y, x_batch, x_rows, x_inner, w_batch, w_columns, w_inner, row_places, inner_places, limits,
    rows, columns, inner, row_period, inner_period, row_turn, x_turn, w_turn, steps, part, parts,
    TESTED: tl.constexpr, TURNS: tl.constexpr, EXISTS: tl.constexpr,
    ROW_GROUP: tl.constexpr, ROW_ALIKE: tl.constexpr, INNER_ALIKE: tl.constexpr,
    XB: tl.constexpr, XR: tl.constexpr, XRM: tl.constexpr, XI: tl.constexpr, XIM: tl.constexpr,
    WB: tl.constexpr, WC: tl.constexpr, WCM: tl.constexpr, WI: tl.constexpr, WIM: tl.constexpr,
    TYPE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    # Programs side by side share the rows or the columns that they read: eight tiles down, then one across.
    height, width = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    tile, matrix = tl.program_id(0) % (height * width), tl.program_id(0) // (height * width)
    top = tile // (8 * width) * 8
    band = tl.minimum(height - top, 8)
    down = (top + tile % (8 * width) % band) * ROWS
    m = down + tl.arange(0, ROWS)
    n = tile % (8 * width) // band * COLUMNS + tl.arange(0, COLUMNS)
    image = x + tl.multiple_of(tl.load(x_batch + matrix // parts), XB)
    weights = w + tl.multiple_of(tl.load(w_batch + matrix // parts), WB)
    # Vectors are as long as a turn. Rows that are not there read what the first ones read.
    turn, real = down // row_period, m < rows
    row = tl.where(real, m - turn * row_period, m % ROW_GROUP)
    at_row = tl.load(x_rows + row) + tl.where(real, turn * row_turn, 0)
    at_row = tl.max_contiguous(tl.multiple_of(at_row, XRM), XR)
    at_column = tl.max_contiguous(tl.multiple_of(tl.load(w_columns + n), WCM), WC)
    places = ()
    for mode in tl.static_range(TESTED):
        place = tl.max_constancy(tl.load(row_places + mode * row_period + row), ROW_ALIKE)
        places += (place[:, None],)  # type: ignore[assignment]
    total = tl.full((ROWS, COLUMNS), 0, TYPE)
    first = matrix % parts * part
    for step in range(first, tl.minimum(first + part, steps)):
        k = step * INNER + tl.arange(0, INNER)
        at, signal, taps = k, image, weights
        if TURNS:
            turn = step * INNER // inner_period
            at = step * INNER - turn * inner_period + tl.arange(0, INNER)
            signal += tl.multiple_of(turn * x_turn, XIM)
            taps += tl.multiple_of(turn * w_turn, WIM)
        x_at = tl.max_contiguous(tl.multiple_of(tl.load(x_inner + at), XIM), XI)
        w_at = tl.max_contiguous(tl.multiple_of(tl.load(w_inner + at), WIM), WI)
        # The vectors of offsets go on beyond the inner sum, the operands do not.
        exists = tl.max_constancy(k < inner, EXISTS)
        inside = exists[None]
        for mode in tl.static_range(TESTED):
            across = tl.max_constancy(tl.load(inner_places + mode * inner_period + at), INNER_ALIKE)
            where = places[mode] + across[None]
            inside = inside & (where >= 0) & (where < tl.load(limits + mode))
        a = tl.load(signal + (at_row[:, None] + x_at[None]), mask=inside, other=0).to(FACTOR)
        b = tl.load(taps + (w_at[:, None] + at_column[None]), mask=exists[:, None], other=0).to(FACTOR)
        total = tl.dot(a, b, acc=total, input_precision=PRECISION, out_dtype=TYPE)
    out = y + matrix.to(tl.int64) * rows * columns + ((m * columns)[:, None] + n[None])
    tl.store(out, total.to(y.dtype.element_ty), mask=real[:, None] & (n < columns)[None])


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and entries of the inner sum of a step, and how many warps and stages of the pipeline it has."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """What triton is asked for."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@lru_cache
def configurations(columns: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Tiles for products with so many columns, the best guess first."""
    if INTERPRETED:
        return (Tile(16, 16, 16, 4, 1),)
    inner = 32 if dtype is torch.float32 else 64
    if columns > 64:
        sizes = [(128, 128, 8, 3), (128, 64, 4, 4), (64, 128, 4, 4), (64, 64, 4, 4)]
    elif columns > 32:
        sizes = [(128, 64, 4, 4), (64, 64, 4, 4), (128, 64, 8, 3)]
    else:
        sizes = [(128, 32, 4, 4), (64, 32, 4, 4)]
    return tuple(Tile(down, across, inner, warps, stages) for down, across, warps, stages in sizes)


@lru_cache(maxsize=4096)
def _key(plan: Layout, dtype: torch.dtype) -> tuple[int | str, ...]:
    """What the best tile depends on."""
    axes = (plan.batch, plan.rows, plan.columns, plan.inner)
    sizes = [int(triton.next_power_of_2(axis.size)) for axis in axes]
    along = "inner" if plan.hints("x")["inner"][0] > 1 else "rows"
    return (str(dtype), *sizes, along, len(plan.tested))


@lru_cache(maxsize=256)
def _vectors(plan: Layout, device: torch.device) -> tuple[Tensor, ...]:
    """The offsets of both tensors, places along convolved modes and their limits, as the kernel takes them."""
    rows = plan.rows.offsets("x") + plan.start
    row_places = [plan.rows.places(at) - plan.low[at] for at in plan.tested]
    inner_places = [plan.inner.places(at) for at in plan.tested]
    vectors = [
        plan.batch.offsets("x"), rows, plan.inner.offsets("x"), plan.batch.offsets("w"), plan.columns.offsets("w"),
        plan.inner.offsets("w"), *[torch.cat(x) if x else rows[:0] for x in (row_places, inner_places)],
        torch.tensor([plan.high[at] for at in plan.tested], dtype=torch.int32),
    ]  # fmt: skip
    return tuple(x.to(device) for x in vectors)


@lru_cache(maxsize=4096)
def _constants(plan: Layout, dtype: torch.dtype, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments."""
    x, w = plan.hints("x"), plan.hints("w")
    wide = dtype is torch.float64
    TYPE = tl.float64 if wide else tl.float32
    # The interpreter cannot compute with bfloat16, only load and store it.
    FACTOR = TYPE if INTERPRETED and dtype is torch.bfloat16 else FLOATS[dtype]
    constants: dict[str, Any] = {"TESTED": len(plan.tested), "EXISTS": gcd(plan.inner.size, 16)}
    constants |= {"TURNS": plan.inner.turn < plan.inner.slowest, "ROW_GROUP": gcd(plan.rows.size, 16)}
    constants |= {"ROW_ALIKE": plan.rows.constancy(plan.tested), "INNER_ALIKE": plan.inner.constancy(plan.tested)}
    for prefix, tensor, outer, hints in (("X", "x", "R", x), ("W", "w", "C", w)):
        constants[f"{prefix}B"] = plan.batch.multiple(tensor, 1)
        constants[f"{prefix}{outer}"], constants[f"{prefix}{outer}M"] = hints["outer"]
        constants[f"{prefix}I"], constants[f"{prefix}IM"] = hints["inner"]
    constants |= {"TYPE": TYPE, "FACTOR": FACTOR, "PRECISION": "ieee" if INTERPRETED else "tf32"}
    return constants | {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner}


def _allocate(
    x: Tensor, w: Tensor, equation: str, convolved: str, stride: Sequence[int], dilation: Sequence[int],
    low: Sequence[int], size: Sequence[int],  # noqa: ARG001
) -> Tensor:  # fmt: skip
    """The result: a batch of matrices as they come, the modes in the order of the equation."""
    X, W, out = terms(equation)
    batch, rows, columns, _ = grouped(x.stride(), w.stride(), equation, convolved, stride, dilation)
    sizes = dict(zip(W, w.shape, strict=True)) | dict(zip(X, x.shape, strict=True))
    sizes |= dict(zip(convolved, size, strict=True))
    order = [*batch, *rows, *columns]
    memory: Tensor = operators.empty([sizes[mode] for mode in order], x.dtype, x.device)
    return memory.permute([order.index(mode) for mode in out])


def _launch(x: Tensor, w: Tensor, equation: str, convolved: str, *options: Sequence[int]) -> Tensor:
    y = _allocate(x, w, equation, convolved, *options)
    if not y.numel():
        return y
    plan = _layout(x, w, equation, convolved, *options)
    if not plan.inner.size:
        return y.zero_()
    if plan.order is not None:
        w = w.permute(plan.order).contiguous()
    tile = tuning.chosen("pair", _key(plan, x.dtype), configurations(plan.columns.size, x.dtype))
    matrices, rows, columns, inner = (axis.size for axis in (plan.batch, plan.rows, plan.columns, plan.inner))
    tiles, steps = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns), triton.cdiv(inner, tile.inner)
    # Long sums of few results are split; the parts are added afterwards and not by atomics.
    part = triton.cdiv(steps, max(1, min(PROGRAMS // (tiles * matrices), steps // STEPS)))
    parts = triton.cdiv(steps, part)
    wide = torch.promote_types(x.dtype, torch.float32)
    out = y if parts == 1 else operators.empty((matrices, parts, rows, columns), wide, x.device)
    vectors = _vectors(plan, x.device)
    _kernel[(tiles * matrices * parts,)](
        x, w, out, *vectors, rows, columns, inner, vectors[1].shape[0], vectors[2].shape[0],
        plan.rows.step("x"), plan.inner.step("x"), plan.inner.step("w"), steps, part, parts,
        **_constants(plan, x.dtype, tile), **tile.options(),
    )  # fmt: skip
    if parts > 1:
        y.as_strided((matrices, rows, columns), (rows * columns, columns, 1)).copy_(out.sum(1))
    return y


operators.register(
    "pair(Tensor x, Tensor w, str equation, str convolved, int[] stride, int[] dilation, SymInt[] low, SymInt[] size)"
    " -> Tensor",
    _launch,
    _allocate,
)
operators.differentiate("pair", adjoint.pull)


# Sizes of x and w, both contiguous, and what to do with them: matrices in a batch that lies inside; a pointwise
# convolution whose channels do not lie last; a convolution with a batch of filters, and the gradient of these.
CONVOLVED = ("hw", (1, 1), (1, 1), (1, 1))
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]] = {
    "matrices": ((1024, 16, 512), (16, 1024, 128), ("kbm,bkn->bmn", "", (), (), (), ())),
    "pointwise": ((128, 64, 56, 56), (64, 64), ("bshw,ts->bthw", "", (), (), (), ())),
    "batch": ((32, 28, 28, 16, 64), (16, 32, 64, 3, 3), ("bhwgs,gtshw->bhwgt", *CONVOLVED, (28, 28))),
    "filter": ((32, 28, 28, 16, 64), (32, 28, 28, 16, 64), ("bhwgs,bhwgt->gtshw", *CONVOLVED, (3, 3))),
}


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU: the cases above, and each tile at least once."""
    for name, dtype in (
        *((name, torch.bfloat16) for name in CASES),
        ("batch", torch.float16),
        ("filter", torch.float32),
    ):
        x, w, arguments = CASES[name]
        equation, convolved, *options = arguments
        plan = layout(x, _contiguous(x), w, _contiguous(w), dtype.itemsize, equation, convolved, *options)
        for tile in configurations(plan.columns.size, dtype):
            constants = _constants(plan, dtype, tile) | {"parts": 1}
            kinds = dict.fromkeys("xwy", f"*{FLOATS[dtype].name}")
            kinds |= dict.fromkeys(_kernel.arg_names[3:12], "*i32")
            types = {name: kinds.get(name, "i32") for name in _kernel.arg_names if name not in constants}
            yield Build(_kernel, types, constants, tile.options(), matrix=True, wide=True)


def _contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(sizes[at + 1 :]) for at in range(len(sizes)))
