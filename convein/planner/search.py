"""Network -> Plan: the searches in one table, and what each `optimize` means."""

from __future__ import annotations

from typing import Any

from convein.network import Network
from convein.planner.costs import choose_cost
from convein.planner.exhaustive import search_all
from convein.planner.greedy import search_greedily
from convein.planner.frame import frame
from convein.planner.partial import partial
from convein.planner.plan import Plan, assemble


def plan(network: Network, *, optimize: Any = "auto", cost: Any = "auto", needs_grad: int = 0, constants: int = 0) -> Plan:
    """The order in which the operands meet."""
    name, objectives = choose_cost(cost, needs_grad)
    count = len(network.operands)
    problem = frame(network, (partial(network, 1 << j) for j in range(count)), needs_grad, constants)
    order = (search_all if count < 13 and optimize != "greedy" else search_greedily)(problem, objectives)
    return assemble(network, order, optimizer="optimal", cost=name, needs_grad=needs_grad, constants=constants)
