"""The bench of ARMA layers: radii in its table, a tiny training run, both pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from arma import command, fields
from arma.picture import draw_fields, draw_losses
from arma.training import CHANCE, CONVOLUTIONS, Job, Outcome, attempt, network
from convein.layers import ARMA2d, ARMAStage
from convein.layers.stability import STABILITIES


@pytest.fixture
def split() -> tuple[TensorDataset, TensorDataset]:
    """Pictures whose label is a bright row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 8
    pictures = torch.randn(160, 1, 8, 8, generator=generator) / 4
    pictures[torch.arange(160), 0, labels] += 3
    return TensorDataset(pictures[:120], labels[:120]), TensorDataset(pictures[120:], labels[120:])


def test_one_epoch_changes_only_what_learns(split: tuple[TensorDataset, TensorDataset]) -> None:
    for stability in (CONVOLUTIONS, *STABILITIES):
        first, second = (attempt(Job(stability, 0.05, 1), split, 2, 4) for _ in range(2))
        assert first == second
        assert len(first.losses) == 2
        assert not first.diverged
        assert (first.largest > 0) == (stability != CONVOLUTIONS)


def test_all_parametrisations_of_a_seed_start_as_the_same_function() -> None:
    x, values = torch.randn(2, 1, 8, 8), []
    for stability in (CONVOLUTIONS, *STABILITIES):
        torch.manual_seed(0)
        values.append(network(stability, 4)(x))
    assert all(torch.equal(value, values[0]) for value in values)


def test_training_ends_where_losses_are_no_numbers(split: tuple[TensorDataset, TensorDataset]) -> None:
    found = attempt(Job("none", 1e30, 0), split, 5, 4)
    assert found.diverged
    assert len(found.losses) < 5
    assert not math.isfinite(found.losses[-1])


def test_what_counts_as_diverged() -> None:
    job = Job("none", 0.1, 0)
    assert not Outcome(job, (CHANCE, 9 * CHANCE, 0.1), 90, 0.5).diverged
    assert Outcome(job, (CHANCE, 11 * CHANCE, 0.1), 90, 0.5).diverged
    assert Outcome(job, (CHANCE, math.nan), 90, 0.5).diverged
    assert [Outcome(job, (CHANCE,), 90, sums).unstable for sums in (0.99, 1.0, math.nan)] == [False, True, True]


def outcomes() -> list[Outcome]:
    return [
        Outcome(Job("none", 0.1, 0), (2.0, 1e9, 0.7), 10.0, 1e8),
        Outcome(Job("none", 0.1, 1), (2.0, 1.0, 0.5), 80.0, 0.5),
        Outcome(Job("bounded", 0.1, 0), (2.0, 0.4, 0.2), 90.0, 0.9),
        Outcome(Job("bounded", 0.1, 1), (2.0, 0.3, 0.1), 95.0, 0.8),
    ]


def test_the_table_counts_what_diverged() -> None:
    lines = list(command.table(outcomes()))
    assert lines[2:] == [
        "| none | 0.1 | 1 of 2 | 1 of 2 | 0.600 | 45.0 %, 10.0 % |",
        "| bounded | 0.1 | 0 of 2 | 0 of 2 | 0.150 | 92.5 %, 90.0 % |",
    ]
    rows = list(command.rows(outcomes(), 16))
    assert rows[0]["losses"] == "2 1e+09 0.7"
    assert rows[0]["diverged"] is True


def test_the_pictures(tmp_path: Path) -> None:
    found = [
        fields.measure(depth, ARMAStage(3, a, two_sided=True), 2, fields.SIDE) for a in (0.0, 0.5) for depth in (1, 2)
    ]
    draw_fields(found, tmp_path / "fields.png")
    draw_losses(outcomes(), tmp_path / "losses.png")
    for file in tmp_path.iterdir():
        picture = Image.open(file).convert("RGB")
        assert min(picture.size) > 200
        assert len(picture.getcolors(1 << 24)) > 50


def test_the_command_prints_both_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], split: tuple[TensorDataset, TensorDataset]
) -> None:
    monkeypatch.setattr(command, "load", lambda: split)
    monkeypatch.setattr(fields, "COEFFICIENTS", (0.5,))
    before = {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}
    short = ["--seeds", "1", "--epochs", "1", "--width", "2", "--processes", "1"]
    assert command.main([*short, "--dry"]) == 0
    printed = capsys.readouterr().out
    assert "| 3 | 3 | 1 | 0.6 | one | 3.640055 | 3.640055 |" in printed
    for stability in (CONVOLUTIONS, *STABILITIES):
        assert printed.count(f"\n| {stability} | ") == len(command.RATES)
    assert before == {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}


def test_parts_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["field"])
    assert "no part is called field: there are fields, training" in capsys.readouterr().err


def test_layers_of_the_network_have_strides_and_no_normalisation() -> None:
    layers = [each for each in network("bounded", 4) if isinstance(each, ARMA2d)]
    assert [each.moving_average.stride for each in layers] == [(1, 1), (1, 1), (2, 2), (1, 1)]
