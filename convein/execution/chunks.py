"""What loops over chunks call besides torch itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from convein.execution.ops import is_untraced


def chunks(x: torch.Tensor, size: int, axis: int) -> Iterator[torch.Tensor]:
    """`x.split(size, axis)` for chunks that are used one after the other, and all of them.

    The gradient of torch's split waits for those of all chunks, and then copies them. Here each is put into its place
    as soon as it is known, unless it is to be differentiated again.
    """
    if not (torch.is_grad_enabled() and x.requires_grad and is_untraced()):
        yield from x.split(size, axis)  # type: ignore[no-untyped-call]
        return
    starts = range(0, max(1, x.shape[axis]), size)  # nothing is one chunk too, as for split
    waiting: dict[int, tuple[torch.Tensor, int]] = {}
    for start in starts:  # one by one: the backward pass goes through calls of torch from the latest to the earliest
        yield _Chunk.apply(x, axis, start, size, len(starts), waiting)  # type: ignore[no-untyped-call]


class _Chunk(torch.autograd.Function):
    """A part of a tensor; the last of all parts to get its gradient hands on the whole's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        axis: int,
        start: int,
        size: int,
        count: int,
        waiting: dict[int, tuple[torch.Tensor, int]],
    ) -> torch.Tensor:
        end = min(start + size, x.shape[axis])
        ctx.place, ctx.shape, ctx.count, ctx.waiting = (axis, start, end), x.shape, count, waiting
        return x.narrow(axis, start, end - start)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        axis, start, end = ctx.place
        nothing = (None,) * 5
        if torch.is_grad_enabled():
            return torch.ops.aten.slice_backward(gradient, ctx.shape, axis, start, end, 1), *nothing
        # Gradients of one backward pass belong together.
        task = torch._C._current_graph_task_id()
        whole, missing = ctx.waiting.pop(task, None) or (gradient.new_empty(ctx.shape), ctx.count)
        whole.narrow(axis, start, end - start).copy_(gradient)
        if missing == 1:
            return whole, *nothing
        ctx.waiting[task] = whole, missing - 1
        return None, *nothing
