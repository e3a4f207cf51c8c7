"""The plans of earlier calls: one bounded dict, safe to use from many threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, NamedTuple

CAPACITY = 4096

_entries: dict[Hashable, Callable[..., Any]] = {}
_lock = Lock()
_counts = {"hits": 0, "misses": 0}


class CacheInfo(NamedTuple):
    """How often calls found their plan, and how many plans are kept, as functools.lru_cache says it."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


def lookup(key: Hashable) -> Callable[..., Any] | None:
    """What was stored for a key. Lock-free: a dict look-up is atomic, and the count may miss a beat."""
    found = _entries.get(key)
    if found is not None:
        _counts["hits"] += 1
    return found


def store(key: Hashable, value: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a value, unless another thread was faster, and returns what is kept; the oldest goes when it is full."""
    with _lock:
        _counts["misses"] += 1
        if key in _entries:
            return _entries[key]
        while len(_entries) >= CAPACITY:
            del _entries[next(iter(_entries))]
        _entries[key] = value
    return value


def cache_info() -> CacheInfo:
    """Statistics of the plans that `conv_einsum` keeps."""
    return CacheInfo(_counts["hits"], _counts["misses"], CAPACITY, len(_entries))


def cache_clear() -> None:
    """Forgets every plan."""
    with _lock:
        _entries.clear()
        _counts.update(hits=0, misses=0)
