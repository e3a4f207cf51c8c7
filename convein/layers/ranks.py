"""Ranks: from a number, a tuple or a fraction of the dense parameters to the size of every bond."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING

from convein.errors import OptionError
from convein.options import as_integer

if TYPE_CHECKING:
    from convein.layers.forms import Factorisation, Weight


@cache
def even_factors(number: int, count: int) -> tuple[int, ...]:
    """`number` as a product of `count` factors that are as equal as they can be, ascending: 128 is 4 * 4 * 8.

    Of all products it is the one with the least sum; a prime is 1 * ... * itself.
    """
    if count == 1:
        return (number,)
    options = [
        tuple(sorted((divisor, *even_factors(number // divisor, count - 1))))
        for divisor in range(1, math.isqrt(number) + 1)
        if number % divisor == 0
    ]
    return min(options, key=lambda factors: (sum(factors), factors))


def solve(made: Factorisation, weight: Weight, rank: object, multiple: int | None) -> dict[str, int]:
    """The size of every bond.

    Args:
        made: the form of the weight.
        weight: the dense weight.
        rank: a number for all bonds; a tuple with one for each of `made.bonds`; a float, the fraction of the dense
            parameters that the factors may have; "same" for as many as the dense weight. A bond that would be larger
            than it is ever useful to be is as large as that (`largest`).
        multiple: round ranks above it down to one of its multiples; a rank that reaches its largest stays.

    Returns:
        A size of at least 1 for each bond: the largest with at most that many parameters, all equal where they can be;
        1 where even that has more.

    Raises:
        OptionError: the rank is none of these.
    """
    step = as_integer(multiple) if multiple is not None else 1
    if step is None or step < 1:
        raise OptionError(
            f"multiple={multiple!r} is no number to round ranks to",
            hint="ranks are rounded to a multiple of a number above 0, 16 often",
        )
    if rank == "same":
        rank = 1.0
    number = as_integer(rank)
    if isinstance(rank, (tuple, list)):
        return _each(made, rank)
    if not made.bonds:
        return {}
    caps = largest(made)
    sizes = _capper(made, caps, step)
    if number is not None:
        if number < 1:
            raise OptionError(f"rank={rank!r} is no rank", hint="a rank is at least 1")
        return sizes(number)
    if not isinstance(rank, float) or not 0 < rank <= 1:  # NaN is none, too
        if isinstance(rank, float) and 1 < rank < math.inf:
            hint = (
                f"a fraction of the dense parameters is at most 1.0; a number of terms is an integer, rank={int(rank)}"
            )
            raise OptionError(f"rank={rank!r} is no rank", hint=hint)
        raise OptionError(
            f"rank={rank!r} is no rank",
            hint="a rank is a number for all bonds (8), a tuple with one for each, a fraction of the dense parameters "
            '(0.1, at most 1.0), or "same"',
        )
    return sizes(bisect(lambda number: made.count(sizes(number)) <= rank * weight.parameters, max(caps.values())))


def largest(made: Factorisation) -> dict[str, int]:
    """The most that each bond is ever useful for: with these sizes every dense weight has factors exactly.

    A bond that parts the factors in two needs no more than the smaller side has entries; one that all of them share, as
    in a CP form, no more than all entries but those of the largest factor.
    """
    import networkx

    outer = [prod(made.sizes[mode] for axis in node for mode in axis) for node in made.nodes]
    if made.kind == "cp":
        return {bond: prod(outer) // max(outer) for bond in made.bonds}
    caps = {bond: made.kept.get(bond, 0) for bond in made.bonds}
    graph = networkx.Graph()
    carriers = {bond: [i for i, term in enumerate(made.terms) if (bond,) in term] for bond in made.bonds}
    for bond, ends in carriers.items():
        if len(ends) == 2 and bond != "u":
            graph.add_edge(*ends)
    for bond, ends in carriers.items():
        if caps[bond]:
            continue
        if bond == "u":  # a ring is cut open there, and is a chain already
            caps[bond] = min(outer[ends[0]], outer[ends[-1]])
            continue
        cut = graph.copy()
        cut.remove_edge(*ends)
        caps[bond] = min(prod(outer[i] for i in side) for side in networkx.connected_components(cut))
    return caps


def _each(made: Factorisation, rank: Sequence[object]) -> dict[str, int]:
    numbers = [as_integer(one) for one in rank]
    if len(numbers) != len(made.bonds) or any(one is None or one < 1 for one in numbers):
        count = f"{len(made.bonds)} bond{'s' * (len(made.bonds) != 1)}"
        raise OptionError(
            f"rank={tuple(rank)!r}: form {made.form!r} has {count} ({', '.join(made.bonds) or 'none'})",
            hint="a tuple of ranks has one of at least 1 for each bond, in this order",
        )
    caps = largest(made) if made.bonds else {}
    pairs = zip(made.bonds, numbers, strict=True)
    return {
        bond: number if bond in made.kept else min(number, caps[bond]) for bond, number in pairs if number is not None
    }


def _capper(made: Factorisation, caps: Mapping[str, int], step: int) -> Callable[[int], dict[str, int]]:
    """From one number to the sizes of all bonds."""

    def size(bond: str, number: int) -> int:
        if bond in made.kept:
            return made.kept[bond]
        if number >= caps[bond]:
            return caps[bond]
        return number - number % step if number > step else number

    return lambda number: {bond: size(bond, number) for bond in made.bonds}


def bisect(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits; 1 if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
