"""Program + tensors -> tensor: the program's text becomes a function once, and is called."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from convein.errors import OptionError
from convein.lowering import Program

_numbers = count(1)


def load(program: Program) -> Callable[..., Any]:
    """The program's function. Its lines show up in tracebacks and debuggers."""
    filename = f"<convein program {next(_numbers)}>"
    source = program.source
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["program"]
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function


def checkpointed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which only the operands are kept for the backward pass."""

    def recomputed(*operands: torch.Tensor) -> Any:
        try:
            return torch_checkpoint(function, *operands, use_reentrant=False)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            raise OptionError(
                "checkpoint=True does not work under torch.func.grad, vjp and jacrev: torch has no checkpoints there",
                hint="leave checkpoint= out, or take the gradient with torch.autograd",
            ) from error

    return recomputed


def run(program: Program, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Runs a program once."""
    result: torch.Tensor = load(program)(*operands)
    return result
