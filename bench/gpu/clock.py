"""Times of a GPU: by its own clock, with cold caches, of calls as they are made or of captured graphs.

Between two calls a buffer larger than any cache is overwritten. Its time is not counted, and it keeps the GPU busy
while the next call is being prepared: only what Python needs beyond that shows, as it does in training. A graph shows
the kernels' time alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import torch

import measure

FLUSHED = 2**28  # bytes
WARM_CALLS = 3

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where cases run and on what.

    Attributes:
        device: a GPU; or the CPU, where triton's interpreter stands in for it, and wall time for its clock.
        dtype: of the tensors.
        shrink: what batches, channels, ranks and pictures are divided by.
        compiler: torch.compile's back end.
    """

    device: torch.device
    dtype: torch.dtype
    shrink: int = 1
    compiler: str = "inductor"

    def size(self, full: int) -> int:
        """A size, at least 4."""
        return max(4, full // self.shrink)

    def random(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Normal numbers, the same ones for the same seed."""
        numbers = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=numbers, device=self.device).to(self.dtype)


def absence() -> str | None:
    """Why there is nothing to measure here, in a sentence."""
    if not torch.cuda.is_available():
        return "there is no GPU to measure: torch.cuda.is_available() is False"
    return None


def environment() -> dict[str, str]:
    """The columns of a row that a GPU changes."""
    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    card = f"{torch.cuda.get_device_name()} (sm_{major}{minor}, CUDA {torch.version.cuda}, cuDNN {cudnn()})"
    return {"device": card, "torch": torch.__version__, "triton": metadata.version("triton")}


def cudnn() -> str:
    """The version of cuDNN."""
    return str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


def sample(call: Call, repeats: int) -> float:
    """Seconds for one call, averaged over `repeats` calls; on a CPU by wall time."""
    if not torch.cuda.is_available():
        return measure.sample(call, repeats)
    waste = _waste(torch.cuda.current_device())
    marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]  # type: ignore[no-untyped-call]
    for before, after in zip(marks[::2], marks[1::2], strict=True):
        waste.zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    spent = [before.elapsed_time(after) for before, after in zip(marks[::2], marks[1::2], strict=True)]
    return float(sum(spent)) / 1e3 / repeats


def reason(error: Exception) -> str:
    """The kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def start_afresh() -> None:
    """Frees what the last group has left, and forgets what torch has compiled for it."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def _waste(index: int) -> torch.Tensor:
    return torch.empty(FLUSHED, dtype=torch.uint8, device=torch.device("cuda", index))


def captured(call: Call) -> Call:
    """The call as a graph, to be replayed; the call itself where there is no GPU to capture it.

    Raises:
        RuntimeError: it waits for the GPU, or allocates in a way that a graph cannot repeat.
    """
    if not torch.cuda.is_available():
        return call
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
