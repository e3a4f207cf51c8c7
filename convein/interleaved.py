"""opt_einsum's interleaved form, `x, [0, 1], y, [1, 2], [0, 2]` -> Equation and operands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from convein.equation import ELLIPSIS, Equation, mode_name, written
from convein.errors import ExpressionError
from convein.options import shown
from convein.syntax import parse

_FORM = 'write a string such as "ij,jk->ik" first, or operands and their modes in turn: x, [0, 1], y, [1, 2], [0, 2]'


def interleaved(
    arguments: Sequence[object], convolved: Sequence[object] | None = None
) -> tuple[Equation, tuple[object, ...]]:
    """The equation and the operands of a call in which operands and lists of modes alternate.

    The equation's text is the same expression in the language, with the labels as names: `(0)(1),(1)(2)->(0)(2)`.

    Args:
        arguments: operands and their modes in turn, then the modes of the output if they are given. A mode is an
            integer or any other label that can be sorted and hashed; `...` is Ellipsis.
        convolved: the modes that stand after the bar.
    """
    if len(arguments) < 2:
        raise ExpressionError(f"there is no expression in {shown(tuple(arguments))}", hint=_FORM)
    pairs = len(arguments) // 2
    operands = tuple(arguments[: 2 * pairs : 2])
    inputs = [_labels(arguments[2 * place + 1], f"the modes of operand {place}") for place in range(pairs)]
    output = _labels(arguments[-1], "the modes of the output") if len(arguments) % 2 else _implicit(inputs)
    after_bar = [] if convolved is None else _labels(convolved, "the convolved modes")
    names = _names([label for labels in (*inputs, output, after_bar) for label in labels])
    text = ",".join(_term(labels, names) for labels in inputs) + "->" + _term(output, names)
    if convolved is not None:
        if len(arguments) % 2 == 0:
            hint = "write the modes of the output as the last argument"
            raise ExpressionError(f"convolved={shown(convolved)} needs the modes of the output", hint=hint)
        text += "|" + _term(after_bar, names)
    return parse(text), operands


def _labels(value: object, what: str) -> list[Any]:
    if not isinstance(value, list | tuple | range | str):
        raise ExpressionError(
            f"{what} are a list such as [0, 1], not {type(value).__name__}: {shown(value)}", hint=_FORM
        )
    for label in value:
        try:
            hash(label)
        except TypeError:
            raise ExpressionError(
                f"a mode is an integer or a name, not {type(label).__name__}: {shown(label)}"
            ) from None
    return list(value)


def _names(labels: Iterable[Any]) -> dict[Any, str]:
    names: dict[Any, str] = {}
    owners: dict[str, Any] = {}
    for label in labels:
        name = names[label] = mode_name(label)
        if owners.setdefault(name, label) != label:
            raise ExpressionError(f"the labels {shown(owners[name])} and {shown(label)} would both be the mode {name}")
    return names


def _implicit(inputs: Iterable[list[Any]]) -> list[Any]:
    counts = Counter(label for labels in inputs for label in labels)
    batch = [Ellipsis] if counts.pop(Ellipsis, 0) else []
    try:
        return batch + sorted(label for label, count in counts.items() if count == 1)
    except TypeError:
        message = f"the labels {shown(list(counts))} cannot be sorted, and no output is given"
        raise ExpressionError(message, hint="write the modes of the output as the last argument") from None


def _term(labels: Iterable[Any], names: dict[Any, str]) -> str:
    return "".join(ELLIPSIS if label is Ellipsis else written(names[label]) for label in labels)
