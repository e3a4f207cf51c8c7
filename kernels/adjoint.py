"""The gradients of products of two tensors: products again.

With i = s o + d u - lo for entries i of the signal, u of the filter and o of the result, that of the filter reads the
signal at stride d with dilation s. That of the signal solves for o, which is an integer for some u only, others for
every remainder of i by the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd

import torch
from convein.kernels.equation import grouped, terms
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Phase:
    """The entries of a signal that meet the same entries of the filter, along one convolved mode.

    Both are series: with a and v counted from 0, `signal.start + a * signal.step` and `filter.start + v * filter.step`
    meet in the result's entry `stride * a + dilation * v - low`.
    """

    signal: slice
    filter: slice
    stride: int
    dilation: int
    low: int


def phases(stride: int, dilation: int, low: int) -> list[Phase]:
    """What the result's entries o and the filter's u add to in a signal, at stride * o + dilation * u - low, solved
    for o. Entries of the signal in no phase meet nothing.
    """
    every, sign = abs(stride), 1 if stride > 0 else -1
    common = gcd(every, dilation)
    found = []
    for rest in range(0, every, common):
        first = (rest - low) % every
        tap = next(u for u in range(every) if (dilation * u - rest) % every == 0)
        at = sign * (first + low - dilation * tap) // every
        signal, taps = slice(first, None, every), slice(tap, None, every // common)
        found.append(Phase(signal, taps, sign, -sign * dilation // common, -at))
    return found


def pull(
    needs: Sequence[bool], x: Tensor, w: Tensor, equation: str, convolved: str, stride: Sequence[int],
    dilation: Sequence[int], low: Sequence[int], size: Sequence[int], gradient: Tensor,  # noqa: ARG001
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of x and w."""
    X, W, out = terms(equation)
    to_x = to_w = None
    order = [
        mode for group in grouped(x.stride(), w.stride(), equation, convolved, stride, dilation)[:3] for mode in group
    ]
    gradient = _readable(gradient, [out.index(mode) for mode in order], bool(convolved))
    if needs[0]:
        to_x = _pull_signal(gradient, w, x.shape, equation, convolved, stride, dilation, low)
    if needs[1]:
        taps = [w.shape[W.index(mode)] for mode in convolved]
        to_w = torch.ops.convein.pair(x, gradient, f"{X},{out}->{W}", convolved, dilation, stride, low, taps)
    return (to_x, to_w, *[None] * 6)


def _readable(gradient: Tensor, order: Sequence[int], convolved: bool) -> Tensor:
    """The gradient as the result lies, where it would be read number by number: shifted against its rows in memory, or
    the same number again and again.
    """
    lying = gradient.permute(list(order))
    if lying.is_contiguous() or not (convolved or 0 in gradient.stride()):
        return gradient
    return lying.contiguous().permute([order.index(at) for at in range(len(order))])


def _pull_signal(
    gradient: Tensor, w: Tensor, shape: Sequence[int], equation: str, convolved: str, stride: Sequence[int],
    dilation: Sequence[int], low: Sequence[int],
) -> Tensor:  # fmt: skip
    """The gradient of x: one product where the strides are 1, else one for each phase of them."""
    X, W, out = terms(equation)
    to_x = gradient.new_zeros(tuple(shape)) if any(abs(step) > 1 for step in stride) else None
    for along in product(*map(phases, stride, dilation, low)):
        here, taps, size = [slice(None)] * len(X), [slice(None)] * len(W), []
        for mode, phase in zip(convolved, along, strict=True):
            here[X.index(mode)], taps[W.index(mode)] = phase.signal, phase.filter
            size.append(len(range(shape[X.index(mode)])[phase.signal]))
        steps = [[getattr(phase, name) for phase in along] for name in ("stride", "dilation", "low")]
        part: Tensor = torch.ops.convein.pair(gradient, w[tuple(taps)], f"{out},{W}->{X}", convolved, *steps, size)
        if to_x is None:
            return part
        to_x[tuple(here)] = part
    assert to_x is not None
    return to_x
