"""Rules from outside: they extend, replace and import, and their handlers return pieces of the equation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from convein.dialects import POOLING, REPEATED
from convein.errors import ConveinError, ExpressionError, OptionError, Span
from convein.syntax import Constant, Convolved, ConvOptions, Dialect, Dimension, Mode, Option, Term, parse, span


def constants(text: str, dialect: Dialect) -> list[tuple[str, Constant]]:
    return [(str(term), term.constant) for term in parse(text, dialect).inputs if term.constant]


def test_pooling_is_a_filter_a_stride_and_no_padding() -> None:
    equation = parse("bshw->bshw|h[avg=2], w[avg=4]", POOLING)
    assert [str(term) for term in equation.inputs] == ["bshw", "h", "w"]
    assert [term.constant for term in equation.inputs] == [None, Constant((2,), 0.5), Constant((4,), 0.25)]
    assert [piece.options for piece in equation.convolved] == [
        ConvOptions(stride=2, padding="valid"),
        ConvOptions(stride=4, padding="valid"),
    ]


def test_what_the_text_states_goes_before_poolings_own_defaults() -> None:
    for text in ["h->h|h[avg=3, stride=2, padding=1]", "h->h|h[padding=1, stride=2, avg=3]"]:
        assert parse(text, POOLING).convolved[0].options == ConvOptions(stride=2, padding=1)
    equation = parse("h->h|h[avg=3, stride=1]", POOLING)
    assert parse(str(equation), POOLING) == equation
    assert equation.convolved[0].options.stride == 1


def test_a_constant_is_printed_in_the_words_of_its_dialect() -> None:
    assert str(parse("h->h|h[ avg = 2 ]", POOLING)) == "h->h|h[avg = 2, stride=2, padding=valid]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h->h|h[avg=0]", "an average is taken over 1 to 1000 neighbours, not 0"),
        ("h->h|h[avg=-2]", "an average is taken over 1 to 1000 neighbours, not -2"),
        ("h->h|h[avg=2.5]", "an average is taken over 1 to 1000 neighbours, not 2.5"),
        ("h->h|h[avg=2, avg=3]", "mode h has stride twice"),
        ("h->h|h[avg]", '"]" cannot stand here'),
        ("b->b|h[avg=2]", "no operand carries the convolved mode h"),
    ],
)
def test_mistakes_in_pooling(text: str, message: str) -> None:
    with pytest.raises(ConveinError, match=message.replace("[", r"\[").replace("]", r"\]")) as caught:
        parse(text, POOLING)
    assert caught.value.text == text
    assert caught.value.spans


def test_without_the_dialect_its_words_are_unknown() -> None:
    with pytest.raises(OptionError) as caught:
        parse("h->h|h[avg=2]")
    assert caught.value.hint == "average pooling belongs to a dialect: dialect=convein.dialects.POOLING"


@pytest.mark.parametrize(
    ("text", "core"),
    [
        ("b(s#*3),[r(t#)(s#)]*3->br(t#*3)", "b(s1 s2 s3),r(t1)(s1),r(t2)(s2),r(t3)(s3)->br(t1 t2 t3)"),
        ("[(r#-1)(s#)(r#)]*3->(s#*3)", "(r0)(s1)(r1),(r1)(s2)(r2),(r2)(s3)(r3)->(s1 s2 s3)"),
        ("[(a#_in b#+1)]*2->", "(a1_in b2),(a2_in b3)->"),
        ("[r]*1->r", "r->r"),
        ("x,[r]*2,y->rxy", "x,r,r,y->rxy"),
    ],
)
def test_repeated_operands_and_modes(text: str, core: str) -> None:
    equation = parse(text, REPEATED)
    assert equation == parse(core)
    assert str(equation) == core


def test_pieces_of_a_repetition_point_at_the_text_they_came_from() -> None:
    text = "b,[r(t#)]*2->bx"
    with pytest.raises(ExpressionError, match="mode x of the output is in no input"):
        parse(text, REPEATED)
    second = parse(text[:-1], REPEATED).inputs[2]
    assert text[second.span.start : second.span.end] == "[r(t#)]*2"
    assert [text[place.start : place.end] for place in second.dimensions[1].spans] == ["t#"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[r]*0->r", "a repetition is counted from 1 to 1000, not 0"),
        ("[r]*99999->r", "a repetition is counted from 1 to 1000, not 99999"),
        ("[r(t#-2)]*2->r", "the first number of t#-2 would be negative"),
        ("b(t#)->b", 'expected "*"'),
        ("b->[b]*2", "the output is one term"),
        ("[r]->r", 'expected "*"'),
        ("[]*2->", "expected a mode"),
        ("[r,s]*2->", "expected"),
    ],
)
def test_mistakes_in_repetitions(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, REPEATED)
    assert message in str(caught.value)
    assert caught.value.spans


def test_dialects_add_up() -> None:
    both = POOLING + REPEATED
    equation = parse("b(s#*2)h,[r(s#)]*2->brh|h[avg=2]", both)
    assert [str(term) for term in equation.inputs] == ["b(s1 s2)h", "r(s1)", "r(s2)", "h"]
    with pytest.raises(TypeError):
        POOLING + "rules"  # type: ignore[operator]


def test_a_term_of_constants_stands_after_the_operands() -> None:
    """`<3>h` is a filter of three ones, written among the operands."""

    def ones(opening: Any, number: Any, closing: Any, *dimensions: Dimension) -> Term:
        return Term(dimensions, span(opening, dimensions), Constant((int(number),), 1.0))

    moving_sum = Dialect(
        """
        %extend term: LESS NUMBER MORE dimension -> ones
        LESS: "<"
        MORE: ">"
        """,
        {"ones": ones},
    )
    text = "<3>h,bh->bh|h[padding=valid]"
    equation = parse(text, moving_sum)
    assert [str(term) for term in equation.inputs] == ["bh", "h"]
    assert equation.inputs[1].span == Span(0, 4)
    assert str(equation) == "bh,<3>h->bh|h[padding=valid]"
    assert parse(str(equation), moving_sum) == equation


def test_a_rule_can_be_replaced() -> None:
    """Semicolons between operands, in place of commas."""
    semicolons = Dialect(
        """
        %override inputs: term (SEMICOLON term)*
        SEMICOLON: ";"
        """,
        {"inputs": lambda *parts: tuple(part for part in parts if isinstance(part, Term))},
    )
    assert parse("ij;jk->ik", semicolons) == parse("ij,jk->ik")
    with pytest.raises(ExpressionError):
        parse("ij,jk->ik", semicolons)


def test_terminals_can_be_imported_and_the_core_named() -> None:
    """Lark's own grammars are at hand; an %import of the core, whose rules are there already, changes nothing."""
    hexadecimal = Dialect(
        """
        %import .conv_einsum (start, option, EQUAL)
        %import common.HEXDIGIT
        %extend option: STEP EQUAL HEXDIGIT -> step
        STEP: "step"
        """,
        {"step": lambda word, equal, digit: Option("stride", int(digit, 16), span(word, digit))},
    )
    assert parse("h,h->h|h[step=c]", hexadecimal) == parse("h,h->h|h[stride=12]")


def test_a_convolved_mode_can_come_from_a_rule() -> None:
    halved = Dialect(
        """
        %extend listed: HALF mode -> half
        HALF: "/2"
        """,
        {
            "half": lambda half, mode: Convolved(
                mode.name, ConvOptions(stride=2), frozenset({"stride"}), span(half, mode)
            )
        },
    )
    assert parse("hw,hw->hw|/2 h, w", halved) == parse("hw,hw->hw|h[stride=2]w")


def test_several_pieces_for_one() -> None:
    pair = Dialect(
        """
        %extend dimension: PAIR -> pair
        PAIR: "&"
        """,
        {"pair": lambda sign: tuple(Dimension((name,), span(sign), (span(sign),)) for name in ("x", "y"))},
    )
    assert parse("&c->c&", pair) == parse("xyc->cxy")


def test_errors_of_handlers_get_the_text() -> None:
    def refuse(sign: Any) -> Mode:
        raise ExpressionError("not today", spans=[span(sign)])

    dialect = Dialect('%extend part: SIGN -> refuse\nSIGN: "!"', {"refuse": refuse})
    with pytest.raises(ExpressionError) as caught:
        parse("a(b !)->a", dialect)
    assert str(caught.value) == "not today\n\n    a(b !)->a\n        ^"


@pytest.mark.parametrize(
    ("rules", "handlers", "message"),
    [
        ("%extend nothing: A\nA: 'a'", {}, "the dialect's rules do not go with the language"),
        ("%extend part: (", {}, "the dialect's rules do not go with the language"),
        ("%extend dimension: MODE -> other", {"other": print}, "the dialect's rules do not go with the language"),
        ('%extend part: SIGN -> sign\nSIGN: "!"', {}, "the dialect has no handler for its rule sign"),
        ("", {"sign": print}, "the dialect has no rule for its handler sign"),
    ],
)
def test_rules_that_do_not_fit(rules: str, handlers: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("a->a", Dialect(rules, handlers))
    assert caught.value.message.startswith(message)


def test_the_parser_is_made_once_also_by_threads() -> None:
    dialect = Dialect("", {})
    with ThreadPoolExecutor(8) as pool:
        parsers = list(pool.map(lambda _: dialect.parser, range(32)))
        equations = list(pool.map(lambda number: parse(f"(a{number})b->b(a{number})", dialect), range(200)))
    assert len({id(parser) for parser in parsers}) == 1
    assert [str(equation) for equation in equations] == [f"(a{number})b->b(a{number})" for number in range(200)]


def test_a_dialect_is_equal_to_itself_only() -> None:
    assert len({Dialect("", {}), Dialect("", {}), POOLING, POOLING}) == 3
