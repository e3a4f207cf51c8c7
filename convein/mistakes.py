"""Where a text stops being an expression -> an ExpressionError that says what it probably meant.

The parser gives the place and what would have been right there; `_GUESSES` are mistakes with a sentence of their own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convein.errors import ExpressionError, Span
from convein.options import OPTION_NAMES

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
    "#": "a repeated operand belongs to a dialect: dialect=convein.dialects.REPEATED",
    '"': "an expression has no quotes inside",
    "'": "an expression has no quotes inside",
    "`": "an expression has no quotes inside",
}
_NOT_AN_ARROW = re.compile(r"[-=~\u2010-\u2015\u2212]+\s*>|[-=~\u2010-\u2015\u2212>]+|[\u2190-\u21ff]+")
_WORD = re.compile(r"[^\W\d]\w*")
_MODES = re.compile(r"\(([^()]*)\)|([^\W\d_])")


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a text stops being an expression: `text[:place]` could still have become one."""

    text: str
    place: int
    expected: Mapping[str, str]

    @property
    def rest(self) -> str:
        """The text from the stop on."""
        return self.text[self.place :]

    @property
    def before(self) -> str:
        """The text up to the stop."""
        return self.text[: self.place]

    def opened(self, bracket: str, closing: str) -> int | None:
        """Where the last bracket that is still open stands."""
        start = self.before.rfind(bracket)
        return start if start > self.before.rfind(closing) else None

    def error(self, message: str, *spans: Span, hint: str | None = None) -> ExpressionError:
        """The error, with a caret at the stop when no other place is named."""
        return ExpressionError(message, text=self.text, spans=spans or [self.span()], hint=hint)

    def span(self, length: int = 1) -> Span:
        """The characters that begin at the stop."""
        return Span(self.place, min(self.place + length, max(len(self.text), self.place + 1)))


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
    return stop.error(f"{_character(stop)} cannot stand here: expected {_expected(stop)}")


def as_names(text: str) -> str | None:
    """What a text with words in it, `batch chan h w`, would be if the words are names: a hint, or nothing."""
    head, bar, tail = text.partition("|")
    letters = re.sub(r"\([^()]*\)", "()", head)
    if not re.search(r"[^\W\d_]{3}", letters) or not re.search(r"[^\W\d_)]\s+[^\W\d_(]", letters):
        return None
    named = re.sub(r"\([^()]*\)|[^\W\d_]\w+", lambda word: word[0] if word[0][0] == "(" else f"({word[0]})", head)
    return f"one letter is one mode, and longer names stand in parentheses: {short(named + bar + tail)}"


def _two_arrows(stop: Stop) -> ExpressionError | None:
    first = stop.before.find("->")
    if not stop.rest.startswith("->") or first < 0 or stop.opened("(", ")") or stop.opened("[", "]"):
        return None
    if "|" in stop.before:
        return stop.error("the bar stands after the output, and no second arrow after the bar", stop.span(2))
    return stop.error("an expression has one arrow", Span(first, first + 2), stop.span(2))


def _bar(stop: Stop) -> ExpressionError | None:
    if not stop.rest.startswith("|") or stop.opened("(", ")") is not None or stop.opened("[", "]") is not None:
        return None
    before, rest = stop.before.strip(), stop.rest[1:].strip()
    if not rest.partition("->")[0]:
        return _empty_bar(stop)
    if "|" in before:
        message, hint = "an expression has one bar", "all convolved modes stand after it: |hw"
        return stop.error(message, Span(stop.before.find("|"), stop.before.find("|") + 1), stop.span(), hint=hint)
    if "->" in before:
        return None
    modes, arrow, output = rest.partition("->")
    if arrow:
        hint = f"write {short(f'{before}->{output.strip()}|{modes.strip()}')}"
        return stop.error("the bar stands after the output, not before the arrow", hint=hint)
    hint = f"write {short(f'{before}->{_likely_output(before, rest)}|{rest}')}"
    return stop.error("a bar needs an arrow and an output before it", hint=hint)


def _empty_bar(stop: Stop) -> ExpressionError:
    bar = stop.text.rfind("|", 0, stop.place + 1)
    hint = "leave the bar out, or name the convolved modes after the output: ij->ij|j"
    return stop.error("no mode stands after the bar", Span(bar, bar + 1), hint=hint)


def _likely_output(inputs: str, convolved: str) -> str:
    seen = Counter(name for names, letter in _MODES.findall(inputs) for name in (names.split() or [letter]))
    kept = {name: None for names, letter in _MODES.findall(convolved) for name in (names.split() or [letter])}
    free = [mode for mode, count in seen.items() if count == 1 and mode not in kept]
    modes = free + [mode for mode in seen if mode in kept]
    return ("..." if "..." in inputs else "") + "".join(mode if len(mode) == 1 else f"({mode})" for mode in modes)


def _brackets(stop: Stop) -> ExpressionError | None:
    if not stop.rest.startswith("[") or "|" in stop.before:
        return None
    inside = stop.rest[1:].partition("]")[0]
    if "=" in inside or inside.strip() in OPTION_NAMES:
        hint = f"write ...|{stop.before.rstrip()[-1:] or 'h'}[{short(inside)}]"
        return stop.error("options stand after the bar, behind a convolved mode", stop.span(len(inside) + 2), hint=hint)
    if "#" in inside or stop.rest[len(inside) + 2 :].lstrip().startswith("*"):
        return stop.error('"[" is not part of the language here', hint=_MEANT["#"])
    plain = stop.text.replace("[", "").replace("]", "")
    hint = f"a mode that the output does not have is summed, without brackets: {short(plain)}"
    return stop.error('"[]" holds the options of a convolved mode, not modes', stop.span(len(inside) + 2), hint=hint)


def _option(stop: Stop) -> ExpressionError | None:
    start = stop.opened("[", "]")
    if start is None:
        return None
    before = stop.before.rstrip()
    if stop.rest.startswith("]") and before.endswith("["):
        hint = "leave the brackets out for the defaults, or name options: h[stride=2]"
        return stop.error("the brackets are empty", Span(start, stop.place + 1), hint=hint)
    if stop.rest[:1] in tuple("\"'`‘’“”"):
        return stop.error("words stand without quotes in an expression", hint="for example h[padding=same]")
    if stop.rest[:1] == ":" or (stop.expected.keys() >= {"EQUAL"} and re.match(r"[\w(]", stop.rest)):
        hint = f"write {_last_word(before)}=..."
        return stop.error(f'"=" stands between an option and its value, not {_character(stop)}', hint=hint)
    if before.endswith("=") and stop.rest[:1] in tuple("],"):
        return stop.error(f"the option {_last_word(before[:-1])} has no value")
    if stop.expected.keys() == {"WORD"} and re.match(r"[0-9(+-]", stop.rest):
        return stop.error("an option has a name", hint="for example h[stride=2]")
    if stop.expected.keys() == {"COMMA", "RSQB"} and _WORD.match(stop.rest):
        return stop.error("options are separated by commas", hint='write "," here')
    return None


def _last_word(text: str) -> str:
    return next(iter(re.findall(r"\w+", text[-80:])[-1:]), "stride")


def _unclosed(stop: Stop) -> ExpressionError | None:
    at_sign = not stop.rest.strip() or stop.rest[:1] == "|" or stop.rest.startswith("->")
    parenthesis, bracket = stop.opened("(", ")"), stop.opened("[", "]")
    in_value = stop.expected.keys() == {"NUMBER", "WORD"}
    if parenthesis is not None and (at_sign or (stop.rest[:1] in tuple("],") and not in_value)):
        return stop.error('"(" is not closed', Span(parenthesis, parenthesis + 1), hint='close it with ")"')
    if bracket is not None and at_sign:
        return stop.error('"[" is not closed', Span(bracket, bracket + 1), hint='close it with "]"')
    if stop.rest[:1] == ")" and parenthesis is None:
        return stop.error('")" closes nothing: there is no "(" before it')
    if stop.rest[:1] == "]" and bracket is None:
        return stop.error('"]" closes nothing: there is no "[" before it')
    return None


def _parentheses(stop: Stop) -> ExpressionError | None:
    start = stop.opened("(", ")")
    if start is None or stop.opened("[", "]") is not None:
        return None
    inside = stop.text[start : stop.place].strip()
    whole, closing, _ = stop.text[start + 1 :].partition(")")
    names = " ".join(re.findall(r"\w+", whole[:200]))
    if stop.rest.startswith(")") and inside == "(":
        hint = "an operand without dimensions is an empty place between commas; a dimension of size 1 has a mode, too"
        return stop.error('"()" names no mode', Span(start, stop.place + 1), hint=hint)
    if stop.rest.startswith("..."):
        hint = 'write "..." outside the parentheses: it stands for whole dimensions'
        return stop.error('"..." cannot be part of a composed dimension', stop.span(3), hint=hint)
    if "->" in whole or not closing:
        return None
    if "|" in stop.before:
        if stop.rest[:1] in tuple("=:"):
            return stop.error("options stand in brackets", hint=f"write [{short(whole)}] instead of ({short(whole)})")
        hint = "write |" + "".join(f"({name})" for name in names.split())
        return stop.error("modes are convolved one by one: a composed dimension cannot stand after the bar", hint=hint)
    if stop.rest.startswith("("):
        hint = f"a product of products is one product: ({names or 'a b'})"
        return stop.error("parentheses cannot stand inside parentheses", Span(start, start + 1), stop.span(), hint=hint)
    if stop.rest[0] in ",*;+-/":
        hint = f"names are separated by spaces: ({names or 'a b'})"
        return stop.error(f"{_character(stop)} cannot stand in parentheses", hint=hint)
    return None


def _end(stop: Stop) -> ExpressionError | None:
    before = stop.before.rstrip()
    if not stop.rest.strip() and before.endswith("|"):
        return _empty_bar(stop)
    if stop.rest.startswith(",") and "->" in before and "|" not in before:
        return stop.error("an expression has one output: no comma can stand after the arrow")
    if stop.rest.startswith("...") and "|" in before:
        hint = "write the modes that are convolved out, in the operands and after the bar"
        return stop.error('"..." cannot be convolved', stop.span(3), hint=hint)
    return None


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
    shown = _character(stop) if len(wrong[0]) == 1 else f'"{short(wrong[0])}"'
    return stop.error(f"{shown} is not an arrow", stop.span(len(wrong[0])), hint='an arrow is "->"')


def _sign(stop: Stop) -> ExpressionError | None:
    character = stop.rest[:1]
    if not character:
        return None
    if hint := _MEANT.get(character):
        return stop.error(f"{_character(stop)} is not part of the language", hint=hint)
    plain = unicodedata.normalize("NFKC", character)
    if character != plain and plain in ("...", *"()[]|,=.>-"):
        return stop.error(f"{_character(stop)} is not part of the language", hint=f'did you mean "{plain}"?')
    if character in "=:" and "|" in stop.before and stop.opened("[", "]") is None:
        hint = "options stand in brackets after the mode: h[stride=2]"
        return stop.error(f"{_character(stop)} cannot stand here", hint=hint)
    if not character.isprintable():
        return stop.error(f"{_character(stop)} is not part of the language", hint="it cannot be seen; delete it")
    return None


def _character(stop: Stop) -> str:
    """The character at the stop, by its number where it cannot be shown."""
    if not stop.rest:
        return "the end"
    character = stop.rest[0]
    if character.isprintable():
        sign = "->" if stop.rest.startswith("->") else character
        return f"'{sign}'" if sign == '"' else f'"{sign}"'
    return f"U+{ord(character):04X}"


def _expected(stop: Stop) -> str:
    words = []
    for name in [*(name for name in _WORDS if name in stop.expected), *sorted(stop.expected.keys() - _WORDS.keys())]:
        if name == "WORD" and "NUMBER" in stop.expected:
            words.append("a word")
        else:
            words.append(_WORDS.get(name, stop.expected[name]))
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def short(text: str) -> str:
    """A text on one line and of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


_GUESSES: tuple[Callable[[Stop], ExpressionError | None], ...] = (
    _two_arrows,
    _bar,
    _end,
    _brackets,
    _parentheses,
    _option,
    _unclosed,
    _digits,
    _dots,
    _arrow,
    _sign,
)
