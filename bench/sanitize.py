"""Every kernel under compute-sanitizer: `python bench/sanitize.py`, or with the names of some kernels behind it.

Two small cases of each, of odd sizes and of such that are read as vectors; forward, backward, and in every tile that
the kernel offers for them. Each kernel and check has a process of its own, in which torch keeps no memory, so that what
lies beside a tensor is nobody's. Needs a GPU, triton and compute-sanitizer of the CUDA toolkit; says what is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from gpu import clock, kernels
from gpu.clock import Setting
from gpu.kernels import Case, Job

# Accesses outside of allocations, or not aligned; and threads of a block that do not wait for each other.
CHECKS = ("memcheck", "racecheck")
SANITIZER = "compute-sanitizer"
# What sizes are divided by: not a multiple of 8 remains of any, and multiples of 8 of channels.
SHRINKS = (10, 4)
# The exit status that the sanitizer is asked for if it finds something; else it has the program's.
FOUND = 86
CLEAN, WRONG, MISSING = 0, 1, 2
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": "0", "CONVEIN_CALIBRATION": "off"}


def missing() -> list[str]:
    """What is not here and must be, each in a clause."""
    reasons = []
    if clock.absence() is not None:
        reasons.append("no GPU: torch.cuda.is_available() is False")
    if find_spec("triton") is None:
        reasons.append("no triton: pip install triton")
    if shutil.which(SANITIZER) is None:
        reasons.append(f"no {SANITIZER} on the PATH: it comes with the CUDA toolkit, in its bin folder")
    return reasons


def cases() -> dict[str, Case]:
    """One of each kernel, by its name."""
    found = {case.kernel: case for case in reversed(kernels.CASES)}
    found["pair"] = Case("pair", "groups, channels last", _grouped)
    return dict(sorted(found.items()))


def _grouped(setting: Setting) -> Job:
    n, g, s, t, side = (setting.size(full) for full in (64, 32, 64, 64, 56))
    x, w = setting.random(n, side, side, g, s), setting.random(g, 3, 3, s, t, seed=1) / (3 * s**0.5)
    return Job((x, w, "bhwgs,ghwst->bhwgt", "hw", (1, 1), (1, 1), (1, 1), (side, side)), 0.0)


def exercise(kernel: str, job: Job) -> int:
    """Forward and backward, then every launch again with each of its configurations.

    Returns:
        How many launches were made again.
    """
    from convein.kernels import tuning

    for leaf in job.leaves:
        leaf.requires_grad_()
    with tuning.recording() as recorder:
        results = tree_leaves(getattr(torch.ops.convein, kernel)(*job.arguments))
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    again = [partial(launch, tile) for launch in recorder.launches for tile in launch.configurations]
    with torch.no_grad():
        for call in again:
            call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return len(again)


def exercise_all(case: Case, settings: Sequence[Setting]) -> int:
    """The case in all settings that the kernel takes.

    Returns:
        How many launches were made again.

    Raises:
        ValueError: it takes none.
    """
    module, launches, reasons = kernels.module_of(case), 0, []
    for setting in settings:
        job = case.make(setting)
        reason = module.refusal(*job.arguments)
        if reason is None:
            launches += exercise(case.kernel, job)
        else:
            reasons.append(reason)
    if len(reasons) == len(settings):
        raise ValueError(f"{case} is refused in every size: {'; '.join(reasons)}")
    return launches


def command(check: str, kernel: str) -> list[str]:
    """What runs a kernel under a check. Kernels of torch's libraries are not looked at."""
    names = sorted({build.kernel.__name__ for build in kernels.module_of(cases()[kernel]).builds()})
    only = [word for name in names for word in ("--kernel-name", f"kns={name}")]
    asked = ["--tool", check, "--error-exitcode", str(FOUND), "--report-api-errors", "no"]
    return [SANITIZER, *asked, *only, sys.executable, str(Path(__file__).resolve()), "--run", kernel]


def verdict(check: str, kernel: str) -> str | None:
    """What is wrong with a kernel; None if nothing is."""
    run = subprocess.run(
        command(check, kernel), env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        return None
    reason = "errors were found" if run.returncode == FOUND else f"it ended with {run.returncode}"
    return f"{reason}\n{run.stdout}{run.stderr}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit status: 0 if nothing was found, 1 if something was, 2 if nothing could be checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", maxsplit=1)[0])
    parser.add_argument("kernels", nargs="*", metavar="kernel", help="all of them by default")
    parser.add_argument("--run", metavar="kernel", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := sorted({*given.kernels} - cases().keys()):
        parser.error(f"there is no kernel {' or '.join(unknown)}: there are {', '.join(cases())}")
    if given.run:
        exercise_all(cases()[given.run], [Setting(torch.device("cuda"), torch.bfloat16, shrink) for shrink in SHRINKS])
        return CLEAN
    if reasons := missing():
        print("nothing was checked; what is missing here:", *reasons, sep="\n  ", file=sys.stderr)
        return MISSING
    wrong = 0
    for kernel in given.kernels or cases():
        for check in CHECKS:
            reason = verdict(check, kernel)
            wrong += reason is not None
            print(f"{kernel:20} {check:10} {reason or 'nothing found'}", flush=True)
    return WRONG if wrong else CLEAN


if __name__ == "__main__":
    sys.exit(main())
