"""Drafts: the ways to a partial result that are pursued, those by fused kernels among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from convein.lowering.chain import Run, runs
from convein.lowering.fused import rules
from convein.lowering.note import Note
from convein.lowering.program import Statement
from convein.lowering.target import Target
from convein.lowering.values import Value
from convein.lowering.writer import Writer
from convein.planner.plan import Plan

# How many layouts of one partial result are pursued.
LAYOUTS = 3


@dataclass(frozen=True, slots=True)
class Draft:
    """One way to a partial result.

    Attributes:
        value: the result.
        statements: that make it.
        price: what they are expected to take.
        fused: how many steps are done by kernels of our own.
    """

    value: Value
    statements: tuple[Statement, ...]
    price: float
    fused: int = 0


def draft(writer: Writer, value: Value, *before: Draft, fused: int = 0) -> Draft:
    """What a writer has written, after the drafts that it goes on from."""
    statements = tuple(s for one in before for s in one.statements) + tuple(writer.statements)
    price = sum(one.price for one in before) + sum(s.price for s in writer.statements)
    return Draft(value, statements, price, fused + sum(one.fused for one in before))


def cheapest(drafts: Iterable[Draft], target: Target) -> list[Draft]:
    """The cheapest draft of each layout, the cheapest layouts first; where kernels are forced, those with most of
    them.
    """
    best: dict[tuple[str, ...], Draft] = {}
    for one in sorted(drafts, key=lambda one: rank(one, target)):
        best.setdefault(one.value.modes, one)
    return list(best.values())[:LAYOUTS]


def rank(one: Draft, target: Target) -> tuple[int, float]:
    """What is smaller for a draft that is preferred."""
    return -one.fused if target.forced else 0, one.price


def fused_drafts(
    plan: Plan, place: int, drafts: Sequence[Sequence[Draft]], writer: Callable[[], Writer], others: float
) -> tuple[list[Draft], list[Note]]:
    """The drafts of a step by kernels, alone or with steps before it; and what there is to say of each kernel.

    Args:
        plan: the order.
        place: of the step.
        drafts: those of all values so far.
        writer: makes a new writer.
        others: the price of the best draft by other calls.
    """
    found: list[Draft] = []
    notes: list[Note] = []
    for run in runs(plan, place, lambda number: drafts[number][0].value.modes):
        factors = [drafts[factor.number][0] for factor in run.factors]
        for rule in rules(run):
            made, reasons = [], []
            for start in drafts[run.start]:
                own = writer()
                result = rule.write(own, run, start.value, [factor.value for factor in factors])
                if isinstance(result, str):
                    reasons.append(result)
                else:
                    made.append(draft(own, result, start, *factors, fused=len(factors)))
            found += made
            reason = f"it fits, and is expected to take {_least(made)} us, other calls {others:.3g}"
            notes.append(Note(reason if made else reasons[0], rule.kernel, _described(plan, run), fits=bool(made)))
    return found, notes


def _least(drafts: Sequence[Draft]) -> str:
    return f"{min((one.price for one in drafts), default=0.0):.3g}"


def _described(plan: Plan, run: Run) -> str:
    """The operands of a run: of the activation, and of each factor."""
    count = len(plan.network.operands)
    texts = []
    for number in (run.start, *(factor.number for factor in run.factors)):
        operands = 1 << number if number < count else plan.steps[number - count].result_set
        names = [f"x{position}" for position in range(count) if operands >> position & 1]
        texts.append(names[0] if len(names) == 1 else f"({' '.join(names)})")
    return " by ".join([texts[0], ", ".join(texts[1:])])
