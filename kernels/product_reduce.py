"""The product of up to three tensors that broadcast, summed over some dimensions, without the product in memory.

Each gradient is a product of the other tensors, summed over what was broadcast: the same kernel, in any order. Long
sums of few results are split among programs, whose parts are added afterwards and not by atomics: a result is always
the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from convein.kernels import operators, tuning
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor

# Programs that fill a GPU; tiles at least that a program adds up before sums are split.
PROGRAMS, TILES = (4, 2) if INTERPRETED else (528, 8)


def reference(a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int]) -> Tensor:
    """What the kernel computes: the product, its dimensions `summed` gone.

    Args:
        a: of any number of dimensions.
        b: of as many dimensions, whose sizes are equal or 1; None for a tensor that is not there.
        c: as b.
        summed: dimensions, not negative, each once.
    """
    product = reduce(torch.mul, [x for x in (a, b, c) if x is not None])
    return product.sum(tuple(summed)) if summed else product


def refusal(a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int]) -> str | None:
    """Why the kernel does not take these, in a clause; None if it does."""
    tensors = [x for x in (a, b, c) if x is not None]
    shapes = " and ".join(str(tuple(x.shape)) for x in tensors)
    if len({x.ndim for x in tensors}) > 1 or any(len({*sizes} - {1}) > 1 for sizes in zip(*[x.shape for x in tensors])):
        return f"{shapes} do not broadcast dimension by dimension"
    if len({*summed}) < len(summed) or not {*summed} <= {*range(a.ndim)}:
        return f"the dimensions {tuple(summed)} are not those of {shapes}"
    shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    for kind, dimensions in zip(("results", "summands"), _split(a, summed), strict=True):
        if prod(shape[at] for at in dimensions) >= 2**30:
            return f"there are more than 2**30 {kind}"
    if len({x.dtype for x in tensors}) > 1:
        return f"the tensors are {' and '.join(sorted({str(x.dtype) for x in tensors}))}"
    reason: str | None = operators.refusal(*tensors)
    return reason


def product_reduce(a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int]) -> Tensor:
    """`reference` by one kernel, contiguous, with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    operators.demand(refusal(a, b, c, summed))
    result: Tensor = torch.ops.convein.product_reduce(a, b, c, list(summed))
    return result


@triton.jit
def _kernel(
    a, b, c, y, rows, columns, part, row_size, column_size, ar, ar1, ac, ac1, br, br1, bc, bc1, cr, cr1, cc, cc1,
    COUNT: tl.constexpr, FLAT: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Rows are results and columns their summands; both are two dimensions that do not merge, the inner one given.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * part
    r, r1 = (row // row_size).to(tl.int64), (row % row_size).to(tl.int64)
    total = tl.full((ROWS, COLUMNS), 0, TYPE)
    for start in range(0, part, COLUMNS):
        column = first + start + tl.arange(0, COLUMNS)
        k, k1 = tl.full((COLUMNS,), 0, tl.int64), column.to(tl.int64)
        if not FLAT:
            k, k1 = (column // column_size).to(tl.int64), (column % column_size).to(tl.int64)
        real = (row < rows)[:, None] & (column < columns)[None]
        at = (r * ar + r1 * ar1)[:, None] + (k * ac + k1 * ac1)[None]
        product = tl.load(a + at, mask=real, other=0).to(TYPE)
        if COUNT > 1:
            at = (r * br + r1 * br1)[:, None] + (k * bc + k1 * bc1)[None]
            product *= tl.load(b + at, mask=real, other=0).to(TYPE)
        if COUNT > 2:
            at = (r * cr + r1 * cr1)[:, None] + (k * cc + k1 * cc1)[None]
            product *= tl.load(c + at, mask=real, other=0).to(TYPE)
        total += product
    out = y + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(out, tl.sum(total, 1).to(y.dtype.element_ty), mask=row < rows)


@dataclass(frozen=True, slots=True)
class _Group:
    """Dimensions of one kind, merged into two: their size, that of the inner one, and both strides of each tensor."""

    size: int
    inner: int
    strides: tuple[tuple[int, int], ...]


def _merged(tensors: Sequence[Tensor], dimensions: Sequence[int]) -> _Group | None:
    """The dimensions of tensors of one shape as two; None if they do not merge."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for at in dimensions:
        size, strides = tensors[0].shape[at], tuple(x.stride(at) for x in tensors)
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, strides)
        else:
            merged.append((size, strides))
    if len(merged) > 2:
        return None
    none = (1, (0,) * len(tensors))
    (outer, far), (inner, near) = [none] * (2 - len(merged)) + merged
    return _Group(outer * inner, inner, tuple(zip(far, near, strict=True)))


def _split(a: Tensor, summed: Sequence[int]) -> tuple[list[int], list[int]]:
    return [at for at in range(a.ndim) if at not in summed], sorted(summed)


def _allocate(a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int]) -> Tensor:
    shape = torch.broadcast_shapes(*[x.shape for x in (a, b, c) if x is not None])
    kept, _ = _split(a, summed)
    memory: Tensor = operators.empty([shape[at] for at in kept], a.dtype, a.device)
    return memory


def _launch(a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int]) -> Tensor:
    y = _allocate(a, b, c, summed)
    if not y.numel():
        return y
    tensors = torch.broadcast_tensors(*[x for x in (a, b, c) if x is not None])
    if not tensors[0].numel():
        return y.zero_()
    groups = [_merged(tensors, dimensions) for dimensions in _split(a, summed)]
    if None in groups:
        kept, gone = _split(a, summed)
        tensors = [x.permute(*kept, *gone).contiguous() for x in tensors]
        groups = [_merged(tensors, range(len(kept))), _merged(tensors, range(len(kept), a.ndim))]
    rows, columns = groups
    assert rows is not None
    assert columns is not None
    across = _across(rows, columns)
    key = (str(a.dtype), len(tensors), int(across), *map(triton.next_power_of_2, (rows.size, columns.size)))
    chosen = tuning.chosen("product_reduce", key, configurations())
    tile = _shape(chosen, across, columns.size)
    blocks = triton.cdiv(rows.size, tile["ROWS"])
    parts = max(1, min(PROGRAMS // blocks, columns.size // (TILES * tile["COLUMNS"])))
    part = triton.cdiv(triton.cdiv(columns.size, parts), tile["COLUMNS"]) * tile["COLUMNS"]
    parts = triton.cdiv(columns.size, part)
    TYPE = operators.accumulator(a)
    wide = torch.promote_types(a.dtype, torch.float32)
    out = y if parts == 1 else operators.empty((parts, rows.size), wide, a.device)
    strides = [step for pair in zip(rows.strides, columns.strides, strict=True) for steps in pair for step in steps]
    pointers = [*tensors, *[a] * (3 - len(tensors))]
    _kernel[(blocks, parts)](
        *pointers, out, rows.size, columns.size, part, rows.inner, columns.inner, *strides, *[0] * (12 - len(strides)),
        COUNT=len(tensors), FLAT=columns.inner == columns.size, TYPE=TYPE, **tile, **_options(chosen),
    )  # fmt: skip
    return y if parts == 1 else y.copy_(out.sum(0).view(y.shape))


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one program: entries of each tensor that it reads at once, and warps."""

    entries: int
    warps: int


def configurations() -> tuple[Tile, ...]:
    """Tiles, that which should be the fastest first: memory is kept busy by what many threads wait for at once."""
    if INTERPRETED:
        return (Tile(64, 4),)
    return Tile(2048, 8), Tile(1024, 4), Tile(2048, 4), Tile(4096, 8)


def _across(rows: _Group, columns: _Group) -> bool:
    """Whether results lie side by side in memory, and their summands do not."""
    return any(near == 1 for _, near in rows.strides) and not any(near == 1 for _, near in columns.strides)


def _shape(tile: Tile, across: bool, summands: int) -> dict[str, int]:
    """Rows and columns of a tile: many of those that lie side by side."""
    wide = min(tile.entries // 128 or 2 if across else tile.entries, int(triton.next_power_of_2(summands)))
    return {"ROWS": tile.entries // wide, "COLUMNS": wide}


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "enable_fp_fusion": True}


def _pull(
    needs: Sequence[bool], a: Tensor, b: Tensor | None, c: Tensor | None, summed: Sequence[int], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a, b, c."""
    for at in sorted(summed):
        gradient = gradient.unsqueeze(at)
    results: list[Tensor | None] = []
    for place, x in enumerate((a, b, c)):
        if x is None or not needs[place]:
            results.append(None)
            continue
        others = [m for other, m in enumerate((a, b, c)) if m is not None and other != place]
        broadcast = torch.broadcast_shapes(gradient.shape, *[m.shape for m in others])
        gone = [at for at in range(x.ndim) if x.shape[at] == 1 and broadcast[at] != 1]
        value = torch.ops.convein.product_reduce(gradient, *others, *[None] * (2 - len(others)), gone)
        for at in gone:
            value = value.unsqueeze(at)
        results.append(value.expand(x.shape))
    return (*results, None)


operators.register("product_reduce(Tensor a, Tensor? b, Tensor? c, int[] summed) -> Tensor", _launch, _allocate)
operators.differentiate("product_reduce", _pull)


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU: sums along memory and across it, of two and three tensors."""
    for dtype in FLOATS:
        kind = f"*{FLOATS[dtype].name}"
        for count, across, flat in ((2, False, True), (3, False, False), (3, True, True)):
            # Three tensors take more of a program than two; the other types are no harder than these.
            most = None if count == 3 and dtype in {torch.bfloat16, torch.float64} else 1
            for tile in configurations()[:most]:
                unit = dict.fromkeys(("ar1", "br1", "cr1") if across else ("ac1", "bc1", "cc1"), 1)
                TYPE = operators.accumulator(torch.empty(0, dtype=dtype))
                constants = {"COUNT": count, "FLAT": flat, "TYPE": TYPE, **_shape(tile, across, 2**20), **unit}
                names = [name for name in _kernel.arg_names if name not in constants]
                types = {name: kind if name in set("abcy") else "i32" for name in names}
                yield Build(_kernel, types, constants, _options(tile))
