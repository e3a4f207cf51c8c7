"""One CP layer, forward and backward: the searched order, left to right, and the dense convolution it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import convein
from measure import Group

EXPRESSION = "bshw,rs,rh,rw,rt->bthw|hw"


def _group(channels: int, size: int, rank: int, batch: int) -> Group:
    x = torch.randn(batch, channels, size, size)
    weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
    factors = [torch.randn(rank, length, requires_grad=True) for length in (channels, 3, 3, channels)]

    def step(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: call().sum().backward()  # type: ignore[no-untyped-call]

    variants = {
        "dense F.conv2d": step(lambda: F.conv2d(x, weight, padding=1)),
        "convein, searched": step(lambda: convein.conv_einsum(EXPRESSION, x, *factors)),
        "convein, left to right": step(lambda: convein.conv_einsum(EXPRESSION, x, *factors, optimize="left-to-right")),
    }
    return Group(f"{channels} channels, {size}x{size}, rank {rank}, batch {batch}", variants)


def groups() -> Iterator[Group]:
    """Two layers of a residual network at a tenth of the dense parameters."""
    yield _group(64, 32, 27, 8)
    yield _group(256, 8, 112, 8)
