"""Program -> Program: views are written where they are used, and variables are numbered as they come."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from convein.lowering.program import Program, Statement

# A change of layout: one name, then any of these methods with plain arguments.
_LAYOUT = re.compile(r"\w+(\.(reshape|permute|unsqueeze|narrow|diagonal)\([^()]*\))*")
_TWO_PERMUTES = re.compile(r"\.permute\(([\d, ]+)\)\.permute\(([\d, ]+)\)")
_TWO_RESHAPES = re.compile(r"\.reshape\([^()]*\)(?=\.reshape\()")
_NEW_UNIT = re.compile(r"\.reshape\(([^()]+)\)(?:\.permute\(([\d, ]+)\))?\.unsqueeze\((\d+)\)")
_VARIABLE = re.compile(r"\bv\d+\b")
MAX_LINE = 110


def inline(program: Program) -> Program:
    """Puts each change of layout that one statement uses into that statement, where the line stays readable.

    A view's variable would keep its base alive longer than needed, and an assignment costs time too.
    """
    uses = Counter(name for statement in program.statements for name in statement.uses)
    uses.update(program.results)
    waiting: dict[str, Statement] = {}
    done: list[Statement] = []
    for statement in program.statements:
        for name in statement.uses:
            if name in waiting:
                statement = _substituted(statement, waiting, name, done)
        if (
            uses[statement.target] == 1
            and statement.target not in program.results
            and _LAYOUT.fullmatch(statement.expression)
        ):
            waiting[statement.target] = statement
        else:
            done.append(replace(statement, expression=_merged(statement.expression)))
    return _without_aliases(replace(program, statements=tuple(done)))


def _without_aliases(program: Program) -> Program:
    """Returns a variable instead of a second name for it."""
    names = {s.target: s.expression for s in program.statements if s.expression in s.uses}
    results = tuple(names.get(name, name) for name in program.results)
    needed = {name for statement in program.statements for name in statement.uses}.union(results)
    kept = tuple(s for s in program.statements if s.target not in names or s.target in needed)
    return replace(program, statements=kept, results=results)


def renumber(program: Program) -> Program:
    """Numbers the variables from v1, without the gaps that rejected drafts left."""
    made = [statement.target for statement in program.statements if _VARIABLE.fullmatch(statement.target)]
    names = {name: f"v{place}" for place, name in enumerate(made, 1)}

    def renamed(text: str) -> str:
        return _VARIABLE.sub(lambda match: names.get(match.group(), match.group()), text)

    statements = tuple(
        replace(s, target=renamed(s.target), expression=renamed(s.expression), uses=tuple(map(renamed, s.uses)))
        for s in program.statements
    )
    return replace(program, statements=statements, results=tuple(map(renamed, program.results)))


def _substituted(statement: Statement, waiting: dict[str, Statement], name: str, done: list[Statement]) -> Statement:
    view = waiting.pop(name)
    text = re.sub(rf"\b{name}\b", lambda _: view.expression, statement.expression)
    text = _merged(text)
    if len(text) > MAX_LINE:
        done.append(view)
        return statement
    uses = tuple(view.uses[0] if used == name else used for used in statement.uses)
    return replace(statement, expression=text, uses=uses)


def _merged(text: str) -> str:
    """The same layout by fewer calls: each is a node of autograd's graph, too."""
    text = _TWO_PERMUTES.sub(_composed, _TWO_RESHAPES.sub("", text))
    while _NEW_UNIT.search(text):
        text = _NEW_UNIT.sub(_with_unit, text)
    return text


def _with_unit(match: re.Match[str]) -> str:
    """A dimension of size 1 that is new after a reshape, made by the reshape."""
    sizes, place = match[1].split(", "), int(match[3])
    if match[2] is None:
        return f".reshape({', '.join([*sizes[:place], '1', *sizes[place:]])})"
    order = [int(axis) for axis in match[2].split(",")]
    # The new dimension comes first in the reshape, all others one later.
    shifted = [axis + 1 for axis in order]
    shifted.insert(place, 0)
    return f".reshape({', '.join(['1', *sizes])}).permute({', '.join(map(str, shifted))})"


def _composed(match: re.Match[str]) -> str:
    """Two permutes as one, or as none."""
    first, second = ([int(place) for place in group.split(",")] for group in match.groups())
    order = [first[place] for place in second]
    return "" if order == sorted(order) else f".permute({', '.join(map(str, order))})"
