"""Sums of random signs by one kernel, where it runs: it reads them once, and gives means and variances or new signs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.execution import kernels
from convein.layers.bqn.activations import Discrete, Gaussian
from convein.layers.bqn.stencil import Stencil
from convein.layers.bqn.sums import weight_variances

MOMENTS, SIGNS = "dual_product", "dual_signs"
Moments = tuple[Tensor, Tensor]


def propagate(
    stencil: Stencil, input: Discrete, weight: Moments, bias: Moments | None, *, signs: bool
) -> Gaussian | Discrete | None:
    """What `sums.moments` gives of signs, or the signs of that, by a kernel; None where plain calls are to do.

    Args:
        stencil: which products are summed.
        input: (..., inputs, *sizes).
        weight: mean and variance, as `weight_shape`.
        bias: mean and variance, (outputs,).
        signs: whether the signs of the sums are wanted, and not their moments.
    """
    minus, count = input.minus, len(stencil.kernel)
    prepared = _prepare(stencil, minus, weight[0], bias)
    if isinstance(prepared, str):
        return None
    image, mean, shift, stand_in, *others = prepared
    sizes = minus.shape[minus.ndim - count :]
    base = weight_variances(stencil, sizes, weight[1])
    if bias is not None:
        base = base + stencil.at_outputs(bias[1])
    arguments = image, mean, shift, base.to(image.dtype).reshape(stand_in.shape), *others
    # As plain calls have it: what autocast made narrower and a bias that it did not give a wide sum.
    dtype = image.dtype if bias is None else torch.promote_types(image.dtype, bias[0].dtype)
    shape = (*minus.shape[: minus.ndim - count - 1], *base.shape)
    if signs:
        return Discrete(kernels.call(SIGNS, *arguments).to(dtype).reshape(shape))
    found = (one.to(dtype).reshape(shape) for one in kernels.call(MOMENTS, *arguments))
    return Gaussian(*found)


def hindrance(stencil: Stencil, minus: Tensor, mean: Tensor) -> str | None:
    """Why sums of signs are plain calls here and now, in a clause; None if they are the kernel's.

    Args:
        stencil: which products are summed.
        minus: the probabilities that inputs are -1, (..., inputs, *sizes).
        mean: of the weights.
    """
    prepared = _prepare(stencil, minus, mean, None)
    return prepared if isinstance(prepared, str) else None


def _prepare(stencil: Stencil, minus: Tensor, mean: Tensor, bias: Moments | None) -> tuple[Any, ...] | str:
    """The kernel's arguments, with a stand-in for `base`; or why it does not take them."""
    reason = kernels.hindrance(minus, mean) or _misfit(stencil, minus.shape)
    if reason is not None:
        return reason
    count = len(stencil.kernel)
    ones, sizes = (1,) * (2 - count), minus.shape[minus.ndim - count :]
    examples = prod(minus.shape[: minus.ndim - count - 1])
    image = _cast(minus).reshape(examples, stencil.inputs, *ones, *sizes)
    low = tuple(lo for lo, _ in stencil.padding)
    if stencil.padding_mode != "zeros" and any(map(any, stencil.padding)):
        sides = [side for pair in reversed(stencil.padding) for side in pair] + [0, 0] * len(ones)
        image, low = F.pad(image, sides, stencil.padding_mode), (0,) * count
    mean = _cast(mean).reshape(stencil.outputs, stencil.inputs, *ones, *stencil.kernel)
    size = (*ones, *_sizes(stencil, sizes))
    shift = mean.new_zeros(stencil.outputs) if bias is None else _cast(bias[0])
    base = shift[:, None, None].expand(-1, *size)
    stride, dilation = (*ones, *stencil.stride), (*ones, *stencil.dilation)
    arguments = image, mean, shift, base, stride, ((0,) * len(ones) + low), size, dilation
    return kernels.refusal(MOMENTS, *arguments) or arguments


def _misfit(stencil: Stencil, shape: Sequence[int]) -> str | None:
    """Why these sums are not the kernel's whatever numbers they are of, in a clause."""
    count = len(stencil.kernel)
    sizes = shape[len(shape) - count :]
    if stencil.groups > 1:
        return "there is no kernel for groups"
    if count > 2:
        return "there is no kernel for three dimensions"
    if len(shape) <= count or shape[-count - 1] != stencil.inputs or any(one < 1 for one in _sizes(stencil, sizes)):
        return "the input does not fit"
    if stencil.padding_mode == "zeros":
        return None
    if any(max(pair) >= size for pair, size in zip(stencil.padding, sizes, strict=True)):
        return "the padding is as wide as the input"
    return "an output reads one input several times" if stencil.reads_copies(sizes) else None


def _sizes(stencil: Stencil, sizes: Sequence[int]) -> tuple[int, ...]:
    """Of the output, along the dimensions of the input."""
    each = zip(sizes, stencil.kernel, stencil.stride, stencil.padding, stencil.dilation, strict=True)
    return tuple((size + sum(sides) - d * (k - 1) - 1) // step + 1 for size, k, step, sides, d in each)


def _cast(x: Tensor) -> Tensor:
    """As autocast hands it to a convolution."""
    kind = x.device.type
    if x.dtype is torch.float64 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
