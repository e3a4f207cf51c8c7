"""Option keywords: one value for all modes or a dict by mode, merged into the text; a sentence for each illegal one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convein.errors import OptionError
from convein.options import OPTION_NAMES, UNSET
from convein.syntax import ConvOptions, merge_options, parse

TEXT = "bshw,tshw->bthw|hw"


def merged(text: str = TEXT, **keywords: Any) -> dict[str, ConvOptions]:
    return {piece.mode: piece.options for piece in merge_options(parse(text), keywords).convolved}


def mistake(text: str = TEXT, **keywords: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        merge_options(parse(text), keywords)
    return caught.value


def test_nothing_given_changes_nothing() -> None:
    equation = parse(TEXT)
    assert merge_options(equation, dict.fromkeys(OPTION_NAMES, UNSET)) is equation
    assert repr(UNSET) == "UNSET"


def test_one_value_for_every_mode() -> None:
    assert merged(stride=2, flip=True) == dict.fromkeys("hw", ConvOptions(stride=2, flip=True))


def test_a_dict_by_mode() -> None:
    assert merged(padding={"w": (0, 1)}) == {"h": ConvOptions(), "w": ConvOptions(padding=(0, 1))}
    assert merged("b(s1),(s1)->b(s1)|(s1)", stride={"s1": 2}) == {"s1": ConvOptions(stride=2)}


def test_the_text_goes_before_a_value_for_all() -> None:
    text = "bhw,hw->bhw|h[stride=2]w"
    assert merged(text, stride=3) == {"h": ConvOptions(stride=2), "w": ConvOptions(stride=3)}
    stated = merge_options(parse(text), {"dilation": {"w": 2}}).convolved
    assert [piece.given for piece in stated] == [{"stride"}, {"dilation"}]


def test_the_text_and_a_dict_must_agree() -> None:
    text = "bhw,hw->bhw|h[padding=1]w"
    assert merged(text, padding={"h": (1, 1), "w": 2})["h"] == ConvOptions(padding=1)
    error = mistake(text, padding={"h": 2})
    assert error.message == 'mode h has padding=1 in the expression and 2 in padding={"h": 2}'


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("stride", np.int64(2), 2),
        ("stride", torch.tensor(2), 2),
        ("padding", [0, 1], (0, 1)),
        ("padding", (np.int8(2), 2), 2),
        ("padding", np.str_("valid"), "valid"),
        ("flip", np.True_, True),
        ("signal", 1, 1),
        ("signal", "largest", "largest"),
    ],
)
def test_values_are_held_in_one_form(name: str, value: object, held: object) -> None:
    options = merged(**{name: {"h": value}})["h"]
    assert options == ConvOptions(**{name: held})
    assert type(getattr(options, name)) is type(held)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stride", [0, -1, True, 1.0, "2", None, 10**30, np.float32(2), torch.tensor([1, 2]), {1}, "same"]),
        ("dilation", [0, False, 0.5, "1", None]),
        ("padding", [-1, True, 0.5, "SAME", "circular", None, {0}, b"same", np.array([0, 1])]),
        ("flip", [0, 1, "true", None, "h"]),
        ("signal", [-1, True, "last", None, 0.0]),
        ("padding_mode", ["Circular", "max_circular", "constant", 0, None, True]),
        ("transposed", [1, "yes", None]),
        ("output_padding", [-1, True, "1", None]),
    ],
)
def test_an_illegal_value_is_shown_with_the_rule(name: str, values: list[object]) -> None:
    for value in values:
        error = mistake(**{name: value})
        assert error.message.startswith(f"no mode can have {name}="), value
        assert ": " in error.message
        assert error.text == TEXT
        assert [TEXT[span.start] for span in error.spans] == ["h", "w"]
        one = mistake(**{name: {"w": value}})
        assert one.message.startswith(f"mode w cannot have {name}="), value
        assert [TEXT[span.start] for span in one.spans] == ["w"]


@pytest.mark.parametrize("pair", [(-1, 0), (0, 1, 2), (0,), (True, 0), ("same", 0), (0.0, 1), ((0, 1), 2), ()])
def test_an_illegal_pair(pair: object) -> None:
    assert "a pair (lo, hi)" in mistake(padding={"h": pair}).message


@pytest.mark.parametrize(
    ("keywords", "hint"),
    [
        ({"padding": (0, 1)}, 'write padding={"h": 0, "w": 1} or padding={"h": (0, 1), "w": (0, 1)}'),
        ({"padding": ((0, 1), (2, 3))}, 'write padding={"h": (0, 1), "w": (2, 3)}'),
        ({"padding": ["same", "valid"]}, 'write padding={"h": "same", "w": "valid"}'),
        ({"stride": (2, 1)}, 'write stride={"h": 2, "w": 1}'),
        ({"stride": (2, 1, 1)}, 'write stride={"h": ..., "w": ...}'),
        ({"flip": (True, False)}, 'write flip={"h": True, "w": False}'),
        ({"signal": [0, 1]}, 'write signal={"h": 0, "w": 1}'),
    ],
)
def test_a_bare_tuple_is_an_error_that_prints_the_dict(keywords: dict[str, object], hint: str) -> None:
    error = mistake(**keywords)
    assert "does not say which value belongs to which mode" in error.message
    assert error.hint == hint


def test_a_bare_tuple_with_one_convolved_mode() -> None:
    assert mistake("bh,h->bh|h", padding=(0, 1)).hint == 'write padding={"h": (0, 1)}'
    assert mistake("bh,h->bh|h", stride=(2,)).hint == 'write stride={"h": 2}'


@pytest.mark.parametrize(
    ("key", "message", "hint"),
    [
        (
            "hw",
            'stride={"hw": 2} names no convolved mode',
            '"hw" would be one mode called hw; write stride={"h": 2, "w": 2}',
        ),
        ("(h)", 'stride={"(h)": 2} names no convolved mode', 'a key is a name without parentheses: "h"'),
        ("s", "mode s is not convolved, so it has no stride", 'the convolved modes are "h", "w"'),
        ("H", 'stride={"H": 2} names no convolved mode', 'the convolved modes are "h", "w"'),
        (0, "stride={0: 2} names no convolved mode", 'the convolved modes are "h", "w"'),
        (("h", "w"), "stride={('h', 'w'): 2} names no convolved mode", 'the convolved modes are "h", "w"'),
    ],
)
def test_a_key_that_names_no_convolved_mode(key: object, message: str, hint: str) -> None:
    error = mistake(stride={key: 2})
    assert (error.message, error.hint) == (message, hint)


@pytest.mark.parametrize(
    ("keywords", "hint"),
    [
        ({"groups": 2}, "b(g s)hw,(g t)shw->b(g t)hw|hw"),
        ({"bias": None}, "conv_einsum(...) + bias"),
        ({"strides": 2}, "did you mean stride?"),
        ({"Padding": 2}, "did you mean padding?"),
        ({"transpose": True}, "did you mean transposed?"),
        ({"pad": 1}, "did you mean padding?"),
        ({"kernel_size": 3}, "read from the filters' shapes"),
        ({"nonsense": 3}, f"the options are {', '.join(OPTION_NAMES)}"),
    ],
)
def test_an_unknown_option(keywords: dict[str, object], hint: str) -> None:
    error = mistake(**keywords)
    assert error.message.startswith(f"there is no option {next(iter(keywords))}")
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize("value", [2, 1, {"h": 2}, {}, (1, 2), None])
def test_an_option_without_a_bar_is_not_ignored(value: object) -> None:
    error = mistake("bshw,tshw->bthw", stride=value)
    assert "no mode is convolved" in error.message
    assert error.hint == "to convolve along h and w, write bshw,tshw->bthw|hw"


def test_an_option_without_a_bar_and_without_a_guess() -> None:
    assert mistake("ab,bc", stride=2).hint == "the modes to convolve stand after a bar: ...->...|h"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"output_padding": 1}, "mode h has output_padding=1 but is not transposed"),
        ({"transposed": True, "output_padding": 1}, 'mode h has output_padding=1 with padding="same"'),
        (
            {"transposed": True, "padding": 0, "output_padding": 2, "stride": 2},
            "mode h has output_padding=2, stride=2 and dilation=1",
        ),
        ({"transposed": True, "padding_mode": "reflect"}, 'mode h is transposed and has padding_mode="reflect"'),
        ({"transposed": True, "padding_mode": "replicate"}, 'mode h is transposed and has padding_mode="replicate"'),
        ({"signal": 2}, "mode h has signal=2, but there is no operand 2"),
    ],
)
def test_options_that_do_not_go_together(keywords: dict[str, object], message: str) -> None:
    error = mistake(**keywords)
    assert error.message == message
    assert error.hint is not None
    assert TEXT[error.spans[0].start] == "h"


def test_options_that_go_together() -> None:
    assert merged(transposed=True, padding=0, stride=2, output_padding=1)["h"].output_padding == 1
    assert merged(transposed=True, padding=0, dilation=3, output_padding=2)["h"].output_padding == 2
    assert merged(transposed=True, padding_mode="circular")["w"].padding_mode == "circular"


def test_options_of_the_text_and_of_keywords_are_checked_together() -> None:
    assert mistake("bh,h->bh|h[output_padding=1]").message == "mode h has output_padding=1 but is not transposed"
    assert merged("bh,h->bh|h[output_padding=1,padding=0,stride=2]", transposed=True)["h"].transposed


def test_the_signal_must_carry_the_mode() -> None:
    assert merged("bs,bh,h->bh|h", signal=2)["h"].signal == 2
    error = mistake("bs,bh,h->bh|h", signal=0)
    assert error.message == "mode h has signal=0, but operand 0 does not carry h"
    assert error.hint == "h is carried by operand 1 and 2"
