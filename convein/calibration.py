"""Measures the machine: a table of rates for `cost="time"`, in under a second, once per machine.

Some forty small calls of every class are timed, forward and with their backward pass. Overhead, arithmetic rate and
bandwidth of each class are fitted to the times with non-negative least squares, relative errors counting alike.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from convein.planner import rates
from convein.planner.rates import SHIPPED, Rate, Rates

log = logging.getLogger("convein")

ROUNDS = 5
# A call: its class, its operations, its bytes, its operands, and the call itself.
Probe = tuple[str, float, float, tuple[torch.Tensor, ...], Callable[..., torch.Tensor]]


def calibrate(*, save: bool = True) -> Rates:
    """Measures this machine's CPU as it is now: its threads, this torch.

    Args:
        save: keep the table in the user's cache folder, for later processes.

    Returns:
        The table; `cost="time"` uses it from now on in this process.
    """
    started = perf_counter()
    forward: dict[str, list[tuple[float, float, float]]] = {}
    backward: dict[str, list[tuple[float, float, float]]] = {}
    with torch.random.fork_rng(devices=[]):
        for kind, flops, moved, operands, call in _probes():
            ahead = _measure(call, operands)
            forward.setdefault(kind, []).append((flops, moved, ahead))
            both = _measure_training(call, operands)
            backward.setdefault(kind, []).append((flops * len(operands), moved * len(operands), max(both - ahead, 1.0)))
    table = Rates(
        f"measured: {machine()}",
        {kind: _fit(forward.get(kind, []), SHIPPED.forward[kind]) for kind in SHIPPED.forward},
        {kind: _fit(backward.get(kind, []), SHIPPED.backward[kind]) for kind in SHIPPED.backward},
    )
    where = _write(table) if save else None
    log.info("convein measured this machine in %.2f s%s", perf_counter() - started, f" -> {where}" if where else "")
    _known[machine()] = table
    return table


def current() -> Rates:
    """The table to plan with: what `calibrate` measured, in this process or an earlier one, else the shipped table."""
    name = machine()
    found = _known.get(name)
    if found is None:
        found = _known[name] = _read() or SHIPPED
    return found


def machine() -> str:
    """What a table is for: the processor, the number of threads, and torch's version."""
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


_known: dict[str, Rates] = {}


def _probes() -> Iterator[Probe]:
    """Small calls of every class, each class in three sizes that differ in work and in bytes."""
    for pixels, s, r in ((4096, 64, 32), (8192, 32, 16), (1024, 128, 128)):
        x, w = torch.randn(16, pixels // 16, 1, s).permute(0, 3, 1, 2), torch.randn(r, s, 1, 1)
        moved = 4 * (pixels * (s + r) + s * r)
        yield rates.ROWS, 2 * pixels * s * r, moved, (x, w), F.conv2d
        yield rates.MATRIX, 2 * pixels * s * r, moved, (torch.randn(pixels, s), torch.randn(s, r)), torch.mm
        image = torch.randn(16, s, pixels // 16)
        yield rates.POINTWISE, 2 * pixels * s * r, moved, (image, torch.randn(r, s, 1)), F.conv1d
    for batch, m, k, n in ((64, 32, 32, 32), (256, 8, 16, 8), (16, 96, 64, 64)):
        a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
        yield rates.BATCHED, 2 * batch * m * k * n, 4 * batch * (m * k + k * n + m * n), (a, b), torch.bmm
    for c, size in ((16, 28), (32, 14), (64, 14)):
        yield from _convolutions(rates.DENSE_FIRST, rates.DENSE_LAST, c, c, 1, size)
        yield from _convolutions(rates.DEPTHWISE_FIRST, rates.DEPTHWISE_LAST, c, 1, c, size)
        yield from _convolutions(rates.GROUPED_FIRST, rates.GROUPED_LAST, c, 4, c // 4, size)
    for rows, columns in ((64, 256), (512, 512), (2048, 256)):
        a, b = torch.randn(rows, columns), torch.randn(rows, columns)
        yield rates.ELEMENTWISE, rows * columns, 12 * rows * columns, (a, b), torch.mul
    for images, channels, pixels in ((8, 32, 64), (16, 64, 256), (16, 32, 1024)):
        moved = 8 * images * channels * pixels
        yield rates.COPY, 0, moved, (torch.randn(images, channels, pixels),), _last


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 1).contiguous()


def _convolutions(first: str, last: str, channels: int, summed: int, groups: int, size: int) -> Iterator[Probe]:
    """The same 3x3 convolution in both layouts."""
    x, w = torch.randn(8, channels, size, size), torch.randn(channels, summed, 3, 3)
    flops = 2.0 * x.numel() * summed * 9
    moved = 4.0 * (2 * x.numel() + w.numel())

    def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w, padding=1, groups=groups)

    yield first, flops, moved, (x, w), call
    yield last, flops, moved, (x.contiguous(memory_format=torch.channels_last), w), call


def _measure(call: Callable[..., torch.Tensor], operands: tuple[torch.Tensor, ...]) -> float:
    """Microseconds: the fastest of a few rounds, after one that warms up."""
    with torch.no_grad():
        return _fastest(lambda: call(*operands))


def _measure_training(call: Callable[..., torch.Tensor], operands: tuple[torch.Tensor, ...]) -> float:
    leaves = tuple(operand.detach().requires_grad_() for operand in operands)
    with torch.enable_grad():
        ones = torch.ones_like(call(*leaves))
        return _fastest(lambda: torch.autograd.grad(call(*leaves), leaves, ones))


def _fastest(call: Callable[[], object]) -> float:
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        started = perf_counter()
        call()
        best = min(best, perf_counter() - started)
    return best * 1e6


def _fit(samples: list[tuple[float, float, float]], fallback: Rate) -> Rate:
    """Overhead, arithmetic and bandwidth from (operations, bytes, microseconds), none of them negative."""
    if not samples:
        return fallback
    wanted = np.ones(len(samples))
    columns = np.array([[1.0, flops / 1e3, moved / 1e3] for flops, moved, _ in samples])
    weighted = columns / np.array([[time] for *_, time in samples])
    best, error = np.zeros(3), np.inf
    for size in (1, 2, 3):
        for used in map(list, combinations(range(3), size)):
            part = np.linalg.lstsq(weighted[:, used], wanted, rcond=None)[0]
            miss = float(((weighted[:, used] @ part - wanted) ** 2).sum())
            if (part >= 0).all() and miss < error - 1e-9:
                best, error = np.zeros(3), miss
                best[used] = part
    overhead, per_flop, per_byte = (float(value) for value in best)
    return Rate(overhead, 1 / per_flop if per_flop else 1e6, 1 / per_byte if per_byte else 1e6)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = "".join(letter if letter.isalnum() else "-" for letter in machine())
    return Path(root) / "convein" / f"rates-{name}.json"


def _write(table: Rates) -> Path | None:
    """Writes the table so that no reader ever sees half of it; a home that cannot be written is none."""
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(asdict(table), file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return None
    return path


def _read() -> Rates | None:
    try:
        stored: Mapping[str, Any] = json.loads(_file().read_text(encoding="utf-8"))
        parts = [{kind: Rate(**rate) for kind, rate in stored[part].items()} for part in ("forward", "backward")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    complete = all(part.keys() == SHIPPED.forward.keys() for part in parts)
    return Rates(str(stored["name"]), *parts) if complete else None
