"""Program + tensors -> tensor: the program's text becomes a function once, and is called."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from convein.errors import OptionError
from convein.lowering import Program

_loaded: weakref.WeakValueDictionary[str, Callable[..., Any]] = weakref.WeakValueDictionary()


def load(program: Program) -> Callable[..., Any]:
    """The program's function: one for each text. Its lines show up in tracebacks and debuggers."""
    source = program.source
    loaded = _loaded.get(source)
    if loaded is not None:
        return loaded
    # The same name whenever the text comes again: torch.jit.trace compares names.
    filename = f"<convein program {crc32(source.encode()):08x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["program"]
    weakref.finalize(function, linecache.cache.pop, filename, None)
    _loaded[source] = function
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
