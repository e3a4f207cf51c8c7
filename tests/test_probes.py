"""What the probes make of their times: of a steady machine, of another one, of a busy one. No clock decides here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from convein import probes
from convein.planner.rates import COPY, DENSE_LAST, ELEMENTWISE, MATRIX, SHIPPED
from convein.probes import REFERENCE, Probe, Slowness, Times

# How many times as long as in the reference a probe takes in a round, forward and backward.
Machine = Callable[[str, bool, int], tuple[float, float]]


@pytest.fixture
def measure_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Slowness, int]]:
    """Measures a made-up machine, a round of which takes some seconds: what was found, and after how many rounds."""

    def measure(machine: Machine, seconds: float = 0.1) -> tuple[Slowness, int]:
        rounds: dict[tuple[str, bool], int] = {}

        def timed(probe: Probe) -> Times:
            number = rounds[probe.kind, probe.large] = rounds.get((probe.kind, probe.large), -1) + 1
            ahead, back = machine(probe.kind, probe.large, number)
            small, large, small_back, large_back = REFERENCE[probe.kind]
            forward = ahead * (large if probe.large else small)
            return forward, forward + back * (large_back if probe.large else small_back)

        monkeypatch.setattr(probes, "_timed", timed)
        monkeypatch.setattr(probes, "perf_counter", lambda: seconds * (max(rounds.values(), default=-1) + 1))
        found = probes.measure()
        assert len(set(rounds.values())) == 1
        return found, rounds[COPY, True] + 1

    return measure


def test_every_class_of_the_table_is_probed() -> None:
    assert REFERENCE.keys() == SHIPPED.forward.keys() == SHIPPED.backward.keys()


def test_a_machine_that_is_slower_all_over(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    found, rounds = measure_on(lambda kind, large, number: (3.0 if large else 2.0, 2.5))
    assert found.usual == pytest.approx((2, 3, 2.5, 2.5))
    assert set(found.own.values()) == {found.usual}
    assert (found.apart, found.objection(), rounds) == (0, None, probes.ROUNDS)


def test_a_machine_that_is_slower_at_one_thing_is_believed(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    found, rounds = measure_on(lambda kind, large, number: (6.0, 5.0) if large and kind == DENSE_LAST else (1.0, 1.0))
    assert found.own[DENSE_LAST] == pytest.approx((1, 6, 1, 5))
    assert found.own[MATRIX] == found.usual == pytest.approx((1, 1, 1, 1))
    assert (found.doubtful, found.objection()) == (0, None)
    assert rounds == 8


def test_what_disturbs_for_a_while_leaves_no_trace(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    """A class is six times as slow in the first rounds, and what sticks out is measured until it does not."""
    found, rounds = measure_on(lambda kind, large, number: (6.0 if kind == COPY and number < 5 else 1.0, 1.0))
    assert found.own[COPY] == pytest.approx((1, 1, 1, 1))
    assert (found.apart, rounds) == (0, 6)


def test_what_most_rounds_did_not_see_is_not_believed(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    found, _ = measure_on(lambda kind, large, number: (2.0 * 1.5**number if kind == COPY else 1.0, 1.0))
    assert found.own[COPY] == found.usual
    assert found.doubtful == found.apart > 0
    assert found.objection() is None


def test_a_machine_that_is_too_busy_is_not_measured(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    busy = list(REFERENCE)[::3]
    found, _ = measure_on(lambda kind, large, number: (2.0 * 1.5**number if kind in busy else 1.0, 1.0))
    assert (found.objection() or "").endswith("of the times stick out and are other ones in every round")


@pytest.mark.parametrize("factor", [1 / 40, 40])
def test_no_machine_is_this_far_from_the_shipped_table(
    factor: float, measure_on: Callable[..., tuple[Slowness, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = measure_on(lambda kind, large, number: (factor if kind == ELEMENTWISE else 1.0, 1.0))
    assert found.objection() == 'the class "elementwise" differs from the others by a factor of 40'
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert found.objection() is None


def test_a_backward_pass_that_hides_behind_its_forward_pass_says_nothing(
    measure_on: Callable[..., tuple[Slowness, int]],
) -> None:
    found, rounds = measure_on(lambda kind, large, number: (1.0, 9.0 if kind == COPY and large else 1.0))
    assert found.own[COPY] == found.usual
    assert (found.apart, rounds) == (0, probes.ROUNDS)


def test_rounds_end_with_the_time(measure_on: Callable[..., tuple[Slowness, int]]) -> None:
    for seconds, expected in ((0.01, 80), (1.0, probes.MORE)):
        _, rounds = measure_on(lambda kind, large, number: (3.0 if kind == COPY else 1.0, 1.0), seconds)
        assert rounds == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("threads", "large", "expected"), [(1, True, 20), (1, False, 3000), (2, True, 3000)])
def test_one_thread_does_not_count_what_others_do_meanwhile(
    threads: int, large: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = {"thread": 0.0, "world": 0.0}

    def call() -> None:
        passed["thread"] += 20e-6
        passed["world"] += 3000e-6

    monkeypatch.setattr(probes, "thread_time", lambda: passed["thread"])
    monkeypatch.setattr(probes, "perf_counter", lambda: passed["world"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert probes._fastest(call, large) == pytest.approx(expected)


@pytest.mark.parametrize("large", [False, True])
def test_every_probe_has_a_gradient_for_each_of_its_operands(large: bool) -> None:
    found = probes._probes(large=large)
    assert [probe.kind for probe in found] == list(REFERENCE)
    for probe in found:
        gradients = torch.autograd.grad(probe.call(*probe.operands), probe.operands, probe.gradient)
        assert [x.shape for x in gradients] == [x.shape for x in probe.operands]
