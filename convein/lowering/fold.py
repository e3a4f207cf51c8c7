"""Program -> two Programs: what depends on constant operands alone, computed once, and the rest."""

from __future__ import annotations

from dataclasses import replace

from convein.lowering.program import Program, Statement


def fold(program: Program, constants: frozenset[str]) -> tuple[Program, Program]:
    """Splits a program at its constants.

    Args:
        program: the whole.
        constants: names of parameters whose tensors never change.

    Returns:
        The program that takes the constants and returns what the rest needs of them, and the rest, which takes the
        other parameters and then those results. The rest never returns one of those: what is done with its result must
        not change a later call's.
    """
    known = set(constants)
    early, late = [], []
    for statement in program.statements:
        if statement.uses and known.issuperset(statement.uses):
            known.add(statement.target)
            early.append(statement)
        else:
            late.append(statement)
    (result,) = program.results
    if result in known:
        late.append(Statement("copy", f"{result}.clone()", (result,)))
        result = "copy"
    wanted = {name for statement in late for name in statement.uses}
    passed = tuple(name for name in (*program.parameters, *(s.target for s in early)) if name in known & wanted)
    free = tuple(name for name in program.parameters if name not in constants)
    before = replace(
        program,
        parameters=tuple(name for name in program.parameters if name in constants),
        statements=tuple(early),
        results=passed,
    )
    return before, replace(program, parameters=(*free, *passed), statements=tuple(late), results=(result,))
