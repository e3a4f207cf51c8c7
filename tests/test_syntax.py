"""text -> Equation: what each spelling means, what each wrong spelling is told, and what no string may do."""

from __future__ import annotations

import itertools
import pickle
import random

import opt_einsum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convein.dialects import POOLING, REPEATED
from convein.errors import ConveinError, ExpressionError, OperandError, OptionError, Span, draw
from convein.interleaved import interleaved
from convein.syntax import ConvOptions, Equation, merge_options, parse
from fuzz_text import VALID, read, texts
from strategies import Case, cases


def modes(equation: Equation) -> list[list[tuple[str, ...]]]:
    return [[dimension.modes for dimension in term.dimensions] for term in (*equation.inputs, equation.output)]


def test_letters_names_products_and_dots() -> None:
    assert modes(parse("...b(s1 s2)(h),r(t_1)->(b r)...")) == [
        [("...",), ("b",), ("s1", "s2"), ("h",)],
        [("r",), ("t_1",)],
        [("b", "r"), ("...",)],
    ]


@pytest.mark.parametrize("text", ["αж,жש->αש", "éÄ,Ä->é", "中文,文->中", "×÷,÷->×", "ªµ,µ->ª", "😀b,b->😀"])
def test_a_letter_of_any_alphabet_is_a_mode(text: str) -> None:
    first, last = text[0], text[-1]
    assert modes(parse(text))[0][0] == (first,)
    assert modes(parse(text))[-1] == [(letter,) for letter in (first, last)][: len(text) - text.rindex(">") - 1]


def test_every_one_of_the_first_symbols_of_opt_einsum_is_a_mode() -> None:
    symbols = [opt_einsum.get_symbol(number) for number in range(5000)]
    assert modes(parse("".join(symbols) + "->" + symbols[0]))[0] == [(symbol,) for symbol in symbols]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ij,jk->ik", " i j ,\tj k -> i\nk "),
        ("bh,th->bth|h", "bh,th->b t (h) | (h)"),
        ("(a b)c->abc", "( a  b ) c->a b c"),
        ("bhw,hw->bhw|hw", "bhw,hw->bhw|h,w"),
        ("bhw,hw->bhw|hw", "bhw,hw->bhw|wh"),
        ("bhw,hw->bhw|hw", "bhw,hw->bhw| (h) (w)"),
        ("bhw,hw->bhw|h[stride=2]w", "bhw,hw->bhw|w, h[ stride = 2 ]"),
        ("bhw,hw->bhw|h[flip]w", "bhw,hw->bhw|h[flip=true],w[flip=False]"),
        ("bhw,hw->bhw|h[padding=1]w", "bhw,hw->bhw|h[padding=(1,1)]w[padding=same, stride=1]"),
    ],
)
def test_spellings_of_one_equation(text: str, same: str) -> None:
    assert parse(text) == parse(same)
    assert hash(parse(text)) == hash(parse(same))
    assert str(parse(text)) == str(parse(same))


@pytest.mark.parametrize(
    ("text", "explicit"),
    [
        ("ij,jk", "ij,jk->ik"),
        ("ba", "ba->ab"),
        ("ii", "ii->"),
        ("iij", "iij->j"),
        ("bA", "bA->Ab"),
        ("i...,...j", "i...,...j->...ij"),
        ("(s2 b)(s1),(s1)c", "(s2 b)(s1),(s1)c->bc(s2)"),
        ("", "->"),
        (",i,", ",i,->i"),
    ],
)
def test_without_an_arrow_the_modes_seen_once_are_sorted(text: str, explicit: str) -> None:
    assert parse(text) == parse(explicit)
    assert str(parse(text)) == explicit


def test_options_bind_to_the_mode_before_them() -> None:
    text = "bhw(d),hw(d)->bhw(d)|h[stride=2, padding=(0,1)], w[dilation=2, flip] (d)[signal=1,padding=full,transposed]"
    assert {piece.mode: (piece.options, piece.given) for piece in parse(text).convolved} == {
        "h": (ConvOptions(stride=2, padding=(0, 1)), {"stride", "padding"}),
        "w": (ConvOptions(dilation=2, flip=True), {"dilation", "flip"}),
        "d": (ConvOptions(signal=1, padding="full", transposed=True), {"signal", "padding", "transposed"}),
    }


def test_every_piece_knows_its_place() -> None:
    text = "b (s1 s2), ->b|b[stride=2]"
    equation = parse(text)
    first, second = equation.inputs

    def at(span: Span) -> str:
        return text[span.start : span.end]

    assert [at(dimension.span) for dimension in first.dimensions] == ["b", "(s1 s2)"]
    assert [at(span) for span in first.dimensions[1].spans] == ["s1", "s2"]
    assert at(first.span) == "b (s1 s2)"
    assert second.span == Span(10, 10)
    assert (at(equation.output.span), at(equation.convolved[0].span)) == ("b", "b")
    assert equation.convolved[0].span.start == 15


@pytest.mark.parametrize("text", VALID)
def test_the_printed_equation_reads_the_same(text: str) -> None:
    dialect = POOLING + REPEATED
    equation = parse(text, dialect)
    assert parse(str(equation), dialect) == equation
    assert str(parse(str(equation), dialect)) == str(equation)
    assert pickle.loads(pickle.dumps(equation)) == equation


@given(cases())
def test_options_merged_into_the_text_are_printed(case: Case) -> None:
    options = {name: value for name, value in case.options.items() if name in ConvOptions.__dataclass_fields__}
    equation = merge_options(parse(case.expression), options)
    again = merge_options(parse(str(equation)), {})
    assert again == equation
    assert [piece.options for piece in again.convolved] == [piece.options for piece in equation.convolved]


def test_a_stated_signal_is_printed_since_it_silences_a_warning() -> None:
    assert str(parse("h,h->h|h[signal=first]")) == "h,h->h|h[signal=first]"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("bshw,tshw|hw", "bshw,tshw->bthw|hw"),
        ("...sh,tsh|h", "...sh,tsh->...th|h"),
        ("ij,jk|k->ik", "ij,jk->ik|k"),
        ("b [c] -> b", "b c -> b"),
        ("batch chan h w, chan h -> batch h w", "(batch) (chan) h w, (chan) h -> (batch) h w"),
        ("a(b (c d))->a", "(b c d)"),
        ("a(b,c)->a", "(b c)"),
        ("bh,h->bh|(b h)", "|(b)(h)"),
        ("b(h s1),h->bh|h(stride=2)", "[stride=2]"),
        ("b1,b1->", "(b1)"),
        ("in_channels,b->", "(in_channels)"),
        ("i,j=>ij", '"->"'),
        ("bh,h->bh|h[groups=2]", "b(g s)hw,(g t)shw->b(g t)hw|hw"),
        ("bh,h->bh|h[padding=SAME]", 'padding="same"'),
        ("bh,h->bh|h[padding_mode=max_circular]", 'padding_mode="circular"'),
        ("bh,h->bh|h[padding_mode=Circular]", 'padding_mode="circular"'),
        ("bh,h->bh|h[padding=circular]", 'padding_mode="circular"'),
        ("bh,h->bh|h[avg=2]", "POOLING"),
        ("[r(t#)]*3->", "REPEATED"),
        ("ij,jk−>ik", '"->"'),
        ("ij，jk->ik", '","'),
        ("ij;jk->ik", '","'),
    ],
)
def test_a_likely_guess_gets_the_right_spelling_back(wrong: str, right: str) -> None:
    with pytest.raises(ConveinError) as caught:
        parse(wrong)
    assert caught.value.hint is not None
    assert right in caught.value.hint


@pytest.mark.parametrize("wrong", ["bshw,tshw|hw", "...sh,tsh|h", "a(s1 s2)h,ah|h", "ij,jk|k->ik", "ab,bc|b"])
def test_a_suggested_expression_is_one(wrong: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(wrong)
    assert caught.value.hint is not None
    parse(caught.value.hint.removeprefix("write "))


@pytest.mark.parametrize("value", [None, 3, b"ij", ["ij"], ("i",), object])
def test_an_expression_is_a_string(value: object) -> None:
    with pytest.raises(ExpressionError, match="an expression is a string, not "):
        parse(value)  # type: ignore[arg-type]


HUGE = {
    "open parentheses": "(" * 100_000,
    "open brackets": "[" * 100_000,
    "nested products": "((a b)" * 20_000,
    "letters": "a" * 100_000 + "|",
    "dots": "." * 100_000,
    "arrows": "a,->" * 30_000,
    "spaces": " " * 100_000 + "|",
    "digits": "h,h->h|h[stride=" + "9" * 100_000 + "]",
    "flags": "h,h->h|h[" + "flip," * 20_000,
    "words": "a " * 50_000 + "1",
    "dashes": "-" * 100_000,
    "foreign": "#" * 99_999,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_huge_text_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ConveinError) as caught:
        parse(text)
    assert len(str(caught.value)) < 1500


def test_random_texts_raise_nothing_but_our_errors() -> None:
    dialects = itertools.cycle([None, POOLING, REPEATED, POOLING + REPEATED])
    accepted = sum(read(text, next(dialects)) for text in itertools.islice(texts(seed=1), 4000))
    assert accepted > 100


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    read(text, None)


def test_interleaved_is_the_same_expression() -> None:
    x, y = object(), object()
    equation, operands = interleaved([x, [0, 1], y, [1, 2], [0, 2]])
    assert operands == (x, y)
    assert equation == parse("(0)(1),(1)(2)->(0)(2)")
    assert interleaved([x, [..., "i"], y, ("i", "k")])[0] == parse("...i,ik->...k")
    assert interleaved([x, "ij", y, "jk"])[0] == parse("ij,jk->ik")
    assert interleaved([x, range(2), y, [1, 2], [0, 1, 2]], [1])[0] == parse("(0)(1),(1)(2)->(0)(1)(2)|(1)")


def test_interleaved_labels_are_sorted_as_what_they_are() -> None:
    assert str(interleaved([0, [10, 9], 0, [9, 2]])[0]) == "(10)(9),(9)(2)->(2)(10)"
    assert str(interleaved([0, [(0, 1), (0, 0)]])[0]) == "(0_1)(0_0)->(0_0)(0_1)"


def test_interleaved_agrees_with_opt_einsum_on_the_implicit_output() -> None:
    generator = random.Random(0)
    for _ in range(100):
        labels = [[generator.randrange(12) for _ in range(generator.randrange(4))] for _ in range(3)]
        subscripts, _ = opt_einsum.parser.convert_interleaved_input([part for one in labels for part in (0, one)])
        theirs = opt_einsum.parser.find_output_str(subscripts)
        numbers = sorted({label for one in labels for label in one})
        ours = interleaved([part for one in labels for part in (0, one)])[0].output
        assert [d.modes[0] for d in ours.dimensions] == [str(numbers[opt_einsum_number(letter)]) for letter in theirs]


def opt_einsum_number(letter: str) -> int:
    return next(number for number in range(100) if opt_einsum.get_symbol(number) == letter)


def test_options_of_interleaved_modes_have_the_labels_as_keys() -> None:
    equation = interleaved([0, [0, 1], 0, [1, 2], [0, 1, 2]], [1])[0]
    assert merge_options(equation, {"stride": {1: 2}}) == parse("(0)(1),(1)(2)->(0)(1)(2)|(1)[stride=2]")
    with pytest.raises(OptionError, match=r"stride={2: 2} names no convolved mode"):
        merge_options(equation, {"stride": {2: 2}})


@pytest.mark.parametrize(
    ("arguments", "convolved", "message"),
    [
        ([0], None, "there is no expression in"),
        ([0, 3], None, "the modes of operand 0 are a list such as"),
        ([0, [0], 1], None, "the modes of the output are a list"),
        ([0, [[1]]], None, "a mode is an integer or a name, not list"),
        ([0, [1, "a"]], None, "cannot be sorted"),
        ([0, [0, "0"], [0]], None, "would both be the mode 0"),
        ([0, [0], 0, [0], [0, 0]], None, "stands twice in the output"),
        ([0, [0], 0, [0]], [0], "needs the modes of the output"),
        ([0, [0], 0, [0], [0]], [], "no mode stands after the bar"),
        ([0, [0], 0, [0], [0]], 0, "the convolved modes are a list"),
    ],
)
def test_interleaved_mistakes(arguments: list[object], convolved: object, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        interleaved(arguments, convolved)  # type: ignore[arg-type]


def test_carets_stand_below_what_is_shown() -> None:
    assert draw("ab", [Span(1, 2)]) == "    ab\n     ^"
    assert draw("ab", [Span(2, 2)]) == "    ab\n      ^"
    assert draw("中a\tb", [Span(1, 2), Span(3, 4)]) == "    中a b\n      ^ ^"
    assert draw("e\u0301b", [Span(1, 3)]) == "    e\u0301b\n    ^^"
    assert draw("a\u200b\ud800", [Span(1, 3)]) == "    a\ufffd\ufffd\n     ^^"
    long = draw("a" * 1000 + "b" + "a" * 1000, [Span(1000, 1001)]).splitlines()
    assert long[0][long[1].index("^")] == "b"
    assert len(long[0]) < 250


def test_errors_survive_pickling() -> None:
    error = OperandError("message", text="ab", spans=[Span(0, 1)], hint="hint")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.spans) == (OperandError, str(error), error.spans)
