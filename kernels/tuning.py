"""Which configuration of a kernel runs: the first that its file offers, unless a measurement has found a faster one.

A launcher asks `chosen`, and that is a look-up: nothing is measured here, and nothing ever in a step of somebody's
training. Who measures takes a `recording` of a call, launches what it holds with other configurations, and tells
`adopt`. What was adopted can be kept in a file for later processes, by device, version of triton, kernel and key.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Sizes in powers of two, dtypes, whatever the best configuration depends on.
Key = tuple[int | str, ...]
# The device's name, the kernel's, and the key.
Place = tuple[str, str, Key]
Configuration = TypeVar("Configuration")

# As for the rates of a machine: "off" in this variable, and no stored table serves.
SWITCH = "CONVEIN_CALIBRATION"
INTERPRETER = "interpreter"


def chosen(kernel: str, key: Key, configurations: Sequence[Configuration]) -> Configuration:
    """The configuration to launch with: what was adopted for the device and the key, else what is stored, else the
    first.

    Where results must be the same in other processes (a distributed group, deterministic algorithms) what is stored
    does not serve.

    Args:
        kernel: its name.
        key: what the best configuration depends on.
        configurations: frozen dataclasses, the best guess first. One that is not among them is never chosen.
    """
    forced = _thread.forced
    if forced is not None and forced[0] == kernel and forced[1] == key:
        return forced[2]  # type: ignore[no-any-return]
    found = configurations[0] if len(configurations) == 1 else _looked_up(kernel, key, configurations)
    if _recorder is not None:
        _recorder.note(kernel, key, tuple(configurations), found)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A launch that was recorded: call it with a configuration, and it runs again, on copies of its tensors.

    Attributes:
        kernel, key: as `chosen` was asked.
        configurations: that it may be called with.
        before: the one that ran.
        device: where.
    """

    kernel: str
    key: Key
    configurations: tuple[Any, ...]
    before: Any
    device: torch.device
    _operator: Callable[..., object]
    _arguments: tuple[Any, ...]

    def __call__(self, configuration: Any) -> object:
        """What the operator returns."""
        outer, _thread.forced = _thread.forced, (self.kernel, self.key, configuration)
        try:
            return self._operator(*self._arguments)
        finally:
            _thread.forced = outer


class Recorder:
    """The launches of a while, each kernel and key once."""

    def __init__(self) -> None:
        self._launches: dict[tuple[str, Key], Launch] = {}
        self._lock = threading.Lock()

    @property
    def launches(self) -> tuple[Launch, ...]:
        """In the order in which they came first."""
        return tuple(self._launches.values())

    def note(self, kernel: str, key: Key, configurations: tuple[Any, ...], before: Any) -> None:
        """Adds the launch that this thread is about to make, unless it is known or comes from no operator."""
        if _thread.call is None:
            return
        operator, arguments = _thread.call
        with self._lock:
            if (kernel, key) in self._launches:
                return
            device = next(x.device for x in arguments if isinstance(x, Tensor))
            copies = tuple(_copied(x) if isinstance(x, Tensor) else x for x in arguments)
            self._launches[kernel, key] = Launch(kernel, key, configurations, before, device, operator, copies)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Inside, every launch of the process is noted, also those of the backward pass, which has threads of its own."""
    global _recorder  # noqa: PLW0603 - the one state that all threads must see
    outer, _recorder = _recorder, Recorder()
    try:
        yield _recorder
    finally:
        _recorder = outer


def watched(launch: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation of an operator, such that a recorder knows what it is called with."""

    @wraps(launch)
    def run(*arguments: Any) -> Any:
        if _recorder is None:
            return launch(*arguments)
        outer, _thread.call = _thread.call, (launch, arguments)
        try:
            return launch(*arguments)
        finally:
            _thread.call = outer

    return run


def adopt(launch: Launch, configuration: Any) -> None:
    """From now on launches like this one have this configuration, in this process and everywhere in it."""
    _adopted[device_name(launch.device), launch.kernel, launch.key] = _described(configuration)


def forget() -> None:
    """From now on nothing is adopted, and a stored table is read anew."""
    global _stored  # noqa: PLW0603 - a cache
    _adopted.clear()
    _stored = None


def device_name(device: torch.device | None = None) -> str:
    """What tables call a device, by default the current one."""
    if device is None:
        return _name(torch.cuda.current_device() if torch.cuda.is_initialized() else -1)
    if device.type != "cuda":
        return INTERPRETER
    return _name(torch.cuda.current_device() if device.index is None else device.index)


def file() -> Path | None:
    """Where tables are stored; None for a user without a home, as containers have."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "convein" / "kernels.json"


def keep() -> Path | None:
    """Adds what was adopted to the stored table, so that no reader ever sees half of it; None if that cannot be."""
    path = file()
    if path is None:
        return None
    table = read(path)
    for (device, kernel, key), described in _adopted.items():
        entries = table.setdefault(device, {}).setdefault(triton.__version__, {}).setdefault(kernel, {})
        entries[json.dumps(key)] = json.loads(described)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".json", delete=False) as part:
            json.dump(table, part, indent=1, sort_keys=True)
        Path(part.name).replace(path)
    except OSError:
        return None
    return path


def read(path: Path) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """A stored table by device, triton, kernel and key (JSON): fields. What is broken in it counts as not there."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        device: {
            version: {kernel: dict(entries) for kernel, entries in kernels.items() if isinstance(entries, Mapping)}
            for version, kernels in versions.items()
            if isinstance(kernels, Mapping)
        }
        for device, versions in (stored.items() if isinstance(stored, Mapping) else ())
        if isinstance(versions, Mapping)
    }


class _Thread(threading.local):
    """What this thread does: the operator's call that it is in, while one records, and what it must launch with."""

    call: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    forced: tuple[str, Key, Any] | None = None


_thread = _Thread()
_recorder: Recorder | None = None
# Configurations as `_described` writes them: what was measured in this process, and what an earlier one has stored.
_adopted: dict[Place, str] = {}
_stored: dict[Place, str] | None = None
_reading = threading.Lock()


def _looked_up(kernel: str, key: Key, configurations: Sequence[Configuration]) -> Configuration:
    place = (device_name(), kernel, key)
    wanted = _adopted.get(place)
    if wanted is None and _may_serve():
        wanted = _read_once().get(place)
    if wanted is None:
        return configurations[0]
    return next((one for one in configurations if _described(one) == wanted), configurations[0])


def _may_serve() -> bool:
    """Whether results may differ by a rounding from those of other processes, or of the next run."""
    return (
        os.environ.get(SWITCH, "on") != "off"
        and not torch.are_deterministic_algorithms_enabled()
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


def _read_once() -> dict[Place, str]:
    """The stored table, for this version of triton. In a trace it is not read, and empty until later."""
    global _stored  # noqa: PLW0603 - a cache
    if _stored is None:
        if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
            return {}
        with _reading:
            path = file()
            _stored = {} if path is None else _flat(read(path))
    return _stored


def _flat(table: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> dict[Place, str]:
    found = {}
    for device, versions in table.items():
        for kernel, entries in versions.get(triton.__version__, {}).items():
            for text, fields in entries.items():
                try:
                    found[device, kernel, tuple(json.loads(text))] = json.dumps(fields, sort_keys=True)
                except (ValueError, TypeError):
                    continue
    return found


@lru_cache(maxsize=4096)
def _described(configuration: Any) -> str:
    """The fields of a configuration, as tables have them."""
    return json.dumps(asdict(configuration), sort_keys=True)


@lru_cache
def _name(index: int) -> str:
    return INTERPRETER if index < 0 else torch.cuda.get_device_name(index)


def _copied(x: Tensor) -> Tensor:
    """The same numbers in memory of their own, as far from a multiple of 16 bytes, and with the same strides."""
    storage = x.untyped_storage().clone()
    return x.new_empty(0).set_(storage, x.storage_offset(), x.shape, x.stride())
