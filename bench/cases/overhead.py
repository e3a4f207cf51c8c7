"""What a cached call costs beyond the torch calls it makes, on tensors so small that nothing else counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import opt_einsum
import torch
import torch.nn.functional as F

import convein
from measure import Group, Limit

MOST = 12e-6


def _contraction(name: str, expression: str, raw: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> Group:
    operands = [torch.randn(shape) for shape in shapes]
    compiled = convein.compile(expression, *operands)
    variants: dict[str, Callable[[], object]] = {
        "raw torch calls": lambda: raw(*operands),
        "convein.conv_einsum": lambda: convein.conv_einsum(expression, *operands),
        "convein.compile": lambda: compiled(*operands),
    }
    if "|" not in expression:
        ready = opt_einsum.contract_expression(expression, *shapes)
        variants["torch.einsum"] = lambda: torch.einsum(expression, *operands)
        variants["opt_einsum.contract"] = lambda: opt_einsum.contract(expression, *operands)
        variants["opt_einsum.contract_expression"] = lambda: ready(*operands)
    return Group(f"{name} {expression}", variants, Limit("convein.conv_einsum", MOST, "raw torch calls"))


def groups() -> Iterator[Group]:
    """Two operands, a chain of four, a convolution."""
    square = (8, 8)
    yield _contraction("pair", "ij,jk->ik", torch.mm, square, square)
    yield _contraction(
        "chain", "ab,bc,cd,de->ae", lambda a, b, c, d: a.mm(b).mm(c).mm(d), square, square, square, square
    )
    yield _contraction(
        "convolution", "bshw,tshw->bthw|hw", lambda x, w: F.conv2d(x, w, padding=1), (1, 2, 6, 6), (2, 2, 3, 3)
    )
