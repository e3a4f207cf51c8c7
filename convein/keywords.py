"""Equation + option keywords -> Equation: each keyword fills the modes for which the text is silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from convein.equation import ELLIPSIS, Convolved, Equation, Term, mode_name, written
from convein.errors import OptionError, Span
from convein.options import (
    OPTION_NAMES,
    UNSET,
    Legal,
    as_integer,
    check_together,
    legal_value,
    shown,
    unknown_option,
)


def merge_options(equation: Equation, keywords: Mapping[str, object]) -> Equation:
    """The equation with these options, after every check that needs no shapes.

    Args:
        equation: what `parse` or `interleaved` made.
        keywords: option name -> one value for every convolved mode, or a dict by mode; `UNSET` is as good as no entry.
    """
    stated = {name: value for name, value in keywords.items() if value is not UNSET}
    convolved = equation.convolved
    if stated:
        convolved = _merged(equation, stated)
    for piece in convolved:
        _check(equation, piece)
    return equation if convolved is equation.convolved else replace(equation, convolved=convolved)


def _merged(equation: Equation, stated: Mapping[str, object]) -> tuple[Convolved, ...]:
    values: dict[str, dict[str, Any]] = {piece.mode: {} for piece in equation.convolved}
    for name, value in stated.items():
        if name not in OPTION_NAMES:
            raise unknown_option(name, value).at(equation.text)
        if not equation.convolved:
            raise _nothing_convolved(equation, name, value)
        for piece, legal in _by_mode(equation, name, value):
            values[piece.mode][name] = legal
    return tuple(
        replace(piece, options=replace(piece.options, **more), given=piece.given | more.keys()) if more else piece
        for piece, more in zip(equation.convolved, values.values(), strict=True)
    )


def _by_mode(equation: Equation, name: str, value: object) -> list[tuple[Convolved, Legal]]:
    """The modes whose option this keyword sets, each with its value."""
    bar = [piece.span for piece in equation.convolved]
    if isinstance(value, Mapping):
        pieces = {piece.mode: piece for piece in equation.convolved}
        return [_one(equation, name, pieces, key, each) for key, each in value.items()]
    if isinstance(value, tuple | list):
        raise OptionError(
            f"{name}={shown(value)} does not say which value belongs to which mode",
            text=equation.text,
            spans=bar,
            hint=_as_dict(equation, name, value),
        )
    legal = _legal(equation, name, value, "no mode can have", bar)
    return [(piece, legal) for piece in equation.convolved if name not in piece.given]


def _one(
    equation: Equation, name: str, pieces: Mapping[str, Convolved], key: object, value: object
) -> tuple[Convolved, Legal]:
    mode = key if isinstance(key, str) else mode_name(key)
    if mode not in pieces:
        raise _wrong_key(equation, name, key, value)
    piece = pieces[mode]
    legal = _legal(equation, name, value, f"mode {mode} cannot have", [piece.span])
    if name in piece.given and getattr(piece.options, name) != legal:
        raise OptionError(
            f"mode {mode} has {name}={shown(getattr(piece.options, name))} in the expression and {shown(value)} in "
            f"{name}={{{shown(key)}: {shown(value)}}}",
            text=equation.text,
            spans=[piece.span],
            hint=f"state {name} of mode {mode} in one of the two places",
        )
    return piece, legal


def _legal(equation: Equation, name: str, value: object, subject: str, places: list[Span]) -> Legal:
    try:
        return legal_value(name, value, subject)
    except OptionError as error:
        raise error.at(equation.text, places) from None


def _as_dict(equation: Equation, name: str, value: tuple[object, ...] | list[object]) -> str:
    """The dicts that a bare tuple may have meant: a value for each mode, as torch reads it, or a pair for each mode."""
    modes = [piece.mode for piece in equation.convolved]
    meant: list[list[str]] = []
    if len(value) == len(modes):
        meant.append([shown(each) for each in value])
    if name == "padding" and len(value) == 2 and all(as_integer(side) is not None for side in value):
        meant.append([f"({value[0]}, {value[1]})"] * len(modes))
    dicts = [
        ", ".join(f"{_key(mode)}: {each}" for mode, each in zip(modes, values, strict=True))
        for values in meant or [["..."] * len(modes)]
    ]
    return "write " + " or ".join(f"{name}={{{entries}}}" for entries in dicts)


def _key(mode: str) -> str:
    return mode if mode.isdecimal() else f'"{mode}"'


def _wrong_key(equation: Equation, name: str, key: object, value: object) -> OptionError:
    convolved = [piece.mode for piece in equation.convolved]
    carried = {mode for term in equation.inputs for dimension in term.dimensions for mode in dimension.modes}
    known = ", ".join(map(_key, convolved))
    message = f"{name}={{{shown(key)}: {shown(value)}}} names no convolved mode"
    hint = f"the convolved modes are {known}"
    if isinstance(key, str):
        bare = key.strip().removeprefix("(").removesuffix(")")
        if key in carried:
            message = f"mode {key} is not convolved, so it has no {name}"
            return OptionError(message, text=equation.text, spans=places(equation.inputs, key), hint=hint)
        if len(key) > 1 and all(letter in convolved for letter in key):
            each = ", ".join(f'"{letter}": {shown(value)}' for letter in key)
            hint = f'"{key}" would be one mode called {key}; write {name}={{{each}}}'
        elif bare != key and bare in convolved:
            hint = f'a key is a name without parentheses: "{bare}"'
        elif close := get_close_matches(key, convolved, 1):
            hint = f'did you mean "{close[0]}"?'
    return OptionError(message, text=equation.text, spans=[piece.span for piece in equation.convolved], hint=hint)


def _nothing_convolved(equation: Equation, name: str, value: object) -> OptionError:
    carriers = Counter(mode for term in equation.inputs for mode in {m for d in term.dimensions for m in d.modes})
    kept = [mode for dimension in equation.output.dimensions for mode in dimension.modes if mode != ELLIPSIS]
    likely = [mode for mode in kept if carriers[mode] > 1][-3:]
    hint = "the modes to convolve stand after a bar: ...->...|h"
    if likely:
        hint = f"to convolve along {' and '.join(likely)}, write {equation}|{''.join(map(written, likely))}"
    return OptionError(f"{name}={shown(value)} was given, but no mode is convolved", text=equation.text, hint=hint)


def _check(equation: Equation, piece: Convolved) -> None:
    try:
        check_together(piece.options, f"mode {piece.mode}")
    except OptionError as error:
        raise error.at(equation.text, [piece.span]) from None
    position = piece.options.signal
    if not isinstance(position, int):
        return
    carriers = [place for place, term in enumerate(equation.inputs) if places([term], piece.mode)]
    if position not in carriers:
        exists = position < len(equation.inputs)
        raise OptionError(
            f"mode {piece.mode} has signal={position}, but "
            + (f"operand {position} does not carry {piece.mode}" if exists else f"there is no operand {position}"),
            text=equation.text,
            spans=[piece.span, *([equation.inputs[position].span] if exists else ())],
            hint=f"{piece.mode} is carried by operand {' and '.join(map(str, carriers))}",
        )


def places(terms: Iterable[Term], mode: str) -> list[Span]:
    """Where a mode stands in these terms."""
    return [
        place
        for term in terms
        for dimension in term.dimensions
        for name, place in zip(dimension.modes, dimension.spans, strict=True)
        if name == mode
    ]
