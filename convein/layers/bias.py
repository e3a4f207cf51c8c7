"""Adds a bias to a result that nobody else has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convein.execution.ops import is_untraced


def biased(result: Tensor, bias: Tensor) -> Tensor:
    """`result + bias`, in the memory of the result if nothing traces or transforms.

    Autograd's own in-place addition would copy the gradient twice where the result is a view, and results often are:
    their modes come in the order that was fastest.

    Args:
        result: what a layer has just computed, and needs no more.
        bias: of a shape that broadcasts to it, and any dtype.
    """
    if is_untraced() and isinstance(result, Tensor) and result.dtype == bias.dtype:
        value: Tensor = _Biased.apply(result, bias)  # type: ignore[no-untyped-call]
        return value
    return result + bias.to(result.dtype)


class _Biased(torch.autograd.Function):
    """The sum as a new tensor with the old memory."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, bias: Tensor) -> Tensor:
        ctx.shape = bias.shape
        return result.detach().add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        wanted = ctx.needs_input_grad[1]
        return gradient, gradient.sum_to_size(ctx.shape) if wanted else None
