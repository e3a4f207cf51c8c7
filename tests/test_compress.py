"""The compressed networks of the bench: every piece once, on a few pictures; ranks, bytes and tables by hand."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from backbones import BasicBlock
from compress import command, costs, experiment, tables
from compress.experiment import METHODS, Experiment, Job, Outcome
from compress.filling import PAIRS, RESHAPED, filled, filled_ranks
from compress.picture import picture
from compress.training import accuracy, shuffled, train
from convein.drawing.svg import document
from convein.layers import Conv2d
from convein.layers.ranks import largest

SMALL = Experiment(width=8, teacher_epochs=1, epochs=1, block_epochs=1)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    pictures = torch.randn(100, 1, 8, 8, generator=generator) / 4
    pictures[torch.arange(100), 0, labels % 8, labels // 8] += 3
    split = TensorDataset(pictures[:70], labels[:70]), TensorDataset(pictures[70:], labels[70:])
    monkeypatch.setattr(experiment, "_split", lambda _data, _folder: split)


# Training


def test_a_seed_gives_the_same_batches_and_every_epoch_its_own() -> None:
    pictures, _ = SMALL.split()
    first, second = shuffled(pictures, 3), shuffled(pictures, 3)
    epochs = [torch.cat([labels for _, labels in batches]) for batches in (first, second, first)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0].sort().values, pictures.tensors[1].sort().values)


def test_training_learns_and_accuracy_counts() -> None:
    pictures, held_back = SMALL.split()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = accuracy(model, held_back)
    batches = shuffled(pictures, 0)
    train(model, batches, 10, len(batches))
    scores = model(held_back.tensors[0])
    right = [int(row.argmax()) == int(label) for row, label in zip(scores, held_back.tensors[1], strict=True)]
    assert accuracy(model, held_back) == pytest.approx(100 * sum(right) / 30)
    assert accuracy(model, held_back) > before + 30


@pytest.mark.parametrize("job", [Job("rtt", 0.3, seed=1), Job("tucker", 0.3, fill=True)], ids=str)
def test_a_job_tries_every_method_and_always_comes_to_the_same(job: Job, tmp_path: Path) -> None:
    taught = experiment.teach(SMALL, job.seed, tmp_path / "teacher.pt")
    assert 0 <= taught <= 100
    first, second = (experiment.attempt(SMALL, job, tmp_path / "teacher.pt") for _ in range(2))
    assert first == second
    assert tuple(first.accuracies) == METHODS
    model = experiment.compressed(SMALL.dense(0), job, decompose=False)
    assert first.parameters == sum(each.numel() for each in model.parameters())
    # All six convolutions of the blocks, and nothing else, are replaced: at most this part of them is left.
    assert sum(isinstance(layer, Conv2d) for layer in model.modules()) == 6
    inside = [layer for layer in model.modules() if isinstance(layer, BasicBlock)]
    assert len(inside) == 3
    assert all(isinstance(layer.conv1, Conv2d) and isinstance(layer.conv2, Conv2d) for layer in inside)
    dense = 9 * (2 * 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32)
    weights = sum(weight.numel() for block in inside for conv in (block.conv1, block.conv2) for weight in conv.weights)
    assert first.share == pytest.approx(weights / dense)
    assert 0.15 < first.share <= 0.3


# Ranks


@pytest.mark.parametrize("form", [*PAIRS, *RESHAPED])
def test_filled_ranks_use_up_the_budget(form: str) -> None:
    layer = Conv2d(32, 64, 3, form=form, rank=0.05, init=None)
    made, ranks = layer.factorisation, filled_ranks(layer, form, 0.05)
    budget = 0.05 * layer.dense.parameters
    assert made.count(ranks) <= budget
    assert made.count(ranks) > 0.8 * budget
    if form in RESHAPED:
        partner = Conv2d(32, 64, 3, form=RESHAPED[form], rank=0.05, init=None)
        theirs = partner.factorisation.count(filled_ranks(partner, partner.form, 0.05))
        assert 0.9 * theirs < made.count(ranks) <= theirs


@pytest.mark.parametrize(("form", "channels"), [("rtk", 64), ("rtt", 128), ("rtr", 32)])
def test_no_bond_that_could_grow_is_left(form: str, channels: int) -> None:
    layer = Conv2d(channels, channels, 3, form=form, rank=0.05, init=None)
    made, budget = layer.factorisation, 0.05 * layer.dense.parameters
    ranks = filled(made, layer.ranks, budget)
    assert made.count(ranks) > made.count(layer.ranks)
    for bond, rank in ranks.items():
        at_most = min(2 * layer.ranks[bond], largest(made)[bond])
        assert layer.ranks[bond] <= rank <= at_most
        assert rank == at_most or made.count({**ranks, bond: rank + 1}) > budget


# Costs


def test_saved_bytes_are_those_of_the_activations() -> None:
    """A linear map, ReLU, a linear map: the ReLU's output, the log-probabilities and the loss's sum of weights."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    pictures, labels = torch.randn(11, 5), torch.zeros(11, dtype=torch.long)
    assert costs.saved_bytes(model, pictures, labels) == 4 * (11 * 7 + 11 * 3 + 1)


def test_costs_are_of_the_networks_that_are_asked_for() -> None:
    job, rounds = Job("cp", 0.1), []
    found = costs.costs(SMALL, {"cp 0.1": job}, 2, lambda: rounds.append(1))
    assert list(found) == [costs.DENSE, "cp 0.1"]
    assert len(rounds) == 2
    for name, model in costs.models(SMALL, {"cp 0.1": job}):
        assert found[name].parameters == 4 * sum(each.numel() for each in model.parameters())
        assert found[name].epoch > 0
        assert found[name].saved > 0


# What is shown


def outcome(form: str, accuracies: tuple[float, float, float], seed: int = 0, *, fill: bool = False) -> Outcome:
    found = dict(zip(METHODS, (12.0, *accuracies), strict=True))
    return Outcome(Job(form, 0.05 if fill else 0.1, seed, fill), 1000 - 10 * fill, 0.05, found)


def results(*outcomes: Outcome) -> tables.Results:
    networks = {tables.label(each.job) for each in outcomes} | {costs.DENSE}
    cost = costs.Cost(1.5, 2_000_000, 1_000_000)
    return tables.Results({0: 98.0, 1: 99.0}, outcomes, dict.fromkeys(sorted(networks), cost))


def test_the_first_table_has_means_over_seeds() -> None:
    found = results(outcome("cp", (96, 97, 90)), outcome("cp", (97, 98, 91), 1), outcome("rcp", (90, 95, 90)))
    lines = list(tables.first_table(found))
    assert lines[2] == "| dense | 250,000 | 100.0 % | | | | 98.5 | 1.50 | 3.00 |"
    assert lines[3] == "| cp | 1,000 | 5.0 % | 12.0 | 96.5 | 97.5 | 90.5 | 1.50 | 3.00 |"
    assert len({line.count("|") for line in lines}) == 1
    assert list(tables.claims(found)) == [
        "Sequential distillation, cp: 97.5 %, 1.0 points below the dense network: within 3 points.",
        "Sequential distillation, rcp: 95.0 %, 3.5 points below the dense network: NOT within 3 points.",
    ]


def pairs(better: Callable[[int], float]) -> tables.Results:
    """Two pairs and two seeds; the reshaped forms are better by so many points."""
    both = [(reshaped, plain, seed) for reshaped, plain in (("rcp", "cp"), ("rtt", "tt")) for seed in (0, 1)]
    found = []
    for number, (reshaped, plain, seed) in enumerate(both):
        found.append(outcome(plain, (90, 91, 92), seed, fill=True))
        found.append(outcome(reshaped, (90 + better(number), 91, 92), seed, fill=True))
    return results(*found)


def test_the_second_table_compares_pairs_and_the_claim_is_judged() -> None:
    lines = list(tables.second_table(pairs(lambda number: 2 + number % 2)))
    assert lines[2:] == [
        "| cp / rcp | 5.00 / 5.00 % | 90.0 / 92.5 (+2.5) | 91.0 / 91.0 (+0.0) | 92.0 / 92.0 (+0.0) |",
        "| tt / rtt | 5.00 / 5.00 % | 90.0 / 92.5 (+2.5) | 91.0 / 91.0 (+0.0) | 92.0 / 92.0 (+0.0) |",
    ]
    better, same, _ = tables.claims(pairs(lambda number: 2 + number % 2))
    assert "E2E-KD: +2.50 points, standard error 0.29 (4 pairs): the reshaped forms are better." in better
    assert "does not hold here" in same
    worse, *_ = tables.claims(pairs(lambda number: -2 - number % 2))
    assert "-2.50 points" in worse
    assert "the reshaped forms are worse" in worse


def test_the_picture_names_every_form() -> None:
    found = results(outcome("cp", (96, 97, 90)), outcome("svd", (100, 98, 90)), outcome("cp", (92, 93, 90), fill=True))
    text = document(picture(found), "title")
    titles = [each.text for each in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}title")]
    assert "cp: 92.0 % with 990, 96.0 % with 1,000" in titles
    assert "cp: 93.0 % with 990, 97.0 % with 1,000" in titles
    assert "svd: 98.0 % with 1,000" in titles
    assert "dense, 250,000: 98.5 %" in titles


def test_jobs_are_all_forms_and_the_pairs_of_them() -> None:
    found = command.jobs(["svd", "tt", "rtt", "cp"], 2, 0.1, 0.05)
    assert [(job.form, job.seed) for job in found if not job.fill] == [
        (form, seed) for form in ("svd", "tt", "rtt", "cp") for seed in (0, 1)
    ]
    assert [(job.form, job.fraction) for job in found if job.fill] == [("tt", 0.05)] * 2 + [("rtt", 0.05)] * 2


def test_the_command_prints_both_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def in_this_process(*_given: Any, **_named: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(command, "ProcessPoolExecutor", in_this_process)
    monkeypatch.setattr(command, "ROUNDS", 1)
    short = ["--width", "8", "--epochs", "1", "--block-epochs", "1", "--teacher-epochs", "1", "--seeds", "1"]
    before = {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}
    assert command.main([*short, "--forms", "tt,rtt", "--dry"]) == 0
    printed = capsys.readouterr().out
    for line in ("| dense | ", "| tt | ", "| rtt | ", "| tt / rtt | "):
        assert printed.count(f"\n{line}") == 1
    assert before == {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}


def test_a_form_that_there_is_not_gets_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--forms", "cp,rpc"])
    assert "no form is called rpc: there are dense, svd, " in capsys.readouterr().err
