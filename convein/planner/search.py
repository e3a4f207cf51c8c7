"""Network -> Plan: the searches in one table, and what each `optimize` means."""

from __future__ import annotations

from typing import Any

from convein.network import Network
from convein.planner.costs import choose_cost
from convein.planner.exhaustive import Tree, search_all
from convein.planner.frame import frame
from convein.planner.plan import Plan, assemble


def plan(network: Network, *, optimize: Any = "auto", cost: Any = "auto", needs_grad: int = 0, constants: int = 0) -> Plan:
    """The order in which the operands meet."""
    name, objectives = choose_cost(cost, needs_grad)
    count = len(network.operands)
    problem = frame(network, [1 << j for j in range(count)], needs_grad, constants)
    tree = search_all(problem, objectives)
    return assemble(network, ssa_path(tree, count), optimizer="optimal", cost=name, needs_grad=needs_grad, constants=constants)


def ssa_path(tree: Tree, count: int) -> list[tuple[int, int]]:
    """The steps of a tree over `count` operands, in an order that makes each half before it is used."""
    steps: list[tuple[int, int]] = []

    def number(node: Tree) -> int:
        if isinstance(node, int):
            return node
        steps.append((number(node[0]), number(node[1])))
        return count + len(steps) - 1

    number(tree)
    return steps
