"""Adds a bias to a result that nobody else has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convein.execution.ops import is_untraced

# Up to here a sum in new memory, which the caches hold, costs less than what keeps a larger one in the old.
_SMALL = 1 << 18


def biased(result: Tensor, bias: Tensor) -> Tensor:
    """`result + bias`, in the memory of the result if nothing traces or transforms.

    Results often are views, their modes come in the order that was fastest: autograd's own in-place addition would copy
    the gradient of a view twice.

    Args:
        result: what a layer has just computed, and needs no more.
        bias: of a shape that broadcasts to it, and any dtype.
    """
    if not (isinstance(result, Tensor) and result.dtype == bias.dtype and is_untraced()):
        return result + bias.to(result.dtype)
    if not (torch.is_grad_enabled() and result._is_view()):
        return result.add_(bias)
    if result.numel() <= _SMALL:
        return result + bias
    value: Tensor = _Biased.apply(result, bias)  # type: ignore[no-untyped-call]
    return value


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
