"""memory_limit= -> bytes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convein.errors import OptionError
from convein.options import as_integer, shown

UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmgt]?i?b)", re.IGNORECASE)
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit as it was given: `bytes`, or a `share` of what is free."""

    text: str
    bytes: int = 0
    share: float = 0.0

    def on(self, device: torch.device) -> int:
        """Bytes on a device, now."""
        return int(self.share * free_bytes(device)) if self.share else self.bytes


def read_limit(limit: Any) -> Limit | None:
    """What `memory_limit=` means; None is no limit.

    Raises:
        OptionError: it is no number of bytes, no amount such as "2GiB", and no share such as "80%".
    """
    if limit is None:
        return None
    number = as_integer(limit)
    if number is not None and number >= 0:
        return Limit(shown(limit), number)
    if limit == "max_input" or number is not None:
        raise OptionError(
            f"memory_limit={shown(limit)} is opt_einsum's, which counts elements; this limit is in bytes",
            hint='memory_limit=2**30, "2GiB" or "80%" of what is free; None is no limit',
        )
    found = _AMOUNT.fullmatch(limit.strip()) if isinstance(limit, str) else None
    if found is None:
        raise OptionError(
            f"memory_limit={shown(limit)}",
            hint='a limit is a whole number of bytes, or a text: "500MB", "2GiB", or "80%" of what is free',
        )
    amount, unit = float(found[1]), found[2].lower()
    if unit != "%":
        return Limit(shown(limit), int(amount * UNITS[unit]))
    if not 0 < amount <= 100:
        raise OptionError(
            f"memory_limit={shown(limit)}", hint="a share of what is free is more than 0% and at most 100%"
        )
    return Limit(shown(limit), share=amount / 100)


def free_bytes(device: torch.device) -> int:
    """Memory that is free: CUDA's on a GPU, else MemAvailable where Linux tells it, else all that is installed."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "memory_limit is a share of what is free, and there is no GPU here to ask",
            hint='without the GPU, memory_limit is a number of bytes: memory_limit="2GiB"',
        )
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if _MEMINFO.exists():
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(encoding="ascii"))
        if found is not None:
            return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
