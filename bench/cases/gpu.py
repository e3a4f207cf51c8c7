"""Everything that is to be measured on a GPU: the card itself, kernels, layers, rates of torch's calls, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cases.memory import Count
from gpu import clock, kernels, layers, memory, rates
from gpu.clock import Setting
from measure import Group, Timing

absence, environment = clock.absence, clock.environment
memory_summary = memory.summary


def setting() -> Setting:
    """The current GPU, in bfloat16. Products of float32 are rounded to TF32, as a user who is in a hurry has them."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return Setting(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16)


def groups() -> Iterator[Group]:
    """All that is timed."""
    here = setting()
    yield from kernels.groups(here)
    yield from layers.groups(here)
    yield from rates.groups(here)


def counts() -> Iterator[Count]:
    """All that is counted in bytes."""
    yield from memory.counts(setting())


def summary(timings: Sequence[Timing]) -> str:
    """What came out, against what was promised and predicted."""
    here = setting()
    table = rates.table(here, timings)
    parts = [kernels.verdicts(here, timings), layers.verdicts(timings), rates.printed(table) if table else ""]
    return "\n\n".join(["", *(part for part in parts if part), ""])


def export(timings: Sequence[Timing], folder: Path) -> Path | None:
    """Writes the rates for the time model, if all classes were measured."""
    table = rates.table(setting(), timings)
    if table is None:
        return None
    path = folder / "gpu_rates.json"
    rates.write(path, table)
    return path
