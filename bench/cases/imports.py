"""What importing convein adds to importing torch, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from measure import Group, Limit

MOST = 0.3


def _process(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def groups() -> Iterator[Group]:
    """Two processes."""
    variants = {"import torch": _process("import torch"), "import convein": _process("import torch, convein")}
    yield Group("import", variants, Limit("import convein", MOST, more_than_first=True))
