"""Order -> cheaper order, for networks too large to search: its subtrees are searched until none gets better."""

from __future__ import annotations

from collections.abc import Sequence

from convein.planner.costs import Objective
from convein.planner.exhaustive import search_all
from convein.planner.frame import Frame, regroup
from convein.planner.order import Order, score
from convein.planner.partial import Partial, join

# 7 values have 10395 orders, which `search_all` goes through in a fraction of a millisecond.
MOST_VALUES = 7
MOST_SWEEPS = 8
# The search computes in floats, which end at 2 ** 1024.
MOST_BITS = 1000


def improve(problem: Frame, order: Order, objectives: Sequence[Objective]) -> Order:
    """The order, with every subtree over a few values made the best one, until none gets better."""
    tree = _Tree(problem, order)
    seen: set[tuple[int, ...]] = set()
    for _ in range(MOST_SWEEPS):
        better = False
        for node in tree.nodes():
            if node not in tree.halves:
                continue
            values = tree.below(node)
            if len(values) > 2 and values not in seen:
                seen.add(values)
                better |= _improve(tree, values, objectives)
        if not better:
            break
    return tree.order()


def _improve(tree: _Tree, nodes: tuple[int, ...], objectives: Sequence[Objective]) -> bool:
    problem = tree.problem
    small = regroup(problem, (tree.values[node] for node in nodes))
    if small.magnitude > MOST_BITS:
        return False
    before = tree.order(nodes)
    after = search_all(small, objectives)
    old, new = score(small, before, objectives), score(small, after, objectives)
    if old == new or any(one < other for one, other in zip(old, new, strict=True)):
        return False
    tree.replace(nodes, after)
    return True


class _Tree:
    """An order as sets of leaves, each with the two it is made of."""

    def __init__(self, problem: Frame, order: Order) -> None:
        self.problem = problem
        self.halves: dict[int, tuple[int, int]] = {}
        self.values: dict[int, Partial] = {1 << place: value for place, value in enumerate(problem.values)}
        self.leaves = tuple(self.values)
        self.replace(self.leaves, order)

    def nodes(self) -> list[int]:
        """All sets that are made, small ones first."""
        return sorted(self.halves, key=lambda node: (node.bit_count(), node))

    def below(self, node: int) -> tuple[int, ...]:
        """A few sets that a set is made of: the largest value is opened as long as there is room."""
        closed: list[int] = []
        opened = [node]
        while opened and len(closed) + len(opened) < MOST_VALUES:
            largest = max(opened, key=lambda part: self.values[part].elements)
            opened.remove(largest)
            for half in self.halves[largest]:
                (opened if half in self.halves else closed).append(half)
        return tuple(sorted(closed + opened))

    def order(self, nodes: Sequence[int] | None = None) -> Order:
        """How these sets (all leaves, if not said) become one."""
        nodes = self.leaves if nodes is None else nodes
        numbers = {node: number for number, node in enumerate(nodes)}
        steps: list[tuple[int, int]] = []
        waiting = [sum(nodes)]
        while waiting:
            node = waiting[-1]
            missing = [half for half in self.halves[node] if half not in numbers] if node not in numbers else []
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node not in numbers:
                left, right = self.halves[node]
                steps.append((numbers[left], numbers[right]))
                numbers[node] = len(nodes) + len(steps) - 1
        return tuple(steps)

    def replace(self, nodes: Sequence[int], order: Order) -> None:
        """Makes one set of these in another order."""
        forgotten = [sum(nodes)]
        while forgotten:
            node = forgotten.pop()
            if node not in nodes and node in self.halves:
                forgotten += self.halves.pop(node)
        made = list(nodes)
        for left, right in order:
            node = made[left] | made[right]
            self.halves[node] = made[left], made[right]
            self.values[node] = join(self.problem.network, self.values[made[left]], self.values[made[right]])
            made.append(node)
