"""Contractions without a convolution, beside torch.einsum, opt_einsum and cotengra: from tiny to 20 milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import networkx
import opt_einsum
import torch
from torch import Tensor

import convein
from measure import Group

CHAIN = {"a": 16, "b": 512, "c": 32, "d": 512, "e": 16}
HEADS = {"b": 4, "h": 8, "q": 128, "k": 128, "d": 64}
TRAIN = {"b": 512, "i": 8, "j": 8, "k": 8, "x": 8, "y": 8, "z": 8, "r": 6, "s": 6}

# A name, an equation, the sizes of its modes.
CONTRACTIONS: tuple[tuple[str, str, Mapping[str, int]], ...] = (
    ("product, tiny", "ij,jk->ik", dict.fromkeys("ijk", 8)),
    ("product, small", "ij,jk->ik", dict.fromkeys("ijk", 64)),
    ("product, large", "ij,jk->ik", dict.fromkeys("ijk", 1024)),
    ("chain of 4, tiny", "ab,bc,cd,de->ae", dict.fromkeys("abcde", 8)),
    ("chain of 4", "ab,bc,cd,de->ae", CHAIN),
    ("chain of 6", "ab,bc,cd,de,ef,fg->ag", dict.fromkeys("abcdefg", 128)),
    ("batched product", "bij,bjk->bik", {"b": 64, "i": 64, "j": 64, "k": 64}),
    ("attention, scores", "bqhd,bkhd->bhqk", HEADS),
    ("attention, values", "bhqk,bkhd->bqhd", HEADS),
    ("attention, linear", "bqhd,bkhd,bkhe->bqhe", {**HEADS, "e": 64}),
    ("linear layer", "bnd,de->bne", {"b": 8, "n": 128, "d": 512, "e": 512}),
    ("low-rank layer", "bnd,dr,re->bne", {"b": 8, "n": 128, "d": 512, "r": 16, "e": 512}),
    ("tensor-train layer", "bijk,ixr,rjys,skz->bxyz", TRAIN),
    ("bilinear", "bi,oij,bj->bo", {"b": 64, "o": 32, "i": 64, "j": 64}),
    ("outer", "i,j->ij", {"i": 512, "j": 512}),
    ("outer, batched", "bi,bj,bk->bijk", {"b": 64, "i": 16, "j": 16, "k": 16}),
    ("elementwise, broadcast", "bsn,s->bsn", {"b": 16, "s": 64, "n": 1024}),
    ("inner", "ij,ij->", {"i": 512, "j": 512}),
    ("trace of a product", "ij,ji->", {"i": 256, "j": 256}),
    ("trace of three", "ij,jk,ki->", dict.fromkeys("ijk", 128)),
    ("Tucker, composed", "abc,ia,jb,kc->ijk", dict.fromkeys("abc", 12) | dict.fromkeys("ijk", 48)),
    ("CP, composed", "ir,jr,kr->ijk", {"i": 64, "j": 64, "k": 64, "r": 16}),
    ("overlap of two states", "ai,bi,aj,bj->ab", {"a": 64, "b": 64, "i": 64, "j": 64}),
)


def groups() -> Iterator[Group]:
    """The contractions by hand, then networks of 6, 8 and 10 tensors; forward, then with all gradients."""
    networks = (
        ("ladder of 6", networkx.ladder_graph(3), 12),
        ("lattice of 8", networkx.grid_2d_graph(2, 4), 8),
        ("cubic network of 10", networkx.random_regular_graph(3, 10, seed=0), 6),
    )
    for name, equation, sizes in (*CONTRACTIONS, *(_network(*network) for network in networks)):
        for direction in ("forward", "forward+backward"):
            make = partial(_variants, equation, sizes, trains=direction != "forward")
            yield Group(f"{name}: {equation} {direction}", make)


def _network(name: str, graph: networkx.Graph, size: int) -> tuple[str, str, Mapping[str, int]]:
    """A tensor for each node, a summed mode for each edge, and an open mode at the first and the last node."""
    letters = {frozenset(edge): opt_einsum.get_symbol(number) for number, edge in enumerate(graph.edges)}
    terms = ["".join(letters[frozenset((node, other))] for other in graph[node]) for node in graph]
    start, end = (opt_einsum.get_symbol(len(letters) + number) for number in range(2))
    terms[0] += start
    terms[-1] += end
    return name, f"{','.join(terms)}->{start}{end}", dict.fromkeys([*letters.values(), start, end], size)


def _cotengra(equation: str, shapes: Sequence[tuple[int, ...]]) -> dict[str, Callable[..., Tensor]]:
    """Its calls, if it is installed."""
    try:
        import cotengra
    except ImportError:
        return {}
    return {
        "cotengra.einsum": partial(cotengra.einsum, equation),
        "cotengra.einsum_expression": cotengra.einsum_expression(equation, *shapes),
    }


def _variants(equation: str, sizes: Mapping[str, int], *, trains: bool) -> dict[str, Callable[[], object]]:
    shapes = [tuple(sizes[mode] for mode in term) for term in equation.split("->", maxsplit=1)[0].split(",")]
    numbers = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=numbers, requires_grad=trains) for shape in shapes]
    compiled = convein.compile(equation, *operands)
    expression = opt_einsum.contract_expression(equation, *shapes)
    calls: dict[str, Callable[..., Tensor]] = {
        "convein.compile": compiled,
        "convein.conv_einsum": partial(convein.conv_einsum, equation),
        "torch.einsum": partial(torch.einsum, equation),
        "opt_einsum.contract": partial(opt_einsum.contract, equation),
        "opt_einsum.contract_expression": expression,
        **_cotengra(equation, shapes),
    }
    exact = torch.einsum(equation, *(operand.detach().double() for operand in operands))
    gradient = torch.randn(exact.shape, generator=numbers)
    for name, call in calls.items():
        error = float((call(*operands) - exact).abs().max() / exact.abs().max())
        if not error < 1e-4:
            raise ValueError(f"{name} of {equation} is off by {error:.1e}")
    if not trains:
        return {name: partial(call, *operands) for name, call in calls.items()}

    def step(call: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(call(*operands), operands, gradient)

    return {name: partial(step, call) for name, call in calls.items()}
