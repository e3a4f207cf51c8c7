"""Signs of a convolution of random signs with random weights: `dual_product`, and its moments never leave the chip.

What the operator keeps is p and w; the backward pass computes the moments again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from convein.kernels import dual_product, operators
from convein.kernels.dual_product import BESIDE, Pair, allocate, fill, pull, refusal
from convein.kernels.operators import Build
from torch import Tensor


def reference(*arguments: Any) -> Tensor:
    """What the kernel computes, from the arguments of `dual_product.reference`: (batch, t, *size)."""
    return signs(*dual_product.reference(*arguments))


def signs(mean: Tensor, var: Tensor) -> Tensor:
    """Probabilities that the signs of normal numbers are -1."""
    # The smallest normal number has a root whose derivative is finite; zero has not.
    deviation = (2 * var.clamp_min(torch.finfo(var.dtype).tiny)).sqrt()
    chances: Tensor = torch.special.erfc(mean / (deviation + BESIDE)) / 2
    return chances


def dual_signs(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, *, stride: Pair = (1, 1), low: Pair = (0, 0), size: Pair,
    dilation: Pair = (1, 1),
) -> Tensor:  # fmt: skip
    """`reference` by one kernel, channels last, in the type of `minus`, with gradients of any order.

    Raises:
        ValueError: `refusal` says why.
    """
    arguments = minus, w, shift, base, stride, low, size, dilation
    operators.demand(refusal(*arguments))
    result: Tensor = torch.ops.convein.dual_signs(*arguments)
    return result


def _fake(
    minus: Tensor, w: Tensor, shift: Tensor, base: Tensor, stride: Pair, low: Sequence[int], size: Sequence[int],  # noqa: ARG001
    dilation: Pair,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    memory: Tensor = allocate(minus, w, size, minus.dtype)
    return memory


def _run(*arguments: Any) -> Tensor:
    y = _fake(*arguments)
    fill(y, y, *arguments, sign=True)
    return y


def _pull(needs: Sequence[bool], *inputs_and_gradient: Any) -> tuple[Tensor | None, ...]:
    *inputs, gradient = inputs_and_gradient
    moments = torch.ops.convein.dual_product(*inputs)
    to = torch.func.vjp(signs, *moments)[1](gradient.to(moments[0].dtype))
    result: tuple[Tensor | None, ...] = pull(needs, *inputs, *to)
    return result


operators.register(f"dual_signs({dual_product.ARGUMENTS}) -> Tensor", _run, _fake)
operators.differentiate("dual_signs", _pull)


def builds() -> Iterator[Build]:
    """What the launcher asks triton for on a GPU, for 128 channels, channels last."""
    yield from dual_product.builds(sign=True)
