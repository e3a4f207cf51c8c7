"""A table of rates for `cost="time"`, measured in about a second, once per machine.

The shipped table was fitted to hundreds of whole programs, which a short measurement cannot do better. So every class
of calls is timed at a small and at a large size, and the shipped rates are scaled by how this machine differs from
theirs. What no machine would show is not believed: then the shipped rates serve, and nothing is stored.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from convein.planner.accelerators import accelerator
from convein.planner.rates import SHIPPED, Rate, Rates
from convein.probes import REFERENCE, Slowness, measure

log = logging.getLogger("convein")

SWITCH = "CONVEIN_CALIBRATION"


def calibrate(*, save: bool = True) -> Rates:
    """Measures this machine's CPU as it is now: its threads, this torch.

    It happens by itself when a plan by `cost="time"` is first needed and no table is stored, unless something traces or
    the table could not be stored: then the shipped table serves. Where the environment says CONVEIN_CALIBRATION=off, in
    a distributed group and under torch.use_deterministic_algorithms it serves in place of a stored table, too; what
    this function returned goes before it everywhere.

    Args:
        save: keep the table in the user's cache folder, for later processes.

    Returns:
        The table; `cost="time"` uses it from now on in this process. It is the shipped one, and is not kept, where the
        machine is too busy to be measured: a line of the logger "convein" says so.
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
    """Whether nobody minds a second of work now, and a file after it."""
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
        found = pool.submit(measure).result()
    if (objection := found.objection()) is not None:
        log.warning("convein plans by its shipped rates until the machine is measured again: %s", objection)
        return SHIPPED
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


def _scaled(name: str, found: Slowness) -> Rates:
    """The shipped table, every class as much slower as its probes are."""
    parts = [
        {kind: _slower(rate, found.own[kind][side], found.own[kind][side + 1]) for kind, rate in part.items()}
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


def _basis() -> dict[str, Any]:
    """What a stored table depends on besides the machine."""
    return {"shipped": asdict(SHIPPED), "probes": {kind: list(four) for kind, four in REFERENCE.items()}}


def _write(table: Rates) -> Path | None:
    """Writes the table so that no reader ever sees half of it; a home that cannot be written is none."""
    path = _file()
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump({**asdict(table), **_basis()}, file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return None
    return path


def _read() -> Rates | None:
    """The stored table; None where there is none, or where another release scaled another table, by other probes."""
    path = _file()
    if path is None:
        return None
    try:
        stored: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = [{kind: Rate(**rate) for kind, rate in stored[part].items()} for part in ("forward", "backward")]
        current = all(stored[name] == value for name, value in _basis().items())
        return Rates(str(stored["name"]), forward=parts[0], backward=parts[1]) if current else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
