"""text -> Equation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from convein.dialect import Dialect
from convein.equation import ELLIPSIS, Constant, Convolved, Dimension, Equation, Term, written
from convein.errors import ConveinError, ExpressionError, Span
from convein.keywords import merge_options
from convein.options import ConvOptions, shown

__all__ = [
    "ELLIPSIS",
    "Constant",
    "ConvOptions",
    "Convolved",
    "Dialect",
    "Dimension",
    "Equation",
    "Term",
    "merge_options",
    "parse",
    "written",
]

_CORE = Dialect("", {})


def parse(text: str, dialect: Dialect | None = None) -> Equation:
    """The equation that a text means, as far as the text alone can tell.

    Args:
        text: `inputs -> output | convolved modes`.
        dialect: rules added to the language.
    """
    if not isinstance(text, str):
        raise ExpressionError(
            f"an expression is a string, not {type(text).__name__}: {shown(text)}",
            hint='for example "ij,jk->ik" or "bshw,tshw->bthw|hw"',
        )
    text = str(text)
    parser = (dialect or _CORE).parser
    from lark.exceptions import UnexpectedInput

    try:
        inputs, output, bar = parser.parse(text)  # type: ignore[misc]
    except UnexpectedInput as failure:
        raise ExpressionError("not an expression", text=text) from None
    except ConveinError as error:
        raise error.at(text) from None
    return _equation(text, inputs, output, bar)


def _equation(text: str, inputs: tuple[Term, ...], output: Term | None, bar: Iterable[Convolved | Term]) -> Equation:
    convolved = [piece for piece in bar if isinstance(piece, Convolved)]
    terms = [term for term in inputs if term.constant is None]
    order = {mode: None for term in terms for dimension in term.dimensions for mode in dimension.modes}
    constants = [term for term in (*inputs, *bar) if isinstance(term, Term) and term.constant is not None]
    if output is None:
        output = _implicit(terms + constants, len(text))
    if len(convolved) > 1:
        places = {mode: place for place, mode in enumerate(order)}
        convolved.sort(key=lambda piece: places.get(piece.mode, 0))
    return Equation(text, (*terms, *constants), output, tuple(convolved))


def _implicit(terms: Iterable[Term], end: int) -> Term:
    """The output when no arrow is written: the modes that are seen once, sorted, after `...`."""
    places = [place for term in terms for dimension in term.dimensions for place in zip(dimension.modes, dimension.spans)]
    counts = Counter(mode for mode, _ in places)
    once = sorted((mode, place) for mode, place in places if counts[mode] == 1 and mode != ELLIPSIS)
    rest = [(ELLIPSIS, place) for mode, place in places if mode == ELLIPSIS][:1]
    return Term(tuple(Dimension((mode,), place, (place,)) for mode, place in rest + once), Span(end, end))
