"""How long the exact search takes, beside the exact searches of opt_einsum and cotengra on the same networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cotengra
import networkx
import numpy as np
import opt_einsum

import convein
from measure import Group, Limit

Shapes = list[tuple[int, ...]]


def star(operands: int) -> tuple[str, Shapes]:
    """A CP layer without its convolution: x and its factors, all of which share the rank."""
    modes = [opt_einsum.get_symbol(number) for number in range(operands - 1)]
    rank, batch = opt_einsum.get_symbol(operands), opt_einsum.get_symbol(operands + 1)
    factors = [rank + mode for mode in modes]
    shapes: Shapes = [(16, *[3 + number % 3 for number in range(operands - 1)])]
    shapes += [(8, size) for size in shapes[0][1:]]
    return ",".join([batch + "".join(modes), *factors]) + "->" + batch + rank, shapes


def graph_network(graph: networkx.Graph, seed: int) -> tuple[str, Shapes]:
    """An operand for each node, a summed mode of size 2 to 6 for each edge."""
    numbers = np.random.default_rng(seed)
    modes = {frozenset(edge): opt_einsum.get_symbol(number) for number, edge in enumerate(graph.edges)}
    sizes = {mode: int(numbers.integers(2, 7)) for mode in modes.values()}
    terms = [[modes[frozenset((node, other))] for other in graph[node]] for node in graph]
    return ",".join("".join(term) for term in terms) + "->", [tuple(sizes[mode] for mode in term) for term in terms]


def _group(name: str, network: tuple[str, Shapes], milliseconds: float | None, *, dp: bool = True) -> Group:
    expression, shapes = network
    left, right = expression.split("->")
    inputs = left.split(",")
    sizes = {
        mode: size for term, shape in zip(inputs, shapes, strict=True) for mode, size in zip(term, shape, strict=True)
    }
    sets, output = [frozenset(term) for term in inputs], frozenset(right)

    def ours() -> object:
        convein.cache_clear()
        return convein.contract_path(expression, *shapes, optimize="optimal", cost="flops")

    variants: dict[str, Callable[[], object]] = {"convein optimal": ours}
    variants["cotengra optimal"] = lambda: cotengra.optimize_optimal(inputs, right, sizes, minimize="flops")
    if dp:
        variants["opt_einsum dp"] = lambda: opt_einsum.DynamicProgramming()(sets, output, sizes)
    return Group(name, variants, Limit("convein optimal", milliseconds * 1e-3) if milliseconds else None)


def groups() -> Iterator[Group]:
    """Stars of operands that share one mode, a random cubic network, a lattice."""
    yield _group("star of 8", star(8), None)
    yield _group("star of 10", star(10), 15)
    yield _group("cubic network of 20", graph_network(networkx.random_regular_graph(3, 20, seed=0), 0), 25)
    yield _group("lattice of 30", graph_network(networkx.grid_2d_graph(5, 6), 0), 300, dp=False)
