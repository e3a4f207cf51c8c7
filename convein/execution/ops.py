"""What programs call besides torch itself: a matrix product that runs at full speed on every processor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`F.linear(x, w)` of two matrices: x (rows, in) and w (out, in) give (rows, out).

    torch hands products of float32 matrices to MKL, which runs at half speed on some processors. oneDNN does not, and
    torch reaches it by a private operator that has no derivative: here it gets one, of any order. Whatever is not plain
    eager work in float32 on a CPU is left to F.linear.
    """
    if not _is_plain(x, w):
        return F.linear(x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        result: torch.Tensor = _Linear.apply(x, w)  # type: ignore[no-untyped-call]
        return result
    return _product(x, w)


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


def _is_plain(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether this is work that the private operator can do, and nobody else wants to look at."""
    return bool(
        x.dtype is w.dtype is torch.float32
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and type(w) in _PLAIN
        and _private is not None
        and torch.backends.mkldnn.enabled
        and x.shape[1] > 0
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
