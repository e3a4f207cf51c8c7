"""What a call asks for: the equation with its options, and how to plan it, all names and values checked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from convein.arguments import check_shape
from convein.equation import Equation
from convein.errors import ConveinError, OptionError
from convein.interleaved import interleaved
from convein.keywords import merge_options
from convein.memory.amount import Limit, read_limit
from convein.operands import from_numpy
from convein.options import OPTION_NAMES, as_integer, shown, unknown_option
from convein.planner.search import SEARCHES
from convein.syntax import Dialect, parse

PLANNING: dict[str, Any] = {
    "sizes": None,
    "convolved": None,
    "optimize": "auto",
    "cost": "auto",
    "memory_limit": None,
    "checkpoint": False,
    "backend": "auto",
    "dialect": None,
    "accumulate": None,
}

BACKENDS = ("auto", "torch", "triton")

# What only convein.compile takes.
OF_COMPILE = ("constants", "grad", "dtype", "device")


@dataclass(frozen=True, slots=True)
class Request:
    """A checked call, without its operands.

    Attributes:
        equation: with every option merged.
        sizes: sizes given by name.
        optimize, cost: for the planner.
        kept: bytes that may be kept for the backward pass besides the operands; None is no limit.
        limit: of the bytes that are alive at a time, operands excluded; None is no limit.
        accumulate: the dtype to compute in, if it is wider than the operands'.
        backend: "auto", "torch" or "triton".
    """

    equation: Equation
    sizes: tuple[tuple[str, int], ...]
    optimize: Any
    cost: Any
    kept: int | None
    limit: Limit | None
    accumulate: torch.dtype | None
    backend: str

    def dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype | None]:
        """The dtype to compute in for operands of this one, and that of the result where they were converted.

        Raises:
            OptionError: they are integers, and `accumulate` is given.
        """
        if self.accumulate is None:
            return dtype, None
        if not (dtype.is_floating_point or dtype.is_complex):
            raise OptionError(
                f"accumulate={self.accumulate} was given with operands of {dtype}",
                text=self.equation.text,
                hint="integers are computed in their own dtype: convert them first, or leave accumulate= out",
            )
        return torch.promote_types(dtype, self.accumulate), dtype


def make_request(
    expression: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Request, tuple[Any, ...]]:
    """The request of a call, and its operands.

    Args:
        expression: the text, or the first operand of the interleaved form.
        arguments: everything else that was passed by position.
        options: what was passed by keyword.

    Raises:
        ConveinError: an unknown keyword, or a value that it cannot have.
    """
    merged = {**PLANNING, **options}
    for name in options:
        if name not in PLANNING and name not in OPTION_NAMES:
            raise _unknown(name, options[name], expression, merged["dialect"])
    if isinstance(expression, str):
        if merged["convolved"] is not None:
            raise OptionError(
                f"convolved={shown(merged['convolved'])} was given with a text",
                text=expression,
                hint="convolved= belongs to the interleaved form; in a text the modes stand after the bar: ...->...|h",
            )
        equation, operands = parse(expression, _dialect(merged["dialect"])), tuple(arguments)
    else:
        equation, operands = interleaved((expression, *arguments), merged["convolved"])
    equation = merge_options(equation, {name: options[name] for name in OPTION_NAMES if name in options})
    _check_planning(merged)
    sizes = merged["sizes"]
    if sizes is not None and not isinstance(sizes, Mapping):
        raise OptionError(f"sizes={shown(sizes)}", hint='sizes is a dict from mode to size: sizes={"s1": 4}')
    pairs = tuple((str(name), size) for name, size in (sizes or {}).items())
    chosen = {name: merged[name] for name in ("cost", "accumulate", "backend")}
    chosen["optimize"] = _search(merged["optimize"])
    return Request(
        equation, pairs, kept=_kept(merged["checkpoint"]), limit=read_limit(merged["memory_limit"]), **chosen
    ), operands


def open_request(
    expression: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Request, tuple[Any, ...]]:
    """The request of a call whose operands may be shapes, and those."""
    request, operands = make_request(expression, arguments, options)
    as_tensors = from_numpy(operands)
    if as_tensors is not None:
        return request, as_tensors
    listed = [o if isinstance(o, torch.Tensor) else check_shape(o, j) for j, o in enumerate(operands)]
    return request, tuple(listed)


def freeze(value: Any) -> Hashable:
    """A value that can be part of a key: containers by content, what cannot be hashed by identity."""
    if isinstance(value, Mapping):
        return ("dict", *((freeze(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(freeze, value))
    if isinstance(value, np.ndarray):
        return ("array", freeze(value.tolist()))
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return (type(value), value)


class _Identity:
    """An object as a key: equal to itself only, and kept alive by the key."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value


def _dialect(dialect: Any) -> Dialect | None:
    if dialect is None or isinstance(dialect, Dialect):
        return dialect
    raise OptionError(f"dialect={shown(dialect)}", hint="a dialect is made by convein.Dialect(rules, handlers)")


def _check_planning(options: Mapping[str, Any]) -> None:
    accumulate = options["accumulate"]
    if accumulate is not None and not (isinstance(accumulate, torch.dtype) and accumulate.is_floating_point):
        raise OptionError(
            f"accumulate={shown(accumulate)}",
            hint="accumulate is a floating point dtype of torch to compute in: accumulate=torch.float32",
        )
    if options["backend"] not in BACKENDS:
        raise OptionError(f"backend={shown(options['backend'])}", hint='the back ends are "auto", "torch" and "triton"')


def _search(optimize: Any) -> Any:
    """One spelling for each search of the planner's own."""
    if optimize is None or optimize is True:
        return "auto"
    known = isinstance(optimize, str) and optimize.lower() in SEARCHES
    return optimize.lower() if known else optimize


def _kept(checkpoint: Any) -> int | None:
    """The bytes that `checkpoint=` allows."""
    if isinstance(checkpoint, bool):
        return 0 if checkpoint else None
    budget = as_integer(checkpoint)
    if budget is None or budget < 0:
        raise OptionError(
            f"checkpoint={shown(checkpoint)}",
            hint="checkpoint is False, True to keep only the operands for the backward pass, "
            "or how many bytes may be kept besides them: 2**30",
        )
    return budget


def _unknown(name: str, value: Any, expression: Any, dialect: Any) -> OptionError:
    if _is_mode(name, expression, dialect):
        hint = f'sizes of modes go into sizes={{"{name}": {shown(value)}}}'
        return OptionError(f"{name}={shown(value)}: there is no option {name}", hint=hint)
    if close := get_close_matches(name, PLANNING, 1, 0.75):
        return OptionError(f"{name}={shown(value)}: there is no option {name}", hint=f"did you mean {close[0]}?")
    if name in OF_COMPILE:
        hint = f"{name}= belongs to convein.compile"
        return OptionError(f"{name}={shown(value)}: there is no option {name}", hint=hint)
    return unknown_option(name, value, (*OPTION_NAMES, *PLANNING))


def _is_mode(name: str, expression: Any, dialect: Any) -> bool:
    try:
        equation = parse(expression, _dialect(dialect))
    except ConveinError:
        return False
    return any(name in dimension.modes for term in equation.inputs for dimension in term.dimensions)
