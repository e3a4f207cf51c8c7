"""The table of rates: measured, kept, read again; and what it does to plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import convein
from contexts import deterministic
from convein import calibration, probes
from convein.planner.rates import COPY, MATRIX, SHIPPED, Rate

CP = "bshw,rs,rh,rw,rt->bthw|hw"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(calibration.SWITCH)
    monkeypatch.setattr(calibration, "_known", {})
    monkeypatch.setattr(calibration, "_asked", {})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured; the probes are those of the shipped table's machine."""
    asked: list[str] = []

    def measure() -> probes.Slowness:
        asked.append(calibration.machine())
        same = (1.0, 1.0, 1.0, 1.0)
        return probes.Slowness(same, dict.fromkeys(SHIPPED.forward, same), 0, 0)

    monkeypatch.setattr(calibration, "measure", measure)
    return asked


def test_the_first_plan_that_needs_it_measures_the_machine_once(
    measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="convein")
    shapes = [(4, 7), (7, 9), (9, 3)]
    for cost in ("flops", "training", "memory", lambda step: step.macs):
        convein.contract_path("ab,bc,cd->ad", *shapes, cost=cost)
    assert not measured
    _, info = convein.contract_path("ab,bc,cd->ad", *shapes)
    assert measured == [calibration.machine()]
    assert calibration.machine() in str(info)
    convein.conv_einsum("ab,bc->ac", torch.ones(2, 3), torch.ones(3, 4))
    assert len(measured) == 1
    assert [record.message.startswith("convein measured this machine in") for record in caplog.records] == [True]


def test_the_machine_of_the_shipped_table_gets_the_shipped_rates(measured: list[str]) -> None:
    table = calibration.current()
    assert measured
    assert table.forward == SHIPPED.forward
    assert table.backward == SHIPPED.backward


def test_one_class_that_is_slower_than_the_others_gets_lower_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine twice as fast all over, but for one class; the large call decides rates, the small one overhead."""
    half = (0.5, 0.5, 0.5, 0.5)
    own = dict.fromkeys(SHIPPED.forward, half) | {COPY: (0.55, 3.0, 0.5, 0.5)}
    monkeypatch.setattr(calibration, "measure", lambda: probes.Slowness(half, own, 0, 0))
    table = convein.calibrate(save=False)
    copy, matrix = table.forward[COPY], table.forward[MATRIX]
    assert copy.bandwidth == pytest.approx(SHIPPED.forward[COPY].bandwidth / 3)
    assert copy.overhead == pytest.approx(SHIPPED.forward[COPY].overhead * 0.55)
    assert matrix.flops == pytest.approx(SHIPPED.forward[MATRIX].flops * 2)
    assert table.backward[COPY].bandwidth == pytest.approx(SHIPPED.backward[COPY].bandwidth * 2)


def test_what_no_machine_shows_is_neither_believed_nor_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    same = (1.0, 1.0, 1.0, 1.0)
    own = dict.fromkeys(SHIPPED.forward, same) | {COPY: (1.0, 100.0, 1.0, 1.0)}
    asked: list[bool] = []

    def measure() -> probes.Slowness:
        asked.append(True)
        return probes.Slowness(same, own, 0.02, 0)

    monkeypatch.setattr(calibration, "measure", measure)
    for _ in range(2):
        _, info = convein.contract_path("ab,bc,cd->ad", (4, 7), (7, 9), (9, 3))
        assert SHIPPED.name in str(info)
    assert asked == [True]
    assert not list(tmp_path.rglob("*.json"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "convein plans by its shipped rates until the machine is measured again: "
        'the class "copy" differs from the others by a factor of 100'
    )
    assert convein.calibrate() is SHIPPED
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setattr(calibration, "measure", lambda: probes.Slowness(same, dict.fromkeys(own, same), 0, 0))
    assert convein.calibrate().name == f"measured: {calibration.machine()}"
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_nothing_is_measured_where_it_would_disturb(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.ones(2, 3), torch.ones(3, 4)

    def call() -> None:
        convein.cache_clear()
        convein.conv_einsum("ab,bc->ac", x, w)

    with monkeypatch.context() as patch:
        patch.setenv(calibration.SWITCH, "off")
        call()
    with FakeTensorMode(allow_non_fake_inputs=True):
        call()
    with deterministic():
        call()
    torch.compile(lambda a, b: convein.conv_einsum("ab,bc->ac", a, b), fullgraph=True, backend="aot_eager")(x, w)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.trace"):
        torch.jit.trace(lambda a, b: convein.conv_einsum("ab,bc->ac", a, b), (x, w), check_trace=False)
    with monkeypatch.context() as patch:
        (tmp_path / "file").write_text("", encoding="utf-8")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        call()
    assert not measured
    call()
    assert measured


def test_a_measured_table_is_kept_for_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.Slowness, "objection", lambda found: None)  # however busy the machine is
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        table = convein.calibrate()
    assert torch.equal(state, torch.random.get_rng_state())
    assert calibration.machine() in table.name
    for part in (table.forward, table.backward):
        assert part.keys() == SHIPPED.forward.keys()
        assert all(rate.overhead >= 0 and rate.flops > 0 and rate.bandwidth > 0 for rate in part.values())
    assert calibration.current() is table
    monkeypatch.setattr(calibration, "_asked", {})
    assert calibration.current() == table


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 1}', '{"name": "", "forward": {}, "backward": {}}', '{"forward": []}']
)
def test_a_broken_file_is_as_good_as_none(measured: list[str], text: str) -> None:
    path = calibration._file()
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert calibration.current("flops") is SHIPPED
    assert calibration.current() is not SHIPPED
    assert measured


def test_a_table_that_other_probes_measured_is_measured_again(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration.current()
    for factor, count in ((1.0, 1), (2.0, 2)):
        other = {kind: tuple(time * factor for time in four) for kind, four in probes.REFERENCE.items()}
        monkeypatch.setattr(calibration, "_known", {})
        monkeypatch.setattr(calibration, "REFERENCE", other)
        calibration.current()
        assert len(measured) == count


def test_a_home_that_cannot_be_written_is_no_error(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    table = convein.calibrate()
    assert measured
    assert calibration.current() is table


def test_a_user_without_a_home_plans_by_the_shipped_table(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    x, w = torch.ones(2, 3), torch.ones(3, 4)
    assert torch.equal(convein.conv_einsum("ab,bc->ac", x, w), x @ w)
    assert calibration.current() is SHIPPED
    assert not measured
    table = convein.calibrate()
    assert measured
    assert calibration.current() is table


def test_the_default_dtype_changes_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()

    def timed(probe: probes.Probe) -> probes.Times:
        seen.update(operand.dtype for operand in probe.operands)
        return 1.0, 2.0

    monkeypatch.setattr(probes, "_timed", timed)
    monkeypatch.setattr(probes, "ENOUGH", 0)
    torch.set_default_dtype(torch.float64)
    try:
        convein.calibrate(save=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == {torch.float32}


@contextmanager
def _switched_off() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(calibration.SWITCH, "off")
        yield


@contextmanager
def _group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("where", [_switched_off, deterministic, _group])
@pytest.mark.parametrize("stored", ["in this process", "in an earlier one"])
def test_where_plans_must_be_the_same_a_stored_table_does_not_serve(
    stored: str, where: Callable[[], AbstractContextManager[None]], measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibration.current()
    assert found is not SHIPPED
    if stored == "in an earlier one":
        monkeypatch.setattr(calibration, "_known", {})
    with where():
        assert calibration.current() is SHIPPED
        asked = convein.calibrate(save=False)
        assert calibration.current() is asked
    assert measured


def test_rates_decide_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is hardly compressed composes its dense kernel first; where products are free it does not."""
    monkeypatch.setenv(calibration.SWITCH, "off")
    shapes = [(32, 64, 32, 32), (275, 64), (275, 3), (275, 3), (275, 64)]
    _, info = convein.contract_path(CP, *shapes)
    assert "dense conv" in str(info)
    assert SHIPPED.name in str(info)
    assert "depthwise" in str(convein.contract_path(CP, *shapes, cost="flops")[1])
    free = {kind: Rate(0, 1e9, 1e9) if "dense" not in kind else rate for kind, rate in SHIPPED.forward.items()}
    monkeypatch.setattr(calibration, "_asked", {calibration.machine(): replace(SHIPPED, name="made up", forward=free)})
    assert "dense conv" not in str(convein.contract_path(CP, *shapes)[1])


def test_the_time_of_a_step_grows_with_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(calibration.SWITCH, "off")
    sizes = [64, 128, 256, 512]
    times = [convein.compile("ij,jk->ik", (n, n), (n, n)).plan.total for n in sizes]
    assert times == sorted(times)
    assert times[0] > SHIPPED.forward[MATRIX].overhead
