"""Program -> two Programs: what depends on constant operands alone, computed once, and the rest."""

from __future__ import annotations

from dataclasses import replace

from convein.lowering.program import Program


def fold(program: Program, constants: frozenset[str]) -> tuple[Program, Program]:
    """Splits a program at its constants.

    Args:
        program: the whole.
        constants: names of parameters whose tensors never change.

    Returns:
        The program that takes the constants and returns what the rest needs of them, and the rest, which takes the
        other parameters and then those results.
    """
    known = set(constants)
    early, late = [], []
    for statement in program.statements:
        if statement.uses and known.issuperset(statement.uses):
            known.add(statement.target)
            early.append(statement)
        else:
            late.append(statement)
    wanted = {name for statement in late for name in statement.uses} | set(program.results)
    passed = tuple(name for name in (*program.parameters, *(s.target for s in early)) if name in known & wanted)
    free = tuple(name for name in program.parameters if name not in constants)
    before = replace(
        program,
        parameters=tuple(name for name in program.parameters if name in constants),
        statements=tuple(early),
        results=passed,
    )
    return before, replace(program, parameters=(*free, *passed), statements=tuple(late))
