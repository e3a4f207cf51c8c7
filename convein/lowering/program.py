"""The Program: straight-line Python made of torch calls, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from convein.planner.plan import Plan

HEADER = "import torch\nimport torch.nn.functional as F\n"
# What `linear(` in a statement needs.
LINEAR = "from convein.execution.ops import linear\n"


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
class Program:
    """A plan as Python. `print(program)` is a module whose function `program` computes the expression.

    Attributes:
        plan: where it comes from.
        parameters: the names of the operands, in order.
        statements: what is computed, in order.
        results: the names that are returned.
        autocast_off: the device, such as "cpu", where torch.autocast must not change the calls; "" where it may.
    """

    plan: Plan
    parameters: tuple[str, ...]
    statements: tuple[Statement, ...]
    results: tuple[str, ...]
    autocast_off: str = ""

    @property
    def price(self) -> float:
        """Microseconds that a call is expected to take, with its backward pass where gradients are needed."""
        return sum(statement.price for statement in self.statements)

    @property
    def source(self) -> str:
        """The text of the module: imports and one function."""
        returned = ", ".join(self.results)
        body = [*self._lines(), f"return {returned}"]
        lines = "\n".join(f"    {line}" for line in body)
        own = f"\n{LINEAR}" if any("linear(" in s.expression for s in self.statements) else ""
        if self.autocast_off:
            own += f'\n\n@torch.autocast("{self.autocast_off}", enabled=False)'
        return f"{HEADER}{own}\n\ndef program({', '.join(self.parameters)}):\n{lines}\n"

    def _lines(self) -> list[str]:
        """The statements, with `del` after the last use: a partial result must not outlive its step."""
        last_use = {name: place for place, statement in enumerate(self.statements) for name in statement.uses}
        made = {statement.target for statement in self.statements}
        lines = []
        for place, statement in enumerate(self.statements):
            lines.append(str(statement))
            over = [
                n for n in dict.fromkeys(statement.uses) if n in made and last_use[n] == place and n not in self.results
            ]
            if over and place + 1 < len(self.statements):
                lines.append(f"del {', '.join(over)}")
        return lines

    def __str__(self) -> str:
        return self.source
