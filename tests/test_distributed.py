"""DDP, FSDP2 and DTensor, in two processes that torchrun starts once for all checks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from convein import calibration

ROOT = Path(__file__).parents[1]
SECONDS = 120


def test_two_processes(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Here calibration is not switched off: a process group must be enough.
    environment = {name: value for name, value in os.environ.items() if name != calibration.SWITCH}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *torchrun, str(ROOT / "tests" / "two_processes.py"), str(report)],
        env={
            **environment,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its two processes, if it still can
        try:
            printed, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
    assert process.returncode == 0, printed
    found = json.loads(report.read_text(encoding="utf-8"))
    assert {"ddp", "fsdp", "layers", "dtensor", "refusals", "no_calibration"} <= found.keys()
    failures = [f"{name}: {text}" for name, texts in found.items() for text in texts]
    assert not failures, "\n".join(failures)
