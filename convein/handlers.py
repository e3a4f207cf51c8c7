"""Parts of a grammar rule -> a piece of the equation: one function for each rule of `grammar/conv_einsum.lark`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convein.equation import Convolved, Dimension, Mode, Option, Term
from convein.errors import ExpressionError, OptionError, Span
from convein.options import OPTION_NAMES, ConvOptions, Legal, legal_value, unknown_option

if TYPE_CHECKING:
    from lark import Token

Handler = Callable[..., Any]
Parts = list[Any]
Statement = tuple[tuple[Term, ...], Term | None, tuple[Convolved | Term, ...]]

_DEFAULTS = ConvOptions()
_NOTHING: frozenset[str] = frozenset()
_NOWHERE = Span(-1, -1)


def span(*parts: Any) -> Span:
    """The place in the text from the first to the last of these parts of a rule, tokens or pieces."""
    places = [_place(part) for part in flat(parts)]
    return Span(min(place.start for place in places), max(place.end for place in places))


def flat(pieces: Any) -> Iterator[Any]:
    """The pieces with every tuple among them opened: a handler may return several pieces for one."""
    for piece in pieces:
        if type(piece) is tuple:
            yield from flat(piece)
        else:
            yield piece


def _place(part: Any) -> Span:
    return Span(part.start_pos, part.end_pos) if isinstance(part, str) else part.span  # type: ignore[attr-defined]


def _implicit(parts: Parts) -> Statement:
    return parts[0], None, ()


def _explicit(parts: Parts) -> Statement:
    return parts[0], _output(parts), ()


def _convolution(parts: Parts) -> Statement:
    return parts[0], _output(parts), parts[4]


def _output(parts: Parts) -> Term:
    if isinstance(parts[2], tuple):
        raise ExpressionError("the output is one term, and this rule makes several", spans=[span(parts[2])])
    return _placed(parts[2], parts[1].end_pos)


def _inputs(parts: Parts) -> tuple[Term, ...]:
    terms: list[Term] = []
    start = 0
    for part in parts:
        if isinstance(part, str):
            start = part.end_pos  # type: ignore[attr-defined]
        else:
            terms += [_placed(term, start) for term in flat((part,))]
    return tuple(terms)


def _placed(term: Term, start: int) -> Term:
    return Term((), Span(start, start)) if term.span is _NOWHERE else term


def _term(parts: Parts) -> Term | tuple[Term, ...]:
    pieces = tuple(flat(parts))
    if not pieces:
        return Term((), _NOWHERE)
    if isinstance(pieces[0], Term):
        return pieces
    return Term(pieces, Span(pieces[0].span.start, pieces[-1].span.end))


def _single(parts: list[Token]) -> Dimension:
    place = _place(parts[0])
    return Dimension((parts[0].value,), place, (place,))


def _composed(parts: Parts) -> Dimension:
    modes = tuple(flat(parts[1:-1]))
    return Dimension(tuple(mode.name for mode in modes), span(parts[0], parts[-1]), tuple(mode.span for mode in modes))


def _mode(parts: list[Token]) -> Mode:
    name = parts[len(parts) // 2]
    return Mode(name.value, _place(name))


def _bar(parts: Parts) -> tuple[Convolved | Term, ...]:
    return tuple(piece for piece in flat(parts) if not isinstance(piece, str))


def _listed(parts: Parts) -> Convolved | tuple[Convolved | Term, ...]:
    mode: Mode = parts[0]
    if len(parts) == 1:
        return Convolved(mode.name, _DEFAULTS, _NOTHING, mode.span)
    pieces = [piece for piece in flat(parts[2:-1]) if not isinstance(piece, str)]
    options = [piece for piece in pieces if isinstance(piece, Option)]
    values: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for option in options:
        if option.name in values[option.default]:
            raise OptionError(f"mode {mode.name} has {option.name} twice", spans=[option.span])
        values[option.default][option.name] = _legal(option, mode)
    stated = values[True] | values[False]
    filters = (_along(mode, piece) for piece in pieces if isinstance(piece, Term))
    return (Convolved(mode.name, ConvOptions(**stated), frozenset(stated), mode.span), *filters)


def _legal(option: Option, mode: Mode) -> Legal:
    try:
        if option.name not in OPTION_NAMES:
            raise unknown_option(option.name, option.value)
        return legal_value(option.name, option.value, f"mode {mode.name} cannot have")
    except OptionError as error:
        error.spans = (option.span,)
        raise


def _along(mode: Mode, constant: Term) -> Term:
    return Term((Dimension((mode.name,), mode.span, (mode.span,)),), constant.span, constant.constant)


def _flag(parts: list[Token]) -> Option:
    if parts[0] in OPTION_NAMES and parts[0] not in ("flip", "transposed"):
        hint = f"write {parts[0]}=...; only flip and transposed stand alone"
        raise OptionError(f"the option {parts[0]} has no value", spans=[_place(parts[0])], hint=hint)
    return Option(parts[0].value, True, _place(parts[0]))


def _setting(parts: Parts) -> Option:
    (value, last) = parts[2]
    return Option(parts[0].value, value, Span(parts[0].start_pos, last.end_pos))


def _values(parts: Parts) -> tuple[object, Token]:
    return tuple(value for value, _ in parts[1:-1:2]), parts[-1]


def _number(parts: list[Token]) -> tuple[object, Token]:
    token = parts[0]
    if len(token) > 18 or "." in token:
        return Literally(token.value), token
    return int(token), token


def _word(parts: list[Token]) -> tuple[object, Token]:
    token = parts[0]
    return {"true": True, "True": True, "false": False, "False": False}.get(token.value, token.value), token


@dataclass(frozen=True, slots=True)
class Literally:
    """A number that no option can have, kept as it was written for the sentence about it."""

    text: str

    def __repr__(self) -> str:
        return self.text


CORE: dict[str, Handler] = {
    "implicit": _implicit,
    "explicit": _explicit,
    "convolution": _convolution,
    "inputs": _inputs,
    "term": _term,
    "letter": _single,
    "ellipsis": _single,
    "composed": _composed,
    "part": _mode,
    "bar": _bar,
    "listed": _listed,
    "mode": _mode,
    "flag": _flag,
    "setting": _setting,
    "values": _values,
    "number": _number,
    "word": _word,
}
