"""Measures the machine: a table of rates for `cost="time"`, in under a second, once per machine.

The shipped table was fitted to hundreds of whole programs, which a short measurement cannot do better. So here every
class of calls is timed at a small and at a large size, and the shipped rates are scaled by how this machine differs
from theirs. Small differences are noise, and are not believed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from convein.execution.ops import linear, transposed
from convein.planner import rates
from convein.planner.accelerators import accelerator
from convein.planner.rates import SHIPPED, Rate, Rates

log = logging.getLogger("convein")

ROUNDS = 5
# A class whose probe differs from the others by less than this factor differs by noise.
NOISE = 1.35
# Of a small and a large call forward, then of their backward passes.
Microseconds = tuple[float, float, float, float]
# What the probes take on the machine of the shipped table.
REFERENCE: Mapping[str, Microseconds] = {
    rates.ROWS: (11.7, 206, 52.3, 566),
    rates.MATRIX: (1.4, 459, 15.3, 959),
    rates.BATCHED: (1.5, 464, 15.3, 967),
    rates.POINTWISE: (3.3, 299, 17.8, 626),
    rates.DENSE_FIRST: (34.8, 926, 87.2, 1907),
    rates.DENSE_LAST: (24.7, 835, 72.9, 1690),
    rates.GROUPED_FIRST: (36.9, 654, 84.4, 2587),
    rates.GROUPED_LAST: (27.0, 503, 71.0, 955),
    rates.DEPTHWISE_FIRST: (35.5, 145, 87.1, 324),
    rates.DEPTHWISE_LAST: (22.5, 78.5, 64.2, 191),
    rates.ELEMENTWISE: (1.0, 48.1, 13.5, 118),
    rates.COPY: (2.4, 133, 12.0, 16.5),
    rates.TRANSPOSED: (5.2, 46, 19.6, 62),
}
SWITCH = "CONVEIN_CALIBRATION"

# A call and its operands.
Probe = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]


def calibrate(*, save: bool = True) -> Rates:
    """Measures this machine's CPU as it is now: its threads, this torch.

    It happens by itself when a plan by `cost="time"` is first needed and no table is stored, unless something traces or
    the table could not be stored: then the shipped table serves. Where the environment says CONVEIN_CALIBRATION=off, in
    a distributed group and under torch.use_deterministic_algorithms it serves in place of a stored table, too; what
    this function returned goes before it everywhere.

    Args:
        save: keep the table in the user's cache folder, for later processes.

    Returns:
        The table; `cost="time"` uses it from now on in this process.
    """
    table = _asked[machine()] = _measure(save=save)
    return table


def current(cost: object = "time", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Rates:
    """The table to plan with: what `calibrate` measured, else what was measured by itself, else the shipped table.

    Args:
        cost: what the plan minimises: if it depends on the table, a CPU that nobody has measured is measured now.
        device: what the plan is for. On CUDA the table is that of the card, and nothing is measured.
        dtype: of the numbers there.
    """
    if device == "cuda":
        return accelerator(dtype, torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    name = machine()
    if (asked := _asked.get(name)) is not None:
        return asked
    if not _may_differ():
        return SHIPPED
    if (found := _known.get(name) or _read()) is not None:
        _known[name] = found
        return found
    needed = device == "cpu" and isinstance(cost, str) and cost in ("auto", "time")
    if not needed or not _may_measure():
        return SHIPPED
    with _measuring:
        if name not in _known:
            _known[name] = _measure(save=True)
        return _known[name]


def machine() -> str:
    """What a table is for: the processor, the number of threads, and torch's version."""
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


# What `calibrate` returned, and what was read or measured by itself.
_asked: dict[str, Rates] = {}
_known: dict[str, Rates] = {}
_measuring = Lock()


def _may_differ() -> bool:
    """Whether a plan may be another one than on other machines, in other processes, or after the next measurement."""
    return (
        os.environ.get(SWITCH, "on") != "off"
        and not torch.are_deterministic_algorithms_enabled()
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


def _may_measure() -> bool:
    """Whether nobody minds half a second of work now, and a file after it."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and _get_current_dispatch_mode() is None
        and (file := _file()) is not None
        and _is_writable(file.parent)
    )


def _measure(*, save: bool) -> Rates:
    """A new table, stored if it should and can be."""
    started = perf_counter()
    # A thread of its own has none of the caller's modes, hooks and contexts.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: {kind: _measured(kind) for kind in SHIPPED.forward}).result()
    table = _scaled(f"measured: {machine()}", found)
    where = _write(table) if save else None
    log.info("convein measured this machine in %.2f s%s", perf_counter() - started, f" -> {where}" if where else "")
    return table


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _measured(kind: str) -> Microseconds:
    """A class at its small and its large size, forward and backward."""
    small, small_back = _timed(*_probe(kind, large=False))
    large, large_back = _timed(*_probe(kind, large=True))
    return small, large, small_back, large_back


def _timed(call: Callable[..., torch.Tensor], operands: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Microseconds of the call, and of its backward pass."""
    leaves = [operand.requires_grad_() for operand in operands]
    ones = torch.ones_like(call(*leaves))
    with torch.no_grad():
        ahead = _fastest(lambda: call(*leaves))
    both = _fastest(lambda: torch.autograd.grad(call(*leaves), leaves, ones))
    return ahead, max(both - ahead, 1.0)


def _probe(kind: str, *, large: bool) -> Probe:
    """A call of one class and its operands."""
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        # Torch's default dtype is the whole process's, threads included.
        return torch.randn(shape, generator=numbers, dtype=torch.float32)

    images, pixels, s, r = (16, 520, 64, 48) if large else (2, 36, 16, 16)
    rows = images * pixels
    matrices: dict[str, Probe] = {
        rates.ROWS: (linear, (random(rows, s), random(r, s))),
        rates.MATRIX: (torch.mm, (random(rows, s), random(s, r))),
        rates.BATCHED: (torch.bmm, (random(images, pixels, s), random(images, s, r))),
        rates.POINTWISE: (F.conv1d, (random(images, s, pixels), random(r, s, 1))),
        rates.ELEMENTWISE: (torch.mul, (random(rows, s), random(rows, s))),
        rates.COPY: (_last, (random(images, s, pixels),)),
        rates.TRANSPOSED: (transposed, (random(images, s, pixels),)),
    }
    if kind in matrices:
        return matrices[kind]
    size, channels = (28, 32) if large else (6, 16)
    family, layout = kind.split(", ")
    groups, summed = {"dense": (1, channels), "grouped": (channels // 4, 4), "depthwise": (channels, 1)}[family]
    x = random(images, channels, size, size)
    if layout == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    return partial(F.conv2d, padding=1, groups=groups), (x, random(channels, summed, 3, 3))


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 1).contiguous()


def _fastest(call: Callable[[], object]) -> float:
    """Microseconds of the fastest of a few rounds, after one that warms up."""
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        started = perf_counter()
        call()
        best = min(best, perf_counter() - started)
    return best * 1e6


def _scaled(name: str, found: Mapping[str, Microseconds]) -> Rates:
    """The shipped table, every class as much slower as its probes are."""
    ratios = {kind: [a / b for a, b in zip(found[kind], REFERENCE[kind], strict=True)] for kind in found}
    usual = [statistics.median(each) for each in zip(*ratios.values(), strict=True)]
    believed = {
        kind: [one if max(one / all_, all_ / one) > NOISE else all_ for one, all_ in zip(own, usual, strict=True)]
        for kind, own in ratios.items()
    }
    parts = [
        {kind: _slower(rate, believed[kind][side], believed[kind][side + 1]) for kind, rate in part.items()}
        for side, part in ((0, SHIPPED.forward), (2, SHIPPED.backward))
    ]
    return Rates(name, forward=parts[0], backward=parts[1])


def _slower(rate: Rate, small: float, large: float) -> Rate:
    return Rate(rate.overhead * small, rate.flops / large, rate.bandwidth / large)


@cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _file() -> Path | None:
    """Where this machine's table is stored; None for a user without a home, as containers have."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    name = "".join(letter if letter.isalnum() else "-" for letter in machine())
    return Path(root) / "convein" / f"rates-{name}.json"


def _write(table: Rates) -> Path | None:
    """Writes the table so that no reader ever sees half of it; a home that cannot be written is none."""
    path = _file()
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump({**asdict(table), "shipped": asdict(SHIPPED)}, file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return None
    return path


def _read() -> Rates | None:
    """The stored table; None where there is none, or where it scales another release's shipped table."""
    path = _file()
    if path is None:
        return None
    try:
        stored: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = [{kind: Rate(**rate) for kind, rate in stored[part].items()} for part in ("forward", "backward")]
        current = stored["shipped"] == asdict(SHIPPED)
        return Rates(str(stored["name"]), forward=parts[0], backward=parts[1]) if current else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
