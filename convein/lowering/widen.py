"""Program -> Program: the same in a wider dtype, from operands and to a result in their own."""

from __future__ import annotations

import re
from dataclasses import replace

from convein.lowering.program import Program, Statement
from convein.lowering.target import Target

_OPERAND = re.compile(r"\bx(\d+)\b")


def widen(program: Program, target: Target, *, adds: bool = False) -> Program:
    """Converts the operands first and the result last, if their dtype is narrower than the target's.

    Autocast is switched off there, because it would convert back.

    Args:
        program: what is computed.
        target: what it will run on.
        adds: whether it is a chunk whose result is added to others: the sum is converted, not the result.
    """
    if target.narrow is None:
        return program

    def renamed(text: str) -> str:
        return _OPERAND.sub(r"w\1", text)

    (result,) = program.results
    statements = (
        *(Statement(renamed(name), f"{name}.to({target.dtype})", (name,)) for name in program.parameters),
        *(replace(s, expression=renamed(s.expression), uses=tuple(map(renamed, s.uses))) for s in program.statements),
    )
    made = replace(program, statements=statements, results=(renamed(result),), autocast_off=target.device)
    if adds:
        return replace(made, narrow=str(target.narrow))
    narrowed = Statement("narrow", f"{renamed(result)}.to({target.narrow})", (renamed(result),))
    return replace(made, statements=(*statements, narrowed), results=("narrow",))
