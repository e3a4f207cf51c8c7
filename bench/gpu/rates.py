"""What torch's calls reach on a GPU, by class of step: the table that the time model plans with.

Every class is timed at sizes of residual networks and at small ones, forward and with the backward pass, and the three
numbers of its rate are fitted to all of them: the overhead of a call, operations and bytes per second. The file has
them as `Rates` does, and as `planner/accelerators.py` computes them where nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convein.execution.ops import linear, transposed
from convein.planner import rates
from convein.planner.rates import Rate, Rates
from gpu import clock
from gpu.clock import Call, Setting
from gpu.layers import FORWARD, TRAINING
from measure import Group, Timing

# Pictures, channels, and their size.
SIZES = ((128, 64, 56), (128, 128, 28), (128, 256, 14), (128, 512, 7), (16, 128, 28), (2, 64, 14))
KINDS = tuple(rates.SHIPPED.forward)
# What a class does beside moving bytes, or moves beside computing, where that costs nothing that shows.
FREE = 1e7
GROUP = "rates of"


@dataclass(frozen=True, slots=True)
class Probe:
    """A call of one class: its operands, the operations it does and the bytes it reads and writes."""

    call: Callable[..., Tensor]
    operands: tuple[Tensor, ...]
    flops: float

    @property
    def moved(self) -> float:
        """Bytes of the operands and of the result."""
        with torch.no_grad():
            result = self.call(*self.operands)
        return float(sum(x.numel() * x.element_size() for x in (*self.operands, result)))


def groups(setting: Setting) -> Iterator[Group]:
    """Every class and direction: a call of each size is a variant."""
    for kind, direction in product(KINDS, (FORWARD, TRAINING)):
        name = f"{GROUP} {kind} {direction}"
        yield Group(name, partial(_variants, setting, kind, direction), sampler=clock.sample)


def table(setting: Setting, timings: Iterable[Timing]) -> Rates | None:
    """The rates that fit best; None if there is a class that was not measured."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for timing in timings:
        if timing.group.startswith(GROUP):
            kind, direction = timing.group.removeprefix(f"{GROUP} ").rsplit(" ", 1)
            found.setdefault((kind, direction), {})[timing.variant] = timing.median * 1e6
    forward, backward = {}, {}
    for kind in KINDS:
        ahead, both = found.get((kind, FORWARD)), found.get((kind, TRAINING))
        if ahead is None or both is None:
            return None
        works = {name: _work(setting, kind, name) for name in ahead}
        forward[kind] = fitted([(*works[name], spent) for name, spent in ahead.items()])
        # The two products of the backward pass, together.
        rest = {name: max(both[name] - spent, 0.1) for name, spent in ahead.items() if name in both}
        backward[kind] = fitted([(2 * works[name][0], 2 * works[name][1], spent) for name, spent in rest.items()])
    card = torch.cuda.get_device_name() if setting.device.type == "cuda" else "no GPU"
    name = f"measured: {card}, {str(setting.dtype).removeprefix('torch.')}"
    return Rates(name, forward, backward, setting.dtype.itemsize)


def fitted(points: Sequence[tuple[float, float, float]]) -> Rate:
    """The rate with the least relative errors, none of its three parts negative.

    A GPU computes while it moves numbers, and a call takes the longer of both: every way to say which one decides for
    which call is tried.

    Args:
        points: operations, bytes and microseconds of calls.
    """
    flops, moved, spent = (np.array(column, float) for column in zip(*points, strict=True))
    best, least = np.zeros(3), float("inf")
    for decides in product((False, True), repeat=len(points)):
        computing = np.array(decides)
        columns = np.stack([np.ones_like(spent), np.where(computing, flops, 0), np.where(computing, 0, moved)], 1)
        for parts in _solutions(columns / spent[:, None]):
            times = parts[0] + np.maximum(parts[1] * flops, parts[2] * moved)
            error = float(((times / spent - 1) ** 2).sum())
            if error < least:
                best, least = parts, error
    overhead, each_flop, each_byte = map(float, best)
    speed, bandwidth = (round(min(FREE, 1e-3 / max(each, 1e-12)), 3) for each in (each_flop, each_byte))
    return Rate(round(overhead, 3), speed, bandwidth, overlaps=True)


def _solutions(columns: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """What makes the sum of some columns one everywhere, as far as it can, where that is not negative."""
    scale = columns.max(0).clip(1e-30)
    for mask in product((False, True), repeat=columns.shape[1]):
        used = np.array(mask) & (columns > 0).any(0)
        if used.any():
            parts = np.zeros(columns.shape[1])
            ones = np.ones(len(columns))
            parts[used] = np.linalg.lstsq((columns / scale)[:, used], ones, rcond=None)[0] / scale[used]
            if (parts >= 0).all():
                yield parts


def write(path: Path, found: Rates) -> None:
    """Adds a table to a file of tables, by name."""
    tables = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tables[found.name] = asdict(found)
    path.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def printed(found: Rates) -> str:
    """The table: microseconds a call, GFLOP/s and GB/s."""
    lines = [found.name]
    for kind in found.forward:
        ahead, back = found.forward[kind], found.backward[kind]
        numbers = [f"{rate.overhead:7.1f} {rate.flops:10.0f} {rate.bandwidth:8.0f}" for rate in (ahead, back)]
        lines.append(f"  {kind:18} forward {numbers[0]}  backward {numbers[1]}")
    return "\n".join(lines)


def probe(setting: Setting, kind: str, size: tuple[int, int, int]) -> Probe:
    """A call of a class."""
    n, c, side = (setting.size(full) for full in size)
    rows, pixels, random = n * side**2, side**2, setting.random
    matrices: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], float]] = {
        rates.ROWS: (linear, ((rows, c), (c, c)), 2 * rows * c * c),
        rates.MATRIX: (torch.mm, ((rows, c), (c, c)), 2 * rows * c * c),
        rates.BATCHED: (torch.bmm, ((n, pixels, c), (n, c, c)), 2 * rows * c * c),
        rates.POINTWISE: (F.conv1d, ((n, c, pixels), (c, c, 1)), 2 * rows * c * c),
        rates.ELEMENTWISE: (torch.mul, ((rows, c), (rows, c)), rows * c),
        rates.COPY: (_last, ((n, c, pixels),), 0.0),
        rates.TRANSPOSED: (transposed, ((n, c, pixels),), 0.0),
    }
    if kind in matrices:
        call, shapes, flops = matrices[kind]
        return Probe(call, tuple(random(*shape, seed=place) for place, shape in enumerate(shapes)), flops)
    family, layout = kind.split(", ")
    group_count, summed = {"dense": (1, c), "grouped": (c // 4, 4), "depthwise": (c, 1)}[family]
    x, weight = random(n, c, side, side), random(c, summed, 3, 3, seed=1)
    if layout == "last":
        x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    return Probe(partial(F.conv2d, padding=1, groups=group_count), (x, weight), 2 * rows * c * summed * 9)


def _variants(setting: Setting, kind: str, direction: str) -> dict[str, Call]:
    return {name_of(size): _job(probe(setting, kind, size), direction) for size in SIZES}


def _job(given: Probe, direction: str) -> Call:
    if direction == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return given.call(*given.operands)

        return forward
    leaves = [operand.requires_grad_() for operand in given.operands]
    ones = torch.ones_like(given.call(*leaves))
    return lambda: torch.autograd.grad(given.call(*leaves), leaves, ones)


def _work(setting: Setting, kind: str, name: str) -> tuple[float, float]:
    """Operations and bytes of a variant."""
    given = probe(setting, kind, next(size for size in SIZES if name_of(size) == name))
    return given.flops, given.moved


def name_of(size: tuple[int, int, int]) -> str:
    """What a variant is called."""
    n, c, side = size
    return f"{n} pictures of {c} x {side} x {side}"


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1).contiguous()
