"""Callables -> times: variants of one job in interleaved rounds, so that a busy moment hits all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True, slots=True)
class Limit:
    """A promise: `variant` takes at most `seconds`, or at most that much more than the group's first variant."""

    variant: str
    seconds: float
    more_than_first: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Several ways to do one job. The first variant is what the others are compared with."""

    name: str
    variants: Mapping[str, Callable[[], object]]
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one call of one variant: median and least over all rounds.

    `ratio` and `excess` compare it with the first variant: medians over the rounds, each round compared with itself.
    """

    group: str
    variant: str
    median: float
    least: float
    ratio: float
    excess: float
    rounds: int


def sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds for one call, averaged over `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def repeats_for(call: Callable[[], object]) -> int:
    """How many calls make one sample long enough for the clock; running them warms the variant up."""
    call()
    repeats = 1
    while (spent := sample(call, repeats) * repeats) < SAMPLE_SECONDS:
        repeats = max(2 * repeats, int(repeats * SAMPLE_SECONDS / max(spent, 1e-9)))
    return repeats


def measure(group: Group, rounds: int) -> Iterator[Timing | None]:
    """Yields None after every round, then one timing for each variant."""
    names = list(group.variants)
    repeats = {name: repeats_for(call) for name, call in group.variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(sample(group.variants[name], repeats[name]))
            yield None
    finally:
        gc.enable()
    base = samples[names[0]]
    for name, mine in samples.items():
        rounds_of_both = list(zip(mine, base, strict=True))
        ratio = statistics.median(spent / other for spent, other in rounds_of_both)
        excess = statistics.median(spent - other for spent, other in rounds_of_both)
        yield Timing(group.name, name, statistics.median(mine), min(mine), ratio, excess, rounds)
