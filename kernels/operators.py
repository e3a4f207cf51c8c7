"""How a kernel becomes an operator of torch: registration, derivatives of higher order, what every kernel refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from convein.kernels import tuning
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

LIBRARY = Library("convein", "FRAGMENT")

# One process interprets all kernels or compiles all of them: triton decides when it is imported.
INTERPRETED = bool(triton.knobs.runtime.interpret)

FLOATS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


@dataclass(frozen=True, slots=True)
class Build:
    """One compilation of a kernel that launchers ask for, written out so that it can be made without a GPU.

    Attributes:
        kernel: what `triton.jit` made.
        types: of the run-time arguments, in their order, as triton writes them: "*fp16", "i32".
        constants: compile-time arguments by name.
        options: num_warps, num_stages.
        vector: whether it must read 16 bytes at once, when pointers and sizes are multiples of 16.
        matrix: whether it must use the matrix units.
        wide: whether it must never read 2 bytes at a time.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    vector: bool = True
    matrix: bool = field(default=False, kw_only=True)
    wide: bool = field(default=False, kw_only=True)


def accumulator(*tensors: Tensor) -> Any:
    """The type to compute in: float64 if something is, else float32."""
    return tl.float64 if torch.float64 in {x.dtype for x in tensors} else tl.float32


# What forbids products of float32, and what allows them.
EXACT = "products of float32 are not to be rounded (torch.set_float32_matmul_precision('high') lets them be)"


def empty(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a result. Every launcher allocates here, so that tests see what it leaves unwritten."""
    return torch.empty(sizes, dtype=dtype, device=device)


def rounds_products() -> bool:
    """Whether a GPU may compute products of float32 from ten bits of each factor, as torch's user has chosen."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


def refusal(*tensors: Tensor) -> str | None:
    """Why no kernel takes these, in a clause; None if nothing speaks against it."""
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        return f"the tensors are on {' and '.join(sorted(map(str, devices)))}"
    device = devices.pop().type
    if device != "cuda" and not (device == "cpu" and INTERPRETED):
        return f"the tensors are on {device}, and the kernels run on cuda"
    for x in tensors:
        if x.dtype not in FLOATS:
            return f"there is no kernel for {x.dtype}"
    return None


def refusal_of_products(*tensors: Tensor) -> str | None:
    """As `refusal`, of a kernel that multiplies matrices: all of one type, and of one that a GPU multiplies fast."""
    dtypes, x = {m.dtype for m in tensors}, tensors[0]
    if len(dtypes) > 1:
        return f"the tensors are {' and '.join(sorted(map(str, dtypes)))}"
    if x.device.type == "cuda" and x.dtype is torch.float64:
        return "on a GPU the kernel has no products of float64"
    if x.device.type == "cuda" and x.dtype is torch.float32 and not rounds_products():
        return EXACT
    return refusal(*tensors)


def demand(reason: str | None) -> None:
    """Raises ValueError if there is a reason to refuse."""
    if reason is not None:
        raise ValueError(reason)


def register(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """An operator of torch without derivatives: its schema, what computes it, and what only allocates its results."""
    name = LIBRARY.define(schema)
    watched = tuning.watched(launch)
    LIBRARY.impl(name, watched, "CPU")
    LIBRARY.impl(name, at_home(watched), "CUDA")
    register_fake(f"convein::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.convein, name)


def at_home(launch: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher with the GPU of its first tensor as the current one: triton launches nowhere else."""

    def launched(*arguments: Any) -> Any:
        with torch.cuda.device(next(x.device for x in arguments if isinstance(x, Tensor))):
            return launch(*arguments)

    return launched


def differentiate(name: str, backward: Callable[..., Any]) -> None:
    """Gives an operator its gradient.

    Args:
        name: of the operator. All its arguments are kept.
        backward: takes which inputs need a gradient, the inputs, and the gradients of the outputs, and returns the
            gradients of the inputs: None for those that need none.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in inputs])
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def pull(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [other if x is None else x for x, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        result: tuple[Tensor | None, ...] = backward(ctx.needs_input_grad, *inputs, *gradients)
        return result

    register_autograd(f"convein::{name}", pull, setup_context=keep, lib=LIBRARY)


def pulled(function: Callable[..., Any], inputs: int) -> Callable[..., tuple[Tensor, ...]]:
    """The gradient of a plain function, as a plain function: from its inputs and the gradients of its outputs, side by
    side, to the gradients of its inputs.

    The operators that compute gradients have theirs from here: who differentiates twice pays for plain calls.
    """

    def pull(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, back = torch.func.vjp(function, *tensors[:inputs])[:2]
        gradients = tensors[inputs:]
        result: tuple[Tensor, ...] = back(gradients if isinstance(outputs, tuple) else gradients[0])
        return result

    return pull
