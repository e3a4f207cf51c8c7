"""Sizes that a trace leaves open -> examples to decide with, so that no decision becomes a condition of the graph."""

from __future__ import annotations

from typing import Any

import torch

from convein.execution.ops import PLAIN
from convein.lowering.fused import Shape

# What stands for a size of which torch has no example.
DEFAULT_HINT = 32


def hint(size: torch.SymInt) -> int:
    """An example of a symbolic size, without adding a guard on it."""
    known = size.node.maybe_as_int()
    if known is None:
        known = size.node.hint if size.node.has_hint() else DEFAULT_HINT
    return int(known)


def example(argument: Any) -> Any:
    """What stands for an argument of a kernel while it is asked whether it takes it: the same without symbols."""
    if type(argument) in PLAIN:
        return argument
    if isinstance(argument, torch.Tensor):
        shape, strides = map(_numbers, (argument.shape, argument.stride()))
        return Shape(torch.Size(shape), argument.dtype, argument.device, strides)
    return _numbers(argument) if isinstance(argument, list | tuple) else argument


def _numbers(sizes: Any) -> tuple[Any, ...]:
    return tuple(hint(size) if isinstance(size, torch.SymInt) else size for size in sizes)
