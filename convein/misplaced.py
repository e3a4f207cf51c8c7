"""A sign of the language where it cannot stand: second arrows and bars, brackets that do not close, lost options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convein.errors import ExpressionError, Span
from convein.options import OPTION_NAMES

_WORD = re.compile(r"[^\W\d]\w*")
_MODES = re.compile(r"\(([^()]*)\)|([^\W\d_])")
REPEATED_HINT = "a repeated operand belongs to a dialect: dialect=convein.dialects.REPEATED"


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
        return stop.error('"[" is not part of the language here', hint=REPEATED_HINT)
    plain = stop.text.replace("[", "").replace("]", "")
    hint = f"a mode that the output does not have is summed, without brackets: {short(plain)}"
    return stop.error('"[]" holds the options of a convolved mode, not modes', stop.span(len(inside) + 2), hint=hint)


def _option(stop: Stop) -> ExpressionError | None:
    start = stop.opened("[", "]")
    if start is None:
        return None
    before = stop.before.rstrip()
    if stop.rest.startswith("]") and before.endswith("[") and "WORD" in stop.expected:
        hint = "leave the brackets out for the defaults, or name options: h[stride=2]"
        return stop.error("the brackets are empty", Span(start, stop.place + 1), hint=hint)
    if stop.rest[:1] in tuple("\"'`‘’“”"):
        return stop.error("words stand without quotes in an expression", hint="for example h[padding=same]")
    if stop.rest[:1] == ":" or (stop.expected.keys() >= {"EQUAL"} and re.match(r"[\w(]", stop.rest)):
        hint = f"write {_last_word(before)}=..."
        return stop.error(f'"=" stands between an option and its value, not {character_at(stop)}', hint=hint)
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
        return stop.error(f"{character_at(stop)} cannot stand in parentheses", hint=hint)
    return None


def _end(stop: Stop) -> ExpressionError | None:
    before = stop.before.rstrip()
    if not stop.rest.strip() and before.endswith("|"):
        return _empty_bar(stop)
    if stop.rest.startswith(",") and "->" in before and "|" not in before:
        modes = re.match(r",\s*((?:\w|\([^()]*\)|\s)*)\Z", stop.rest)
        carried = before.partition("->")[0]
        hint = None
        if modes and modes[1] and all(carried.count(letter) > 1 for letter in modes[1]):
            hint = f"to convolve along modes, write them after a bar: {short(f'{before}|{modes[1].strip()}')}"
        return stop.error("an expression has one output: no comma can stand after the arrow", hint=hint)
    if stop.rest.startswith("...") and "|" in before:
        hint = "write the modes that are convolved out, in the operands and after the bar"
        return stop.error('"..." cannot be convolved', stop.span(3), hint=hint)
    return None


def character_at(stop: Stop) -> str:
    """The character at the stop, by its number where it cannot be shown."""
    if not stop.rest:
        return "the end"
    character = stop.rest[0]
    if character.isprintable():
        sign = "->" if stop.rest.startswith("->") else character
        return f"'{sign}'" if sign == '"' else f'"{sign}"'
    return f"U+{ord(character):04X}"


def short(text: str) -> str:
    """A text on one line and of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


MISPLACED: tuple[Callable[[Stop], ExpressionError | None], ...] = (
    _two_arrows,
    _bar,
    _end,
    _brackets,
    _parentheses,
    _option,
    _unclosed,
)
