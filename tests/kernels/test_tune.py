"""`convein.tune`: which launches it finds, how it decides, what it leaves as it was. A timer stands in for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from convein.kernels import depthwise_pointwise, operators, tuning
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from triton import testing
from triton.runtime.errors import OutOfResources

import convein
from contexts import deterministic

pytestmark = pytest.mark.usefixtures("own_tables")


@dataclass(frozen=True, slots=True)
class Tile:
    wide: int
    warps: int = 4


OFFERED = (Tile(16), Tile(32), Tile(64, 8))
# What the last launch took, which the timer asks.
last: list[Tile] = []


def launch(x: Tensor) -> Tensor:
    last[:] = [tuning.chosen("double", (x.shape[0], str(x.dtype)), OFFERED)]
    return x * 2


operators.register("double_for_a_test(Tensor x) -> Tensor", launch, torch.empty_like)


def pull(_: object, x: Tensor, gradient: Tensor) -> Tensor:
    """Launches of its own: with a first dimension of one."""
    return double(gradient[None])[0]


operators.differentiate("double_for_a_test", pull)


def double(x: Tensor) -> Tensor:
    return torch.ops.convein.double_for_a_test(x)


def timer(**microseconds: float) -> Callable[[Callable[[], object]], float]:
    """What the launch takes with each width."""

    def run(call: Callable[[], object]) -> float:
        call()
        return microseconds[f"w{last[0].wide}"]

    return run


SECOND = timer(w16=10, w32=5, w64=7)


def test_the_fastest_configuration_serves_from_then_on(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, device=device)
    report = convein.tune(double, x, timer=SECOND)
    (row,) = report.rows
    assert (row.kernel, row.key, row.tried) == ("double", (4, "torch.float32"), 3)
    assert (row.before, row.after) == (OFFERED[0], OFFERED[1])
    assert (row.microseconds_before, row.microseconds_after) == (10, 5)
    double(x)
    assert last == [OFFERED[1]]
    double(x.double())
    assert last == [OFFERED[0]]
    assert report.file == tuning.file()
    tuning.forget()
    double(x)
    assert last == [OFFERED[1]], "a later process reads what was kept"


def test_a_report_is_a_table(device: torch.device) -> None:
    def call(x: Tensor) -> list[Tensor]:
        return [double(x), double(x[1:])]

    report = convein.tune(call, torch.ones(4, device=device), timer=SECOND, save=False)
    lines = str(report).splitlines()
    assert lines[0].split() == ["kernel", "sizes", "before", "us", "after", "us"]
    assert lines[1].split() == [
        "double",
        "4",
        "torch.float32",
        "wide=16",
        "warps=4",
        "10.0",
        "wide=32",
        "warps=4",
        "5.0",
    ]
    assert lines[2].split()[:3] == ["double", "3", "torch.float32"]
    assert lines[3] == f"{report.device}, one launch of each: 20.0 -> 10.0 us, for this process"
    again = convein.tune(call, torch.ones(4, device=device), timer=SECOND)
    assert str(again).splitlines()[1].split() == [
        "double",
        "4",
        "torch.float32",
        "wide=32",
        "warps=4",
        "5.0",
        "the",
        "same",
        "5.0",
    ]
    assert str(again).endswith(f"kept in {tuning.file()}")


def test_what_is_hardly_faster_is_not_chosen(device: torch.device) -> None:
    (row,) = convein.tune(double, torch.ones(4, device=device), timer=timer(w16=10, w32=9.8, w64=9.9)).rows
    assert row.after == OFFERED[0]


def test_the_median_of_the_rounds_decides(device: torch.device) -> None:
    found = {16: iter((10, 10, 10)), 32: iter((1, 12, 12)), 64: iter((9, 9, 99))}

    def run(call: Callable[[], object]) -> float:
        call()
        return next(found[last[0].wide])

    (row,) = convein.tune(double, torch.ones(4, device=device), timer=run).rows
    assert row.after == OFFERED[2]


def test_a_gpu_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def do_bench(call: Callable[[], object], *, warmup: int, rep: int, return_mode: str) -> float:
        assert call() == 3
        assert warmup > 0 < rep
        assert return_mode == "median"
        return 0.25  # milliseconds

    monkeypatch.setattr(testing, "do_bench", do_bench)
    assert convein.tuning._on_gpu(lambda: 3) == 250


def test_a_configuration_that_cannot_be_built_is_none(device: torch.device) -> None:
    def run(call: Callable[[], object]) -> float:
        call()
        if last[0].wide == 64:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return {16: 10.0, 32: 9.0}[last[0].wide]

    (row,) = convein.tune(double, torch.ones(4, device=device), timer=run).rows
    assert (row.after, row.tried) == (OFFERED[1], 2)


def test_the_backward_pass_is_tuned_and_leaves_no_gradient(device: torch.device) -> None:
    layer = torch.nn.Linear(3, 5, device=device)
    x = torch.ones(7, 3, device=device, requires_grad=True)

    def call(x: Tensor) -> dict[str, Tensor]:
        return {"y": double(layer(x))[:4], "z": checkpoint(double, layer(x)[:2], use_reentrant=False)}

    report = convein.tune(call, x, timer=SECOND)
    assert [row.key[0] for row in report.rows] == [7, 2, 1]
    assert layer.weight.grad is None
    assert x.grad is None


def test_a_graph_of_the_callers_is_not_walked(device: torch.device) -> None:
    x = torch.ones(4, device=device, requires_grad=True)
    before = x.exp()
    convein.tune(double, before, timer=SECOND)
    convein.tune(lambda: double(before), timer=SECOND)
    before.sum().backward()
    assert torch.equal(x.grad, x.exp())


def test_without_gradients_there_is_no_backward_pass(device: torch.device) -> None:
    keys = []

    def run(call: Callable[[], object]) -> float:
        call()
        keys.append(torch.is_grad_enabled())
        return 1.0

    with torch.no_grad():
        assert len(convein.tune(double, torch.ones(4, device=device, requires_grad=True), timer=run).rows) == 1
    assert set(keys) == {False}


def test_one_configuration_is_timed_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OFFERED", OFFERED[:1])
    (row,) = convein.tune(double, torch.ones(4, device=device)).rows
    assert row.before == row.after
    assert row.microseconds_before == row.microseconds_after > 0


def test_a_kernel_is_launched_again_as_the_call_has_launched_it(device: torch.device) -> None:
    dtype = torch.float64 if device.type == "cpu" else torch.bfloat16
    shapes = (2, 16, 5, 5), (16, 3, 3), (16, 16)
    operands = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    call = partial(depthwise_pointwise.depthwise_pointwise, low=(1, 1), size=(5, 5))
    launched: list[Tensor] = []

    def run(launch: Callable[[], object]) -> float:
        launched.append(launch())
        return 1.0

    (row,) = convein.tune(call, *operands, timer=run).rows
    assert row.kernel == "depthwise_pointwise"
    for result in launched:
        torch.testing.assert_close(result, call(*operands))


def test_an_expression_is_tuned(device: torch.device) -> None:
    dtype = torch.float64 if device.type == "cpu" else torch.bfloat16
    operands = [torch.ones(shape, device=device, dtype=dtype) for shape in ((2, 16, 5, 5), (16, 3, 3), (16, 16))]
    layer = convein.compile("bshw,shw,ts->bthw|hw", *operands, backend="triton")
    rows = convein.tune(layer, *operands, timer=lambda launch: float(launch() is not None)).rows
    assert {row.kernel for row in rows} == {*layer.program.kernels}


def test_deterministic_algorithms_do_not_forbid_it(device: torch.device) -> None:
    with deterministic():
        convein.tune(double, torch.ones(4, device=device), timer=SECOND)
        double(torch.ones(4, device=device))
        assert last == [OFFERED[1]]


def test_contexts_of_the_caller_do_not_reach_the_timing(device: torch.device) -> None:
    with torch.device("meta"), torch.autocast(device.type), torch.inference_mode():
        (row,) = convein.tune(double, torch.ones(4, device=device), timer=SECOND).rows
    assert row.after == OFFERED[1]


def test_a_home_that_cannot_be_written_is_no_error(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    x = torch.ones(4, device=device)
    assert convein.tune(double, x, timer=SECOND).file is None
    double(x)
    assert last == [OFFERED[1]]


def test_a_call_without_kernels_is_refused(device: torch.device) -> None:
    with pytest.raises(convein.PlanError, match="nothing to tune: the call launched no kernel that has a choice"):
        convein.tune(torch.exp, torch.ones(4, device=device))


def test_nothing_is_tuned_in_a_trace(device: torch.device) -> None:
    wanted = "nothing to tune: something traces or transforms this call"
    x = torch.ones(4, device=device)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(convein.PlanError, match=wanted):
        convein.tune(double, x)
    with pytest.raises(convein.PlanError, match=wanted):
        torch.func.vmap(lambda x: convein.tune(double, x))(x)
