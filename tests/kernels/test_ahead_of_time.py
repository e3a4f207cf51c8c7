"""Every configuration that is shipped compiles for an H100, on a machine without a GPU, and fits on the chip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_KERNELS = {"__init__", "adjoint", "equation", "offsets", "operators", "padding", "strips", "tuning"}
KERNELS = sorted({Path(path.name).stem for path in files("convein.kernels").iterdir() if path.name.endswith(".py")})
# What a block of an H100 may take, and what a thread may keep in memory because its registers are full, in bytes.
SHARED, SPILLED = 232_448, 64


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in NOT_KERNELS])
def test_what_is_shipped_fits_on_the_chip(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tests/kernels/compile_ahead.py"), name]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    compiled = json.loads(run.stdout)
    assert compiled, f"convein.kernels.{name} ships nothing"
    for one in compiled:
        assert one["spilled"] <= SPILLED, one
        assert one["shared"] <= SHARED, one
        assert one["vector"], f"no vector is read: {one}"
        assert one["wide"], f"numbers are read one by one: {one}"
        assert one["matrix"], f"the matrix units are not used: {one}"
