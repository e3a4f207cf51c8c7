"""Program + tensors -> tensor: the program's text becomes a function once, and is called."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import torch

from convein.errors import OptionError
from convein.lowering import Program

_loaded: weakref.WeakValueDictionary[str, Callable[..., Any]] = weakref.WeakValueDictionary()


def load(program: Program) -> Callable[..., Any]:
    """The program's function: one for each text. Its lines show up in tracebacks and debuggers.

    Raises:
        OptionError: when it is called, where torch has no checkpoints and the program has.
    """
    source = program.source
    recomputes = bool(program.parts) or program.recomputes
    loaded = _loaded.get(source)
    if loaded is not None:
        return _explained(loaded) if recomputes else loaded
    # The same name whenever the text comes again: torch.jit.trace compares names.
    filename = f"<convein program {crc32(source.encode()):08x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["program"]
    weakref.finalize(function, linecache.cache.pop, filename, None)
    _loaded[source] = function
    return _explained(function) if recomputes else function


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with a sentence where torch refuses its checkpoints."""

    def checkpointed(*operands: torch.Tensor) -> Any:
        try:
            return function(*operands)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            raise OptionError(
                "checkpoint= and memory_limit= cannot compute values again under torch.func.grad, vjp and jacrev: "
                "torch has no checkpoints there",
                hint="leave checkpoint= and memory_limit= out, or take the gradient with torch.autograd",
            ) from error

    return checkpointed


def run(program: Program, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Runs a program once."""
    result: torch.Tensor = load(program)(*operands)
    return result
