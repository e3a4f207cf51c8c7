"""What went wrong, where, and what would be right: every sentence a user may meet is raised from here.

`ConveinError` takes the facts as arguments (the text, the places in it, a hint) and draws the carets itself, so that no
message can forget them.
"""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of characters `start..end` of an expression's text."""

    start: int
    end: int


class ConveinError(ValueError):
    """Base of every error of this package; also a ValueError.

    Args:
        message: what is wrong, with the value that was given.
        text: the expression that the spans point into.
        spans: the places of the expression to mark with carets.
        hint: what would be right.
    """

    def __init__(
        self, message: str, *, text: str | None = None, spans: Iterable[Span] = (), hint: str | None = None
    ) -> None:
        self.message = message
        self.text = text
        self.spans = tuple(spans)
        self.hint = hint
        super().__init__(message)

    def at(self, text: str, spans: Iterable[Span] = ()) -> Self:
        """The same error, pointing at places of a text."""
        return type(self)(self.message, text=text, spans=tuple(spans) or self.spans, hint=self.hint)

    def __str__(self) -> str:
        parts = [_cropped(self.message)]
        if self.text is not None:
            parts.append(draw(self.text, self.spans))
        if self.hint is not None:
            parts.append(_cropped(self.hint))
        return "\n\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.text, self.spans, self.hint)


def _rebuild(
    kind: type[ConveinError], message: str, text: str | None, spans: tuple[Span, ...], hint: str | None
) -> ConveinError:
    return kind(message, text=text, spans=spans, hint=hint)


class ExpressionError(ConveinError):
    """The text is not an expression: its grammar or its modes do not fit together."""


class ShapeError(ConveinError):
    """The operands' shapes do not fit the expression, or each other."""


class OptionError(ConveinError):
    """An option does not exist, does not apply here, or has a value that it cannot have."""


class OperandError(ConveinError):
    """An operand is not a tensor, or its dtype or device does not go with the others."""


class PlanError(ConveinError):
    """No plan can be made as asked: a path, an optimiser or a limit that does not fit."""


class ConveinWarning(UserWarning):
    """Something legal that is probably not what was meant."""


_PACKAGE = f"{Path(__file__).parent}{os.sep}"


def warn(message: str) -> None:
    """Gives a ConveinWarning at the line that called this package."""
    depth, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_ours(frame):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, ConveinWarning, stacklevel=depth)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


_WIDEST = 200
_LONGEST = 600


def _cropped(text: str) -> str:
    """A sentence, without the middle of a list in it that is very long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"


def draw(text: str, spans: Iterable[Span]) -> str:
    """The text, indented, with carets under each span; of a very long text only the part around the first span."""
    marked = {place for span in spans for place in range(span.start, min(max(span.end, span.start + 1), len(text) + 1))}
    start, end = 0, len(text)
    if end > _WIDEST:
        start = max(0, min(min(marked, default=0) - _WIDEST // 2, end - _WIDEST))
        end = start + _WIDEST
    before, after = "..." * (start > 0), "..." * (end < len(text))
    shown, marks = [before], [" " * len(before)]
    for place in range(start, end):
        character, width = _on_one_line(text[place])
        shown.append(character)
        if place in marked and not width:
            marks[-1] = marks[-1][:-1] + "^"
        marks.append(("^" if place in marked else " ") * width)
    marks.append("^" if end in marked else "")
    lines = ["    " + "".join(shown) + after]
    if marked:
        lines.append("    " + "".join(marks).rstrip())
    return "\n".join(lines)


def _on_one_line(character: str) -> tuple[str, int]:
    """A character as it can be shown within a line, and the columns that it takes there."""
    if character.isspace():
        return " ", 1
    if not character.isprintable():
        return "\ufffd", 1
    if unicodedata.category(character) in {"Mn", "Me"}:
        return character, 0
    return character, 2 if unicodedata.east_asian_width(character) in "WF" else 1
