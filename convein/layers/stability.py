"""Parameters of an autoregression -> the sums and differences of its taps, of which the sums say whether it is stable.

J. Su, 2022, theorem 6.6: a factor is stable if |f(-1) + f(1)| < f(0) = 1. The taps that its theorem 6.7 prints
(equation 6.9) do not keep to that, f(-1) + f(1) is left free there; what is meant are the first two of these:

| | f(-1) + f(1) | f(-1) - f(1) |
|---|---|---|
| bounded | tanh a1 | tanh a0 |
| free_difference | tanh a1 | -a0 |
| none | a1 | a0: nothing keeps it stable |
"""

from __future__ import annotations

import torch
from torch import Tensor

STABILITIES = ("bounded", "free_difference", "none")

# All factors of a channel together may amplify by ten to this: what rounding leaves of a result after that is noise
# (float64, float32), or what can be represented ends (float16).
_LARGEST_GAIN = {torch.float64: 16, torch.float32: 8, torch.float16: 4, torch.bfloat16: 4}


def margin_of(dtype: torch.dtype, factors: int) -> float:
    """How far |f(-1) + f(1)| stays below 1: 1e-4 in float32 with at most two factors a channel, 1e-8 in float64.

    Args:
        dtype: of the parameters.
        factors: of one channel, over all dimensions: each amplifies up to 1 / margin.
    """
    return float(10.0 ** (-_LARGEST_GAIN[dtype] / max(2, factors)))


def sums_and_differences(parameters: Tensor, stability: str, margin: float | None) -> tuple[Tensor, Tensor]:
    """The taps that parameters stand for.

    Args:
        parameters: (channels, factors, dimensions, 2), a0 and a1; half types are computed in float32.
        stability: one of `STABILITIES`.
        margin: |tanh a1| is at most 1 - margin; None is that of the parameters' dtype.

    Returns:
        f(-1) + f(1) and f(-1) - f(1), each (channels, factors, dimensions).
    """
    if margin is None:
        margin = margin_of(parameters.dtype, parameters.shape[1] * parameters.shape[2])
    wide = parameters.float() if parameters.dtype.itemsize < 4 else parameters
    skew, level = wide.unbind(-1)
    if stability == "none":
        return level, skew
    bounded = level.tanh().clamp(margin - 1, 1 - margin)
    return bounded, -skew if stability == "free_difference" else skew.tanh()


def reparametrised(parameters: Tensor, stability: str) -> Tensor:
    """The parameters (..., 2) that make the taps that "bounded" makes of the given ones."""
    skew, level = parameters.unbind(-1)
    if stability == "none":
        return parameters.tanh()
    return torch.stack([-skew.tanh(), level], -1) if stability == "free_difference" else parameters
