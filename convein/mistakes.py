"""Where a text stops being an expression -> an ExpressionError that says what it probably meant.

The parser gives the place and what would have been right there; `_GUESSES` are mistakes with a sentence of their own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from convein.errors import ExpressionError, Span
from convein.misplaced import MISPLACED, REPEATED_HINT, Stop, character_at, short

_WORDS: dict[str, str] = {
    "MODE": "a mode",
    "NAME": "a name",
    "WORD": "the name of an option",
    "NUMBER": "a number",
    "ELLIPSIS": '"..."',
    "ARROW": '"->"',
    "COMMA": '","',
    "BAR": '"|"',
    "LPAR": '"("',
    "RPAR": '")"',
    "LSQB": '"["',
    "RSQB": '"]"',
    "EQUAL": '"="',
    "$END": "the end",
}
_MEANT: dict[str, str] = {
    ";": 'operands are separated by ","',
    "*": 'operands are separated by ","',
    "@": 'operands are separated by ","',
    "&": 'operands are separated by ","',
    "+": "one expression is one product; add the results of several",
    "{": 'options stand in "[]" after a convolved mode, longer names in "()"',
    "/": 'convolved modes stand after "|"',
    "\\": 'convolved modes stand after "|"',
    "¦": 'convolved modes stand after "|"',
    "∣": 'convolved modes stand after "|"',
    "#": REPEATED_HINT,
    '"': "an expression has no quotes inside",
    "'": "an expression has no quotes inside",
    "`": "an expression has no quotes inside",
}
_NOT_AN_ARROW = re.compile(r"[-=~\u2010-\u2015\u2212]+\s*>|[-=~\u2010-\u2015\u2212>]+|[\u2190-\u21ff]+")


def explain(text: str, place: int, expected: Mapping[str, str]) -> ExpressionError:
    """The error for a text that stops being an expression at a place.

    Args:
        text: the whole text.
        place: the first character that cannot stand where it stands; `len(text)` when the text ends too early.
        expected: the terminals that could have stood there, each with its pattern.
    """
    stop = Stop(text, place, expected)
    for guess in _GUESSES:
        if error := guess(stop):
            return error
    if not stop.rest:
        return stop.error(f"the expression ends too early: expected {_expected(stop)}")
    return stop.error(f"{character_at(stop)} cannot stand here: expected {_expected(stop)}")


def as_names(text: str) -> str | None:
    """What a text with words in it, `batch chan h w`, would be if the words are names: a hint, or nothing."""
    head, bar, tail = text.partition("|")
    letters = re.sub(r"\([^()]*\)", "()", head)
    if not re.search(r"[^\W\d_]{3}", letters) or not re.search(r"[^\W\d_)]\s+[^\W\d_(]", letters):
        return None
    named = re.sub(r"\([^()]*\)|[^\W\d_]\w+", lambda word: word[0] if word[0][0] == "(" else f"({word[0]})", head)
    return f"one letter is one mode, and longer names stand in parentheses: {short(named + bar + tail)}"


def _digits(stop: Stop) -> ExpressionError | None:
    if not re.match(r"[0-9_]", stop.rest) or stop.opened("[", "]") is not None:
        return None
    left = r"[^\W\d_]*\Z" if stop.rest[0] == "_" else r"[^\W\d_]?\Z"
    start = len(stop.before) - len(re.search(left, stop.before[-80:])[0])  # type: ignore[index]
    word = re.match(r"\w+", stop.text[start:])[0]  # type: ignore[index]
    stem = None if stop.rest[0] == "_" else re.match(r"[^\W\d_]?[0-9_]+", word)
    name = stem[0] if stem else word
    if name[0].isdecimal():
        hint = f"a dimension of size {name} has a mode, too; a name with digits stands in parentheses: (s{name})"
        return stop.error(f"{short(name)} is not a mode", stop.span(len(name)), hint=hint)
    hint = f"one letter is one mode; a longer name stands in parentheses: ({name})"
    return stop.error(f"{short(name)} is not a mode", Span(start, start + len(name)), hint=hint)


def _dots(stop: Stop) -> ExpressionError | None:
    dots = re.match(r"\.+", stop.rest)
    if dots is None or dots[0].startswith("..."):
        return None
    hint = 'batch dimensions are "...", three dots'
    return stop.error(f'"{dots[0]}" is not an ellipsis', stop.span(len(dots[0])), hint=hint)


def _arrow(stop: Stop) -> ExpressionError | None:
    wrong = _NOT_AN_ARROW.match(stop.rest)
    if wrong is None or "->" in stop.before or stop.rest.startswith("->") or stop.opened("[", "]") is not None:
        return None
    shown = character_at(stop) if len(wrong[0]) == 1 else f'"{short(wrong[0])}"'
    return stop.error(f"{shown} is not an arrow", stop.span(len(wrong[0])), hint='an arrow is "->"')


def _sign(stop: Stop) -> ExpressionError | None:
    character = stop.rest[:1]
    if not character:
        return None
    if hint := _MEANT.get(character):
        return stop.error(f"{character_at(stop)} is not part of the language", hint=hint)
    plain = unicodedata.normalize("NFKC", character)
    if character != plain and plain in ("...", *"()[]|,=.>-"):
        return stop.error(f"{character_at(stop)} is not part of the language", hint=f'did you mean "{plain}"?')
    if character in "=:" and "|" in stop.before and stop.opened("[", "]") is None:
        hint = "options stand in brackets after the mode: h[stride=2]"
        return stop.error(f"{character_at(stop)} cannot stand here", hint=hint)
    if not character.isprintable():
        return stop.error(f"{character_at(stop)} is not part of the language", hint="it cannot be seen; delete it")
    return None


def _expected(stop: Stop) -> str:
    words = []
    for name in [*(name for name in _WORDS if name in stop.expected), *sorted(stop.expected.keys() - _WORDS.keys())]:
        if name == "WORD" and "NUMBER" in stop.expected:
            words.append("a word")
        else:
            words.append(_WORDS.get(name, stop.expected[name]))
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


_GUESSES: tuple[Callable[[Stop], ExpressionError | None], ...] = (*MISPLACED, _digits, _dots, _arrow, _sign)
