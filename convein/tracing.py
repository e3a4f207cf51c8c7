"""Calls inside torch.compile, torch.export, torch.jit.trace, torch.fx.symbolic_trace and under fake tensors.

Lark, the search and generated code cannot be traced, so the public calls enter a graph as one opaque function. Sizes
that are symbols there are planned with their hints and read from the operands by the program itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from convein.errors import OptionError
from convein.execution.symbols import hint
from convein.options import shown

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


def is_proxy(values: Sequence[object]) -> bool:
    """Whether torch.fx.symbolic_trace put proxies in the place of tensors: they have no sizes."""
    return any(isinstance(value, torch.fx.Proxy) for value in values)


def record(function: Callable[..., Any], values: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """The call of a function as one node of the graph that torch.fx.symbolic_trace makes."""
    proxy = next(value for value in values if isinstance(value, torch.fx.Proxy))
    try:
        return proxy.tracer.create_proxy("call_function", function, tuple(values), dict(given))
    except NotImplementedError as error:
        raise OptionError(
            f"a graph of torch.fx cannot hold {', '.join(f'{n}={shown(v)}' for n, v in given.items())}",
            hint="torch.compile and torch.export take options that are objects",
        ) from error


def gradients_asked(operands: Sequence[torch.Tensor]) -> bool | None:
    """Whether operands need gradients, as `grad=` of `compile`: None asks the tensors.

    torch.jit.trace compares what it records with a trace without gradients: both must be planned alike, and there what
    comes out of another layer does not say that it needs one.
    """
    if torch._C._get_tracing_state() is not None:
        return all(x.is_floating_point() or x.is_complex() for x in operands)
    return None if torch.is_grad_enabled() else False


def is_symbolic(operands: Sequence[torch.Tensor]) -> bool:
    """Whether sizes may differ when what is recorded now runs again."""
    return torch._C._is_tracing() or any(isinstance(size, torch.SymInt) for x in operands for size in x.shape)


def plan_shapes(operands: Sequence[torch.Tensor]) -> tuple[list[tuple[int, ...]], frozenset[tuple[int, int]]]:
    """Shapes of plain numbers to plan with, and the `(operand, axis)` pairs where the number is only a hint."""
    if torch._C._is_tracing():
        shapes = _numbers(operands)
        return shapes, frozenset(
            (position, axis) for position, shape in enumerate(shapes) for axis in range(len(shape))
        )
    symbolic = {
        (position, axis)
        for position, operand in enumerate(operands)
        for axis, size in enumerate(operand.shape)
        if isinstance(size, torch.SymInt)
    }
    known = [tuple(hint(n) if isinstance(n, torch.SymInt) else int(n) for n in x.shape) for x in operands]
    return known, frozenset(symbolic)


def _numbers(operands: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    """The sizes of this run, that torch.jit.trace does not see being read."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return [tuple(operand.shape) for operand in operands]
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
