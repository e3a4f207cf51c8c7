"""Which configuration a launcher gets: the first one, an adopted one, a stored one; and what a recorder keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import triton
from convein.kernels import operators, tuning
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from contexts import deterministic
from convein import calibration

pytestmark = pytest.mark.usefixtures("own_tables")


@dataclass(frozen=True, slots=True)
class Factor:
    by: int
    warps: int = 4


OFFERED = (Factor(1), Factor(2), Factor(3))
seen: list[Tensor] = []


def launch(x: Tensor) -> Tensor:
    """A launcher whose result shows which configuration it took."""
    seen.append(x)
    return x * tuning.chosen("scale", (x.shape[0], str(x.dtype)), OFFERED).by


operators.register("scale_for_a_test(Tensor x) -> Tensor", launch, torch.empty_like)
operators.differentiate("scale_for_a_test", lambda _, x, gradient: torch.ops.convein.scale_for_a_test(gradient))


def scale(x: Tensor) -> Tensor:
    return torch.ops.convein.scale_for_a_test(x)


@pytest.fixture
def x(device: torch.device) -> Tensor:
    return torch.ones(2, device=device)


def recorded(*tensors: Tensor) -> tuple[tuning.Launch, ...]:
    with tuning.recording() as recorder:
        for tensor in tensors:
            scale(tensor)
    return recorder.launches


def store(x: Tensor, fields: object, version: str = triton.__version__) -> None:
    """As another process might have stored it."""
    path = tuning.file()
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    key = json.dumps([x.shape[0], str(x.dtype)])
    table = {tuning.device_name(x.device): {version: {"scale": {key: fields}}}}
    path.write_text(json.dumps(table), encoding="utf-8")


def test_the_first_configuration_serves_where_nothing_is_known(x: Tensor) -> None:
    assert scale(x).tolist() == [1, 1]


def test_what_is_adopted_serves_launches_of_the_same_key(x: Tensor) -> None:
    (launch,) = recorded(x)
    tuning.adopt(launch, OFFERED[2])
    assert scale(x).tolist() == [3, 3]
    assert scale(x.double()).tolist() == [1, 1]
    assert scale(x.expand(3, 2)).unique().tolist() == [1]


def test_a_recorder_keeps_every_key_once_with_all_that_is_needed_to_launch_it_again(x: Tensor) -> None:
    y = torch.arange(24.0, device=x.device)[1:].as_strided((3, 2), (4, 2))
    first, second = recorded(x, y, x, y)
    assert (first.kernel, first.key) == ("scale", (2, "torch.float32"))
    assert (first.configurations, first.before) == (OFFERED, OFFERED[0])
    assert first.device == x.device
    x.zero_()
    assert first(OFFERED[1]).tolist() == [2, 2]
    assert torch.equal(second(OFFERED[2]), 3 * y)
    copy = seen[-1]
    assert (copy.stride(), copy.storage_offset()) == (y.stride(), y.storage_offset())
    assert copy.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def test_a_tensor_that_repeats_itself_is_copied_as_it_is(x: Tensor) -> None:
    (launch,) = recorded(x[:1].expand(5))
    assert torch.equal(launch(OFFERED[1]), 2 * torch.ones_like(x[:1].expand(5)))
    assert seen[-1].stride() == (0,)


def test_a_forced_configuration_is_that_of_one_launch(x: Tensor) -> None:
    (launch,) = recorded(x)
    launch(OFFERED[2])
    assert scale(x).tolist() == [1, 1]
    with pytest.raises(AttributeError):
        launch(None)
    assert scale(x).tolist() == [1, 1]


def test_a_recorder_sees_the_backward_pass_and_other_threads(x: Tensor) -> None:
    with tuning.recording() as recorder:
        scale(torch.ones(5, device=x.device, requires_grad=True)[:4]).sum().backward()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(scale, torch.ones(7, device=x.device)).result()
    assert {launch.key[0] for launch in recorder.launches} == {4, 7}
    scale(torch.ones(9, device=x.device))
    assert len(recorder.launches) == 2


def test_a_launcher_that_no_operator_called_is_not_recorded(x: Tensor) -> None:
    with tuning.recording() as recorder:
        launch(x)
    assert not recorder.launches


def test_what_is_kept_serves_later_processes(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, place in ((x, 1), (x.double(), 2)):
        tuning.adopt(recorded(tensor)[0], OFFERED[place])
        path = tuning.keep()
    assert path is not None
    assert [path] == list(path.parent.iterdir())
    tuning.forget()
    assert scale(x).tolist() == [2, 2]
    assert scale(x.double()).tolist() == [3, 3]


def test_keeping_leaves_what_others_have_stored(x: Tensor) -> None:
    store(x, {"by": 2, "warps": 4}, version="another")
    tuning.adopt(recorded(x)[0], OFFERED[2])
    path = tuning.keep()
    assert path is not None
    versions = tuning.read(path)[tuning.device_name(x.device)]
    key = '[2, "torch.float32"]'
    assert versions["another"]["scale"][key] == {"by": 2, "warps": 4}
    assert versions[triton.__version__]["scale"][key] == {"by": 3, "warps": 4}


def test_a_table_of_another_version_does_not_serve(x: Tensor) -> None:
    store(x, {"by": 2, "warps": 4}, version="another")
    assert scale(x).tolist() == [1, 1]


@pytest.mark.parametrize("fields", [{"by": 4, "warps": 4}, {"by": 2}, {"by": 2, "warps": 8}, {}, None, 2, []])
def test_a_configuration_that_is_not_there_is_not_chosen(x: Tensor, fields: object) -> None:
    store(x, fields)
    assert scale(x).tolist() == [1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"a": 1}', '{"a": {"b": 1}}', '{"a": {"b": {"c": 1}}}'])
def test_a_broken_file_is_as_good_as_none(x: Tensor, text: str) -> None:
    path = tuning.file()
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert scale(x).tolist() == [1, 1]
    tuning.adopt(recorded(x)[0], OFFERED[1])
    assert tuning.keep() == path


@pytest.mark.parametrize("key", ["", "{", "1", "[[]]", '{"a": 1}'])
def test_a_broken_key_is_as_good_as_none(key: str) -> None:
    table = {"a device": {triton.__version__: {"scale": {key: {}, "[2]": {"by": 2}}}}}
    assert tuning._flat(table)["a device", "scale", (2,)] == '{"by": 2}'


def test_where_results_must_be_the_same_the_stored_table_does_not_serve(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(x, {"by": 2, "warps": 4})
    with monkeypatch.context() as patch:
        patch.setenv(tuning.SWITCH, "off")
        assert scale(x).tolist() == [1, 1]
    with deterministic():
        assert scale(x).tolist() == [1, 1]
        tuning.adopt(recorded(x)[0], OFFERED[2])
        assert scale(x).tolist() == [3, 3]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert scale(x.double()).tolist() == [1, 1]
    finally:
        torch.distributed.destroy_process_group()
    monkeypatch.setattr(tuning, "_adopted", {})
    assert scale(x).tolist() == [2, 2]


def test_the_switch_is_that_of_the_rates() -> None:
    assert tuning.SWITCH == calibration.SWITCH


def test_the_file_is_read_once_and_never_in_a_trace(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    store(x, {"by": 2, "warps": 4})
    reads: list[Path] = []
    monkeypatch.setattr(tuning, "read", lambda path: reads.append(path) or {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert tuning.chosen("scale", (2, "torch.float32"), OFFERED) == OFFERED[0]
    assert not reads
    scale(x)
    scale(x)
    assert len(reads) == 1


def test_one_configuration_is_no_choice(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_read_once", lambda: pytest.fail("nothing was to be looked up"))
    assert tuning.chosen("scale", (2,), OFFERED[1:2]) == OFFERED[1]


def test_a_home_that_cannot_be_written_is_no_error(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tuning.adopt(recorded(x)[0], OFFERED[1])
    assert tuning.keep() is None
    assert scale(x).tolist() == [2, 2]

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert tuning.keep() is None
    assert scale(x.double()).tolist() == [1, 1]


def test_threads_choose_and_adopt_at_once(x: Tensor) -> None:
    start = threading.Barrier(4)
    (launch,) = recorded(x)

    def work(number: int) -> Iterator[Factor]:
        start.wait()
        for _ in range(200):
            tuning.adopt(launch, OFFERED[number % 3])
            yield tuning.chosen("scale", launch.key, OFFERED)

    with ThreadPoolExecutor(4) as pool:
        found = [{*choices} for choices in pool.map(lambda number: list(work(number)), range(4))]
    assert all(choices <= {*OFFERED} for choices in found)
