"""text -> Equation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from convein.dialect import Dialect
from convein.equation import ELLIPSIS, Constant, Convolved, Dimension, Equation, Mode, Option, Term, written
from convein.errors import ConveinError, ExpressionError, Span
from convein.handlers import span
from convein.keywords import merge_options, places
from convein.misplaced import short
from convein.mistakes import as_names, explain
from convein.options import ConvOptions, shown

if TYPE_CHECKING:
    from lark import Lark
    from lark.exceptions import UnexpectedInput

__all__ = [
    "ELLIPSIS",
    "Constant",
    "ConvOptions",
    "Convolved",
    "Dialect",
    "Dimension",
    "Equation",
    "Mode",
    "Option",
    "Term",
    "merge_options",
    "parse",
    "span",
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

    statement: Any
    try:
        statement = parser.parse(text)
    except UnexpectedInput as failure:
        raise _explained(text, failure, parser) from None
    except ConveinError as error:
        raise error.at(text) from None
    return _equation(text, *statement)


def _explained(text: str, failure: UnexpectedInput, parser: Lark) -> ExpressionError:
    """The parser's failure in our words: its place, and the terminals that could have stood there."""
    token = getattr(failure, "token", None)
    place = len(text) if token is not None and token.type == "$END" else failure.pos_in_stream or 0
    expected = {}
    state: Any = failure.interactive_parser
    for name in state.accepts():
        pattern = None if name == "$END" else parser.get_terminal(name).pattern
        expected[name] = f'"{pattern.value}"' if pattern is not None and pattern.type == "str" else name.lower()
    return explain(text, place, expected)


def _equation(text: str, inputs: tuple[Term, ...], output: Term | None, bar: Iterable[Convolved | Term]) -> Equation:
    terms = [term for term in inputs if term.constant is None]
    constants = [term for term in inputs if term.constant is not None]
    filters = [piece for piece in bar if isinstance(piece, Term)]
    convolved = [piece for piece in bar if isinstance(piece, Convolved)]
    carried = {mode: None for term in terms for dimension in term.dimensions for mode in dimension.modes}
    if output is None:
        output = _implicit([*terms, *constants], len(text))
    if len(convolved) > 1:
        order = {mode: place for place, mode in enumerate(carried)}
        convolved.sort(key=lambda piece: order.get(piece.mode, len(order)))
        filters.sort(key=lambda term: order.get(term.dimensions[0].modes[0], len(order)))
    equation = Equation(text, (*terms, *constants, *filters), output, tuple(convolved))
    for check in (_check_ellipses, _check_output, _check_convolved):
        check(equation, carried)
    return equation


def _check_ellipses(equation: Equation, carried: Collection[str]) -> None:
    for term in (*equation.inputs, equation.output):
        spans = places([term], ELLIPSIS)
        if len(spans) > 1:
            raise ExpressionError('"..." stands twice in one term', text=equation.text, spans=spans)
    if ELLIPSIS not in carried and (spans := places([equation.output], ELLIPSIS)):
        raise ExpressionError(
            'the output has "...", but no input has',
            text=equation.text,
            spans=spans,
            hint='write "..." in the inputs that have batch dimensions, too',
        )


def _check_output(equation: Equation, carried: Collection[str]) -> None:
    seen = set()
    for dimension in equation.output.dimensions:
        for mode in dimension.modes:
            if mode not in carried:
                known = ", ".join(written(name) for name in carried)
                raise ExpressionError(
                    f"mode {mode} of the output is in no input",
                    text=equation.text,
                    spans=places([equation.output], mode),
                    hint=as_names(equation.text) or f"the inputs have {short(known) if known else 'no modes'}",
                )
            if mode in seen:
                raise ExpressionError(
                    f"mode {mode} stands twice in the output",
                    text=equation.text,
                    spans=places([equation.output], mode),
                    hint=as_names(equation.text) or "a diagonal can be read from an input, but not written",
                )
            seen.add(mode)


def _check_convolved(equation: Equation, carried: Collection[str]) -> None:
    seen: dict[str, Span] = {}
    for piece in equation.convolved:
        if piece.mode in seen:
            raise ExpressionError(
                f"mode {piece.mode} stands twice after the bar",
                text=equation.text,
                spans=[seen[piece.mode], piece.span],
            )
        if piece.mode not in carried:
            known = ", ".join(written(name) for name in carried if name != ELLIPSIS)
            hint = f"the inputs have {short(known) if known else 'no modes'}"
            if len(piece.mode) > 1 and all(letter in carried for letter in piece.mode):
                hint = f"{written(piece.mode)} is one mode with a long name; write |{piece.mode}"
            raise ExpressionError(
                f"no operand carries the convolved mode {piece.mode}",
                text=equation.text,
                spans=[piece.span],
                hint=hint,
            )
        seen[piece.mode] = piece.span


def _implicit(terms: Iterable[Term], end: int) -> Term:
    """The output when no arrow is written: the modes that are seen once, sorted, after `...`."""
    written_modes = [
        (mode, place)
        for term in terms
        for dimension in term.dimensions
        for mode, place in zip(dimension.modes, dimension.spans, strict=True)
    ]
    counts = Counter(mode for mode, _ in written_modes)
    once = sorted((mode, place) for mode, place in written_modes if counts[mode] == 1 and mode != ELLIPSIS)
    rest = [(ELLIPSIS, place) for mode, place in written_modes if mode == ELLIPSIS][:1]
    return Term(tuple(Dimension((mode,), place, (place,)) for mode, place in rest + once), Span(end, end))
