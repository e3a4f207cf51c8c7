"""The Program: straight-line Python made of torch calls, as a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convein.lowering.looping import Loop, looped
from convein.lowering.note import Note
from convein.planner.plan import Plan

HEADER = "import torch\nimport torch.nn.functional as F\n"
# The calls of our own that a statement may have.
OPS = ("linear", "pointwise", "transposed")
KERNELS = "from convein.execution.kernels import kernel\n"
CHECKPOINT = "from torch.utils.checkpoint import checkpoint\n"


_KERNEL = re.compile(r'kernel\("(\w+)"')


@dataclass(frozen=True, slots=True)
class Statement:
    """One assignment `target = expression`; `uses` are the names that the expression reads.

    `price` is how many microseconds it is expected to take, backward pass included where one is needed.
    """

    target: str
    expression: str
    uses: tuple[str, ...]
    price: float = 0.0

    def __str__(self) -> str:
        return f"{self.target} = {self.expression}"


@dataclass(frozen=True, slots=True)
class Part:
    """A function beside the program: statements that run as one, so that the backward pass can run them again.

    Attributes:
        name: of the function.
        parameters: the names that it takes.
        statements: what is computed, in order.
        results: the names that are returned.
    """

    name: str
    parameters: tuple[str, ...]
    statements: tuple[Statement, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        body = [*_with_deletions(self.statements, self.results), f"return {', '.join(self.results)}"]
        lines = "\n".join(f"    {line}" for line in body)
        return f"def {self.name}({', '.join(self.parameters)}):\n{lines}\n"


@dataclass(frozen=True, slots=True)
class Program:
    """A plan as Python. `print(program)` is a module whose function `program` computes the expression.

    Attributes:
        plan: where it comes from.
        parameters: the names of the operands, in order.
        statements: what is computed, in order.
        results: the names that are returned.
        autocast_off: the device, such as "cpu", where torch.autocast must not change the calls; "" where it may.
        parts: functions that statements call through torch's checkpoint.
        loops: over chunks, the outermost first; the statements then are those of one chunk.
        recomputes: whether each chunk is computed again in the backward pass.
        narrow: the dtype that sums over chunks are converted to; "" where they stay as they are.
        fused: how many steps of the plan are done by fused kernels.
        notes: why kernels do not do others.
    """

    plan: Plan
    parameters: tuple[str, ...]
    statements: tuple[Statement, ...]
    results: tuple[str, ...]
    autocast_off: str = ""
    parts: tuple[Part, ...] = ()
    loops: tuple[Loop, ...] = ()
    recomputes: bool = False
    narrow: str = ""
    fused: int = 0
    notes: tuple[Note, ...] = ()

    @property
    def price(self) -> float:
        """Microseconds that a call is expected to take, with its backward pass where gradients are needed.

        With loops it is that of one chunk.
        """
        return sum(statement.price for statement in self.statements)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the fused kernels that are called, in the order of the source."""
        return tuple(_KERNEL.findall(self.source))

    @property
    def source(self) -> str:
        """The text of the module: imports and its functions, the last one called `program`."""
        whole = Part("piece" if self.loops else "program", self.parameters, self.statements, self.results)
        functions = [*map(str, self.parts), str(whole)]
        if self.loops:
            functions.append(looped(self.parameters, self.loops, recomputes=self.recomputes, narrow=self.narrow))
        if self.autocast_off and torch.amp.is_autocast_available(self.autocast_off):
            functions[-1] = f'@torch.autocast("{self.autocast_off}", enabled=False)\n{functions[-1]}'
        text = "\n\n".join(functions)
        own = ", ".join(name for name in OPS if f"{name}(" in text)
        header = HEADER + (CHECKPOINT if "checkpoint(" in text else "")
        imports = "from convein.execution.chunks import chunks\n" if "chunks(" in text else ""
        imports += KERNELS if 'kernel("' in text else ""
        imports += f"from convein.execution.ops import {own}\n" if own else ""
        header += f"\n{imports}" if imports else ""
        return f"{header}\n\n{text}"

    def __str__(self) -> str:
        return self.source


def _with_deletions(statements: Sequence[Statement], results: Sequence[str]) -> list[str]:
    """The statements, with `del` after the last use: a partial result must not outlive its step."""
    last_use = {name: place for place, statement in enumerate(statements) for name in statement.uses}
    made = {statement.target for statement in statements}
    lines = []
    for place, statement in enumerate(statements):
        lines.append(str(statement))
        over = [n for n in dict.fromkeys(statement.uses) if n in made and last_use[n] == place and n not in results]
        if over and place + 1 < len(statements):
            lines.append(f"del {', '.join(over)}")
    return lines
