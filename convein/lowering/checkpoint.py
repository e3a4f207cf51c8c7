"""Program -> Program: some values are kept for the backward pass, the others are computed again from those.

Statements form a tree, because the partial result of a step is read by one later step. A value that nobody keeps and
that the backward pass asks for is computed again together with whatever it is made of, down to kept values and
operands; the statements from these up to the one that asks become one part, and torch's checkpoint runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from convein.lowering.looping import checkpoint_call
from convein.lowering.program import Part, Program, Statement

# The name of a size that is only known at run time.
_SIZE = re.compile(r"\bn\d+\b")
# What one checkpoint takes besides its statements, in microseconds.
PART_OVERHEAD = 100.0
# Longer lists of choices are thinned out.
MOST_CHOICES = 2000


@dataclass(frozen=True, slots=True)
class Demand:
    """What one statement makes and keeps.

    Attributes:
        bytes: of the memory that its value lies in; 0 where that is an operand's, or where it is no tensor.
        is_tensor: whether it makes a tensor, and not a size.
        saves: the values among those it reads that autograd keeps for it.
        unnamed: bytes that autograd keeps for it and that no variable holds: copies inside the statement.
        time: microseconds forward.
        until_saved: microseconds from its start until it has made everything that autograd keeps.
    """

    bytes: int
    is_tensor: bool
    saves: frozenset[str]
    unnamed: int
    time: float
    until_saved: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a program.

    Attributes:
        kept: bytes kept for the backward pass.
        time: microseconds that the backward pass takes to compute values again.
        again: the values that are computed again.
        tops: the last statement of each part, by its target.
    """

    kept: int = 0
    time: float = 0.0
    again: frozenset[str] = frozenset()
    tops: frozenset[str] = frozenset()

    def plus(self, kept: int = 0, time: float = 0.0, again: Iterable[str] = (), tops: Iterable[str] = ()) -> Choice:
        """The choice with more of everything."""
        return Choice(self.kept + kept, self.time + time, self.again.union(again), self.tops.union(tops))


def choices(program: Program, demands: Sequence[Demand]) -> list[Choice]:
    """All ways that are not beaten in both bytes and time, the fastest first; the last one keeps operands only.

    Found by dynamic programming over the tree: for each value the best ways to have it once ("once"), and to have it
    again in the backward pass ("again"). A reader keeps its value, or has it again.
    """
    tree = _Tree(program, demands)
    for statement in program.statements:
        tree.add(statement)
    (result,) = program.results
    return tree.once.get(result, [Choice()])


def rewrite(program: Program, choice: Choice) -> Program:
    """The program with its parts, as chosen."""
    made = {statement.target: statement for statement in program.statements}
    statements: list[Statement] = []
    parts: list[Part] = []
    for statement in program.statements:
        if statement.target in choice.again:
            continue
        if statement.target in choice.tops:
            own = {statement.target, *_asked(statement, made, choice.again)}
            inside = tuple(s for s in program.statements if s.target in own)
            reads = tuple(dict.fromkeys(name for s in inside for name in s.uses if name not in own))
            sizes = tuple(dict.fromkeys(name for s in inside for name in _SIZE.findall(s.expression)))
            parts.append(Part(f"part{len(parts) + 1}", reads + sizes, inside, (statement.target,)))
            call = checkpoint_call(parts[-1].name, reads + sizes)
            statement = replace(statement, expression=call, uses=reads, price=sum(s.price for s in inside))
        statements.append(statement)
    return replace(program, statements=tuple(statements), parts=tuple(parts))


def _asked(top: Statement, made: Mapping[str, Statement], again: frozenset[str]) -> set[str]:
    """The values that are computed again for one statement."""
    found: set[str] = set()
    for name in again.intersection(top.uses):
        found |= {name, *_asked(made[name], made, again)}
    return found


class _Tree:
    """The best choices for each value so far."""

    def __init__(self, program: Program, demands: Sequence[Demand]) -> None:
        self.once: dict[str, list[Choice]] = {}
        self._again: dict[str, list[Choice]] = {}
        self._demands = {s.target: demand for s, demand in zip(program.statements, demands, strict=True)}

    def add(self, statement: Statement) -> None:
        name = statement.target
        demand = self._demands[name]
        if not demand.is_tensor:
            return
        read = [used for used in dict.fromkeys(statement.uses) if used in self.once]
        at_hand = _combined([[*self._kept(used), *self._again[used]] for used in read])
        plainly = _combined([self._kept(used) if used in demand.saves else self.once[used] for used in read])
        ways = [choice.plus(kept=demand.unnamed) for choice in plainly]
        if demand.saves or demand.unnamed:
            time = demand.until_saved + PART_OVERHEAD
            ways += [choice.plus(time=time, tops=[name]) for choice in at_hand]
        self.once[name] = _best(ways)
        self._again[name] = _best([choice.plus(time=demand.time, again=[name]) for choice in at_hand])

    def _kept(self, name: str) -> list[Choice]:
        return [choice.plus(kept=self._demands[name].bytes) for choice in self.once[name]]


def _combined(lists: Sequence[Sequence[Choice]]) -> list[Choice]:
    """Every way to choose for all values that one statement reads."""
    found = [Choice()]
    for listed in lists:
        found = _best([a.plus(b.kept, b.time, b.again, b.tops) for a, b in product(found, listed)])
    return found


def _best(found: Iterable[Choice]) -> list[Choice]:
    """Those that no other one beats, the fastest first."""
    best: list[Choice] = []
    for choice in sorted(found, key=lambda c: (c.time, c.kept)):
        if not best or choice.kept < best[-1].kept:
            best.append(choice)
    if len(best) > MOST_CHOICES:
        best = [*best[: -1 : -(-len(best) // MOST_CHOICES)], best[-1]]
    return best
