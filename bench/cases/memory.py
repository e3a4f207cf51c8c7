"""Bytes instead of seconds: what training keeps, and the largest batch that it fits into a fixed allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

import convein
from cases.forms import Case, Operands, operands_of
from cases.layers import LAYERS, LAYOUTS, PERCENTS
from cases.peers import Maker, Way, makers
from cases.stacks import Call, Layer, Stack, largest_batch, stacks
from convein.metering import SavedMemory

CAP = 16 * 2**30
BATCH = 32
SAVED, LARGEST = "bytes saved", "largest batch"
STACK_PERCENTS = (10, 50, 100)
OURS, TENSORLY, BY_HAND = "convein", "tensorly-torch", "left to right"
HALF = "checkpoint=half the bytes"
RECOMPUTED = f"{BY_HAND}, torch checkpoints"


@dataclass(frozen=True, slots=True)
class Amount:
    """One row, fields as columns: a number of `unit`, and its ratio to the group's first."""

    group: str
    variant: str
    unit: str
    value: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Count:
    """Several ways to do one job, each a function that counts; a sentence stands for a way that there is not."""

    name: str
    unit: str
    variants: Mapping[str, Callable[[], int | str]]


def counts() -> Iterator[Count]:
    """What a CP layer's step keeps, then the largest batches of the stacks."""
    for channels, size in LAYERS:
        for percent in PERCENTS:
            for layout in LAYOUTS:
                case = Case("CP", channels, size, percent, BATCH, "forward+backward", layout)
                ways = {
                    name: partial(_saved, case, make)
                    for name, make in makers(case).items()
                    if name == "convein.compile" or name.startswith(TENSORLY)
                }
                ways[f"{OURS}, {HALF}"] = partial(_saved, case, _kept_by_half)
                yield Count(str(case), SAVED, ways)
    for stack in stacks(STACK_PERCENTS):
        batches = {name: partial(_largest, stack, make) for name, make in METHODS.items()}
        yield Count(stack.name, LARGEST, batches)


def _saved(case: Case, make: Maker) -> int | str:
    way = make(operands_of(case))
    if isinstance(way, str):
        return way
    with SavedMemory(way.leaves) as saved:
        way.call()
    return saved.bytes


def _kept_by_half(given: Operands) -> Way:
    """The layer with half of what it would keep as a budget."""
    expression, leaves = given.form.expression, given.leaves
    budget = convein.compile(expression, *leaves).saved_bytes // 2
    compiled = convein.compile(expression, *leaves, checkpoint=budget)
    return Way(lambda: compiled(*leaves), leaves, given.case.memory_format)


def _largest(stack: Stack, make: Callable[[Layer, int], Call]) -> int | str:
    try:
        return largest_batch(stack, make, CAP)
    except convein.ConveinError as refused:
        return str(refused).splitlines()[0]


def _compiled(layer: Layer, batch: int, **options: Any) -> Call:
    return convein.compile(layer.expression, (batch, *layer.picture), *layer.factors, grad=True, **options)


def _with_half(layer: Layer, batch: int) -> Call:
    """Half of what the layer would keep, as a budget."""
    kept = convein.compile(layer.expression, (batch, *layer.picture), *layer.factors, grad=True).saved_bytes
    return _compiled(layer, batch, checkpoint=kept // 2) if kept else _compiled(layer, batch)


def _by_hand(layer: Layer, batch: int) -> Call:  # noqa: ARG001 - a method like the others
    return layer.by_hand


def _recomputed(layer: Layer, batch: int) -> Call:  # noqa: ARG001
    def call(*operands: Tensor) -> Tensor:
        found: Tensor = checkpoint(layer.by_hand, *operands, use_reentrant=False)
        return found

    return call


METHODS: dict[str, Callable[[Layer, int], Call]] = {
    OURS: _compiled,
    f"{OURS}, checkpoint=True": partial(_compiled, checkpoint=True),
    f"{OURS}, {HALF}": _with_half,
    f'{OURS}, cost="memory"': partial(_compiled, cost="memory"),
    f'{OURS}, cost="memory", checkpoint=True': partial(_compiled, cost="memory", checkpoint=True),
    BY_HAND: _by_hand,
    RECOMPUTED: _recomputed,
}


def measure(count: Count) -> Iterator[Amount | str]:
    """One row for each variant, or a sentence about one that is left out."""
    first: int | None = None
    for variant, function in count.variants.items():
        value = function()
        if isinstance(value, str):
            yield f"{count.name}: without {variant}: {value}"
            continue
        first = value if first is None else first
        yield Amount(count.name, variant, count.unit, value, value / first if first else float("nan"))


def gains(amounts: Sequence[Amount]) -> Iterator[tuple[str, str, str, float]]:
    """Unit, group, peer, and how many times better the best of ours is: fewer bytes, or more pictures."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for amount in amounts:
        groups.setdefault((amount.unit, amount.group), {})[amount.variant] = amount.value
    for (unit, group), values in groups.items():
        ours = [value for variant, value in values.items() if variant.startswith(OURS)]
        for peer, value in values.items():
            if ours and not peer.startswith(OURS):
                best = min(ours) if unit == SAVED else max(ours)
                yield unit, group, peer, _times(value, best) if unit == SAVED else _times(best, value)


def _times(larger: int, smaller: int) -> float:
    return larger / smaller if smaller else float("inf")


def summary(amounts: Sequence[Amount]) -> str:
    """The tables that a run ends with."""
    lines = []
    for unit, better in ((SAVED, "fewer bytes saved by"), (LARGEST, f"larger batches in {CAP / 2**30:g} GiB of")):
        rows = [(group, peer, times) for found, group, peer, times in gains(amounts) if found == unit]
        if rows:
            lines += ["", f"How many times {better} convein, its best way:"]
            lines += [f"  {times:8.2f}  {peer:32}  {group}" for group, peer, times in rows]
    return "\n".join([*lines, ""])
