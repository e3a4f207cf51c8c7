"""Drafts of a call -> the fastest one that stays within its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from convein.execution import load
from convein.lowering import Program
from convein.lowering.checkpoint import choices, rewrite
from convein.lowering.fold import fold
from convein.memory.observing import observe
from convein.metering import Sample, isolated


@dataclass(frozen=True, slots=True)
class Draft:
    """A program in two halves, and what it will be called with.

    Attributes:
        before: takes the constants, and is called once.
        rest: takes the other operands, then what `before` returns.
        samples: of the parameters of `rest`.
    """

    before: Program
    rest: Program
    samples: tuple[Sample, ...]

    @property
    def whole(self) -> Program:
        """Both halves as one program."""
        own = [name for name in self.rest.parameters if name not in self._folded]
        names = sorted({*self.before.parameters, *own}, key=lambda name: int(name[1:]))
        return replace(self.rest, parameters=tuple(names), statements=(*self.before.statements, *self.rest.statements))

    @property
    def _folded(self) -> set[str]:
        return {statement.target for statement in self.before.statements}


def draft(program: Program, samples: Sequence[Sample], constants: frozenset[str]) -> Draft:
    """A program with what depends on constants alone taken apart; `samples` are of all its parameters."""
    before, rest = fold(program, constants)
    known = dict(zip(program.parameters, samples, strict=True))
    fixed = [replace(known[name], grad=False) for name in before.parameters]
    free = [known[name] for name in rest.parameters if name in known and name not in constants]
    return Draft(before, rest, (*free, *(_results(before, fixed) if fixed else ())))


def keeping(drafts: Iterable[Draft], budget: int) -> Draft:
    """The fastest way to run any of these that keeps at most so many bytes for the backward pass."""
    best: tuple[float, Draft] | None = None
    for made in drafts:
        found = choices(made.rest, observe(made.rest, made.samples))
        choice = next(choice for choice in found if choice.kept <= budget)
        time = made.rest.price + choice.time
        if best is None or time < best[0]:
            best = time, replace(made, rest=rewrite(made.rest, choice))
        if choice is found[0]:
            break  # nothing is computed again
    assert best is not None
    return best[1]


def _results(program: Program, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """What a program returns."""
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] = load(program)

    def run() -> tuple[Sample, ...]:
        made = function(*(sample.make() for sample in samples))
        return tuple(map(Sample.of, made if isinstance(made, tuple) else (made,)))

    return isolated(run, samples, autocast_off=bool(program.autocast_off))
