"""The example of certified digits and the bench of orthogonal layers: every piece once, bounds against Jacobians."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cases import orthogonal
from convein.layers.sc_fac import OrthogonalConv2d, OrthogonalLinear, ResidualSkip
from lipschitz import command
from lipschitz.networks import KINDS, ORTHOGONAL, linear_layers, lipschitz_bound, network, spectrum
from lipschitz.training import RADII, digits, outcome, train, triangle


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_every_slope_of_the_network(kind: str) -> None:
    model = network(kind, 1, 0).eval()
    assert len(linear_layers(model)) == 10
    x = torch.randn(1, 1, 8, 8)
    slopes = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(model, x).view(10, 64), 2)
    bound = lipschitz_bound(model)
    assert slopes <= bound * (1 + 1e-5)
    assert (bound == pytest.approx(1, abs=1e-5)) == (kind == ORTHOGONAL)


def test_the_spectrum_of_a_circular_convolution() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False)
    whole = layer(torch.eye(2 * 16 * 16).view(-1, 2, 16, 16)).flatten(1).detach()
    wanted = torch.linalg.svdvals(whole.double())[:512]
    torch.testing.assert_close(spectrum(layer).sort(descending=True).values, wanted, rtol=1e-5, atol=1e-5)
    skip = ResidualSkip(layer, nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()))
    both = (lipschitz_bound(skip.branch) + lipschitz_bound(skip.shortcut)) / 2
    assert lipschitz_bound(skip) == pytest.approx(both)
    assert lipschitz_bound(nn.Sequential(skip, OrthogonalConv2d(3, 3, 3), nn.ReLU())) == pytest.approx(both, rel=1e-5)
    assert lipschitz_bound(OrthogonalLinear(3, 2)) == pytest.approx(1, rel=1e-5)


def test_training_and_what_is_certified() -> None:
    (pictures, labels), held_back = digits()
    assert [len(pictures), len(held_back[0])] == [1347, 450]
    assert pictures.mean(0).abs().max() < 1e-6
    data = (pictures[:64], labels[:64]), (held_back[0][:40], held_back[1][:40])
    done: list[int] = []
    for kind in KINDS:
        model = network(kind, 1, 0)
        seconds = train(model, data, kind, 0, 1, 0.5, lambda: done.append(1))
        found = outcome(model, data, kind, 0, seconds)
        assert list(found.certified) == sorted(found.certified, reverse=True)
        assert len(found.certified) == len(RADII)
        assert found.radii.shape == (40,)
    assert len(done) == 3


def test_the_rate_rises_and_falls() -> None:
    assert [triangle(part) for part in (0.4, 0.8, 1.0)] == pytest.approx([1, 0.05, 0])
    assert 0 < triangle(0.0) < triangle(0.2) < 1


def test_the_command_writes_rows_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures, labels), held_back = digits()
    data = (pictures[:64], labels[:64]), (held_back[0][:20], held_back[1][:20])
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(command, "digits", lambda: data)
    monkeypatch.setattr(command, "HERE", results)
    assert command.main(["--epochs", "1"]) == 0
    assert "| SC-Fac |" in capsys.readouterr().out
    lines = (results / "lipschitz.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(KINDS)
    assert (results / "lipschitz.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        command.parse(["--epochs", "0"])


def test_weights_of_the_bench_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's exponential of every factor, forward and backward."""
    monkeypatch.setattr(orthogonal, "NETWORK", (10, 1))
    for trains in (False, True):
        calls = orthogonal._weights(0.05, trains)
        values = [call() for call in calls.values()]
        for value in values[1:]:
            torch.testing.assert_close(value, values[0], rtol=1e-3, atol=1e-4)
    assert len(orthogonal._inference((4, 8, 4, 2), 6, 2)) == 3
