"""What an equation of two operands says: its terms, whether tensors fit it, and the matrices that it multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def terms(equation: str) -> tuple[str, str, str]:
    """The modes of both tensors and of the result, a letter each."""
    operands, out = equation.split("->")
    x, w = operands.split(",")
    return x, w, out


def grouped(
    x: Sequence[Any], w: Sequence[Any], equation: str, convolved: str, stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Modes of the batch, the rows, the columns and the inner sum, those of long strides first.

    `x` and `w` are the strides of both tensors, the rest is as `pair.reference` takes it.
    """
    X, W, out = terms(equation)
    of_x, of_w = dict(zip(X, x, strict=True)), dict(zip(W, w, strict=True))
    outer = of_x | {mode: of_x[mode] * step for mode, step in zip(convolved, stride, strict=True)}
    taps = of_x | {mode: of_x[mode] * step for mode, step in zip(convolved, dilation, strict=True)}
    batch = [mode for mode in out if mode in X and mode in W and mode not in convolved]
    rows = [mode for mode in out if mode in X and (mode not in W or mode in convolved)]
    columns = [mode for mode in out if mode not in X]
    inner = [mode for mode in X if mode in W and (mode not in out or mode in convolved)]
    # The inner sum goes along x where x has runs along it.
    along = taps if any(taps[mode] == 1 for mode in inner) else of_w
    return (
        sorted(batch, key=lambda mode: -of_x[mode]),
        sorted(rows, key=lambda mode: -abs(outer[mode])),
        sorted(columns, key=lambda mode: -of_w[mode]),
        sorted(inner, key=lambda mode: -abs(along[mode])),
    )


def misfit(x: Tensor, w: Tensor, equation: str, convolved: str, options: Sequence[Sequence[int]]) -> str | None:
    """What in the sizes and the modes does not fit together."""
    if equation.count(",") != 1 or equation.count("->") != 1:
        return f"{equation!r} is not two terms and a result"
    X, W, out = modes = terms(equation)
    for term in modes:
        if len({*term}) < len(term):
            return f"a mode is twice in {term!r}"
    if (len(X), len(W)) != (x.ndim, w.ndim):
        return f"x and w are {tuple(x.shape)} and {tuple(w.shape)}, and their modes {X!r} and {W!r}"
    for mode in dict.fromkeys(X + W + out):
        terms_with = sum(mode in term for term in modes)
        if mode in convolved and terms_with < 3:
            return f"the convolved mode {mode} is not in all of {equation!r}"
        if terms_with < 2:
            return f"the mode {mode} is in one term of {equation!r} only"
    if len({*convolved}) < len(convolved) or not {*convolved} <= {*X} or {*map(len, options)} != {len(convolved)}:
        given = ", ".join(str(list(option)) for option in options)
        return f"{convolved!r} with {given} are not modes of {equation!r}, each once"
    if 0 in (*options[0], *options[1]):
        return "a stride or a dilation is 0"
    of_x, of_w = dict(zip(X, x.shape, strict=True)), dict(zip(W, w.shape, strict=True))
    for mode in X:
        if mode in of_w and mode not in convolved and of_x[mode] != of_w[mode]:
            return f"mode {mode} is {of_x[mode]} in x and {of_w[mode]} in w"
    return None
