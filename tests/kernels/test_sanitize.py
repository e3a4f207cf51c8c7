"""`python bench/sanitize.py`: what it runs under the sanitizer, what it says of it, and what it says without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import sanitize
from gpu.clock import Setting
from gpu.kernels import Case, Job

SCRIPT = Path(sanitize.__file__)


def test_every_kernel_has_a_case() -> None:
    names = {Path(path.name).stem for path in files("convein.kernels").iterdir() if path.name.endswith(".py")}
    shipped = {name for name in names if hasattr(import_module(f"convein.kernels.{name}"), "builds")}
    assert set(sanitize.cases()) == shipped


@pytest.mark.parametrize("name", sanitize.cases())
def test_cases_run_forward_backward_and_in_every_tile(name, device) -> None:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    launches = sanitize.exercise_all(sanitize.cases()[name], [Setting(device, dtype, 1024)])
    assert launches > 0 or name == "lstm_gates", "only the gates have no tiles to choose from"


def test_what_a_kernel_refuses_in_every_size_is_no_clean_run(device) -> None:
    asked = []

    def make(setting: Setting) -> Job:
        asked.append(setting.shrink)
        gates = torch.zeros(2, 8, device=device)
        return Job((gates if setting.shrink == 1 else gates.int(), torch.zeros(2, 2, device=device)), 0.0)

    case = Case("lstm_gates", "of integers", make)
    sanitize.exercise_all(case, [Setting(device, torch.float32, shrink) for shrink in (2, 1)])
    with pytest.raises(ValueError, match="lstm_gates of integers is refused in every size: there is no kernel for"):
        sanitize.exercise_all(case, [Setting(device, torch.float32, shrink) for shrink in (3, 2)])
    assert asked == [2, 1, 3, 2]


def test_without_gpu_or_sanitizer_it_says_so_and_fails(tmp_path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert run.returncode == sanitize.MISSING
    assert run.stdout == ""
    first, *reasons = run.stderr.splitlines()
    assert first == "nothing was checked; what is missing here:"
    assert [reason.split(":")[0] for reason in reasons] == ["  no GPU", "  no compute-sanitizer on the PATH"]


def test_a_kernel_that_is_not_there_is_named(capsys) -> None:
    with pytest.raises(SystemExit):
        sanitize.main(["pointwise"])
    assert "there is no kernel pointwise: there are depthwise_pointwise, " in capsys.readouterr().err


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    """A sanitizer that writes down what it is called with and ends with a status; and a GPU, to be found."""
    script, seen = folder / sanitize.SANITIZER, folder / "seen"
    script.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >> {seen}\necho hazard\nexit {status}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sanitize.clock, "absence", lambda: None)
    return seen


def test_each_check_runs_on_its_own(tmp_path, monkeypatch, capsys) -> None:
    seen = stand_in(tmp_path, monkeypatch, 0)
    assert sanitize.main(["lstm_gates"]) == sanitize.CLEAN
    tail = (
        f"--kernel-name kns=_backward --kernel-name kns=_forward {sys.executable} {SCRIPT.resolve()} --run lstm_gates"
    )
    for line, check in zip(seen.read_text().splitlines(), sanitize.CHECKS, strict=True):
        assert line == f"1 --tool {check} --error-exitcode 86 --report-api-errors no {tail}"
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["lstm_gates", check, "nothing", "found"] for check in sanitize.CHECKS
    ]


@pytest.mark.parametrize(("status", "said"), [(sanitize.FOUND, "errors were found"), (9, "it ended with 9")])
def test_what_is_found_is_shown(status, said, tmp_path, monkeypatch, capsys) -> None:
    stand_in(tmp_path, monkeypatch, status)
    assert sanitize.main(["product_reduce"]) == sanitize.WRONG
    printed = capsys.readouterr().out
    assert printed.count(said) == printed.count("hazard") == len(sanitize.CHECKS)
