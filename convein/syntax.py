"""text -> Equation."""

from __future__ import annotations

from dataclasses import dataclass, field

from convein.errors import Span
from convein.options import ConvOptions

ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of an operand as it is written: one mode, the row-major product of several, or `...`.

    `modes` is `("...",)` for the ellipsis (any number of dimensions); `spans` has one place in the text for each mode.
    """

    modes: tuple[str, ...]
    span: Span = field(compare=False)
    spans: tuple[Span, ...] = field(compare=False)


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


@dataclass(frozen=True, slots=True)
class Convolved:
    """A mode after the bar. `given` names the options that were stated (in the text, or merged from keywords)."""

    mode: str
    options: ConvOptions
    given: frozenset[str]
    span: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class Equation:
    """A parsed expression; `str()` is its canonical text with every option that is not the default."""

    text: str = field(compare=False)
    inputs: tuple[Term, ...]
    output: Term
    convolved: tuple[Convolved, ...]
