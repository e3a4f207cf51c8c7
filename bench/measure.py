"""Callables -> times: variants of one job in interleaved rounds, so that a busy moment hits all of them."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

SAMPLE_SECONDS = 1e-3
LONG_SECONDS = 0.05
WARM_CALLS = 3
# A variant that takes more than so many times the first one's time is sampled in fewer rounds.
SLOW = 1.15
LEAST_ROUNDS = 3
SHORT = 3  # samples of so many times the least length cost too little to be left out
GOLDEN = (5**0.5 - 1) / 2

Variants = Mapping[str, Callable[[], object]]
# Seconds for one call, averaged over so many calls in a row.
Sampler = Callable[[Callable[[], object], int], float]


def sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds for one call, averaged over `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True, slots=True)
class Limit:
    """A promise: `variant` takes at most `seconds`, or at most that much more than the group's first variant."""

    variant: str
    seconds: float
    more_than_first: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one call of one variant: median and least over all rounds.

    `ratio` and `excess` compare it with the first variant: the ratio of the medians, and the median over the rounds of
    what it takes more in the same round.
    """

    group: str
    variant: str
    median: float
    least: float
    ratio: float
    excess: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Group:
    """Several ways to do one job. The first variant is what the others are compared with.

    Attributes:
        name: what it is called.
        variants: a call by name; or a function that makes them, for groups of which only some are measured.
        limit: a promise that its report comments on.
        always: whether it is measured whatever groups are asked for: others need it.
        kept: which of its timings become rows, if not all do.
        sampler: its clock.
    """

    name: str
    variants: Variants | Callable[[], Variants]
    limit: Limit | None = None
    always: bool = False
    kept: Callable[[list[Timing]], list[Timing]] = list
    sampler: Sampler = sample

    def ready(self) -> Variants:
        """The variants, made now if they are not yet."""
        return self.variants() if callable(self.variants) else self.variants


def warm_up(call: Callable[[], object], sample: Sampler = sample) -> tuple[int, float]:
    """How many calls make one sample long enough for the clock, and the seconds that they take."""
    # The first calls may plan, compile and fold.
    if min(first := [sample(call, 1) for _ in range(WARM_CALLS)]) > LONG_SECONDS:
        return 1, min(first)
    repeats = 1
    while (spent := sample(call, repeats) * repeats) < SAMPLE_SECONDS:
        repeats = max(2 * repeats, int(repeats * SAMPLE_SECONDS / max(spent, 1e-9)))
    return repeats, spent


def turns(spent: Mapping[str, float], rounds: int, seconds: float) -> dict[str, set[int]]:
    """The rounds in which each variant is sampled, from the seconds that its samples take.

    Those that compete with the first are in every round; the slower one is, the fewer it is in. No variant's samples
    take much more than `seconds` in all. Fewer rounds are spread evenly, and are among those of who has more.
    """
    first = max(next(iter(spent.values())), SHORT * SAMPLE_SECONDS)
    order = sorted(range(rounds), key=lambda number: number * GOLDEN % 1)
    counts = {name: max(LEAST_ROUNDS, rounds * (SLOW * first / each) ** 2) for name, each in spent.items()}
    return {name: set(order[: max(1, int(min(counts[name], seconds / each)))]) for name, each in spent.items()}


def measure(group: Group, rounds: int, seconds: float) -> Iterator[Timing | None]:
    """Yields None after every round, then one timing for each variant."""
    variants = group.ready()
    names = list(variants)
    warm = {name: warm_up(call, group.sampler) for name, call in variants.items()}
    due = turns({name: spent for name, (_, spent) in warm.items()}, rounds, seconds)
    samples: dict[str, dict[int, float]] = {name: {} for name in names}
    chance = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            # In turns, each variant would find what the same other one leaves in the caches.
            for name in chance.sample(names, len(names)):
                if number in due[name]:
                    samples[name][number] = group.sampler(variants[name], warm[name][0])
            yield None
    finally:
        gc.enable()
    base = samples[names[0]]
    usual = statistics.median(base.values())
    for name, mine in samples.items():
        median = statistics.median(mine.values())
        excess = statistics.median(mine[number] - base[number] for number in mine.keys() & base.keys())
        yield Timing(group.name, name, median, min(mine.values()), median / usual, excess, len(mine))
