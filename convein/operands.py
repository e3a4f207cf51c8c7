"""What may be passed as an operand: tensors of one dtype on one device, or numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.fx

from convein.equation import Equation
from convein.errors import OperandError

# torch has others, and stores and converts them, but does not multiply and add them.
DTYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
    }
)


def check_operands(operands: Sequence[Any], equation: Equation, positions: Sequence[int] | None = None) -> None:
    """Raises an OperandError unless all operands are tensors that torch would multiply with each other.

    Args:
        operands: what was passed.
        equation: what it was passed for.
        positions: which operands of the equation these are; None: all of them.
    """
    if not operands:
        return
    numbered = list(zip(positions or range(len(operands)), operands, strict=True))
    for position, operand in numbered:
        if not isinstance(operand, torch.Tensor):
            raise OperandError(
                f"operand {position} is a {type(operand).__name__}, not a tensor",
                text=equation.text,
                spans=_places(equation, position),
                hint=_hint(operand, operands),
            )
        if not is_dense(operand):
            raise OperandError(
                f"operand {position} is a {'nested' if operand.is_nested else 'sparse'} tensor of {operand.layout}",
                text=equation.text,
                spans=_places(equation, position),
                hint="operands are dense tensors: .to_dense() or, of a nested one, .to_padded_tensor(0) makes one",
            )
        if operand.dtype not in DTYPES:
            raise OperandError(
                f"operand {position} has dtype {operand.dtype}, and torch cannot multiply and add such numbers",
                text=equation.text,
                spans=_places(equation, position),
                hint=f"convert it first: {_conversion(operand)}",
            )
    _check_equal(numbered, equation, "device")
    if len({operand.dtype for operand in operands}) > 1 and not _autocast(operands):
        _check_equal(numbered, equation, "dtype")


def rechecked(function: Callable[..., Any], equation: Equation) -> Callable[..., Any]:
    """Operands of several dtypes are legal under autocast only, which is not part of a cache key."""

    def checked(*operands: torch.Tensor) -> Any:
        check_operands(operands, equation)
        return function(*operands)

    return checked


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor has strides: neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def is_distributed(operands: Iterable[Any]) -> bool:
    """Whether some of the tensors are DTensors. Nothing of torch's distributed package is imported for that."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(operand, module.DTensor) for operand in operands)


def refuse_distributed(operands: Iterable[Any], equation: Equation) -> None:
    """Raises an OperandError where a compiled expression meets DTensors: its sizes are those of whole operands."""
    if is_distributed(operands):
        raise OperandError(
            "a compiled expression does not take DTensors",
            text=equation.text,
            hint="conv_einsum takes them; or compile for what each process has, .to_local()",
        )


def from_numpy(operands: Sequence[Any]) -> tuple[torch.Tensor, ...] | None:
    """The operands as tensors if all of them are numpy arrays, else None."""
    # A tuple, because dynamo cannot trace a union of numpy's types.
    if not operands or not all(isinstance(operand, (np.ndarray, np.generic)) for operand in operands):
        return None
    tensors = []
    for position, operand in enumerate(operands):
        array = np.asarray(operand)
        try:
            native = np.array(array, dtype=array.dtype.newbyteorder("="), copy=True if _is_foreign(array) else None)
            tensors.append(torch.from_numpy(native))
        except TypeError as error:
            raise OperandError(
                f"operand {position} is an array of dtype {array.dtype}, which torch does not have"
            ) from error
    return tuple(tensors)


def _is_foreign(array: np.ndarray[Any, Any]) -> bool:
    """Whether torch cannot share this memory: read-only, or with strides that are negative or split entries."""
    return not array.flags.writeable or any(step < 0 or step % max(array.itemsize, 1) for step in array.strides)


def _check_equal(numbered: Sequence[tuple[int, torch.Tensor]], equation: Equation, what: str) -> None:
    start, first = numbered[0][0], getattr(numbered[0][1], what)
    for position, operand in numbered:
        other = getattr(operand, what)
        if other != first:
            convert = f"operand {position} with .to({str(first)!r})"
            if what == "dtype":
                convert = _promotion((start, numbered[0][1]), (position, operand))
            raise OperandError(
                f"operand {start} has {what} {first} and operand {position} has {what} {other}",
                text=equation.text,
                spans=[*_places(equation, start), *_places(equation, position)],
                hint=f"convert one of them, for example {convert}",
            )


def _promotion(one: tuple[int, torch.Tensor], other: tuple[int, torch.Tensor]) -> str:
    """Which of two operands to convert: never a number to one that cannot hold it, as a float to an integer."""
    kinds = [(t.is_complex(), t.is_floating_point(), t.dtype != torch.bool) for _, t in (one, other)]
    (position, _), (_, kept) = (one, other) if kinds[0] < kinds[1] else (other, one)
    autocast = ", or call under torch.autocast" if _is_cast(one[1]) and _is_cast(other[1]) else ""
    return f"operand {position} with .to({kept.dtype}){autocast}"


def _autocast(operands: Sequence[torch.Tensor]) -> bool:
    return all(map(_is_cast, operands)) and torch.is_autocast_enabled(operands[0].device.type)


def _is_cast(tensor: torch.Tensor) -> bool:
    """Whether torch.autocast converts such a tensor: float64 it leaves as it is."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def _hint(operand: object, operands: Sequence[object]) -> str:
    if isinstance(operand, np.ndarray | np.generic):
        return "operands are all numpy arrays or all tensors: torch.from_numpy makes a tensor of an array"
    if isinstance(operand, int | float | complex | list | tuple):
        others = [other for other in operands if isinstance(other, np.ndarray)]
        return f"write {'numpy.asarray' if others else 'torch.tensor'}(...)"
    if isinstance(operand, torch.fx.Proxy):
        return "torch.fx.symbolic_trace takes conv_einsum; call a compiled expression in a function with torch.fx.wrap"
    return "operands are torch tensors, or all of them numpy arrays"


def _conversion(tensor: torch.Tensor) -> str:
    """What makes a tensor of a dtype that can be computed with."""
    if tensor.is_quantized:
        return ".dequantize()"
    if tensor.dtype.is_complex:
        return ".to(torch.complex64)"
    return ".to(torch.float32)" if tensor.dtype.is_floating_point else ".to(torch.int64)"


def _places(equation: Equation, position: int) -> list[Any]:
    passed = [term for term in equation.inputs if term.constant is None]
    return [passed[position].span] if position < len(passed) else []
