"""The table of rates: measured, kept, read again; and what it does to plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import convein
from convein import calibration
from convein.planner.rates import MATRIX, SHIPPED, Rate

CP = "bshw,rs,rh,rw,rt->bthw|hw"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "_known", {})


def test_without_a_measurement_the_shipped_table_serves() -> None:
    assert calibration.current() is SHIPPED


def test_a_measured_table_is_kept_for_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.random.get_rng_state()
    table = convein.calibrate()
    assert torch.equal(state, torch.random.get_rng_state())
    assert calibration.machine() in table.name
    for part in (table.forward, table.backward):
        assert part.keys() == SHIPPED.forward.keys()
        assert all(rate.overhead >= 0 and rate.flops > 0 and rate.bandwidth > 0 for rate in part.values())
    assert calibration.current() is table
    monkeypatch.setattr(calibration, "_known", {})
    assert calibration.current() == table


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', '{"name": "", "forward": {}, "backward": {}}'])
def test_a_broken_file_is_as_good_as_none(text: str) -> None:
    path = calibration._file()
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert calibration.current() is SHIPPED


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibration.current() is convein.calibrate() or calibration.current().name.startswith("measured")


def test_rates_decide_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is hardly compressed composes its dense kernel first; where products are free it does not."""
    shapes = [(32, 64, 32, 32), (275, 64), (275, 3), (275, 3), (275, 64)]
    _, info = convein.contract_path(CP, *shapes)
    assert "dense conv" in str(info)
    assert SHIPPED.name in str(info)
    assert "depthwise" in str(convein.contract_path(CP, *shapes, cost="flops")[1])
    free = {kind: Rate(0, 1e9, 1e9) if "dense" not in kind else rate for kind, rate in SHIPPED.forward.items()}
    monkeypatch.setattr(calibration, "_known", {calibration.machine(): replace(SHIPPED, name="made up", forward=free)})
    assert "dense conv" not in str(convein.contract_path(CP, *shapes)[1])


def test_the_time_of_a_step_grows_with_its_work() -> None:
    sizes = [64, 128, 256, 512]
    times = [convein.compile("ij,jk->ik", (n, n), (n, n)).plan.total for n in sizes]
    assert times == sorted(times)
    assert times[0] > SHIPPED.forward[MATRIX].overhead
