"""The values of the language: an Equation and its pieces. `str()` of an Equation is its canonical text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from convein.errors import Span
from convein.options import ConvOptions, as_integer

ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode where it is written. A piece that handlers pass to each other; an Equation holds names only."""

    name: str
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one convolved mode as it is written, `stride=2`. A piece that handlers pass to each other.

    A `default` gives way to the same option stated in the same brackets.
    """

    name: str
    value: object
    span: Span = field(compare=False)
    default: bool = False


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of an operand as it is written: one mode, the row-major product of several, or `...`.

    `modes` is `("...",)` for the ellipsis (any number of dimensions); `spans` has one place in the text for each mode.
    """

    modes: tuple[str, ...]
    span: Span = field(compare=False)
    spans: tuple[Span, ...] = field(compare=False)

    def __str__(self) -> str:
        return ELLIPSIS if self.modes == (ELLIPSIS,) else composed(self.modes)


@dataclass(frozen=True, slots=True)
class Constant:
    """An operand that the language itself supplies, as a recipe: a tensor of `shape` filled with `value`."""

    shape: tuple[int, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Term:
    """One operand, or the output: its dimensions in order. `constant` is set when no tensor is passed for it."""

    dimensions: tuple[Dimension, ...]
    span: Span = field(compare=False)
    constant: Constant | None = None

    def __str__(self) -> str:
        return "".join(map(str, self.dimensions))


@dataclass(frozen=True, slots=True)
class Convolved:
    """A mode after the bar. `given` names the options that were stated (in the text, or merged from keywords)."""

    mode: str
    options: ConvOptions
    given: frozenset[str] = field(compare=False)
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class Equation:
    """A parsed expression; `str()` is its canonical text with every option that is not the default.

    Terms with a `constant` come after the terms of the user's operands. `text` is what the spans point into.
    """

    text: str = field(compare=False)
    inputs: tuple[Term, ...]
    output: Term
    convolved: tuple[Convolved, ...]

    def __str__(self) -> str:
        terms = [self._constant(term) if term.constant else str(term) for term in self.inputs if not self._in_bar(term)]
        return f"{','.join(terms)}->{self.output}{self._bar()}"

    def _in_bar(self, term: Term) -> bool:
        """Whether a dialect wrote this constant as an option of a convolved mode, and not among the operands."""
        return term.constant is not None and term.span.start > self.output.span.end

    def _constant(self, term: Term) -> str:
        """A constant has no spelling of its own: it is printed in the words of the dialect that made it."""
        return self.text[term.span.start : term.span.end]

    def _bar(self) -> str:
        parts = []
        for convolved in self.convolved:
            filters = [term for term in self.inputs if self._in_bar(term) and str(term) == written(convolved.mode)]
            settings = [self._constant(term) for term in filters] + _settings(convolved, bool(filters))
            parts.append(written(convolved.mode) + (f"[{', '.join(settings)}]" if settings else ""))
        return ("|" if parts else "") + (", " if any("[" in part for part in parts) else "").join(parts)


def mode_name(label: object) -> str:
    """The name of the mode that a label of the interleaved form, or a key of an option's dict, stands for."""
    number = as_integer(label)
    if number is not None and number >= 0:
        return str(number)
    if isinstance(label, str) and (label.isalnum() or label.isidentifier()):
        return label
    return "_".join(re.findall(r"\w+", repr(label))) or "_"


def written(mode: str) -> str:
    """How a mode is written in an expression: a letter as it is, a longer name in parentheses."""
    return mode if len(mode) == 1 and not (mode.isascii() and not mode.isalpha()) else f"({mode})"


def composed(modes: Sequence[str]) -> str:
    """How one dimension is written: one mode, or the row-major product of several."""
    return written(modes[0]) if len(modes) == 1 else f"({' '.join(modes)})"


def _settings(convolved: Convolved, by_dialect: bool) -> list[str]:
    """The options to print: those that are not the default, and those whose statement itself does something.

    A stated `signal` silences a warning; what is stated beside a dialect's option keeps the dialect's default out.
    """
    loud = convolved.given if by_dialect else convolved.given & {"signal"}
    settings = []
    for option in fields(ConvOptions):
        value = getattr(convolved.options, option.name)
        if value is True:
            settings.append(option.name)
        elif value != option.default or option.name in loud:
            settings.append(f"{option.name}={str(value).replace(' ', '')}")
    return settings
