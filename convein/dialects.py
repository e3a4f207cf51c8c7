"""Two dialects: average pooling along a mode, and operands repeated by the number. `POOLING + REPEATED` has both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

from convein.dialect import Dialect
from convein.equation import Constant, Dimension, Mode, Option, Term
from convein.errors import ExpressionError, OptionError
from convein.handlers import span

if TYPE_CHECKING:
    from lark import Token

_MOST = 1000
_NUMBERED = re.compile(r"#(\w*?)([+-][0-9])?$")


def _average(word: Token, _equal: Token, number: Token) -> tuple[Term | Option, ...]:
    """`avg=k`: the mean of k neighbours, by a filter of k entries 1/k, and one output for k inputs."""
    place = span(word, number)
    size = _count(number)
    if size is None:
        raise OptionError(f"an average is taken over 1 to {_MOST} neighbours, not {number}", spans=[place])
    return (
        Term((), place, Constant((size,), 1 / size)),
        Option("stride", size, place, default=True),
        Option("padding", "valid", place, default=True),
    )


def _repeated(opening: Token, *parts: Any) -> tuple[Term, ...]:
    """`[...]*n`: n operands, with the number of each in place of every `#`."""
    *pattern, _, _, number = parts
    return tuple(
        Term(tuple(_numbered_dimension(dimension, index) for dimension in pattern), span(opening, number))
        for index in _indices(number)
    )


def _numbered_dimension(dimension: Dimension, index: int) -> Dimension:
    return Dimension(tuple(_substitute(mode, index) for mode in dimension.modes), dimension.span, dimension.spans)


def _series(numbered: Token, _times: Token, number: Token) -> tuple[Mode, ...]:
    """`s#*n`: n modes of one composed dimension."""
    name = _numbered(numbered).name
    return tuple(Mode(_substitute(name, index), span(numbered, number)) for index in _indices(number))


def _numbered(token: Token) -> Mode:
    if token[-2:] > "-1" and token[-2] == "-":
        raise ExpressionError(
            f"the first number of {token} would be negative", spans=[span(token)], hint="# counts from 1"
        )
    return Mode(token.value, span(token))


def _substitute(name: str, index: int) -> str:
    return _NUMBERED.sub(lambda sign: f"{index + int(sign[2] or 0)}{sign[1]}", name)


def _indices(number: Token) -> Iterator[int]:
    count = _count(number)
    if count is None:
        raise ExpressionError(f"a repetition is counted from 1 to {_MOST}, not {number}", spans=[span(number)])
    return iter(range(1, count + 1))


def _count(number: Token) -> int | None:
    """The value of a number from 1 to the most that is sensible."""
    value = int(number) if number.isdecimal() and len(number) <= len(str(_MOST)) else 0
    return value if 1 <= value <= _MOST else None


def _read(name: str) -> str:
    return (get_data("convein.grammar", name) or b"").decode()


POOLING = Dialect(_read("pooling.lark"), {"average": _average})
REPEATED = Dialect(_read("repeated.lark"), {"repeated": _repeated, "series": _series, "numbered": _numbered})
