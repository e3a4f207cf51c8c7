"""The bench of calibrated uncertainty: scores by hand and by torchmetrics, every network once, the command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes import command, training, uncertainty
from bayes.picture import draw
from bayes.training import BAYESIAN, KINDS, MEMBER, Job, Settings
from bayes.uncertainty import BINS, score

SMALL = Settings(width=2, epochs=2, batch=20, warm_up=1)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(61) % 10
    inputs = torch.randn(61, 1, 8, 8, generator=generator)
    split = (inputs[:41], labels[:41]), (inputs[41:], labels[41:])

    def given(_validation: bool) -> Any:
        return split

    monkeypatch.setattr(training, "pictures", given)
    monkeypatch.setattr(uncertainty, "pictures", given)


def probabilities(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = (3 * torch.randn(count, 10, generator=generator)).softmax(-1)
    return found, torch.multinomial(found, 1, generator=generator)[:, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_scores_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    found, labels = probabilities(700)
    ours = score("", found, labels)
    theirs = multiclass_calibration_error(found, labels, num_classes=10, n_bins=BINS, norm="l1")
    assert ours.ece == pytest.approx(100 * float(theirs), abs=1e-3)
    right = multiclass_accuracy(found, labels, num_classes=10, average="micro")
    assert ours.error == pytest.approx(100 - 100 * float(right), abs=1e-3)
    nll = sum(-(row[label] + 1e-6).log() for row, label in zip(found, labels, strict=True)) / 700
    assert ours.nll == pytest.approx(float(nll), rel=1e-5)
    assert sum(one.share for one in ours.bins) == pytest.approx(1)


def test_calibration_by_hand() -> None:
    rows = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    ours = score("", rows, torch.tensor([0, 1, 1, 0]))
    assert [one.share for one in ours.bins] == [0.25, 0.5, 0.25]
    assert [one.accuracy for one in ours.bins] == [1, 0.5, 1]
    assert ours.ece == pytest.approx(100 * (0.25 * 0.4 + 0.5 * 0.4 + 0))
    assert ours.error == 25


def test_every_network_learns_a_little_and_is_scored() -> None:
    jobs = [Job(kind, 0) for kind in KINDS] + [Job(MEMBER, 1)]
    trained = {job: training.train(job, SMALL) for job in jobs}
    again = training.train(Job(BAYESIAN, 0), SMALL)
    assert all(torch.equal(again[name], one) for name, one in trained[jobs[0]].items())
    first, second = trained[Job(MEMBER, 0)], trained[Job(MEMBER, 1)]
    assert not torch.equal(first["1.weight"], second["1.weight"])
    found, sizes = uncertainty.scores(trained, SMALL, 3)
    assert [one.name for one in found] == [
        "BQN, analytic",
        "BQN, 3 samples",
        "BQN, MAP",
        "E-QNN of 2",
        "E-QNN of 1, learned scale",
        "Gaussian BNN, 3 samples",
    ]
    assert found[0].bound is not None
    assert all(0 <= one.error <= 100 and 0 <= one.ece <= 100 and one.nll > 0 for one in found)
    weights = 4 * 65 + 2 * 5 + 10 * 3
    assert sizes["learned"] == 8 * weights
    assert sizes["float32"] == 4 * weights
    assert weights / 8 <= sizes["packed"] < weights / 8 + 8


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(40) % 2
    inputs = (2.0 * labels - 1).view(-1, 1, 1, 1) * torch.linspace(-1, 1, 64).view(8, 8)
    monkeypatch.setattr(training, "pictures", lambda _validation: ((inputs, labels), (inputs, labels)))
    network = training.fresh(kind, 8)
    network.load_state_dict(
        training.train(
            Job(kind, 0), Settings(width=8, epochs=12, batch=10, rate=0.2, plain_rate=0.1, entropy=0, warm_up=0)
        )
    )
    with torch.no_grad():
        torch.manual_seed(0)
        loss = training.loss(kind, network, inputs, labels, 10**9, 0.0)
    assert float(loss) < 1.2  # of ten classes alike, 2.3


def test_the_picture(tmp_path: Path) -> None:
    found, labels = probabilities(50)
    target = tmp_path / "reliability.png"
    draw([score(f"network {number}", found, labels) for number in range(4)], target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_claims_are_judged() -> None:
    found, labels = probabilities(400)
    good, bad = score("BQN, analytic", found, labels, bound=1.0), score("E-QNN of 10", found.flip(-1), labels)
    sizes = {"learned": 640, "float32": 320, "packed": 10}
    lines = list(command.claims([good, bad], sizes))
    assert lines[1].endswith("at least 3 times lower.")
    assert lines[-1].endswith("10 packed: 1/64.0.")
    near = score("E-QNN of 10", found, labels)
    assert list(command.claims([good, near], sizes))[1].endswith("1.00 times BQN, analytic's 0.968: NOT 3 times lower.")


def test_the_command_prints_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def in_this_process(*_given: Any, **_named: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(command, "ProcessPoolExecutor", in_this_process)
    before = {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}
    assert command.main(["--width", "2", "--epochs", "1", "--members", "2", "--samples", "2", "--dry"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "| BQN, analytic | ",
        "| BQN, 2 samples | ",
        "| BQN, MAP | ",
        "| E-QNN of 2 | ",
        "| E-QNN of 2, learned scale | ",
        "| Gaussian BNN, 2 ",
    ):
        assert printed.count(f"\n{line}") == 1
    assert before == {file: file.stat().st_mtime_ns for file in command.HERE.iterdir()}
    with pytest.raises(SystemExit):
        command.parse(["--members", "0"])
