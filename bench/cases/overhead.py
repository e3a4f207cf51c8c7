"""What a cached call costs beyond the torch calls it makes, on tensors so small that nothing else counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import count, islice
from typing import Any

import opt_einsum
import torch
import torch.nn.functional as F

import convein
from measure import Group, Limit

MOST = 12e-6
FIRST = 2e-3


def _group(
    name: str, expression: str, raw: Callable[..., torch.Tensor], *shapes: tuple[int, ...], **options: Any
) -> Group:
    operands = [torch.randn(shape) for shape in shapes]
    compiled = convein.compile(expression, *operands, **options)
    torch.testing.assert_close(convein.conv_einsum(expression, *operands, **options), raw(*operands))
    variants: dict[str, Callable[[], object]] = {
        "raw torch calls": lambda: raw(*operands),
        "convein.conv_einsum": lambda: convein.conv_einsum(expression, *operands, **options),
        "convein.compile": lambda: compiled(*operands),
    }
    if "|" not in expression:
        ready = opt_einsum.contract_expression(expression, *shapes)
        variants["torch.einsum"] = lambda: torch.einsum(expression, *operands)
        variants["opt_einsum.contract"] = lambda: opt_einsum.contract(expression, *operands)
        variants["opt_einsum.contract_expression"] = lambda: ready(*operands)
    return Group(f"{name} {expression}", variants, Limit("convein.conv_einsum", MOST, more_than_first=True))


def _first_call() -> Group:
    """A chain of four with other letters in every call, so that nothing is known of it."""
    operands = [torch.randn(8, 8) for _ in range(4)]
    letters = map(opt_einsum.get_symbol, count())

    def first() -> object:
        a, b, c, d, e = islice(letters, 5)
        return convein.conv_einsum(f"{a}{b},{b}{c},{c}{d},{d}{e}->{a}{e}", *operands)

    first_operand, *others = operands
    variants: dict[str, Callable[[], object]] = {
        "raw torch calls": lambda: reduce(torch.mm, others, first_operand),
        "convein.conv_einsum": first,
    }
    return Group("first call ab,bc,cd,de->ae", variants, Limit("convein.conv_einsum", FIRST, more_than_first=True))


def groups() -> Iterator[Group]:
    """Two operands, a chain of four, a convolution, one with keywords, and a chain that was never seen."""
    pair, chain = [(8, 8)] * 2, [(8, 8)] * 4
    picture, weight, expression = (1, 2, 6, 6), (2, 2, 3, 3), "bshw,tshw->bthw|hw"
    yield _group("pair", "ij,jk->ik", torch.mm, *pair)
    yield _group("chain", "ab,bc,cd,de->ae", lambda a, b, c, d: a.mm(b).mm(c).mm(d), *chain)
    yield _group("convolution", expression, lambda x, w: F.conv2d(x, w, padding=1), picture, weight)
    yield _group(
        "keywords",
        expression,
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=1),
        picture,
        weight,
        stride={"h": 2},
        padding=1,
    )
    yield _first_call()
