"""What `python bench/run.py gpu` measures, at tiny sizes: on a CPU by triton's interpreter and with wall time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from convein.kernels import tuning

import convein
import run
from cases import gpu
from cases import memory as counting
from convein.planner.accelerators import accelerator
from convein.planner.rates import FUSED, Rate, Rates
from gpu import clock, kernels, layers, memory, rates
from gpu.clock import Setting
from measure import Timing

# Where nothing is launched.
PLAIN = Setting(torch.device("cpu"), torch.float32, 1024, "eager")


@pytest.fixture
def tiny(device: torch.device) -> Setting:
    return Setting(device, torch.float32 if device.type == "cpu" else torch.bfloat16, 1024, "eager")


def timing(group: str, variant: str, microseconds: float) -> Timing:
    return Timing(group, variant, microseconds / 1e6, microseconds / 1e6, 1.0, 0.0, 1)


H200 = accelerator(torch.float32)
GATES = next(case for case in kernels.CASES if case.kernel == "lstm_gates")

# Kernels


@pytest.mark.parametrize("case", kernels.CASES, ids=str)
def test_every_way_to_do_a_kernels_job_computes_the_same(case: kernels.Case, tiny: Setting) -> None:
    calls = kernels.variants(tiny, case, layers.TRAINING)
    assert {kernels.KERNEL, kernels.REFERENCE, kernels.COMPILED} <= calls.keys()
    job = case.make(tiny)
    for call in calls.values():
        gradients = call()
        # A captured graph returns nothing.
        shapes = [None if x is None else x.shape for x in gradients or ()]
        assert all(shape in (None, x.shape) for shape, x in zip(shapes, job.leaves, strict=gradients is not None))


def test_a_way_that_computes_something_else_is_left_out(tiny: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    job = GATES.make(tiny)
    wrong = kernels.Job(job.arguments, 0.0, {"wrong": lambda z, cell: (cell, cell)})
    case = kernels.Case(GATES.kernel, GATES.size, lambda _: wrong)
    assert "wrong" not in kernels.variants(tiny, case, layers.FORWARD)
    said = "lstm_gates 32 channels 120x120 forward: without wrong: ValueError: IT IS WRONG, value 0 is off by"
    assert said in capsys.readouterr().out


def test_a_tuned_kernel_is_a_way_of_its_own(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("a device", "lstm_gates", (1,))

    def tune(kernel: Callable[..., object], *arguments: object, save: bool) -> convein.tuning.Tuning:
        assert not save
        assert torch.is_grad_enabled()
        kernel(*arguments)
        tuning._adopted[place] = "{}"
        return convein.tuning.Tuning("a GPU", (convein.tuning.Tuned("lstm_gates", (1,), 1, 2, 9, 5, 2),), None)

    monkeypatch.setattr(convein.tuning, "_words", str)
    monkeypatch.setattr(convein, "tune", tune)
    calls = kernels.variants(tiny, GATES, layers.TRAINING)
    assert kernels.TUNED in calls
    assert place not in tuning._adopted


def test_what_a_kernel_refuses_is_said(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.module_of(GATES), "refusal", lambda *_: "it is Sunday")
    assert kernels.KERNEL not in kernels.variants(tiny, GATES, layers.FORWARD)
    assert "without the kernel: it is Sunday" in capsys.readouterr().out


def test_the_roofline_is_the_slower_of_products_and_memory() -> None:
    # A copy of 2^20 bytes in a microsecond; a product of 4 by 4 in 2^-3.
    machine = {kernels.COPY: 1e-6, "product float32 of 4 by 4, 0.000001 GFLOP": 1e-6}
    entries = 4**4  # batch, channels and two sides of 4, all of them the least
    assert kernels.roofline(PLAIN, GATES, machine) == pytest.approx(7 * 4 * entries * 1e-6 / 2**21)
    layer = next(case for case in kernels.CASES if case.kernel == "pointwise_depthwise")
    macs = 4**3 * 4 * (4 + 9 + 4)
    assert kernels.roofline(PLAIN, layer, machine) == pytest.approx(2 * macs / 1e9)


def test_kernels_are_judged_by_their_roofline_and_the_best_other_way() -> None:
    group = f"{GATES} {layers.FORWARD}"
    rows = [
        timing(kernels.MACHINE, kernels.COPY, 1.0),
        timing(kernels.MACHINE, "product float32 of 4 by 4, 0.001 GFLOP", 1.0),
        timing(group, kernels.KERNEL, 0.01),
        timing(group, kernels.REFERENCE, 0.03),
        timing(group, kernels.COMPILED, 0.02),
        timing(group, kernels.TUNED, 0.008),
    ]
    assert kernels.verdicts(PLAIN, rows[2:]) == ""
    lines = kernels.verdicts(PLAIN, rows).splitlines()
    assert lines[0] == "kernels: the GPU does 1 TFLOP/s in float32, and copies 2147484 GB/s"
    assert lines[2].split()[-6:] == ["2.00", "reference,", "torch.compile,", "1.25", "by", "tuning"]
    assert "0.34" in lines[2].split()
    assert len(lines) == 3


# Layers


@pytest.mark.parametrize("layer", [layers.LAYERS[0], layers.LAYERS[7], layers.LAYERS[9]], ids=str)
def test_every_way_to_evaluate_a_layer_computes_the_same(layer: layers.Layer, tiny: Setting) -> None:
    calls = layers.variants(tiny, layer, layers.TRAINING)
    names = set(layers.makers(layer.form, tiny.compiler))
    # A back end may refuse, and a graph may not be possible: all others are there.
    assert {"convein auto", "convein torch", "dense channels-last", "left to right, torch.compile"} <= {*calls}
    assert {name.removesuffix(layers.GRAPH) for name in calls} <= names
    assert "dense channels-last, graph" in calls
    for call in calls.values():
        call()


def test_a_layer_that_computes_something_else_is_left_out(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def doubled(layout: str, given: layers.Operands) -> layers.Way:
        return layers.Way(lambda: 2 * given.x, given.leaves, torch.channels_last)

    monkeypatch.setattr(layers, "dense", doubled)
    assert "dense channels-last" not in layers.variants(tiny, layers.LAYERS[0], layers.FORWARD)
    assert "without dense channels-last: ValueError: IT IS WRONG, value 0 is off by" in capsys.readouterr().out


def test_a_way_that_no_graph_can_hold_is_measured_as_calls(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def captured(call: clock.Call) -> clock.Call:
        raise RuntimeError("it waits for the GPU\nsomewhere")

    monkeypatch.setattr(clock, "captured", captured)
    monkeypatch.setattr(layers, "BACKENDS", ("torch",))
    calls = layers.variants(tiny, layers.LAYERS[0], layers.FORWARD)
    assert "convein torch" in calls
    assert not any(name.endswith(layers.GRAPH) for name in calls)
    assert "without convein torch, graph: RuntimeError: it waits for the GPU\n" in capsys.readouterr().out


def test_layers_are_judged_by_what_arithmetic_promises() -> None:
    first, third = layers.LAYERS[0], layers.LAYERS[4]
    assert (first.promise, third.promise) == (1.0, 1.4)
    rows = []
    for layer in (first, third):
        group = layers.name_of(layer, layers.FORWARD)
        times = {
            layers.OURS: 10,
            "convein triton": 8,
            "convein torch": 13,
            "dense channels-last": 20,
            layers.PREDICTED: 9,
        }
        times |= {f"{layers.OURS}, graph": 5, "convein torch, graph": 8, "dense channels-last, graph": 7.5}
        rows += [timing(group, name, spent) for name, spent in times.items()]
    lines = [line.split()[-8:] for line in layers.verdicts(rows).splitlines()[1:]]
    assert lines == [
        ["forward", "10.0", "9.0", "1.30", "1.0", "kept", "convein", "torch"],
        ["graph", "5.0", "9.0", "1.50", "1.0", "kept", "dense", "channels-last"],
        ["forward", "10.0", "9.0", "1.30", "1.4", "MISSED", "convein", "torch"],
        ["graph", "5.0", "9.0", "1.50", "1.4", "kept", "dense", "channels-last"],
    ]
    assert layers.verdicts(rows[:1]) == ""


# Rates


def test_rates_are_fitted_exactly_where_they_are_exact() -> None:
    rate = Rate(4.0, 500_000.0, 4_000.0, overlaps=True)
    works = [(1e6, 1e9), (1e12, 1e9), (1e10, 1e5), (3e11, 3e9)]
    found = rates.fitted([(*work, rate.time(*work)) for work in works])
    assert (found.overhead, found.flops, found.bandwidth) == pytest.approx((4.0, 5e5, 4e3), rel=1e-3)
    assert found.overlaps


def test_no_part_of_a_rate_is_negative() -> None:
    """More operations take less here: what the fit leaves out is free."""
    found = rates.fitted([(1e9, 1e6, 10.0), (2e9, 1e6, 9.0), (3e9, 2e6, 12.0)])
    assert found.overhead >= 0
    assert found.flops == rates.FREE


def test_a_table_needs_every_class(tmp_path: Path) -> None:
    rows = []
    for kind, size in product(rates.KINDS, rates.SIZES):
        given = rates.probe(PLAIN, kind, size)
        ahead = H200.forward[kind].time(given.flops, given.moved)
        both = ahead + H200.backward[kind].time(2 * given.flops, 2 * given.moved)
        for direction, spent in (("forward", ahead), ("forward+backward", both)):
            rows.append(timing(f"rates of {kind} {direction}", rates.name_of(size), spent))
    table = rates.table(PLAIN, rows)
    assert table is not None
    assert table.forward.keys() == table.backward.keys() == H200.forward.keys() - {FUSED}
    for size in rates.SIZES:
        given = rates.probe(PLAIN, "dense, last", size)
        spent = H200.forward["dense, last"].time(given.flops, given.moved)
        assert table.forward["dense, last"].time(given.flops, given.moved) == pytest.approx(spent, rel=0.02)
    assert rates.table(PLAIN, [row for row in rows if row.group != "rates of copy forward"]) is None
    assert "dense, last" in rates.printed(table)
    path = tmp_path / "rates.json"
    rates.write(path, table)
    rates.write(path, table)
    (stored,) = json.loads(path.read_text(encoding="utf-8")).values()
    assert Rate(**stored["backward"]["rows"]) == table.backward["rows"]
    assert Rates(**stored).itemsize == 4


# Memory


def test_memory_is_what_was_predicted(tiny: Setting) -> None:
    amounts = []
    for count in memory.counts(tiny, layers.LAYERS[:1]):
        amounts += [amount for amount in counting.measure(count) if not isinstance(amount, str)]
    found = {(amount.unit, amount.variant): amount.value for amount in amounts}
    saved = found[counting.SAVED, "convein torch"]
    assert saved == found[counting.SAVED, "convein torch, predicted"] > 0
    assert found[counting.SAVED, "dense channels-last"] == 0
    assert found[memory.PEAK, "convein torch"] > saved
    lines = [line for line in memory.summary(amounts).splitlines() if ", torch " in line]
    assert [line.split()[-2] for line in lines][:1] == ["1.000"]
    assert len(lines) == 2


# The command


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    run.main()


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        command(monkeypatch, "gpu")
    assert left.value.code == "gpu: there is no GPU to measure: torch.cuda.is_available() is False"
    monkeypatch.setattr(run, "CASES", {"gpu": None})
    monkeypatch.setattr(run, "COUNTS", {"gpu_memory": None})
    command(monkeypatch)
    assert capsys.readouterr().out.count("is left out: there is no GPU to measure") == 2


def test_the_command_writes_rows_and_rates(
    tiny: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "setting", lambda: tiny)
    monkeypatch.setattr(run, "HERE", tmp_path / "bench")
    (tmp_path / "bench").mkdir()
    monkeypatch.setattr(run, "ABSENCES", {})
    monkeypatch.setattr(rates, "SIZES", rates.SIZES[:2])
    monkeypatch.setattr(rates, "KINDS", ("copy", "dense, last"))
    counts = [counting.Count("a layer", counting.SAVED, {"convein torch": lambda: 4})]
    monkeypatch.setattr(run, "COUNTS", {"gpu_memory": lambda: counts})
    command(monkeypatch, "gpu_memory")
    assert "over predicted" in capsys.readouterr().out
    options = ["--rounds", "1", "--seconds", "0.001", "--only"]
    command(monkeypatch, "gpu", *options, "CP 64 channels rank 16, forward")
    command(monkeypatch, "gpu", *options, "rates of")
    printed = capsys.readouterr().out
    assert "us of convein auto" in printed
    assert "over predicted" not in printed
    assert "bench/results/gpu_rates.json is written" in printed
    with (tmp_path / "bench/results/gpu.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    predicted = [row for row in rows if row["variant"] == layers.PREDICTED]
    assert [float(row["median_us"]) > 0 for row in predicted] == [True]
    assert {row["group"] for row in rows} >= {kernels.MACHINE, "rates of copy forward"}
    assert all(row["device"] and row["torch"] and row["triton"] for row in rows)
    assert json.loads((tmp_path / "bench/results/gpu_rates.json").read_text(encoding="utf-8"))
    assert (tmp_path / "bench/results/gpu_memory.csv").exists()


# The clock


class Card:
    """A stand-in for a GPU: time passes with calls, and a graph replays what it has seen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waste = torch.ones(8, dtype=torch.uint8)
        self.calls: list[str] = []
        card = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = card.now

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Graph:
            def replay(self) -> None:
                card.calls.append("replayed")

        fakes = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "synchronize": lambda: None,
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": lambda graph: nullcontext(),
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": Stream,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(clock, "_waste", lambda index: self.waste)

    def call(self) -> None:
        """Takes two milliseconds, and finds the caches cold."""
        assert not self.waste.any()
        self.waste.fill_(1)
        self.now += 2
        self.calls.append("called")


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


def test_the_clock_is_the_cards_and_its_caches_are_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    assert clock.sample(card.call, 3) == pytest.approx(2e-3)
    assert len(card.calls) == 3


def test_a_graph_is_captured_warm_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    replay = clock.captured(lambda: card.calls.append("called"))
    assert card.calls == ["called"] * (clock.WARM_CALLS + 1)
    replay()
    assert card.calls[-1] == "replayed"


def test_without_a_card_the_clock_on_the_wall_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls: list[int] = []
    assert clock.sample(lambda: calls.append(1), 3) > 0
    assert len(calls) == 3
    call = lambda: None
    assert clock.captured(call) is call
