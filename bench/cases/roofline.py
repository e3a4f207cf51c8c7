"""Channels-last layers beside what the machine can do: its peak and its bandwidth, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from math import prod
from statistics import geometric_mean

import torch
import torch.nn.functional as F

import convein
from cases.forms import FORMS, Case, operands_of, parse_case
from cases.layers import DIRECTIONS, LAYERS
from measure import Group, Timing

PERCENTS = (10, 50, 100)
BATCH = 32
MACHINE = "machine"
COPY = "copy"
COPIED = 2**24  # bytes, read once and written once
# Pictures, channels in and out, and size of 1x1 convolutions; and sizes of square matrices.
POINTWISE = ((32, 256, 256, 32), (32, 512, 512, 16), (8, 1024, 1024, 16), (8, 256, 256, 16))
MATRICES = (512, 1024)
FLOAT = 4


def groups() -> Iterator[Group]:
    """What the machine can do, then every form, layer, number of parameters and direction."""
    yield Group(MACHINE, _machine, always=True)
    for form, (channels, size), percent, direction in product(FORMS, LAYERS, PERCENTS, DIRECTIONS):
        case = Case(form.name, channels, size, percent, BATCH, direction, "channels-last")
        yield Group(str(case), partial(_variants, case))


def fractions(times: Iterable[tuple[str, str, float]]) -> dict[Case, float]:
    """The least time that the machine needs for a case over the time taken, from groups, variants and seconds.

    The machine must do 2 operations for each multiplication of the cheapest order, and read x and write the result once
    (with the backward pass three times the operations, and twice the bytes); whichever takes longer counts.
    """
    times = list(times)
    machine = {variant: spent for group, variant, spent in times if group == MACHINE}
    if not machine:
        return {}
    bandwidth = 2 * COPIED / machine[COPY]
    peak = max(float(name.split()[-2]) * 1e9 / spent for name, spent in machine.items() if name != COPY)
    found = {}
    for group, _, spent in times:
        if group != MACHINE:
            case = parse_case(group)
            flops, moved = _work(case)
            found[case] = max(flops / peak, moved / bandwidth) / spent
    return found


def summary(timings: Sequence[Timing]) -> str:
    """What the machine can do, and the fractions by form and direction."""
    times = [(timing.group, timing.variant, timing.median) for timing in timings]
    found = fractions(times)
    lines = ["", f"machine: {limits(times)}", "fraction of the roofline: geometric mean, least"]
    for form, direction in product((*(form.name for form in FORMS), ""), DIRECTIONS):
        mine = [value for case, value in found.items() if case.direction == direction and form in ("", case.form)]
        if mine:
            lines.append(f"  {form or 'all':9} {direction:17} {geometric_mean(mine):6.3f} {min(mine):6.3f}")
    return "\n".join([*lines, ""])


def limits(times: Iterable[tuple[str, str, float]]) -> str:
    """What the machine can do, in a sentence."""
    machine = {variant: spent for group, variant, spent in times if group == MACHINE}
    if not machine:
        return "the machine is not measured"
    best = max((float(name.split()[-2]) / spent, name) for name, spent in machine.items() if name != COPY)
    return f"{best[0]:.0f} GFLOP/s ({best[1]}), {2 * COPIED / machine[COPY] / 1e9:.1f} GB/s ({COPY})"


def _machine() -> Mapping[str, Callable[[], object]]:
    numbers = torch.Generator().manual_seed(0)
    source = torch.randn(COPIED // FLOAT, generator=numbers)
    target = torch.empty_like(source)
    found: dict[str, Callable[[], object]] = {COPY: lambda: target.copy_(source)}
    for batch, inner, outer, size in POINTWISE:
        x = torch.randn(batch, size, size, inner, generator=numbers).permute(0, 3, 1, 2)
        weight = torch.randn(outer, inner, 1, 1, generator=numbers)
        flops = 2 * batch * size * size * inner * outer
        found[f"1x1 {inner} to {outer}, {flops / 1e9:.4f} GFLOP"] = partial(F.conv2d, x, weight)
    for n in MATRICES:
        a, b = (torch.randn(n, n, generator=numbers) for _ in range(2))
        found[f"product of {n} by {n}, {2 * n**3 / 1e9:.4f} GFLOP"] = partial(torch.mm, a, b)
    return found


def _variants(case: Case) -> Mapping[str, Callable[[], object]]:
    given = operands_of(case)
    expression = convein.compile(given.form.expression, *given.leaves)
    if not case.trains:
        return {"convein.compile": partial(expression, *given.leaves)}

    def train() -> object:
        return torch.autograd.grad(expression(*given.leaves), given.leaves, given.gradient)

    return {"convein.compile": train}


@cache
def _work(case: Case) -> tuple[float, float]:
    """The operations and the bytes that a case cannot do without."""
    form = next(form for form in FORMS if form.name == case.form)
    picture = (case.batch, case.channels, case.size, case.size)
    shapes: Sequence[tuple[int, ...]] = (picture, *form.shapes(case.channels, form.rank(case.channels, case.percent)))
    _, info = convein.contract_path(form.expression, *shapes, optimize="optimal", cost="flops")
    flops, moved = 2.0 * info.macs, 2.0 * FLOAT * prod(picture)
    return (3 * flops, 2 * moved) if case.trains else (flops, moved)
