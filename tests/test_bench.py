"""The bench: its cases run, what it says of rows is what is in them, and its peers by hand compute the same."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import convein
from cases import contractions, memory, regret, roofline, stacks
from cases.forms import Case
from convein.metering import footprint
from rows import SETTING
from targets import targets

ROOT = Path(__file__).parents[1]


def test_the_new_cases_run_dry() -> None:
    """One layer of each, in one round."""
    options = ["--dry", "--rounds", "1", "--seconds", "0.01", "--only", "CP 512 channels, 10%, channels-last"]
    command = [sys.executable, "bench/run.py", "regret", "roofline", "memory", *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "bench" / "results").iterdir()}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "chosen plan over the best: mean" in run.stdout
    assert "machine: " in run.stdout
    assert " bytes saved " in run.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT / "bench" / "results").iterdir()}


def test_candidates_compute_what_the_chosen_plan_does() -> None:
    case = Case("TT", 64, 32, 1, 1, "forward", "channels-last")
    results = [call() for call in regret.variants(case).values()]
    assert len(results) > 5
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-4)


def test_without_cotengra_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = contractions._variants("ij,jk->ik", dict.fromkeys("ijk", 4), trains=False)
    monkeypatch.setitem(sys.modules, "cotengra", None)
    without = contractions._variants("ij,jk->ik", dict.fromkeys("ijk", 4), trains=False)
    assert set(with_it) - set(without) == {"cotengra.einsum", "cotengra.einsum_expression"}
    assert "torch.einsum" in without


# Stacks


SMALL = (stacks.speech(8, 40, 50, depthwise=True, blocks=1), stacks.speech(8, 40, 50, depthwise=False, blocks=1))


@pytest.mark.parametrize("layer", [*SMALL[0].layers, *SMALL[1].layers, *stacks.video(1).layers[:3]])
def test_a_layer_by_hand_computes_what_its_expression_means(layer: stacks.Layer) -> None:
    x, *factors = (torch.randn(shape, dtype=torch.float64) for shape in ((2, *layer.picture), *layer.factors))
    wanted = convein.conv_einsum(layer.expression, x, *factors)
    torch.testing.assert_close(layer.by_hand(x, *factors), wanted)
    assert memory.METHODS[memory.RECOMPUTED](layer, 2)(x, *factors).shape == wanted.shape


@pytest.mark.parametrize("name", [memory.OURS, memory.BY_HAND, memory.RECOMPUTED])
def test_the_largest_batch_fits_and_the_next_one_does_not(name: str) -> None:
    """Where plans depend on the batch a larger one may fit again."""
    make, stack, cap = memory.METHODS[name], SMALL[1], 100_000
    found = stacks.largest_batch(stack, make, cap)
    fits = [stacks.trains(stack, [make(layer, n) for layer in stack.layers], n, cap) for n in (found, found + 1)]
    assert found > 2
    assert fits == [True, False]
    assert stacks.largest_batch(stack, make, 10) == 0


def test_a_stack_counts_what_training_keeps_alive() -> None:
    """One layer, by hand: the counter of the stack stops exactly at the peak of a real step."""
    layer = SMALL[1].layers[1]
    stack = stacks.Stack("one", (layer,))
    factors = [torch.randn(shape, requires_grad=True) for shape in layer.factors]

    def step(*operands: torch.Tensor) -> torch.Tensor:
        x = torch.randn(3, *layer.picture)
        loss = layer.after(layer.by_hand(x, *operands)).sum()
        loss.backward()
        return loss.detach()

    peak = footprint(step, factors).peak
    calls = [layer.by_hand]
    assert stacks.trains(stack, calls, 3, peak)
    assert not stacks.trains(stack, calls, 3, peak // 2)


# What rows say


def amount(unit: str, group: str, variant: str, value: int) -> memory.Amount:
    return memory.Amount(group, variant, unit, value, 1.0)


def test_gains_compare_the_best_of_ours() -> None:
    found = memory.gains(
        [
            amount(memory.SAVED, "CP", "convein.compile", 50),
            amount(memory.SAVED, "CP", "tensorly-torch factorized", 150),
            amount(memory.LARGEST, "video", "convein", 20),
            amount(memory.LARGEST, "video", "convein, checkpoint=True", 30),
            amount(memory.LARGEST, "video", memory.RECOMPUTED, 10),
            amount(memory.LARGEST, "video", memory.BY_HAND, 0),
        ]
    )
    assert list(found) == [
        (memory.SAVED, "CP", "tensorly-torch factorized", 3.0),
        (memory.LARGEST, "video", memory.RECOMPUTED, 3.0),
        (memory.LARGEST, "video", memory.BY_HAND, float("inf")),
    ]


def test_a_way_that_there_is_not_gets_a_sentence() -> None:
    ways = {"a": lambda: 4, "b": lambda: "not installed", "c": lambda: 6}
    first, sentence, last = memory.measure(memory.Count("layer", memory.SAVED, ways))
    assert (first, sentence) == (memory.Amount("layer", "a", memory.SAVED, 4, 1.0), "layer: without b: not installed")
    assert last == memory.Amount("layer", "c", memory.SAVED, 6, 1.5)


def test_the_roofline_is_what_takes_longer() -> None:
    """A layer that reads and writes 2^24 bytes, half of what the copy moves, and multiplies so many times."""
    case = Case("CP", 64, 32, 10, 32, "forward", "channels-last")
    macs = 32 * 32**2 * 27 * (64 + 3 + 3 + 64)
    machine = [(roofline.MACHINE, roofline.COPY, 1.0), (roofline.MACHINE, "slow, 1 GFLOP", 100.0)]
    for spent, least in ((1.0, 0.5), (100.0, 2 * macs / 1e7)):
        times = [*machine, (roofline.MACHINE, "product, 1 GFLOP", spent), (str(case), "convein.compile", 60.0)]
        assert roofline.fractions(times) == {case: pytest.approx(least / 60, rel=0.01)}
    assert roofline.fractions([(str(case), "convein.compile", 1.0)]) == {}


def test_regret_is_the_median_over_runs() -> None:
    rows = [
        ("a", regret.CHOSEN, 1.0),
        ("a", "best of 10: 0-1", 0.5),
        ("a", "best of 10: 0-2", 0.8),
        ("b", "best of 2: 0-1", 1.0),
    ]
    assert regret.regrets([*rows, ("a", "best of 9: 0-1", 1.0)]) == {"a": 1.25, "b": 1.0}


def write(file: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    shared = dict.fromkeys(SETTING, "x") | {"date": "today"}
    lines = [[*shared, *columns], *([*shared.values(), *row] for row in rows)]
    with file.open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows(lines)


def test_the_table_of_targets_takes_what_rows_there_are(tmp_path: Path) -> None:
    empty = list(targets(tmp_path))
    assert sum(line.endswith(("| - |", "| -, - |")) for line in empty) == len(empty) - 2
    timed = ("group", "variant", "median_us", "min_us", "ratio", "rounds")
    layers = [
        (str(Case(form, 64, 32, 10, 32, "forward", layout)), variant, 1, 1, ratio, 30)
        for form in ("CP", "TT")
        for layout, by in (("NCHW", 1), ("channels-last", 2))
        for variant, ratio in (
            ("convein.compile", 1),
            ("tensorly-torch factorized", 3 * by),
            ("tensorly-torch mobilenet", 2 * by if form == "CP" else 8 * by),
            ("dense NCHW", 9),
            ("dense channels-last", 7),
            ("left to right", 0.5 if (form, layout) == ("TT", "NCHW") else 5),
        )
    ]
    write(tmp_path / "layers.csv", timed, layers)
    write(
        tmp_path / "regret.csv", timed, [("a", "best of 10: 0-1", 1, 1, 0.8, 9), ("b", "best of 10: 0-1", 1, 1, 1.0, 9)]
    )
    counted = ("group", "variant", "unit", "value", "ratio")
    batches = [("video", "convein", memory.LARGEST, 50, 1), ("video", memory.RECOMPUTED, memory.LARGEST, 4, 0.1)]
    write(tmp_path / "memory.csv", counted, batches)
    peers = {"convein.compile": 40, "convein.conv_einsum": 50, "torch.einsum": 60, "opt_einsum.contract": 70}
    peers["opt_einsum.contract_expression"] = 38
    contractions = [("large", variant, spent, 1, 1, 9) for variant, spent in peers.items()]
    tiny = [("tiny", variant, 1, 1, 1, 9) for variant in peers]
    write(tmp_path / "contractions.csv", timed, [*contractions, *tiny])
    chain = {"raw torch calls": 3, "convein.conv_einsum": 5, "convein.compile": 4.5}
    write(
        tmp_path / "overhead.csv", timed, [("chain ab,bc", variant, spent, 1, 1, 9) for variant, spent in chain.items()]
    )
    lines = list(targets(tmp_path))
    for line in (
        "| forward, NCHW, over tensorly-torch | 1.4 | 2.45 |",  # the root of 2 * 3
        "| forward, channels-last, 10 %, over tensorly-torch | 1.6 | 4.90 |",
        "| forward, channels-last, 10 %, over the dense layer | 6.5 | 7.00 |",
        "| cases more than 5 % slower than the fastest peer | 0 (at most) | 1 of 4 |",
        "| chosen plan over the best of ten: mean, worst | 1.03, 1.5 (at most) | 1.12, 1.25 |",
        "| largest batch, video, over left to right, torch checkpoints: mean, least | 10 | 12.5, 12.5 |",
        "| contractions by the text, over torch.einsum and opt_einsum: mean, least | 1, 0.95 | 1.20, 1.20 |",
        "| a compiled call of four operands, microseconds more than torch's calls | 3 (at most) | 1.50 |",
        "| a first call of four operands, microseconds more than torch's calls | 2000 (at most) | - |",
    ):
        assert line in lines
