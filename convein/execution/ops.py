"""What programs call besides torch itself: products and transposed copies of matrices at the machine's full speed.

Both are operators that torch has, with derivatives of any order, for plain eager work in float32 on a CPU. All other
work is left to the calls that everybody knows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`F.linear(x, w)` of two matrices: x (rows, in) and w (out, in) give (rows, out).

    torch hands products of float32 matrices to MKL, which runs at half speed on some processors. oneDNN does not, and
    torch reaches it by a private operator that has no derivative.
    """
    if not (_is_plain(x) and _is_plain(w) and _private is not None and x.shape[1] and torch.backends.mkldnn.enabled):
        return F.linear(x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        result: torch.Tensor = _Linear.apply(x, w)  # type: ignore[no-untyped-call]
        return result
    return _product(x, w)


def transposed(x: torch.Tensor) -> torch.Tensor:
    """Every matrix of x (batch, m, n) transposed, and copied: (batch, n, m), contiguous.

    A copy by strides jumps through memory, an order of magnitude slower than one that exchanges small blocks. torch has
    such a kernel for the channels of an image: of one pixel, with all entries as its channels.
    """
    if not _is_plain(x) or not x.numel():
        return x.transpose(1, 2).contiguous()
    if torch.is_grad_enabled() and x.requires_grad:
        result: torch.Tensor = _Transposed.apply(x)  # type: ignore[no-untyped-call]
        return result
    return _shuffled(x)


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return _product(x, w)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        to_x = linear(gradient, w.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        # Many rows are summed: fastest with the fewer of the two channels as rows of the result.
        if w.shape[0] <= w.shape[1]:
            return to_x, linear(gradient.t(), x.t())
        return to_x, linear(x.t(), gradient.t()).t()


class _Transposed(torch.autograd.Function):
    """The copy, whose gradient is copied back."""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return _shuffled(x)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return transposed(gradient)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether this is for the fast operators: nothing traces, transforms or casts, and x is nothing but numbers."""
    return bool(
        x.dtype is torch.float32
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def _find_private() -> Any:
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None


_private = _find_private()


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _private(x, w, None, "none", [], "")
    return result


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    batch, m, n = x.shape
    pixels = x.reshape(batch, 1, 1, m * n).permute(0, 3, 1, 2)
    return torch.native_channel_shuffle(pixels, m).permute(0, 2, 3, 1).reshape(batch, n, m)
