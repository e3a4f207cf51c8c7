"""How this machine differs from that of the shipped rates: a small and a large call of every class, timed in turns.

What else a machine does makes calls slower, some of them, and for a while. So all calls take turns in several rounds,
and of each the shortest time counts. Where one sticks out there are more rounds, and it is believed only where most of
them have seen it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import get_clock_info, perf_counter, thread_time

import torch
import torch.nn.functional as F

from convein.execution.ops import linear, transposed
from convein.planner import rates

# Rounds where nothing sticks out; elsewhere how many at least, and the seconds after which none begins.
ROUNDS, MORE, ENOUGH = 3, 5, 0.8
# Times that differ by less than this factor differ by noise.
NOISE = 1.35
# The part of all times that may stick out in some rounds only: with more of them the machine is too busy.
DOUBTFUL = 0.1
# The factor between a class and the others that no machine shows with one thread. Where the instructions of 2008 stood
# in for those of today, it was 3.4.
FARTHEST = 16.0

Call = Callable[..., torch.Tensor]
Operands = tuple[torch.Tensor, ...]
# Of a call, and of one with its backward pass: microseconds.
Times = tuple[float, float]
# Of a small and a large call forward, then of their backward passes: microseconds, or how many times as long.
Four = tuple[float, float, float, float]
# What the probes take on the machine of the shipped table.
REFERENCE: Mapping[str, Four] = {
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


@dataclass(frozen=True, slots=True)
class Probe:
    """A call of one class, with its operands and a gradient of its result."""

    kind: str
    large: bool
    call: Call
    operands: Operands
    gradient: torch.Tensor

    @classmethod
    def of(cls, kind: str, large: bool, call: Call, operands: Operands) -> Probe:
        """The probe, and the first run of its call."""
        leaves = tuple(operand.requires_grad_() for operand in operands)
        return cls(kind, large, call, leaves, torch.ones_like(call(*leaves)))


@dataclass(frozen=True, slots=True)
class Slowness:
    """How many times as long as on the machine of the shipped table calls take here.

    Attributes:
        usual: the median of all classes.
        own: class by class, where that differs by more than noise and most rounds saw it; elsewhere the usual.
        apart: the part of all times that differ.
        doubtful: the part of all times that differ, and that most rounds did not see.
    """

    usual: Four
    own: Mapping[str, Four]
    apart: float
    doubtful: float

    def objection(self) -> str | None:
        """Why no machine is like this, in a clause; None where one may be."""
        if self.doubtful > DOUBTFUL:
            return f"{self.doubtful:.0%} of the times stick out and are other ones in every round"
        far, kind = max((max(map(_apart, own, self.usual)), kind) for kind, own in self.own.items())
        # Classes differ in what they gain by threads, too, but calls as short as these gain less than this.
        if far > FARTHEST * torch.get_num_threads() ** 0.5:
            return f'the class "{kind}" differs from the others by a factor of {far:.0f}'
        return None


def measure() -> Slowness:
    """Times every class, in about a second at most."""
    started = perf_counter()
    _keep_memory()
    probes = [*_probes(large=False), *_probes(large=True)]
    seen = {(probe.kind, probe.large): [_timed(probe)] for probe in probes}
    rounds = 1
    while rounds < ROUNDS or (_judged(seen).apart and (rounds < MORE or perf_counter() - started < ENOUGH)):
        for probe in probes:
            seen[probe.kind, probe.large].append(_timed(probe))
        rounds += 1
    return _judged(seen)


def _keep_memory() -> None:
    """Makes glibc's malloc keep what is freed, as it does in a program that has freed something large.

    It keeps twice the largest block that was ever freed, of those below 32 MiB. Otherwise some calls, and not always
    the same ones, would pay for new pages each time, up to nine times their own time.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


def _judged(seen: Mapping[tuple[str, bool], Sequence[Times]]) -> Slowness:
    """What the times of all rounds say."""
    found = {kind: _passes(seen[kind, False], seen[kind, True]) for kind in REFERENCE}
    factors = {
        kind: [time / usual for (time, _), usual in zip(found[kind], REFERENCE[kind], strict=True)] for kind in found
    }
    usual = _four([statistics.median(column) for column in zip(*factors.values(), strict=True)])
    differs = {
        (kind, j) for kind in found for j in range(4) if _told(kind, j) and _apart(factors[kind][j], usual[j]) > NOISE
    }
    believed = {(kind, j) for kind, j in differs if found[kind][j][1]}
    own = {kind: _four([factors[kind][j] if (kind, j) in believed else usual[j] for j in range(4)]) for kind in found}
    times = 4 * len(found)
    return Slowness(usual, own, len(differs) / times, len(differs - believed) / times)


def _told(kind: str, column: int) -> bool:
    """Whether a time is more than noise: a backward pass that only moves strides disappears behind its forward pass."""
    four = REFERENCE[kind]
    return column < 2 or four[column] > (NOISE - 1) * four[column - 2]


def _passes(small: Sequence[Times], large: Sequence[Times]) -> list[tuple[float, bool]]:
    """Every time in the order of `Four`, and whether most rounds saw it."""
    forward, backward = [], []
    for times in (small, large):
        ahead, seen = _shortest([ahead for ahead, _ in times])
        behind, again = _shortest([max(both - ahead, 1.0) for _, both in times])
        forward.append((ahead, seen))
        backward.append((behind, seen and again))
    return [*forward, *backward]


def _shortest(times: Sequence[float]) -> tuple[float, bool]:
    shortest = min(times)
    return shortest, statistics.median(times) < NOISE * shortest


def _four(numbers: Sequence[float]) -> Four:
    small, large, small_back, large_back = numbers
    return small, large, small_back, large_back


def _apart(one: float, other: float) -> float:
    return max(one / other, other / one)


def _timed(probe: Probe) -> Times:
    """Microseconds of a call, and of one with its backward pass."""
    call, operands = probe.call, probe.operands
    with torch.no_grad():
        ahead = _fastest(lambda: call(*operands), probe.large)
    return ahead, _fastest(lambda: torch.autograd.grad(call(*operands), operands, probe.gradient), probe.large)


def _fastest(call: Callable[[], object], large: bool) -> float:
    """Microseconds of the fastest of a few calls; the first ones only warm up."""
    # While a large call runs others may get the core, and the time of the thread itself leaves them out.
    alone = large and torch.get_num_threads() == 1 and get_clock_info("thread_time").resolution < 1e-6
    clock = thread_time if alone else perf_counter
    best = float("inf")
    for _ in range(2 if large else 5):
        started = clock()
        call()
        best = min(best, clock() - started)
    return best * 1e6


def _probes(*, large: bool) -> list[Probe]:
    """A call of every class with its operands."""
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        # Torch's default dtype is the whole process's, threads included.
        return torch.randn(shape, generator=numbers, dtype=torch.float32)

    images, pixels, s, r = (16, 520, 64, 48) if large else (2, 36, 16, 16)
    rows = images * pixels
    calls: dict[str, tuple[Call, Operands]] = {
        rates.ROWS: (linear, (random(rows, s), random(r, s))),
        rates.MATRIX: (torch.mm, (random(rows, s), random(s, r))),
        rates.BATCHED: (torch.bmm, (random(images, pixels, s), random(images, s, r))),
        rates.POINTWISE: (F.conv1d, (random(images, s, pixels), random(r, s, 1))),
        rates.ELEMENTWISE: (torch.mul, (random(rows, s), random(rows, s))),
        rates.COPY: (_last, (random(images, s, pixels),)),
        rates.TRANSPOSED: (transposed, (random(images, s, pixels),)),
    }
    size, channels = (28, 32) if large else (6, 16)
    convolutions = (
        (rates.DENSE_FIRST, rates.DENSE_LAST, 1),
        (rates.GROUPED_FIRST, rates.GROUPED_LAST, channels // 4),
        (rates.DEPTHWISE_FIRST, rates.DEPTHWISE_LAST, channels),
    )
    for first, last, groups in convolutions:
        x, weight = random(images, channels, size, size), random(channels, channels // groups, 3, 3)
        call = partial(F.conv2d, padding=1, groups=groups)
        calls[first] = (call, (x, weight))
        calls[last] = (call, (x.contiguous(memory_format=torch.channels_last), weight))
    return [Probe.of(kind, large, *calls[kind]) for kind in REFERENCE]


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 1).contiguous()
