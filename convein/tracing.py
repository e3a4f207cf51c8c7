"""Calls inside torch.compile, torch.export and under fake tensors.

Lark, the search and generated code cannot be traced, so the public calls enter a graph as one opaque function. Sizes
that are symbols there are planned with their hints and read from the operands by the program itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# What a symbolic size is planned with when torch has no example of it.
DEFAULT_HINT = 32

_opaque: list[Callable[..., Any]] = []
_held: dict[int, object] = {}


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that graphs take as it is, once `register` has run."""
    _opaque.append(function)
    return function


def register() -> bool:
    """Tells dynamo which functions are opaque: at the first trace, so that importing convein imports no dynamo."""
    for function in _opaque:
        torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]
    return True


def hold(value: object) -> int:
    """A number that stands in a graph for an object that cannot; the tracer guards on the object."""
    _held[id(value)] = value
    return id(value)


def find_held(number: int) -> object:
    """The object that `hold` gave a number."""
    return _held[number]


# As torch.compiler.assume_constant_result would mark them: the tracer calls the functions instead of tracing them.
register._dynamo_marked_constant = True  # type: ignore[attr-defined]
hold._dynamo_marked_constant = True  # type: ignore[attr-defined]


def plan_shapes(operands: Sequence[torch.Tensor]) -> tuple[list[tuple[int, ...]], frozenset[tuple[int, int]]]:
    """Shapes of plain numbers to plan with, and the `(operand, axis)` pairs where the number is only a hint."""
    shapes = []
    symbolic: set[tuple[int, int]] = set()
    for position, operand in enumerate(operands):
        shape = []
        for axis, size in enumerate(operand.shape):
            if isinstance(size, torch.SymInt):
                symbolic.add((position, axis))
                size = hint(size)
            shape.append(int(size))
        shapes.append(tuple(shape))
    return shapes, frozenset(symbolic)


def hint(size: torch.SymInt) -> int:
    """An example of a symbolic size, without adding a guard on it."""
    known = size.node.maybe_as_int()
    if known is None:
        known = size.node.hint if size.node.has_hint() else DEFAULT_HINT
    return int(known)
