"""What is passed by position: operands, shapes, constants, and which of them need gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from convein.equation import Equation
from convein.errors import OperandError, OptionError, ShapeError
from convein.network import Network
from convein.operands import DTYPES
from convein.options import as_integer, shown


def with_constants(
    operands: tuple[Any, ...], constants: Mapping[int, torch.Tensor] | Sequence[int] | None, equation: Equation
) -> tuple[tuple[Any, ...], dict[int, torch.Tensor]]:
    """All operands in place, and those that are constant."""
    if constants is None:
        return operands, {}
    if isinstance(constants, Mapping):
        total = len(operands) + len(constants)
        _check_left_out(equation, len(operands), constants)
        fixed = {check_position(position, total, "constants"): tensor for position, tensor in constants.items()}
        if len(fixed) < len(constants):
            raise OptionError(
                f"constants names an operand twice: {', '.join(map(shown, constants))}", hint="-1 is the last operand"
            )
        rest = iter(operands)
        operands = tuple(fixed[position] if position in fixed else next(rest) for position in range(total))
    elif not hasattr(constants, "__iter__"):
        raise OptionError(
            f"constants={shown(constants)}", hint="constants is {position: tensor}, or a list of positions"
        )
    else:
        places = [check_position(position, len(operands), "constants") for position in constants]
        fixed = {position: operands[position] for position in places}
    for position, tensor in fixed.items():
        if not isinstance(tensor, torch.Tensor):
            raise OperandError(
                f"operand {position} is a constant, and {shown(tensor)} is not a tensor",
                hint="constants={position: tensor}, or constants=[position] with a tensor passed at that position",
            )
    return operands, fixed


def _check_left_out(equation: Equation, passed: int, constants: Mapping[int, torch.Tensor]) -> None:
    """A constant that is given by position is not passed a second time."""
    if constants and passed == sum(term.constant is None for term in equation.inputs):
        first = next(iter(constants))
        raise OperandError(
            f"constants gives operand {', '.join(map(shown, constants))}, and all {passed} operands were passed, too",
            text=equation.text,
            hint=f"constants={{{shown(first)}: ...}} stands in operand {shown(first)}'s place: "
            "leave it out of the operands",
        )


def gradients_needed(operands: Sequence[Any], grad: bool | Sequence[int] | None, network: Network) -> int:
    """Which operands need gradients, as a bit set; None asks the tensors."""
    if grad is not None:
        passed = sum(operand.constant is None for operand in network.operands)
        return grad_mask(grad, passed)
    return sum(1 << j for j, o in enumerate(operands) if isinstance(o, torch.Tensor) and o.requires_grad)


def free_axes(network: Network, operands: Sequence[Any]) -> set[tuple[int, int]]:
    """The `(operand, axis)` pairs whose sizes are free: None in a shape, or what the language leaves to the call."""
    given = [
        (j, axis)
        for j, operand in enumerate(operands)
        if isinstance(operand, tuple)
        for axis, size in enumerate(operand)
        if size is None
    ]
    return {*given, *((size.operand, size.axis) for size in network.symbolic)}


def check_constants(equation: Equation, dtype: torch.dtype) -> None:
    """Operands that the language supplies must be exact in the operands' dtype."""
    for term in equation.inputs:
        if (
            term.constant is not None
            and not term.constant.value.is_integer()
            and not (dtype.is_floating_point or dtype.is_complex)
        ):
            raise OperandError(
                f"this expression multiplies by {term.constant.value:.6g}, which operands of dtype {dtype} cannot hold",
                text=equation.text,
                spans=[term.span],
                hint="convert them to a floating point dtype",
            )


def check_kind(
    tensors: Sequence[torch.Tensor], dtype: Any, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device to compile for: what was given, else that of the tensors, else torch's default."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise OptionError(f"dtype={shown(dtype)}", hint="a dtype is torch's: dtype=torch.float32")
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(
            f"dtype={dtype}: torch cannot multiply and add such numbers",
            hint="convert the operands first, for example to torch.float32 or torch.int64",
        )
    kind = dtype or (tensors[0].dtype if tensors else torch.get_default_dtype())
    if device is None:
        return kind, tensors[0].device if tensors else torch.get_default_device()
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device={shown(device)}", hint='a device is torch\'s: "cpu", "cuda", "cuda:1"') from error
    if where.type == "cuda" and where.index is None and torch.cuda.is_available():
        where = torch.device("cuda", torch.cuda.current_device())
    return kind, where


def check_fixed(
    fixed: Mapping[int, torch.Tensor], equation: Equation, dtype: torch.dtype, device: torch.device
) -> None:
    """Constants must have the dtype (autocast apart) and the device that is compiled for."""
    for position, tensor in fixed.items():
        for what, wanted, given in (("dtype", dtype, tensor.dtype), ("device", device, tensor.device)):
            if given != wanted and not (what == "dtype" and torch.is_autocast_enabled(device.type)):
                raise OperandError(
                    f"operand {position} is a constant with {what} {given}, and {what}={wanted} was asked for",
                    text=equation.text,
                    spans=[equation.inputs[position].span],
                    hint=f"convert the constant, or leave {what}= out",
                )


def grad_mask(grad: Any, count: int) -> int:
    """Which operands need gradients, as a bit set: from True, False or positions."""
    if isinstance(grad, bool):
        return (1 << count) - 1 if grad else 0
    mask = 0
    if isinstance(grad, str) or not hasattr(grad, "__iter__"):
        raise OptionError(
            f"grad={shown(grad)}", hint="grad is True, False, or the positions of operands that need gradients"
        )
    for position in grad:
        mask |= 1 << check_position(position, count, "grad")
    return mask


def check_position(position: Any, count: int, what: str) -> int:
    """An operand's position, negative ones counted from the end."""
    place = as_integer(position)
    if place is None or not -count <= place < count:
        raise OptionError(
            f"{what} names operand {shown(position)}, and there are {count}", hint=f"positions go from 0 to {count - 1}"
        )
    return place % count


def check_shape(shape: Any, position: int) -> tuple[int | None, ...]:
    """A shape given instead of a tensor; None is a free size."""
    if not hasattr(shape, "__iter__") or isinstance(shape, str):
        raise ShapeError(f"operand {position} is {shown(shape)}", hint="pass a tensor or a shape such as (4, 7, 9)")
    sizes = []
    for given in shape:
        size = None if given is None else as_integer(given)
        if given is not None and (size is None or size < 0):
            raise ShapeError(
                f"the shape of operand {position} has {shown(given)} in it", hint="a size is an integer, 0 or more"
            )
        sizes.append(size)
    return tuple(sizes)
