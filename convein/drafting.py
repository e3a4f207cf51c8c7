"""Network -> the program of a call: planned, lowered, and within the bytes that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convein import measuring
from convein.lowering import Program, Target, lower
from convein.lowering.widen import widen
from convein.memory import Draft, draft, keeping
from convein.metering import Sample
from convein.network import Network
from convein.planner import plan
from convein.request import Request


def drafts(
    request: Request,
    network: Network,
    target: Target,
    needs_grad: int,
    samples: Sequence[Sample],
    constants: frozenset[int] = frozenset(),
    orders: Sequence[tuple[int, ...]] = (),
    several: bool = False,
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
    """
    known = frozenset(constants) | {j for j, operand in enumerate(network.operands) if operand.constant is not None}
    given: dict[str, Any] = {
        "cost": request.cost,
        "needs_grad": needs_grad,
        "constants": sum(1 << position for position in known),
        "rates": target.rates if target.device == "cpu" else None,
    }
    fixed = frozenset(f"x{position}" for position in constants)

    def made(program: Program) -> Draft:
        return draft(widen(program, target), samples, fixed)

    def planned(cost: Any) -> Draft:
        return made(lower(plan(network, optimize=request.optimize, **{**given, "cost": cost}), target, orders))

    budget = request.kept if needs_grad else None
    if several:
        found = [made(program) for program in measuring.programs(network, target, orders, given)]
        return found if budget is None else [keeping([one], budget) for one in found]
    if budget is None:
        return [planned(request.cost)]
    costs = [request.cost, "memory"] if request.cost == "auto" else [request.cost]
    return [keeping(map(planned, costs), budget)]
