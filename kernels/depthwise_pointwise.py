"""A depthwise convolution as the prologue of a matrix product: a separable layer of any number of channels.

A program takes some pixels and all outputs, if they fit. It convolves one block of channels in registers, multiplies it
by its factors, and adds that to the outputs: what lies between the convolutions is never written. Nine taps read the
same pixels, which the first-level cache keeps; for every further block of outputs they are convolved again.

The operator keeps x and the factors. The gradient of x is `pointwise_depthwise` where that takes it, else two calls of
torch. Those of the factors come from the gradient of the one dense kernel that they make, or, of more channels, from
what lies between the convolutions, computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from convein.kernels import operators, padding, pointwise_depthwise, tuning
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Pair = tuple[int, int]

# Multiplications of the matrix units while a GPU reads or writes one number of two bytes (H200: 395e12 / 2.15e12).
BALANCE = 184
# The most outputs of one program, and multiprocessors of a GPU.
WIDEST, PROCESSORS = 512, 132
# Pixels that a program could convolve while it loads a block of c, by their instructions.
LOADING = 24
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


def reference(
    x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:
    """What the kernel computes, (batch, t, *size): pixel o of the output reads from stride o - low on.

    Args:
        x: (batch, r, h, w).
        d: (r, kh, kw), depthwise.
        c: (t, r), pointwise.
        stride: of d.
        low: zeros before the first row and column; a negative number leaves out as many.
        size: rows and columns of the output, what is missing behind the last ones is zero too.
        dilation: of d.
    """
    x = F.pad(x, padding.sides(x.shape[2:], d.shape[1:], low, size, dilation, stride))
    h = F.conv2d(x, d[:, None], stride=stride, dilation=dilation, groups=d.shape[0])
    return F.conv2d(h, c[:, :, None, None])


def depthwise_pointwise(
    x: Tensor, d: Tensor, c: Tensor, *, stride: Pair = (1, 1), low: Pair = (0, 0), size: Pair, dilation: Pair = (1, 1)
) -> Tensor:
    """`reference` by one kernel, channels last, with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    operators.demand(refusal(x, d, c, stride, low, size, dilation))
    result: Tensor = torch.ops.convein.depthwise_pointwise(x, d, c, stride, low, size, dilation)
    return result


def refusal(
    x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair  # noqa: ARG001
) -> str | None:  # fmt: skip
    """Why the kernel does not take these, in a clause; None if it does."""
    if (x.ndim, d.ndim, c.ndim) != (4, 3, 2) or len({x.shape[1], d.shape[0], c.shape[1]}) > 1:
        shapes = ", ".join(str(tuple(m.shape)) for m in (x, d, c))
        return f"x, d and c are {shapes}, and not (b, r, h, w), (r, kh, kw), (t, r)"
    if sum((n - 1) * step for n, step in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31:
        return "an image spans more than 2**31 numbers"
    if x.shape[0] * prod(size) >= 2**30:
        return "there are 2**30 pixels or more"
    reason: str | None = operators.refusal_of_products(x, d, c)
    return reason


@triton.jit
def _kernel(
    x, d, c, y, pixels, high, wide, rows, columns, low_h, low_w, xn, xr, xh, xw, ct, cr,
    R: tl.constexpr, T: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TYPE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    t = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    place = pixel % (rows * columns)
    top, left = place // columns * BH - low_h, place % columns * BW - low_w
    corner = x + (pixel // (rows * columns)).to(tl.int64) * xn + (top * xh + left * xw)
    total = tl.full((PIXELS, OUTPUTS), 0, TYPE)
    for start in range(0, R, INNER):
        r = start + tl.arange(0, INNER)
        there = (pixel < pixels)[:, None] & (r < R)[None]
        at = corner[:, None] + r[None] * xr
        # Not unrolled by hand: triton would change the layout of every tap's pixels, and not of their sum.
        h = tl.full((PIXELS, INNER), 0, TYPE)
        for tap in range(TAPS):
            row, column = top + tap // KW * DH, left + tap % KW * DW
            real = ((row >= 0) & (row < high) & (column >= 0) & (column < wide))[:, None] & there
            value = tl.load(at + (tap // KW * DH * xh + tap % KW * DW * xw), mask=real, other=0)
            h += value.to(TYPE) * tl.load(d + tap * R + r, mask=r < R, other=0)[None]
        factor = tl.load(c + r[:, None] * cr + t[None] * ct, mask=(r[:, None] < R) & (t[None] < T), other=0)
        total = tl.dot(h.to(FACTOR), factor.to(FACTOR), acc=total, input_precision=PRECISION, out_dtype=TYPE)
    out = pixel.to(tl.int64)[:, None] * T + t[None]
    tl.store(y + out, total.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None] & (t[None] < T))


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one program: so many pixels and outputs, channels convolved at once, and warps."""

    pixels: int
    outputs: int
    inner: int
    warps: int


def configurations(pixels: int, outputs: int) -> tuple[Tile, ...]:
    """Tiles for so many pixels and outputs of a layer, that which should be the fastest first.

    All outputs in one program, or half of them: whoever has more convolves the same pixels again. Time goes with the
    pixels that the busiest multiprocessor convolves.
    """
    if INTERPRETED:
        return (Tile(16, 16, 16, 4),)
    widest = min(WIDEST, _padded(outputs))
    if widest == 512:
        tiles = [(64, 512, 8), (128, 256, 8), (64, 256, 8), (64, 256, 4)]
    elif widest == 256:
        tiles = [(128, 256, 8), (64, 256, 8), (64, 256, 4), (128, 128, 8), (64, 128, 4)]
    else:
        tiles = [(128, widest, 8), (128, widest, 4), (64, widest, 4)]

    def busiest(tile: Tile) -> int:
        programs = triton.cdiv(pixels, tile.pixels) * triton.cdiv(outputs, tile.outputs)
        return int(triton.cdiv(programs, PROCESSORS)) * (tile.pixels + LOADING)

    return tuple(sorted((Tile(rows, wide, 32, warps) for rows, wide, warps in tiles), key=busiest))


def _padded(outputs: int) -> int:
    """The next power of two that the matrix units take."""
    return max(16, int(triton.next_power_of_2(outputs)))


def _constants(
    d: Sequence[int], outputs: int, stride: Pair, dilation: Pair, dtype: torch.dtype, tile: Tile
) -> dict[str, Any]:
    """The compile-time arguments."""
    TYPE = tl.float64 if dtype is torch.float64 else tl.float32
    # The interpreter cannot compute with bfloat16, only load and store it.
    FACTOR = TYPE if INTERPRETED and dtype is torch.bfloat16 else FLOATS[dtype]
    constants: dict[str, Any] = {"R": d[0], "T": outputs, "TAPS": d[1] * d[2], "KW": d[2]}
    constants |= {"BH": stride[0], "BW": stride[1], "DH": dilation[0], "DW": dilation[1]}
    constants |= {"PIXELS": tile.pixels, "OUTPUTS": tile.outputs, "INNER": tile.inner}
    return constants | {"TYPE": TYPE, "FACTOR": FACTOR, "PRECISION": "ieee" if INTERPRETED else "tf32"}


def _allocate(
    x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair  # noqa: ARG001
) -> Tensor:  # fmt: skip
    memory: Tensor = operators.empty((x.shape[0], *size, c.shape[0]), x.dtype, x.device)
    return memory.movedim(-1, 1)


def _launch(
    x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:
    y = _allocate(x, d, c, stride, low, size, dilation)
    if not y.numel():
        return y
    pixels, outputs = y.numel() // c.shape[0], c.shape[0]
    key = (str(x.dtype), *map(triton.next_power_of_2, (pixels, *c.shape, *d.shape[1:])))
    tile = tuning.chosen("depthwise_pointwise", key, configurations(pixels, outputs))
    taps = d.permute(1, 2, 0).to(torch.promote_types(d.dtype, torch.float32)).contiguous()
    _kernel[(triton.cdiv(pixels, tile.pixels), triton.cdiv(outputs, tile.outputs))](
        x, taps, c, y, pixels, *x.shape[2:], *size, *low, *x.stride(), *c.stride(),
        **_constants(d.shape, outputs, stride, dilation, x.dtype, tile), num_warps=tile.warps, **OPTIONS,
    )  # fmt: skip
    return y


def _adjoint(
    x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], dilation: Pair, gradient: Tensor
) -> tuple[Any, ...] | None:
    """What `pointwise_depthwise` makes the gradient of x from; None if it does not."""
    if max(stride) > 1:
        return None
    before = [span - lo for span, lo in zip(padding.reach(d.shape[1:], dilation), low, strict=True)]
    arguments = gradient, c.t(), d.flip(-2, -1), None, before, x.shape[2:], dilation
    return arguments if pointwise_depthwise.refusal(*arguments) is None else None


def _pull(
    needs: Sequence[bool], x: Tensor, d: Tensor, c: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],
    dilation: Pair, gradient: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of x, d, c."""
    (t, r), taps = c.shape, d.shape[1:]
    given: dict[str, Any] = {"stride": stride, "dilation": dilation}
    sides = padding.sides(x.shape[2:], taps, low, size, dilation, stride)
    image = F.pad(x, sides)
    to_x = to_d = to_c = inner = None
    # What multiplying costs against what depthwise convolutions of torch read and write, counted twice.
    dense = needs[1] and prod(taps) * r * t <= BALANCE * (12 * r + 2 * t)
    fused = _adjoint(x, d, c, stride, low, dilation, gradient) if needs[0] else None
    if (needs[0] and fused is None) or (needs[1] and not dense):
        inner = F.conv2d(gradient, c.t()[:, :, None, None])
    if fused is not None:
        to_x = torch.ops.convein.pointwise_depthwise(*fused)
    elif needs[0]:
        to_x = F.pad(conv2d_input(image.shape, d[:, None], inner, groups=r, **given), [-side for side in sides])
    if dense:
        kernel = conv2d_weight(image, (t, r, *taps), gradient, **given)
        to_d = torch.einsum("tr,trab->rab", c, kernel)
        to_c = torch.einsum("rab,trab->tr", d, kernel) if needs[2] else None
    elif needs[1]:
        to_d = conv2d_weight(image, (r, 1, *taps), inner, groups=r, **given)[:, 0]
    if needs[2] and not dense:
        to_c = torch.einsum("brhw,bthw->tr", F.conv2d(image, d[:, None], groups=r, **given), gradient)
    return to_x, to_d, to_c, None, None, None, None


operators.register(
    "depthwise_pointwise(Tensor x, Tensor d, Tensor c, int[] stride, SymInt[] low, SymInt[] size, int[] dilation)"
    " -> Tensor",
    _launch,
    _allocate,
)
operators.differentiate("depthwise_pointwise", _pull)


# Channels, outputs and type: between them, every tile that is offered.
LARGEST = [
    (64, 64, torch.bfloat16),
    (128, 128, torch.bfloat16),
    (512, 512, torch.bfloat16),
    (256, 256, torch.float16),
    (512, 512, torch.float32),
]


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU: all tiles of the layers above, filters of 3 x 3, channels last."""
    for r, t, dtype in LARGEST:
        for tile in configurations(2**20, t):
            constants = _constants((r, 3, 3), t, (1, 1), (1, 1), dtype, tile) | {"xr": 1, "cr": 1}
            kinds = dict.fromkeys("xcy", f"*{FLOATS[dtype].name}") | {"d": "*fp32"}
            types = {name: kinds.get(name, "i32") for name in _kernel.arg_names if name not in constants}
            yield Build(_kernel, types, constants, {"num_warps": tile.warps, **OPTIONS}, matrix=True)
