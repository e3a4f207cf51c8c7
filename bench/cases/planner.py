"""How long the exact search takes, beside the exact searches of opt_einsum and cotengra on the same networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import networkx
import numpy as np
import opt_einsum

import convein
from measure import Group, Limit

Shapes = list[tuple[int, ...]]


def star(operands: int) -> tuple[str, Shapes]:
    """The shape of a CP layer: x, and a factor for each of its modes and of the output's; factors share the rank."""
    inner = [opt_einsum.get_symbol(number) for number in range(operands // 2)]
    outer = [opt_einsum.get_symbol(number) for number in range(operands // 2, operands - 1)]
    batch, rank = opt_einsum.get_symbol(operands - 1), opt_einsum.get_symbol(operands)
    sizes = {mode: 4 + number % 3 for number, mode in enumerate(inner + outer)} | {batch: 16, rank: 8}
    terms = [batch + "".join(inner), *(rank + mode for mode in inner + outer)]
    shapes = [tuple(sizes[mode] for mode in term) for term in terms]
    return f"{','.join(terms)}->{batch}{''.join(outer)}", shapes


def product(operands: int) -> tuple[str, Shapes]:
    """Matrices that share their first mode, which is summed; the second mode of each is kept."""
    modes = [opt_einsum.get_symbol(number) for number in range(1, operands + 1)]
    return f"{','.join('a' + mode for mode in modes)}->{''.join(modes)}", [(8, 2 + n % 3) for n in range(operands)]


def graph_network(graph: networkx.Graph, seed: int) -> tuple[str, Shapes]:
    """An operand for each node, a summed mode of size 2 to 6 for each edge."""
    numbers = np.random.default_rng(seed)
    modes = {frozenset(edge): opt_einsum.get_symbol(number) for number, edge in enumerate(graph.edges)}
    sizes = {mode: int(numbers.integers(2, 7)) for mode in modes.values()}
    terms = [[modes[frozenset((node, other))] for other in graph[node]] for node in graph]
    return ",".join("".join(term) for term in terms) + "->", [tuple(sizes[mode] for mode in term) for term in terms]


def cotengra_optimal(inputs: list[str], output: str, sizes: Mapping[str, int]) -> object:
    """The path that cotengra's exact search finds."""
    import cotengra

    return cotengra.OptimalOptimizer(minimize="flops")(inputs, output, sizes)


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
    if find_spec("cotengra") is not None:
        variants["cotengra optimal"] = lambda: cotengra_optimal(inputs, right, sizes)
    if dp:
        variants["opt_einsum dp"] = lambda: opt_einsum.DynamicProgramming()(sets, output, sizes)
    return Group(name, variants, Limit("convein optimal", milliseconds * 1e-3) if milliseconds else None)


def groups() -> Iterator[Group]:
    """Stars of operands that share one mode, a random cubic network, a lattice."""
    yield _group("star of 8", star(8), None)
    yield _group("star of 10", star(10), 15)
    yield _group("product of 10", product(10), 15)
    yield _group("cubic network of 20", graph_network(networkx.random_regular_graph(3, 20, seed=0), 0), 25)
    yield _group("lattice of 30", graph_network(networkx.grid_2d_graph(5, 6), 0), 300, dp=False)
