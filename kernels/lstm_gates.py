"""The pointwise part of an LSTM's step: from the gates i, f, o, g and the cell state to h and the next cell state.

One pass reads 5 numbers and writes 2 for every entry of h; the backward pass computes the gates again, so z and the
cell state are all that is kept. Any number of dimensions after the channels, which lie contiguous or last.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from convein.kernels import operators
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor

BLOCK = 64 if INTERPRETED else 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def reference(z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernel computes: h and the next cell state, both (batch, channels, ...).

    Args:
        z: (batch, 4 channels, ...), the gates i, f, o, g side by side, before their activations.
        cell: (batch, channels, ...), the cell state.
    """
    i, f, o, g = z.chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def refusal(z: Tensor, cell: Tensor) -> str | None:
    """Why the kernel does not take these, in a clause; None if it does."""
    if z.ndim < 2 or z.ndim != cell.ndim or z.shape != (cell.shape[0], 4 * cell.shape[1], *cell.shape[2:]):
        return f"gates {tuple(z.shape)} are not four times the cell state {tuple(cell.shape)} along the channels"
    if prod(cell.shape[1:]) >= 2**30:
        return "a cell state has 2**30 entries or more"
    reason: str | None = operators.refusal(z, cell)
    return reason


def lstm_gates(z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """`reference` by one kernel, and its gradients by another one.

    Raises:
        ValueError: `refusal` says why.
    """
    operators.demand(refusal(z, cell))
    result: tuple[Tensor, Tensor] = torch.ops.convein.lstm_gates(z, cell)
    return result


@triton.jit
def _tanh(x):
    value = 2 * tl.sigmoid(2 * x) - 1
    if x.dtype == tl.float32:
        # The difference above loses the digits of a small x; here the series is exact to float32.
        s = x * x
        series = x * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835)))))
        value = tl.where(tl.abs(x) < 0.25, series, value)
    return value


@triton.jit
def _place(count, run, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, places in them, and whether they exist, of this program's entries; a row has `run` entries."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    # One division in 64 bits for all entries; the rest fits in 32.
    start = (first % run).to(tl.int32)
    if ALIGNED:
        # Older versions of triton forget in the cast what the remainder is a multiple of.
        start = tl.multiple_of(start, 16)
    local = start + tl.arange(0, BLOCK)
    rows = first // run + local // run
    return rows, local % run, first + tl.arange(0, BLOCK) < count


@triton.jit
def _forward(
    z, cell, h, new, count, run, z_row, cell_row, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    rows, j, real = _place(count, run, ALIGNED, BLOCK)
    at = z + rows * z_row + j
    i = tl.sigmoid(tl.load(at, mask=real, other=0).to(TYPE))
    f = tl.sigmoid(tl.load(at + run, mask=real, other=0).to(TYPE))
    o = tl.sigmoid(tl.load(at + 2 * run, mask=real, other=0).to(TYPE))
    g = _tanh(tl.load(at + 3 * run, mask=real, other=0).to(TYPE))
    c = f * tl.load(cell + rows * cell_row + j, mask=real, other=0).to(TYPE) + i * g
    out = rows * run + j
    tl.store(new + out, c.to(new.dtype.element_ty), mask=real)
    tl.store(h + out, (o * _tanh(c)).to(h.dtype.element_ty), mask=real)


@triton.jit
def _backward(
    z, cell, to_h, to_new, to_z, to_cell, count, run, z_row, cell_row,
    h_row, new_row, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, j, real = _place(count, run, ALIGNED, BLOCK)
    at = z + rows * z_row + j
    i = tl.sigmoid(tl.load(at, mask=real, other=0).to(TYPE))
    f = tl.sigmoid(tl.load(at + run, mask=real, other=0).to(TYPE))
    o = tl.sigmoid(tl.load(at + 2 * run, mask=real, other=0).to(TYPE))
    g = _tanh(tl.load(at + 3 * run, mask=real, other=0).to(TYPE))
    c = tl.load(cell + rows * cell_row + j, mask=real, other=0).to(TYPE)
    dh = tl.load(to_h + rows * h_row + j, mask=real, other=0).to(TYPE)
    dc = tl.load(to_new + rows * new_row + j, mask=real, other=0).to(TYPE)
    t = _tanh(f * c + i * g)
    dc += dh * o * (1 - t * t)
    out = to_z + rows * (4 * run) + j
    kind = to_z.dtype.element_ty
    tl.store(out, (dc * g * i * (1 - i)).to(kind), mask=real)
    tl.store(out + run, (dc * c * f * (1 - f)).to(kind), mask=real)
    tl.store(out + 2 * run, (dh * t * o * (1 - o)).to(kind), mask=real)
    tl.store(out + 3 * run, (dc * i * (1 - g * g)).to(kind), mask=real)
    tl.store(to_cell + rows * run + j, (dc * f).to(to_cell.dtype.element_ty), mask=real)


def _last(z: Tensor) -> bool:
    """Whether the channels are the fastest dimension."""
    return not z.is_contiguous() and z.stride(1) == 1


def _rows(x: Tensor, last: bool) -> Tensor:
    """A matrix whose rows are contiguous, one for each pixel (channels last) or example. Copied if need be."""
    rows = x.movedim(1, -1).flatten(0, -2) if last else x.flatten(1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _allocate(like: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """Memory for a result of this shape: channels last or contiguous."""
    memory: Tensor = operators.empty(like.movedim(1, -1).shape if last else like.shape, dtype, like.device)
    return memory.movedim(-1, 1) if last else memory


def _allocate_forward(z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    last, dtype = _last(z), torch.promote_types(z.dtype, cell.dtype)
    return _allocate(cell, dtype, last), _allocate(cell, dtype, last)


def _allocate_backward(z: Tensor, cell: Tensor, to_h: Tensor, to_new: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    last = _last(z)
    return _allocate(z, z.dtype, last), _allocate(cell, cell.dtype, last)


def _launch(kernel: Any, last: bool, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    count = inputs[1].numel()
    if not count:
        return
    rows = [_rows(x, last) for x in inputs]
    strides = [x.stride(0) for x in rows]
    run = rows[1].shape[1]
    kernel[(triton.cdiv(count, BLOCK),)](
        *rows, *outputs, count, run, *strides,
        TYPE=operators.accumulator(*inputs), ALIGNED=run % 16 == 0, BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip


def _run_forward(z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    results = _allocate_forward(z, cell)
    _launch(_forward, _last(z), (z, cell), results)
    return results


def _run_backward(z: Tensor, cell: Tensor, to_h: Tensor, to_new: Tensor) -> tuple[Tensor, Tensor]:
    results = _allocate_backward(z, cell, to_h, to_new)
    _launch(_backward, _last(z), (z, cell, to_h, to_new), results)
    return results


operators.register("lstm_gates(Tensor z, Tensor cell) -> (Tensor, Tensor)", _run_forward, _allocate_forward)
operators.register(
    "lstm_gates_backward(Tensor z, Tensor cell, Tensor to_h, Tensor to_new) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)
_twice = operators.pulled(operators.pulled(reference, 2), 4)
operators.differentiate("lstm_gates", lambda _, *tensors: torch.ops.convein.lstm_gates_backward(*tensors))
operators.differentiate("lstm_gates_backward", lambda _, *tensors: _twice(*tensors))


def builds() -> Iterator[Build]:
    """Everything that the launcher asks triton for on a GPU, by the type of z and of the cell state."""
    for dtype in FLOATS:
        kind = FLOATS[dtype].name
        constants = {"TYPE": operators.accumulator(torch.empty(0, dtype=dtype)), "ALIGNED": True, "BLOCK": 1024}
        for kernel, tensors, strides in ((_forward, 4, 2), (_backward, 6, 4)):
            names = kernel.arg_names[: tensors + 2 + strides]
            types = dict(zip(names, [f"*{kind}"] * tensors + ["i32"] * (2 + strides), strict=True))
            yield Build(kernel, types, constants, OPTIONS)
