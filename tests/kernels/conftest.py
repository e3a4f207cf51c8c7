"""Settings of the kernels' tests, which run in a process of their own: interpreted, or compiled for a GPU.

`--kernels=interpret` runs every kernel by triton's interpreter on the CPU, `--kernels=gpu` on a GPU, and
`--kernels=auto` on a GPU if there is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import parse
from torch import Tensor

# Entries of NaN on both sides of a tensor. Tensors stay aligned as torch aligns them.
BAND = 64

# Relative, of sums of products of float32 on a GPU: tensor cores read ten bits of every factor.
TENSOR_CORES = 5e-3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", choices=("auto", "interpret", "gpu"), default="auto", help="how kernels run")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses how kernels run: triton asks for it once, when it is imported."""
    config.addinivalue_line("markers", "interpreted: what only the interpreter can do, such as products of float64")
    if config.option.kernels == "auto":
        config.option.kernels = "gpu" if torch.cuda.is_available() else "interpret"
    assert "triton" not in sys.modules, "triton was imported before it could be told how to run"
    os.environ["TRITON_INTERPRET"] = str(int(config.option.kernels == "interpret"))
    # What somebody has measured on this machine decides nothing here.
    os.environ["CONVEIN_CALIBRATION"] = "off"
    if config.option.kernels == "interpret" and parse(version("triton")) < parse("3.8"):
        loop_to_run_time_bounds()
    if config.option.kernels == "gpu":
        round_products()


def round_products() -> None:
    """Allows tensor cores to round factors of float32: kernels of products refuse float32 otherwise."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "tf32"
    else:
        matmul.allow_tf32 = True


def pytest_report_header(config: pytest.Config) -> str:
    return f"kernels: {config.option.kernels}, triton {version('triton')}"


def loop_to_run_time_bounds() -> None:
    """Teaches an older interpreter `range` of a tensor: it calls int() on an array of one entry, and numpy from 2.4 on
    refuses that (triton's pull request 9172).
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_index_too(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_index_too


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.kernels == "gpu":
        gone = [item for item in items if item.get_closest_marker("interpreted")]
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(autouse=True)
def _rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, files that say MULTIPLIES compare products of float32 as precisely as tensor cores make them."""
    if request.config.option.kernels == "gpu" and getattr(request.module, "MULTIPLIES", False):
        monkeypatch.setitem(request.module.ROUNDING, torch.float32, TENSOR_CORES)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cuda" if request.config.option.kernels == "gpu" else "cpu")


class Guards:
    """Tensors that lie between bands of NaN: what is read beyond them shows, and what is written too."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int]] = []

    def around(self, x: Tensor) -> Tensor:
        """The same tensor with the same strides in memory of its own. What its strides leap over is NaN too."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        buffer = x.new_full((extent + 2 * BAND,), torch.nan)
        guarded = buffer.as_strided(x.shape, x.stride(), BAND)
        return guarded.copy_(x.detach()).requires_grad_(x.requires_grad)

    def empty(self, sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory that is full of NaN, as are the bands on its sides."""
        count = torch.Size(sizes).numel()
        buffer = torch.full((count + 2 * BAND,), torch.nan, dtype=dtype, device=device)
        self.buffers.append((buffer, count))
        return buffer[BAND : BAND + count].view(sizes)

    def check(self) -> None:
        for buffer, count in self.buffers:
            assert buffer[:BAND].isnan().all(), "something was written before a result"
            assert buffer[BAND + count :].isnan().all(), "something was written behind a result"


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Puts every result between bands of NaN, and looks at the bands when the test is over."""
    from convein.kernels import operators

    guards = Guards()
    monkeypatch.setattr(operators, "empty", guards.empty)
    yield guards
    assert guards.buffers, "no launcher allocated a result"
    guards.check()


@pytest.fixture
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder and tables of configurations that nobody else sees, which do serve."""
    from convein.kernels import tuning

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuning.SWITCH)
    monkeypatch.setattr(tuning, "_adopted", {})
    monkeypatch.setattr(tuning, "_stored", None)
