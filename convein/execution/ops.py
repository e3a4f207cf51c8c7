"""What programs call besides torch itself: products and transposed copies of matrices at the machine's full speed.

Both are operators that torch has, with derivatives of any order, for plain eager work in float32 on a CPU. All other
work is left to the calls that everybody knows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

# Of sums over rows: a page in numbers, and (measured) how long a piece may be, how far from whole pages, and from how
# many channels on pieces pay for more calls.
PAGE = 1024
LONGEST_PIECE = 8208
BESIDE_PAGES = 16
FEWEST_PIECED = 64
# Tensors that are nothing but numbers.
PLAIN = (torch.Tensor, torch.nn.Parameter)


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`F.linear(x, w)` of two matrices: x (rows, in) and w (out, in) give (rows, out).

    torch hands products of float32 matrices to MKL, which runs at half speed on some processors. oneDNN does not, and
    torch reaches it by a private operator that has no derivative.
    """
    if not _is_fast(x, w):
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


def pointwise(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`linear` of every pixel: x (batch, in, pixels) and w (out, in) give (batch, pixels, out).

    The transposed copy of x that this takes is not kept for the backward pass, but made again: x is there anyway.
    """
    if not (_is_fast(x, w) and x.numel()):
        return F.linear(x.transpose(1, 2), w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        result: torch.Tensor = _Pointwise.apply(x, w)  # type: ignore[no-untyped-call]
        return result
    return _by_pixels(x, w)


@contextmanager
def predicting() -> Iterator[None]:
    """Inside, in this thread, fake tensors go the way of plain ones: what they show is what will happen."""
    _thread.is_predicting = True
    try:
        yield
    finally:
        _thread.is_predicting = False


def is_predicting() -> bool:
    """Whether `predicting` is on in this thread."""
    return getattr(_thread, "is_predicting", False)


def _keep(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> None:
    """Saves each operand for the other one's gradient, if that is needed."""
    to_x, to_w = ctx.needs_input_grad
    ctx.save_for_backward(x if to_w else None, w if to_x else None)


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        _keep(ctx, x, w)
        return _product(x, w)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        to_x = linear(gradient, w.t()) if ctx.needs_input_grad[0] else None
        return to_x, _to_weight(x, gradient) if ctx.needs_input_grad[1] else None


class _Pointwise(torch.autograd.Function):
    """The product by pixels, which keeps no copy of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        _keep(ctx, x, w)
        ctx.shape = x.shape
        return _by_pixels(x, w)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        batch, channels, pixels = ctx.shape
        rows = gradient.reshape(batch * pixels, gradient.shape[2])
        to_x = to_w = None
        if ctx.needs_input_grad[0]:
            to_x = linear(rows, w.t()).reshape(batch, pixels, channels).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            to_w = _to_weight(transposed(x).reshape(batch * pixels, channels), rows)
        return to_x, to_w


class _Transposed(torch.autograd.Function):
    """The copy, whose gradient is copied back."""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return _shuffled(x)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return transposed(gradient)


def _to_weight(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of a weight. Many rows are summed: fastest with the fewer of both channels as the result's rows."""
    if gradient.shape[1] <= x.shape[1]:
        return _summed(gradient, x)
    return _summed(x, gradient).t()


def _summed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x.t() @ y`, a sum over their rows.

    Where the rows of x, transposed, would be whole pages apart, caches can hold only a few of them at once: there the
    sum is made in pieces that are no whole pages.
    """
    rows = x.shape[0]
    piece = rows
    if rows % PAGE == 0 and rows > PAGE and x.shape[1] >= FEWEST_PIECED:
        piece = min(rows // 2 + BESIDE_PAGES, LONGEST_PIECE)
    parts = zip(torch.split(x, piece), torch.split(y, piece), strict=True)
    return reduce(torch.add, (linear(transposed(a[None])[0], b.t()) for a, b in parts))


def is_untraced() -> bool:
    """Whether nothing traces or transforms: each call of torch is computed here and now, and by itself."""
    return bool(not torch.compiler.is_compiling() and is_untransformed() and torch._C._get_tracing_state() is None)


def is_untransformed() -> bool:
    """Whether neither torch.func nor forward derivatives make something else of a call."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def _is_plain(x: torch.Tensor) -> bool:
    """Whether this is for the fast operators: x is nothing but numbers, and nobody else looks on."""
    return bool(
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and (type(x) in PLAIN or is_predicting())
        and not torch.is_autocast_enabled("cpu")
        and is_untraced()
    )


def _is_fast(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether the private product takes these."""
    plain = _private is not None and torch.backends.mkldnn.enabled and _is_plain(x) and _is_plain(w)
    return bool(plain and x.shape[1] > 0)


_thread = threading.local()


def _find_private() -> Any:
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None


_private = _find_private()


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _private(x, w if _is_packed(w) else w.contiguous(), None, "none", [], "")
    return result


def _is_packed(w: torch.Tensor) -> bool:
    """Whether rows or columns follow each other without gaps: oneDNN multiplies by others a thousand times slower."""
    return w.is_contiguous() or w.t().is_contiguous()


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    batch, m, n = x.shape
    pixels = x.reshape(batch, 1, 1, m * n).permute(0, 3, 1, 2)
    return torch.native_channel_shuffle(pixels, m).permute(0, 2, 3, 1).reshape(batch, n, m)


def _by_pixels(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    batch, channels, pixels = x.shape
    return _product(_shuffled(x).reshape(-1, channels), w).reshape(batch, pixels, w.shape[0])
