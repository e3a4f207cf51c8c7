"""What a GPU does per second: the table that plans for CUDA are made by.

A GPU computes while it reads, so a call takes the longer of both and what its launch takes; below some 180 operations
a byte, which is where most factorised layers are, the bytes decide.

`gpu_rates.json` beside this file has the tables of the cards that were measured, as `python bench/run.py gpu` writes
them. There is none yet: until then all cards are planned for by the peak rates of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from convein.planner import rates
from convein.planner.rates import Rate, Rates

# An H200: GFLOP/s of its matrix units by the type that they multiply, of everything else in float32, and GB/s.
MATRIX = {torch.float16: 790e3, torch.bfloat16: 790e3, torch.float32: 395e3, torch.float64: 60e3}
VECTOR = 60e3
BANDWIDTH = 4300
LAUNCH = 4.0  # microseconds
# A kernel of ours reaches so much of the matrix units: its products are small, and wait for each other.
FUSED = 0.6

# The share of the arithmetic and of the bandwidth that a class reaches. Channels-first convolutions are copied to
# channels-last ones inside cuDNN; depthwise and grouped ones are no matrix products there.
_SHARES = {
    rates.ROWS: (0.9, 0.9),
    rates.MATRIX: (0.9, 0.9),
    rates.BATCHED: (0.8, 0.9),
    rates.POINTWISE: (0.6, 0.5),
    rates.DENSE_FIRST: (0.6, 0.4),
    rates.DENSE_LAST: (0.9, 0.9),
    rates.GROUPED_FIRST: (0.05, 0.3),
    rates.GROUPED_LAST: (0.1, 0.5),
    rates.DEPTHWISE_FIRST: (0.02, 0.4),
    rates.DEPTHWISE_LAST: (0.03, 0.6),
    rates.ELEMENTWISE: (1.0, 0.9),
    rates.COPY: (1.0, 0.7),
    rates.TRANSPOSED: (1.0, 0.7),
    rates.FUSED: (FUSED, 0.9),
}


@cache
def accelerator(dtype: torch.dtype, card: str = "") -> Rates:
    """The rates of a GPU for one type of number: those that were measured, or what an NVIDIA H200's peak rates say.

    These are with torch's own settings: convolutions of float32 round to TF32, products of matrices do not.

    Args:
        dtype: of the numbers.
        card: the GPU's name, as torch has it.
    """
    computed = _computed(dtype)
    name = f"measured: {card}, {str(dtype).removeprefix('torch.')}"
    found = _measured().get(name)
    if found is None:
        return computed
    # Kernels of our own are no class that the table has.
    ahead, back = ({kind: Rate(**rate) for kind, rate in found[part].items()} for part in ("forward", "backward"))
    return Rates(name, {**computed.forward, **ahead}, {**computed.backward, **back}, dtype.itemsize)


@cache
def _measured() -> Mapping[str, Any]:
    tables: Mapping[str, Any] = json.loads(files("convein.planner").joinpath("gpu_rates.json").read_text("utf-8"))
    return tables


def _computed(dtype: torch.dtype) -> Rates:
    peak = MATRIX.get(dtype, VECTOR)
    ahead = {}
    for kind, (arithmetic, bandwidth) in _SHARES.items():
        exact = dtype is torch.float32 and kind in (rates.ROWS, rates.MATRIX, rates.BATCHED)
        ahead[kind] = Rate(LAUNCH, arithmetic * (VECTOR if exact else peak), bandwidth * BANDWIDTH, overlaps=True)
    # Each of the two products of the backward pass is a launch.
    back = {kind: Rate(2 * LAUNCH, one.flops, one.bandwidth, overlaps=True) for kind, one in ahead.items()}
    name = f"computed for an NVIDIA H200, {str(dtype).removeprefix('torch.')}"
    return Rates(name, ahead, back, dtype.itemsize)
