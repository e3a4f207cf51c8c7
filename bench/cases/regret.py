"""The chosen plan of a factorised layer beside the ten best by the model: is what should be the fastest the fastest?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor

import convein
from cases.forms import FORMS, Case, Operands, operands_of
from cases.layers import DIRECTIONS, LAYERS, LAYOUTS, PERCENTS
from convein import calibration, measuring
from convein.execution import load
from convein.lowering import Program, Target
from convein.metering import memory_order
from measure import Group, Timing

CANDIDATES = 10
BATCH = 32
CHOSEN = "chosen"
BEST = "best of "
WORST = 10  # so many are listed
# What should take so many times longer is not tried: it may not even fit into memory.
HOPELESS = 10
MOST_ELEMENTS = 2**28


def groups() -> Iterator[Group]:
    """Every form, layer, number of parameters, direction and layout."""
    for form, (channels, size), percent, direction, layout in product(FORMS, LAYERS, PERCENTS, DIRECTIONS, LAYOUTS):
        case = Case(form.name, channels, size, percent, BATCH, direction, layout)
        yield Group(str(case), partial(variants, case), kept=kept)


def kept(timings: list[Timing]) -> list[Timing]:
    """The chosen plan, and the best of all with its order."""
    best = min(timings, key=lambda timing: timing.median)
    return [timings[0], replace(best, variant=f"{BEST}{len(timings)}: {best.variant}")]


def variants(case: Case) -> dict[str, Callable[[], object]]:
    """What `compile` chooses, and the programs of the other candidates."""
    given = operands_of(case)
    compiled = convein.compile(given.form.expression, *given.leaves)
    programs = [compiled.program, *_candidates(given, compiled)]
    calls = [partial(load(program), *given.leaves) for program in programs]
    if case.trains:
        calls = [partial(_train, call, given) for call in calls]
    names = [CHOSEN, *(" ".join(f"{i}-{j}" for i, j in program.plan.ssa_path) for program in programs[1:])]
    return dict(zip(names, calls, strict=True))


def regrets(ratios: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """The chosen plan's time over the best one's, from groups, variants, and their ratios to the chosen one.

    Of several runs, which may differ in what is the best, the median.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for group, variant, ratio in ratios:
        if variant.startswith(BEST):
            found[group].append(1 / ratio)
    return {group: median(values) for group, values in found.items()}


def summary(timings: Sequence[Timing]) -> str:
    """Mean, worst, and the cases that lose most."""
    found = regrets((timing.group, timing.variant, timing.ratio) for timing in timings)
    worst = sorted(found, key=found.__getitem__, reverse=True)[:WORST]
    mean = sum(found.values()) / len(found)
    lines = ["", f"chosen plan over the best: mean {mean:.3f}, worst {found[worst[0]]:.3f}, of {len(found)} cases"]
    return "\n".join([*lines, *(f"  {found[group]:6.3f}  {group}" for group in worst), ""])


def _candidates(given: Operands, compiled: convein.Expression) -> list[Program]:
    """The other programs, as `compile` would write them, by what they should take."""
    network, rates = compiled.network, calibration.current()
    target = Target(torch.float32, "cpu", dict(network.sizes), rates, knows_memory=False)
    options = {"cost": "time", "needs_grad": compiled.plan.needs_grad, "rates": rates}
    programs = measuring.programs(network, target, (memory_order(given.x),), options, CANDIDATES)
    most = HOPELESS * compiled.program.price
    return [
        program
        for program in programs
        if program.source != compiled.source and program.price <= most and program.plan.largest <= MOST_ELEMENTS
    ][: CANDIDATES - 1]


def _train(call: Callable[[], Tensor], given: Operands) -> object:
    return torch.autograd.grad(call(), given.leaves, given.gradient)
