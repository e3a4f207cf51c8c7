"""Mean and variance of a convolution of random signs with random weights, in one pass.

A sign that is -1 with probability p has the mean 1 - 2p, the variance 4p(1 - p) and the square 1 whatever it is. With
weights of mean w and variance v the products have the means (1 - 2p) * w and the variances 4p(1 - p) * w**2 + v: two
convolutions that read the same pixels, and a third one of v alone, which no input changes. J. Su, "Spectral Methods for
Neural Network Designs", University of Maryland, 2022, chapter 5.

What the operator keeps is p and w. `dual_signs` has the next signs as the epilogue.
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
from convein.kernels import operators, padding, tuning
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Pair = tuple[int, int]

# Multiprocessors of a GPU, and pixels that a program could read while it waits for weights.
PROCESSORS, LOADING = 132, 8
# Of a deviation, so that nothing is divided by zero.
BESIDE = 1e-6


def reference(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],
    dilation: Pair,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernel computes: means and variances, (batch, t, *size).

    Args:
        minus: (batch, s, h, w), probabilities that signs are -1.
        w: (t, s, kh, kw), means of weights.
        shift: (t,), added to the means.
        base: (t, *size), added to the variances: what the variances of the weights give at each pixel.
        stride: of the convolution.
        low: pixels before the first row and column, which are zero for certain.
        size: rows and columns of the output.
        dilation: of the convolution.
    """
    given: dict[str, Any] = {"stride": stride, "dilation": dilation}
    mean, var = (_padded(x, w, stride, low, size, dilation) for x in (1 - 2 * minus, _variances(minus)))
    return F.conv2d(mean, w, **given) + shift[:, None, None], F.conv2d(var, w * w, **given) + base


def _variances(minus: Tensor) -> Tensor:
    return 4 * minus * (1 - minus)


def weight_variances(
    v: Tensor, image: Sequence[int], stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:
    """The `base` of weights with the variances v (t, s, kh, kw), for images of a size."""
    ones = _padded(v.new_ones(1, 1, *image), v, stride, low, size, dilation)
    return F.conv2d(ones, v.sum(1, keepdim=True), stride=stride, dilation=dilation)[0]


def dual_product(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, *, stride: Pair = (1, 1), low: Pair = (0, 0), size: Pair,
    dilation: Pair = (1, 1),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`reference` by one kernel, channels last, float32 (float64 of float64), with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    arguments = minus, w, shift, base, stride, low, size, dilation
    operators.demand(refusal(*arguments))
    result: tuple[Tensor, Tensor] = torch.ops.convein.dual_product(*arguments)
    return result


def refusal(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> str | None:  # fmt: skip
    """Why the kernel does not take these, in a clause; None if it does."""
    tensors = (minus, w, shift, base)
    shapes = f"minus, w, shift and base are {', '.join(str(tuple(x.shape)) for x in tensors)}"
    if minus.ndim != 4 or w.ndim != 4 or minus.shape[1] != w.shape[1]:
        return f"{shapes}, and the channels of minus and w do not fit"
    if shift.shape != w.shape[:1] or base.shape != (w.shape[0], *size):
        return f"{shapes}, and shift is not (t,) or base not (t, {', '.join(map(str, size))})"
    if sum((n - 1) * step for n, step in zip(minus.shape[1:], minus.stride()[1:], strict=True)) >= 2**31:
        return "an image spans more than 2**31 numbers"
    if minus.shape[0] * prod(size) >= 2**30:
        return "there are 2**30 pixels or more"
    reason: str | None = operators.refusal_of_products(*tensors)
    return reason


def _padded(
    x: Tensor, w: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:  # fmt: skip
    """What the convolution reads of x, zeros included."""
    return F.pad(x, padding.sides(x.shape[2:], w.shape[2:], low, size, dilation, stride))


@triton.jit
def _kernel(
    minus, w, squares, shift, base, y, z, pixels, high, wide, rows, columns, low_h, low_w, mn, ms, mh, mw, steps,
    S: tl.constexpr, T: tl.constexpr, KW: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SIGN: tl.constexpr, BESIDE: tl.constexpr, TINY: tl.constexpr,
    TYPE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    place = pixel % (rows * columns)
    top, left = place // columns * BH - low_h, place % columns * BW - low_w
    image = minus + (pixel // (rows * columns)).to(tl.int64) * mn
    mean = tl.full((ROWS, OUTPUTS), 0, TYPE)
    var = tl.full((ROWS, OUTPUTS), 0, TYPE)
    # One loop over all taps and blocks of inputs: unrolled taps would drain the pipeline.
    BLOCKS: tl.constexpr = (S + INPUTS - 1) // INPUTS
    for k in range(steps):
        tap = k // BLOCKS
        s = k % BLOCKS * INPUTS + tl.arange(0, INPUTS)
        row, column = top + tap // KW * DH, left + tap % KW * DW
        real = (pixel < pixels) & (row >= 0) & (row < high) & (column >= 0) & (column < wide)
        real = real[:, None] & (s[None] < S)
        entries = image[:, None] + (row * mh + column * mw)[:, None] + s[None] * ms
        # Outside, the variance that this gives is right, and the mean is not.
        p = tl.load(entries, mask=real, other=0).to(TYPE)
        at, there = (tap * S + s[:, None]) * T + t[None], (s[:, None] < S) & (t[None] < T)
        weight = tl.load(w + at, mask=there, other=0).to(FACTOR)
        square = tl.load(squares + at, mask=there, other=0).to(FACTOR)
        x, spread = tl.where(real, 1 - 2 * p, 0).to(FACTOR), (4 * p * (1 - p)).to(FACTOR)
        mean = tl.dot(x, weight, acc=mean, input_precision=PRECISION, out_dtype=TYPE)
        var = tl.dot(spread, square, acc=var, input_precision=PRECISION, out_dtype=TYPE)
    inside = (pixel < pixels)[:, None] & (t[None] < T)
    mean += tl.load(shift + t, mask=t < T, other=0).to(TYPE)[None]
    var += tl.load(base + t[None] * (rows * columns) + place[:, None], mask=inside, other=0).to(TYPE)
    out = pixel.to(tl.int64)[:, None] * T + t[None]
    if SIGN:
        deviation = tl.sqrt(2 * tl.maximum(var, TINY))
        chance = 0.5 - 0.5 * tl.erf(mean / (deviation + BESIDE))
        tl.store(y + out, chance.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(y + out, mean.to(y.dtype.element_ty), mask=inside)
        tl.store(z + out, var.to(z.dtype.element_ty), mask=inside)


def allocate(minus: Tensor, w: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a result, channels last."""
    memory: Tensor = operators.empty((minus.shape[0], *size, w.shape[0]), dtype, minus.device)
    return memory.movedim(-1, 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """Of one program: so many pixels and outputs, inputs of one step, warps, and steps on their way."""

    pixels: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def configurations(pixels: int, outputs: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Tiles for so many pixels and outputs of a layer, that which should be the fastest first.

    What takes most of the time is to make means and variances of what is read, once for every block of outputs.
    """
    if INTERPRETED:
        return (Tile(16, 16, 16, 4, 1),)
    full = dtype is torch.float32
    if outputs > 64:
        tiles = [Tile(128, 64, 64, 8, 3), Tile(128, 128, 32, 8, 3)]
        if full:
            tiles += [Tile(64, 64, 32, 4, 4)]
        else:
            tiles += [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 2), Tile(64, 128, 64, 4, 3)]
    elif outputs > 32:
        tiles = [
            Tile(128, 64, 64, 8, 3),
            Tile(128, 64, 32, 8, 4),
            Tile(64, 64, 32 if full else 64, 4, 4 if full else 3),
        ]
    else:
        tiles = [Tile(128, 32, 64, 8, 3), Tile(128, 32, 64, 4, 3)]

    def busiest(tile: Tile) -> tuple[int, int]:
        programs = triton.cdiv(pixels, tile.pixels) * triton.cdiv(outputs, tile.outputs)
        return int(triton.cdiv(programs, PROCESSORS)) * (
            tile.pixels + LOADING
        ), -tile.pixels * tile.inputs * tile.stages

    return tuple(sorted(tiles, key=busiest))


def _constants(
    w: Sequence[int], stride: Pair, dilation: Pair, sign: bool, dtype: torch.dtype, tile: Tile
) -> dict[str, Any]:
    """The compile-time arguments."""
    wide = dtype is torch.float64
    TYPE = tl.float64 if wide else tl.float32
    # The interpreter cannot compute with bfloat16, only load and store it.
    FACTOR = TYPE if INTERPRETED and dtype is torch.bfloat16 else FLOATS[dtype]
    constants: dict[str, Any] = {"S": w[1], "T": w[0], "KW": w[3], "BH": stride[0], "BW": stride[1]}
    constants |= {"DH": dilation[0], "DW": dilation[1], "SIGN": sign, "BESIDE": BESIDE}
    constants |= {"ROWS": tile.pixels, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs}
    tiny = torch.finfo(torch.float64 if wide else torch.float32).tiny
    return constants | {
        "TINY": tiny, "TYPE": TYPE, "FACTOR": FACTOR, "PRECISION": "ieee" if INTERPRETED else "tf32"
    }  # fmt: skip


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def fill(
    y: Tensor, z: Tensor, minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int],
    size: Sequence[int], dilation: Pair, *, sign: bool,
) -> None:  # fmt: skip
    """Launches the kernel, if there is anything to compute."""
    if not y.numel():
        return
    weight = w.permute(2, 3, 1, 0).contiguous()
    pixels, outputs = y.numel() // w.shape[0], w.shape[0]
    key = (str(minus.dtype), int(sign), *map(triton.next_power_of_2, (pixels, *w.shape)))
    tile = tuning.chosen("dual_product", key, configurations(pixels, outputs, minus.dtype))
    steps = prod(w.shape[2:]) * triton.cdiv(w.shape[1], tile.inputs)
    _kernel[(triton.cdiv(pixels, tile.pixels), triton.cdiv(outputs, tile.outputs))](
        minus, weight, weight * weight, shift.contiguous(), base.contiguous(), y, z, pixels, *minus.shape[2:], *size,
        *low, *minus.stride(), steps, **_constants(w.shape, stride, dilation, sign, minus.dtype, tile),
        **_options(tile),
    )  # fmt: skip


def _moments_fake(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = torch.promote_types(minus.dtype, torch.float32)
    return allocate(minus, w, size, dtype), allocate(minus, w, size, dtype)


def _moments(minus: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    mean, var = _moments_fake(minus, w, *others)
    fill(mean, var, minus, w, *others, sign=False)
    return mean, var


def pull(
    needs: Sequence[bool], minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int],
    size: Sequence[int], dilation: Pair, to_mean: Tensor, to_var: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of minus, w, shift, base."""
    sides = padding.sides(minus.shape[2:], w.shape[2:], low, size, dilation, stride)
    given: dict[str, Any] = {"stride": stride, "dilation": dilation}
    of_mean, of_var = to_mean.to(minus.dtype), to_var.to(minus.dtype)
    means, to_minus, to_w = 1 - 2 * minus, None, None
    if needs[0]:
        shape = F.pad(minus, sides).shape
        crop = [-side for side in sides]
        pairs = ((w, of_mean), (w * w, of_var))
        first, second = (F.pad(conv2d_input(shape, x, to, **given), crop) for x, to in pairs)
        to_minus = 4 * means * second - 2 * first
    if needs[1]:
        pairs = ((means, of_mean), (_variances(minus), of_var))
        first, second = (conv2d_weight(F.pad(x, sides), w.shape, to, **given) for x, to in pairs)
        to_w = first + 2 * w * second
    to_shift = to_mean.sum((0, 2, 3)).to(shift.dtype) if needs[2] else None
    to_base = to_var.sum(0).to(base.dtype) if needs[3] else None
    return to_minus, to_w, to_shift, to_base, None, None, None, None


ARGUMENTS = (
    "Tensor minus, Tensor w, Tensor shift, Tensor base, int[] stride, SymInt[] low, SymInt[] size, int[] dilation"
)
operators.register(f"dual_product({ARGUMENTS}) -> (Tensor, Tensor)", _moments, _moments_fake)
operators.differentiate("dual_product", pull)


def builds(*, sign: bool = False) -> Iterator[Build]:
    """What the launcher asks triton for on a GPU: all tiles of these numbers of outputs, the first one for signs."""
    for outputs, dtype in ((128, torch.bfloat16), (64, torch.float16), (32, torch.bfloat16), (128, torch.float32)):
        for tile in configurations(2**20, outputs, dtype)[: 1 if sign else None]:
            constants = _constants((outputs, 128, 3, 3), (1, 1), (1, 1), sign, dtype, tile) | {"ms": 1}
            kinds = dict.fromkeys(("minus", "w", "squares", "shift", "base"), f"*{FLOATS[dtype].name}")
            kinds |= dict.fromkeys(("y", "z"), f"*{FLOATS[dtype].name}" if sign else "*fp32")
            types = {name: kinds.get(name, "i32") for name in _kernel.arg_names if name not in constants}
            yield Build(_kernel, types, constants, _options(tile), matrix=True)
