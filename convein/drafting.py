"""Network -> the program of a call: planned, lowered, and within the bytes that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from convein import measuring
from convein.errors import OptionError, PlanError
from convein.lowering import Program, Target, lower
from convein.lowering.fold import fold
from convein.lowering.looping import Loop
from convein.lowering.note import told
from convein.lowering.slicing import chunked, loops
from convein.lowering.widen import widen
from convein.memory import Draft, Sketch, draft, keeping, limited
from convein.metering import Sample
from convein.network import Network
from convein.planner import Plan, plan
from convein.planner.candidates import candidates, chained
from convein.planner.plan import steps_of
from convein.planner.several import MOST_LEAVES
from convein.request import Request

# So many orders are lowered, if the search finds them no more than so many times as slow as the best one.
FEW = 4
NEAR = 1.5
# Of plain contractions another order is taken if the first one takes so many times as long.
CHEAPER = 1.05
# And so many of the orders that kernels are made for, those first that cost least without kernels.
MOST_CHAINS = 12
BEST = ("auto", "optimal", "measure")  # where nothing can be measured
# The devices whose rates are known.
TIMED = ("cpu", "cuda")


def drafts(
    request: Request,
    network: Network,
    target: Target,
    needs_grad: int,
    samples: Sequence[Sample],
    constants: frozenset[int] = frozenset(),
    orders: Sequence[tuple[int, ...]] = (),
    several: bool = False,
    recorded: bool = False,
) -> list[Draft]:
    """The program of the best order, or those of the best `several`, within the bytes that were asked for.

    Args:
        request: what was asked for.
        network: what is planned.
        target: what it will run on.
        needs_grad: the operands whose gradients are needed, as a bit set.
        samples: what the operands will be like.
        constants: the operands that never change; what depends on them alone is taken apart.
        orders: for each operand its axes in memory, as for `lower`.
        several: whether they will be timed.
        recorded: whether a graph will hold the calls.

    Raises:
        PlanError: there is no way to stay within the limit; the message has the smallest one that can be kept.
    """
    given = _given(request, network, target, needs_grad, constants)
    if several:
        programs = measuring.programs(network, target, orders, given)
    elif compares(request, network, target):
        programs = [_best(network, target, orders, given, _names(constants))]
    else:
        programs = [lower(plan(network, optimize=request.optimize, **given), target, orders)]
    if target.forced:
        programs = _with_kernels(request, programs)
    if (request.kept is None or not needs_grad) and request.limit is None:
        return [draft(widen(program, target), samples, _names(constants)) for program in programs]
    sketches = [sketch(program, target, samples, constants, orders, recorded=recorded) for program in programs]
    if several and request.limit is None:
        return [_fitted(request, [one]) for one in sketches]
    if request.cost == "auto":
        leaner = lower(plan(network, optimize=request.optimize, **{**given, "cost": "memory"}), target, orders)
        sketches.append(sketch(leaner, target, samples, constants, orders, recorded=recorded))
    return [_fitted(request, sketches)]


def order(
    request: Request, network: Network, target: Target, needs_grad: int, orders: Sequence[tuple[int, ...]]
) -> Plan:
    """The order that `drafts` would take if no bytes were asked for."""
    given = _given(request, network, target, needs_grad, frozenset())
    if compares(request, network, target):
        return _best(network, target, orders, given, frozenset()).plan
    return plan(network, optimize=request.optimize, **given)


def _given(
    request: Request, network: Network, target: Target, needs_grad: int, constants: frozenset[int]
) -> dict[str, Any]:
    """What the planner is told."""
    known = constants | {j for j, operand in enumerate(network.operands) if operand.constant is not None}
    return {
        "cost": request.cost,
        "needs_grad": needs_grad,
        "constants": sum(1 << position for position in known),
        "rates": target.rates if target.device in TIMED else None,
    }


def compares(request: Request, network: Network, target: Target) -> bool:
    """Whether the best few orders are lowered before one of them is chosen.

    A search knows a step by its sizes alone; how it suits the layouts around it shows in the calls that it becomes.
    With convolutions, and where kernels do several steps, that can be as much as the difference between orders. The
    three orders of three operands are often equally good by their sizes, and soon lowered.
    """
    words = (request.optimize, request.cost)
    timed = all(isinstance(word, str) for word in words) and words[0] in BEST and words[1] in ("auto", "time")
    count = len(network.operands)
    matters = network.convolutions or target.refusal is not None or count == 3
    return bool(timed and target.device in TIMED and matters and 2 < count <= MOST_LEAVES)


def _best(
    network: Network,
    target: Target,
    orders: Sequence[tuple[int, ...]],
    given: dict[str, Any],
    constants: frozenset[str],
) -> Program:
    """Of the programs of the best few orders, the one that takes least; what is computed once does not count.

    Where there are kernels, the orders that they are made for are among them.
    """
    plans = candidates(network, FEW, **given)
    near = [plan for plan in plans if plan.total <= NEAR * plans[0].total]
    if target.refusal is not None:
        near += chained(network, MOST_CHAINS, **given)
    signals = sum({1 << convolution.signal for convolution in network.convolutions.values()}) or network.everything

    def rank(program: Program) -> tuple[int, float]:
        # Factors that are multiplied beforehand are small, whatever does it.
        flowing = sum(bool(step.result_set & signals) for step in program.plan.steps)
        return max(0, flowing - program.fused) if target.forced else 0, fold(program, constants)[1].price

    first, *rest = (lower(plan, target, orders) for plan in near)
    if not network.convolutions and target.refusal is None:
        # Views are not priced: what is hardly cheaper is no reason to leave the search's own choice.
        most = rank(first)[1] / CHEAPER
        rest = [program for program in rest if rank(program)[1] < most]
    best, *others = sorted([first, *rest], key=rank)
    if best.fused:
        return best
    # What a kernel refuses in an order that was not taken may be why it was not.
    known = {note.run for note in best.notes}
    more = [note for program in others for note in program.notes if not note.fits and note.run not in known]
    apart = [replace(note, run=f"{note.run} in another order") for note in more]
    return replace(best, notes=tuple(dict.fromkeys((*best.notes, *apart))))


def _with_kernels(request: Request, programs: Sequence[Program]) -> list[Program]:
    """Those programs that call kernels.

    Raises:
        OptionError: there is none.
    """
    found = [program for program in programs if program.kernels]
    if not found:
        why = told(note for program in programs for note in program.notes)
        raise OptionError(
            f'backend="triton": no kernel computes a part of this ({"; ".join(why) or "no run of its steps is one"})',
            text=request.equation.text,
            hint='backend="auto" takes kernels where there are some, and calls of torch elsewhere',
        )
    return found


def _fitted(request: Request, sketches: Sequence[Sketch]) -> Draft:
    """The fastest draft within the bytes that were asked for.

    Raises:
        PlanError: there is none.
    """
    samples = sketches[0].draft.samples
    if request.limit is None:
        return keeping((one.draft for one in sketches), request.kept or 0)
    limit = request.limit.on(torch.device(samples[0].device if samples else "cpu"))
    found = limited(sketches, limit, request.kept if any(sample.grad for sample in samples) else None)
    if isinstance(found, Draft):
        return found
    given = f" ({limit} bytes)" if request.limit.text != str(limit) else ""
    raise PlanError(
        f"memory_limit={request.limit.text}{given} is too small: {found} bytes are needed",
        text=request.equation.text,
        hint=f"memory_limit={found} works; operands are not counted",
    )


def sketch(
    program: Program,
    target: Target,
    samples: Sequence[Sample],
    constants: frozenset[int],
    orders: Sequence[tuple[int, ...]],
    *,
    recorded: bool = False,
) -> Sketch:
    """One order, and how it is sliced."""
    planned = program.plan

    def sliced(over: tuple[Loop, ...]) -> Draft:
        network = planned.network
        for loop in over:
            network = chunked(network, loop)
        steps = steps_of(
            network, [(step.left, step.right) for step in planned.steps], planned.needs_grad, planned.constants
        )
        chunk = replace(target, hints=dict(network.sizes), knows_memory=False)
        adds = any(loop.axis is None for loop in over)
        piece = widen(lower(replace(planned, network=network, steps=steps), chunk, orders), target, adds=adds)
        made = draft(piece, samples, _names(constants))
        whole = replace(planned, slices=tuple(loop.mode for loop in over))
        return replace(made, rest=replace(made.rest, plan=whole, loops=over, recomputes=bool(planned.needs_grad)))

    fixed = sum(1 << position for position in constants)
    over = loops(planned.network, fixed, recorded=recorded)
    return Sketch(draft(widen(program, target), samples, _names(constants)), over, sliced)


def _names(positions: frozenset[int]) -> frozenset[str]:
    return frozenset(f"x{position}" for position in positions)
