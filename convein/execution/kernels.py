"""The Triton kernels: loaded when the first one is asked for, and why there are none where there are none."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from convein.errors import OptionError
from convein.execution.ops import PLAIN, is_predicting, is_untraced, is_untransformed
from convein.execution.symbols import example

# What tensor cores take, and triton compiles well, begins with Ampere.
OLDEST = (8, 0)
OLDEST_TRITON = (3, 6)
# The kernels that stand for convolutions and products of matrices.
CONVERTED = ("pointwise_depthwise", "depthwise_pointwise", "pair")


@cache
def load(name: str) -> ModuleType:
    """A module of `convein.kernels`.

    Raises:
        ImportError: triton is not installed.
    """
    return import_module(f"convein.kernels.{name}")


def absence(device: torch.device | str, *, asked: bool = False) -> str | None:
    """Why no kernel runs on a device, in a clause; None if they do.

    Args:
        device: where the operands are.
        asked: whether kernels were asked for by name. On a CPU, where triton's interpreter could run them, triton is
            loaded only then.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and not (asked or "triton" in sys.modules)):
        return f"the operands are on {device.type}, and the kernels run on cuda"
    shared = operators()
    if shared is None:
        return f"triton {'.'.join(map(str, OLDEST_TRITON))} or newer is not installed (pip install triton)"
    if device.type == "cpu" and not shared.INTERPRETED:
        return "the operands are on cpu, and the kernels run on cuda"
    if device.type == "cuda" and shared.INTERPRETED:
        return "triton interprets kernels in this process"
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST[0]}.{OLDEST[1]}"
    return None


@cache
def operators() -> ModuleType | None:
    """What all kernels share; None without triton, or with one that is too old, which is looked for once."""
    try:
        return load("operators") if _version() >= OLDEST_TRITON else None
    except ImportError:
        return None


def _version() -> tuple[int, ...]:
    """That of triton.

    Raises:
        ImportError: triton is not installed.
    """
    return tuple(int(part) for part in import_module("triton").__version__.split(".")[:2])


def hindrance(*tensors: torch.Tensor) -> str | None:
    """Why layers call no kernel with these tensors here and now, in a clause; None if they may."""
    if not is_untraced():
        return "what is traced or transformed holds calls of torch only"
    if (reason := absence(tensors[0].device)) is not None:
        return reason
    others = [type(x).__name__ for x in tensors if type(x) not in PLAIN]
    return f"an operand is a {others[0]}" if others else None


def refusal(name: str, *arguments: Any) -> str | None:
    """Why a kernel does not take these arguments of its `reference`, in a clause; None if it does.

    Tensors have a shape, strides, a dtype and a device; nothing else of them is looked at.
    """
    if name in _failed:
        return "this GPU could not build it"
    reason: str | None = load(name).refusal(*arguments)
    return reason


def call(name: str, *arguments: Any) -> Any:
    """A kernel where it takes the arguments, and its plain `reference` where not.

    Transformations of torch.func and forward derivatives see plain calls; a kernel that this GPU cannot build is not
    tried again.
    """
    module = load(name)
    if not is_untransformed() or refusal(name, *map(example, arguments)) is not None:
        return module.reference(*arguments)
    try:
        return getattr(torch.ops.convein, name)(*arguments)
    except build_errors() as error:
        _failed.add(name)
        warnings.warn(f"the kernel {name} could not be built, plain calls stand in for it: {error}", stacklevel=2)
        return module.reference(*arguments)


def kernel(name: str, *arguments: Any) -> Any:
    """What programs call: `call`, whose tensors torch.autocast converts as it would for the calls that it replaces."""
    is_compiled = torch.compiler.is_compiling()
    if not is_compiled:
        try:
            load(name)  # which makes the operator; before a graph, planning did
        except ImportError as error:
            raise OptionError(
                f"this program was planned for Triton kernels, and calls {name}: triton is not installed",
                hint='pip install triton, or compile the expression again here, or with backend="torch"',
            ) from error
        if is_predicting():
            return getattr(torch.ops.convein, name)(*arguments)
    device = arguments[0].device.type
    if name in CONVERTED and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        arguments = tuple([_converted(dtype, argument) for argument in arguments])
    # In a graph it is an operator like others: what it refuses was asked when the program was planned.
    return getattr(torch.ops.convein, name)(*arguments) if is_compiled else call(name, *arguments)


def _converted(dtype: torch.dtype, argument: Any) -> Any:
    """A tensor of floats in this dtype, others and what is no tensor as they are."""
    changes = (
        isinstance(argument, torch.Tensor) and argument.is_floating_point() and argument.dtype is not torch.float64
    )
    return argument.to(dtype) if changes else argument


_failed: set[str] = set()


@cache
def build_errors() -> tuple[type[Exception], ...]:
    """What triton raises where a kernel asks for more than the GPU has, or its compiler gives up."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    return (OutOfResources, CompilationError)
