"""The options of one convolved mode: their names, defaults, legal values, and the sentences about illegal ones."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from typing import Final, TypeVar

import numpy as np

from convein.errors import OptionError

Padding = str | int | tuple[int, int]
W = TypeVar("W", bound=str)


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return self.name


UNSET: Final = Unset.UNSET
"""The default of every option keyword: not given, so the expression's text or the option's default decides."""


@dataclass(frozen=True, slots=True)
class ConvOptions:
    """How one mode is convolved. Defaults are the meaning of a bare `|h`.

    Attributes:
        stride: step between the signal indices that two neighbouring outputs read.
        dilation: step between the signal indices that two neighbouring filter entries read.
        padding: `"same"`, `"valid"`, `"full"`, a number for both sides, or a pair `(lo, hi)`.
        flip: reverse every filter first (true convolution, as np.convolve).
        signal: `"first"`, `"largest"` or the position of the operand that is the signal.
        padding_mode: `"zeros"`, `"circular"`, `"reflect"` or `"replicate"`.
        transposed: the adjoint, as F.conv_transposeNd.
        output_padding: extra length of a transposed convolution's output.
    """

    stride: int = 1
    dilation: int = 1
    padding: Padding = "same"
    flip: bool = False
    signal: str | int = "first"
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: int = 0


OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in fields(ConvOptions))

_LEAST: dict[str, int] = {"stride": 1, "dilation": 1, "padding": 0, "signal": 0, "output_padding": 0}
_WORDS: dict[str, tuple[str, ...]] = {
    "padding": ("same", "valid", "full"),
    "signal": ("first", "largest"),
    "padding_mode": ("zeros", "circular", "reflect", "replicate"),
}
_RULES: dict[str, str] = {
    "stride": "a stride is an integer of 1 or more",
    "dilation": "a dilation is an integer of 1 or more",
    "padding": 'padding is "same", "valid", "full", an integer of 0 or more for both sides, or a pair (lo, hi) of them',
    "flip": "flip is True or False",
    "signal": 'signal is "first", "largest" or the position of an operand, counted from 0',
    "padding_mode": 'padding_mode is "zeros", "circular", "reflect" or "replicate"',
    "transposed": "transposed is True or False",
    "output_padding": "output_padding is an integer of 0 or more",
}
_OTHER_WORDS: dict[str, str] = {
    "half": 'padding="same"',
    "none": "padding=0",
    "zero": 'padding_mode="zeros"',
    "constant": 'padding_mode="zeros"',
    "wrap": 'padding_mode="circular"',
    "periodic": 'padding_mode="circular"',
    "border": 'padding_mode="replicate"',
    "edge": 'padding_mode="replicate"',
    "mirror": 'padding_mode="reflect"',
    "max": 'signal="largest"',
    "longest": 'signal="largest"',
    "causal": "padding={mode: (dilation * (filter size - 1), 0)}",
}
_OTHER_NAMES: dict[str, str] = {
    "groups": "groups are a mode of their own: b(g s)hw,(g t)shw->b(g t)hw|hw",
    "bias": "a bias is added to the result: conv_einsum(...) + bias",
    "kernel_size": "the filter sizes are read from the filters' shapes",
    "pad": "did you mean padding?",
    "mode": "did you mean padding_mode?",
    "reverse": "did you mean flip?",
    "circular": 'write padding_mode="circular"',
    "avg": "average pooling belongs to a dialect: dialect=convein.dialects.POOLING",
    "pool": "average pooling belongs to a dialect: h[avg=2] with dialect=convein.dialects.POOLING",
}

Legal = str | int | bool | tuple[int, int]


def legal_value(name: str, value: object, subject: str) -> Legal:
    """The value as ConvOptions holds it, or an OptionError in one sentence.

    Args:
        name: one of OPTION_NAMES.
        value: what was given.
        subject: the beginning of the sentence: "mode h cannot have", "no mode can have".
    """
    if name in ("flip", "transposed"):
        truth = as_bool(value)
        if truth is not None:
            return truth
    else:
        if isinstance(value, str) and value in _WORDS.get(name, ()):
            return str(value)
        if (number := _as_count(name, value)) is not None:
            return number
        if name == "padding" and isinstance(value, tuple | list) and len(value) == 2:
            lo, hi = (_as_count(name, side) for side in value)
            if lo is not None and hi is not None:
                return lo if lo == hi else (lo, hi)
    raise OptionError(f"{subject} {name}={shown(value)}: {_RULES[name]}", hint=_value_hint(name, value))


def as_bool(value: object) -> bool | None:
    """True and False of Python and of numpy; nothing else."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    return None


def as_integer(value: object) -> int | None:
    """Whatever Python takes as an index (numpy's integers too), but not True and False, and nothing beyond 64 bits."""
    if as_bool(value) is not None:
        return None
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if abs(number) < 2**62 else None


def one_of(name: str, value: object, choices: Sequence[W], kind: str | None = None) -> W:
    """A word among those that there are.

    Args:
        name: of the argument.
        value: what was given.
        choices: the words.
        kind: of thing that a word names; by default the argument's name says it.

    Raises:
        OptionError: it is another word, or none.
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    kind = name.replace("_", " ") if kind is None else kind
    raise OptionError(f"{name}={shown(value)}: there is no such {kind}", hint=f"one of {', '.join(map(repr, choices))}")


def of_python(value: object) -> object:
    """A floating point number of numpy as Python's, by its digits: np.float32(0.1) is 0.1. All else as it is."""
    return float(str(value)) if isinstance(value, np.floating) else value


def _as_count(name: str, value: object) -> int | None:
    number = as_integer(value) if name in _LEAST else None
    return number if number is not None and number >= _LEAST[name] else None


def _value_hint(name: str, value: object) -> str | None:
    if value is None:
        return f"leave {name} out to have the default"
    if isinstance(value, str):
        word = value.strip().lower()
        if word.lstrip("+-").isdecimal() and name in _LEAST:
            return f"a number stands without quotes: {name}={int(word[:18])}"
        word = word.removeprefix("max_").removeprefix("same_")
        for option in (name, *_WORDS):
            if close := get_close_matches(word, _WORDS.get(option, ()), 1):
                return f'did you mean {option}="{close[0]}"?'
        if word in _OTHER_WORDS:
            return f"did you mean {_OTHER_WORDS[word]}?"
        if name in ("flip", "transposed") and word in ("true", "false"):
            return f"without quotes: {name}={word.capitalize()}"
    if name in _LEAST and isinstance(value, int) and abs(value) >= 10**18:
        return "no size is that large"
    return None


def check_together(options: ConvOptions, owner: str) -> None:
    """Whether the options of one mode go with each other, or an OptionError in one sentence."""
    extra = options.output_padding
    if not options.transposed:
        if extra:
            raise OptionError(
                f"{owner} has output_padding={extra} but is not transposed",
                hint="output_padding lengthens the output of a transposed convolution only: add transposed=True",
            )
        return
    if options.padding_mode not in ("zeros", "circular"):
        raise OptionError(
            f'{owner} is transposed and has padding_mode="{options.padding_mode}"',
            hint='a transposed convolution has padding_mode "zeros" or "circular"',
        )
    if extra and options.padding == "same":
        raise OptionError(
            f'{owner} has output_padding={extra} with padding="same"',
            hint='a transposed convolution with padding="same" has exactly (signal size) * stride outputs',
        )
    if extra >= max(options.stride, options.dilation):
        raise OptionError(
            f"{owner} has output_padding={extra}, stride={options.stride} and dilation={options.dilation}",
            hint="output_padding must be smaller than the stride or the dilation",
        )


def unknown_option(name: object, value: object, known: Iterable[str] = OPTION_NAMES) -> OptionError:
    """The error for an option that does not exist; `known` are those that do."""
    if not isinstance(name, str):
        return OptionError(f"the name of an option is a string, not {shown(name)}")
    close = get_close_matches(name.lower(), OPTION_NAMES, 1)
    hint = _OTHER_NAMES.get(name) or (f"did you mean {close[0]}?" if close else None)
    setting = shown(name)[1:-1] + ("" if value is True else f"={shown(value)}")
    return OptionError(
        f"there is no option {setting}",
        hint=hint or f"the options are {', '.join(known)}",
    )


def shown(value: object) -> str:
    """A value on one line and of bounded length, as it is written in Python; strings in double quotes."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write very large integers
        text = object.__repr__(value)
    text = " ".join(text.split())
    if isinstance(value, str) and text[0] == text[-1] == "'" and '"' not in text:
        text = f'"{text[1:-1]}"'
    return text if len(text) <= 60 else text[:57] + "..."
