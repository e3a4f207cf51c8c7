"""Mean and variance of a convolution of random signs with random weights, in one pass; as its epilogue, the next signs.

A sign with mean m has the variance 1 - m**2 and the square 1 whatever it is, so with weights of mean w and variance v
the products have the means m * w and the variances (1 - m**2) * w**2 + v: two convolutions that read the same pixels,
and a third one of v alone, which no input changes. J. Su, "Spectral Methods for Neural Network Designs", University of
Maryland, 2022, chapter 5.

What the operators keep is m; the backward pass computes the moments again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from convein.kernels import operators, padding
from convein.kernels.operators import FLOATS, INTERPRETED, Build
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Pair = tuple[int, int]

# Rows of pixels, outputs and inputs of one step, and how many warps take it.
TILE = {"ROWS": 16, "OUTPUTS": 16, "INPUTS": 16} if INTERPRETED else {"ROWS": 128, "OUTPUTS": 64, "INPUTS": 64}
OPTIONS = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
# Of a deviation, so that nothing is divided by zero.
BESIDE = 1e-6


def reference(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],
    dilation: Pair,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernel computes: means and variances, (batch, t, *size).

    Args:
        m: (batch, s, h, w), means of signs.
        w: (t, s, kh, kw), means of weights.
        shift: (t,), added to the means.
        base: (t, *size), added to the variances: what the variances of the weights give at each pixel.
        stride: of the convolution.
        low: pixels before the first row and column, which are zero for certain.
        size: rows and columns of the output.
        dilation: of the convolution.
    """
    given: dict[str, Any] = {"stride": stride, "dilation": dilation}
    mean = F.conv2d(_padded(m, w, stride, low, size, dilation), w, **given)
    var = F.conv2d(_padded(1 - m * m, w, stride, low, size, dilation), w * w, **given)
    return mean + shift[:, None, None], var + base


def signs(mean: Tensor, var: Tensor) -> Tensor:
    """Means of the signs of normal numbers."""
    deviation = (2 * var.clamp_min(torch.finfo(var.dtype).tiny)).sqrt()
    return torch.erf(mean / (deviation + BESIDE))


def weight_variances(
    v: Tensor, image: Sequence[int], stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:
    """The `base` of weights with the variances v (t, s, kh, kw), for images of a size."""
    ones = _padded(v.new_ones(1, 1, *image), v, stride, low, size, dilation)
    return F.conv2d(ones, v.sum(1, keepdim=True), stride=stride, dilation=dilation)[0]


def dual_product(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, *, stride: Pair = (1, 1), low: Pair = (0, 0), size: Pair,
    dilation: Pair = (1, 1),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`reference` by one kernel, channels last, float32 (float64 of float64), with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    operators.demand(refusal(m, w, shift, base, stride, low, size, dilation))
    result: tuple[Tensor, Tensor] = torch.ops.convein.dual_product(m, w, shift, base, stride, low, size, dilation)
    return result


def dual_signs(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, *, stride: Pair = (1, 1), low: Pair = (0, 0), size: Pair,
    dilation: Pair = (1, 1),
) -> Tensor:  # fmt: skip
    """`signs` of `dual_product` by one kernel, in the type of m: neither moment is ever written.

    Raises:
        ValueError: `refusal` says why.
    """
    operators.demand(refusal(m, w, shift, base, stride, low, size, dilation))
    result: Tensor = torch.ops.convein.dual_signs(m, w, shift, base, stride, low, size, dilation)
    return result


def refusal(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> str | None:  # fmt: skip
    """Why the kernel does not take these, in a clause; None if it does."""
    tensors = (m, w, shift, base)
    shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
    if m.ndim != 4 or w.ndim != 4 or m.shape[1] != w.shape[1]:
        return f"m, w, shift and base are {shapes}, and the channels of m and w do not fit"
    if shift.shape != w.shape[:1] or base.shape != (w.shape[0], *size):
        return f"m, w, shift and base are {shapes}, and shift is not (t,) or base not (t, {', '.join(map(str, size))})"
    if len({x.dtype for x in tensors}) > 1:
        return f"the tensors are {' and '.join(sorted({str(x.dtype) for x in tensors}))}"
    if sum((n - 1) * step for n, step in zip(m.shape[1:], m.stride()[1:], strict=True)) >= 2**31:
        return "an image spans more than 2**31 numbers"
    if m.shape[0] * prod(size) >= 2**30:
        return "there are 2**30 pixels or more"
    if m.device.type == "cuda" and m.dtype is torch.float64:
        return "a GPU has no fast products of float64"
    if m.device.type == "cuda" and m.dtype is torch.float32 and not operators.rounds_products():
        return "products of float32 are not to be rounded (torch.backends.cuda.matmul)"
    reason: str | None = operators.refusal(*tensors)
    return reason


def _padded(
    x: Tensor, w: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int], dilation: Pair
) -> Tensor:  # fmt: skip
    """What the convolution reads of x, zeros included."""
    return F.pad(x, padding.sides(x.shape[2:], w.shape[2:], low, size, dilation, stride))


@triton.jit
def _kernel(
    m, w, squares, shift, base, y, z, pixels, high, wide, rows, columns, low_h, low_w, mn, ms, mh, mw, steps,
    S: tl.constexpr, T: tl.constexpr, KW: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SIGN: tl.constexpr, BESIDE: tl.constexpr, TINY: tl.constexpr,
    TYPE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    place = pixel % (rows * columns)
    top, left = place // columns * BH - low_h, place % columns * BW - low_w
    image = m + (pixel // (rows * columns)).to(tl.int64) * mn
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
        x = tl.load(image[:, None] + (row * mh + column * mw)[:, None] + s[None] * ms, mask=real, other=0).to(TYPE)
        at, there = (tap * S + s[:, None]) * T + t[None], (s[:, None] < S) & (t[None] < T)
        weight = tl.load(w + at, mask=there, other=0).to(FACTOR)
        square = tl.load(squares + at, mask=there, other=0).to(FACTOR)
        spread = tl.where(real, 1 - x * x, 0).to(FACTOR)
        mean = tl.dot(x.to(FACTOR), weight, acc=mean, input_precision=PRECISION, out_dtype=TYPE)
        var = tl.dot(spread, square, acc=var, input_precision=PRECISION, out_dtype=TYPE)
    inside = (pixel < pixels)[:, None] & (t[None] < T)
    mean += tl.load(shift + t, mask=t < T, other=0).to(TYPE)[None]
    var += tl.load(base + t[None] * (rows * columns) + place[:, None], mask=inside, other=0).to(TYPE)
    out = pixel.to(tl.int64)[:, None] * T + t[None]
    if SIGN:
        deviation = tl.sqrt(2 * tl.maximum(var, TINY))
        tl.store(y + out, tl.erf(mean / (deviation + BESIDE)).to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(y + out, mean.to(y.dtype.element_ty), mask=inside)
        tl.store(z + out, var.to(z.dtype.element_ty), mask=inside)


def _allocate(m: Tensor, w: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    memory: Tensor = operators.empty((m.shape[0], *size, w.shape[0]), dtype, m.device)
    return memory.movedim(-1, 1)


def _constants(w: Sequence[int], stride: Pair, dilation: Pair, sign: bool, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments."""
    wide = dtype is torch.float64
    TYPE = tl.float64 if wide else tl.float32
    # The interpreter cannot compute with bfloat16, only load and store it.
    FACTOR = TYPE if INTERPRETED and dtype is torch.bfloat16 else FLOATS[dtype]
    constants: dict[str, Any] = {"S": w[1], "T": w[0], "KW": w[3], "BH": stride[0], "BW": stride[1]}
    constants |= {"DH": dilation[0], "DW": dilation[1], "SIGN": sign, "BESIDE": BESIDE}
    tiny = torch.finfo(torch.float64 if wide else torch.float32).tiny
    return constants | {
        "TINY": tiny, "TYPE": TYPE, "FACTOR": FACTOR, "PRECISION": "ieee" if INTERPRETED else "tf32"
    }  # fmt: skip


def _fill(
    y: Tensor, z: Tensor, m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int],
    size: Sequence[int], dilation: Pair, *, sign: bool,
) -> None:  # fmt: skip
    """Launches the kernel, if there is anything to compute."""
    if not y.numel():
        return
    weight = w.permute(2, 3, 1, 0).contiguous()
    pixels, steps = y.numel() // w.shape[0], w.shape[2] * w.shape[3] * triton.cdiv(w.shape[1], TILE["INPUTS"])
    _kernel[(triton.cdiv(pixels, TILE["ROWS"]), triton.cdiv(w.shape[0], TILE["OUTPUTS"]))](
        m, weight, weight * weight, shift.contiguous(), base.contiguous(), y, z, pixels, *m.shape[2:], *size, *low,
        *m.stride(), steps, **_constants(w.shape, stride, dilation, sign, m.dtype), **TILE, **OPTIONS,
    )  # fmt: skip


def _moments_fake(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = torch.promote_types(m.dtype, torch.float32)
    return _allocate(m, w, size, dtype), _allocate(m, w, size, dtype)


def _moments(m: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    mean, var = _moments_fake(m, w, *others)
    _fill(mean, var, m, w, *others, sign=False)
    return mean, var


def _signs_fake(
    m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    return _allocate(m, w, size, m.dtype)


def _signs(m: Tensor, w: Tensor, *others: Any) -> Tensor:
    y = _signs_fake(m, w, *others)
    _fill(y, y, m, w, *others, sign=True)
    return y


def _pull_moments(
    needs: Sequence[bool], m: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int],
    size: Sequence[int], dilation: Pair, to_mean: Tensor, to_var: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of m, w, shift, base."""
    sides = padding.sides(m.shape[2:], w.shape[2:], low, size, dilation, stride)
    given: dict[str, Any] = {"stride": stride, "dilation": dilation}
    mean, var = to_mean.to(m.dtype), to_var.to(m.dtype)
    to_m = to_w = None
    if needs[0]:
        shape = F.pad(m, sides).shape
        crop = [-side for side in sides]
        first, second = (F.pad(conv2d_input(shape, x, to, **given), crop) for x, to in ((w, mean), (w * w, var)))
        to_m = first - 2 * m * second
    if needs[1]:
        first, second = (
            conv2d_weight(F.pad(x, sides), w.shape, to, **given) for x, to in ((m, mean), (1 - m * m, var))
        )
        to_w = first + 2 * w * second
    to_shift = to_mean.sum((0, 2, 3)).to(shift.dtype) if needs[2] else None
    return to_m, to_w, to_shift, to_var.sum(0).to(base.dtype) if needs[3] else None, None, None, None, None


def _pull_signs(needs: Sequence[bool], *inputs_and_gradient: Any) -> tuple[Tensor | None, ...]:
    *inputs, gradient = inputs_and_gradient
    moments = torch.ops.convein.dual_product(*inputs)
    to = torch.func.vjp(signs, *moments)[1](gradient.to(moments[0].dtype))
    return _pull_moments(needs, *inputs, *to)


ARGUMENTS = "Tensor m, Tensor w, Tensor shift, Tensor base, int[] stride, SymInt[] low, SymInt[] size, int[] dilation"
operators.register(f"dual_product({ARGUMENTS}) -> (Tensor, Tensor)", _moments, _moments_fake)
operators.register(f"dual_signs({ARGUMENTS}) -> Tensor", _signs, _signs_fake)
operators.differentiate("dual_product", _pull_moments)
operators.differentiate("dual_signs", _pull_signs)


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU, for 128 channels, channels last."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for sign in (True, False):
            constants = _constants((128, 128, 3, 3), (1, 1), (1, 1), sign, dtype) | TILE | {"ms": 1}
            kinds = dict.fromkeys(("m", "w", "squares", "shift", "base"), f"*{FLOATS[dtype].name}")
            kinds |= dict.fromkeys(("y", "z"), f"*{FLOATS[dtype].name}" if sign else "*fp32")
            types = {name: kinds.get(name, "i32") for name in _kernel.arg_names if name not in constants}
            yield Build(_kernel, types, constants, OPTIONS, matrix=True)
