"""Compiles what the named kernels' launchers ask for on an H100, without one, and prints what came out as JSON.

Run as `python tests/kernels/compile_ahead.py lstm_gates ...`, in a process that does not interpret.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from convein.kernels.operators import Build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)


def compile_ahead(build: Build) -> Any:
    """Pointers and sizes are multiples of 16, as those of aligned tensors are."""
    attributes = {(build.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in build.types}
    constants = dict.fromkeys(build.constants, "constexpr")
    source = ASTSource(build.kernel, {**build.types, **constants}, dict(build.constants), attributes)
    return triton.compile(source, target=TARGET, options=dict(build.options))


def dumped(cubin: Path, what: str) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, what, str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measure(build: Build) -> dict[str, Any]:
    compiled = compile_ahead(build)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = dumped(cubin, "--dump-resource-usage")
        code = dumped(cubin, "--dump-sass")
    return {
        "kernel": build.kernel.__name__,
        "types": list(build.types.values()),
        "constants": {name: str(value) for name, value in build.constants.items()},
        "options": dict(build.options),
        "registers": int(re.search(r"\bREG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"\bSTACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "vector": not build.vector or bool(re.search(r"\b(LDG|LDGSTS)\S*\.128\b", code)),
        "matrix": not build.matrix or bool(re.search(r"\b(HGMMA|HMMA)\b", code)),
        "wide": not build.wide or not re.search(r"\bLDG\S*\.U16\b", code),
    }


if __name__ == "__main__":
    modules = [import_module(f"convein.kernels.{name}") for name in sys.argv[1:]]
    print(json.dumps([measure(build) for module in modules for build in module.builds()]))
