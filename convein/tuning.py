"""Finds the fastest configuration of every kernel that a call launches, when it is asked to, and never by itself.

Which kernels run is the plan's affair; how they cut their work into tiles is a guess, made for one GPU. `tune` runs a
call once, takes every kind of launch in it by itself, and times what the kernel's file offers for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map_only

from convein.errors import OptionError, PlanError
from convein.execution import kernels
from convein.execution.ops import is_untraced
from convein.options import shown

# A call -> its microseconds.
Timer = Callable[[Callable[[], object]], float]

# Every configuration is timed so often, in turns.
ROUNDS = 3
# A configuration takes the place of another one if it needs at most this part of its time.
MARGIN = 0.97


@dataclass(frozen=True, slots=True)
class Tuned:
    """One kind of launch.

    Attributes:
        kernel: its name.
        key: what its configuration depends on: sizes in powers of two, dtypes.
        before, after: the configuration that ran, and the one that will.
        microseconds_before, microseconds_after: of one launch with them.
        tried: how many configurations were timed.
    """

    kernel: str
    key: tuple[int | str, ...]
    before: Any
    after: Any
    microseconds_before: float
    microseconds_after: float
    tried: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tune` found; `print` it.

    Attributes:
        device: the GPU's name.
        rows: every kind of launch, in the order of the call.
        file: where the choices are kept for later processes; None if they are not.
    """

    device: str
    rows: tuple[Tuned, ...]
    file: Path | None

    def __str__(self) -> str:
        """The table."""
        cells = [("kernel", "sizes", "before", "us", "after", "us")]
        cells += [
            (
                row.kernel,
                " ".join(map(str, row.key)),
                _words(row.before),
                f"{row.microseconds_before:.1f}",
                _words(row.after) if row.after != row.before else "the same",
                f"{row.microseconds_after:.1f}",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = [
            "  ".join(
                cell.rjust(n) if at in (3, 5) else cell.ljust(n) for at, (cell, n) in enumerate(zip(line, widths))
            )
            for line in cells
        ]
        total = [sum(getattr(row, name) for row in self.rows) for name in ("microseconds_before", "microseconds_after")]
        kept = f"kept in {self.file}" if self.file else "for this process"
        last = f"{self.device}, one launch of each: {total[0]:.1f} -> {total[1]:.1f} us, {kept}"
        return "\n".join([*(line.rstrip() for line in aligned), last])


def tune(
    function: Callable[..., Any], *arguments: Any, timer: Timer | None = None, save: bool = True, **keywords: Any
) -> Tuning:
    """Times the configurations of every kernel that a call launches on this GPU; the fastest serve from now on.

    The call is made once, with its backward pass if the result needs gradients: those go nowhere. It takes seconds for
    each kind of launch. The choices hold for every later call in this process with sizes in the same powers of two, and
    are read by later processes when their first kernel is launched, unless CONVEIN_CALIBRATION=off says no, algorithms
    must be deterministic, or they are part of a distributed group. A captured CUDA graph stays what it is.

    Args:
        function: a layer, an Expression, `conv_einsum`, a whole model.
        *arguments: as for a call of it, of the sizes to tune for.
        timer: microseconds of a call, `triton.testing.do_bench` by default.
        save: keep the choices in the user's cache folder.
        **keywords: as for a call.

    Returns:
        What was chosen, and how long it takes.

    Raises:
        PlanError: no kernel can run here, or the call launches none.
        OptionError: something cannot be called.
    """
    for name, given in (("function", function), ("timer", timer)):
        if not callable(given) and not (name == "timer" and given is None):
            raise OptionError(
                f"{name}={shown(given)} cannot be called",
                hint='first what is to be called, then its arguments: convein.tune(conv_einsum, "ij,jk->ik", x, w)',
            )
    reason, hint = _obstacle()
    if reason:
        raise PlanError(f"there is nothing to tune: {reason}", hint=hint)
    table = kernels.load("tuning")
    launches = _recorded(table, function, arguments, keywords)
    if not launches:
        raise PlanError(
            "there is nothing to tune: the call launched no kernel that has a choice",
            hint="convein.compile(...).explain() says which kernels run and why others do not; layers.explain(...) too",
        )
    # A thread of its own has none of the caller's modes, hooks and contexts.
    with ThreadPoolExecutor(1) as pool:
        rows = pool.submit(lambda: tuple(_tuned(table, launches, timer))).result()
    return Tuning(table.device_name(launches[0].device), rows, table.keep() if save else None)


def _obstacle() -> tuple[str, str]:
    """Why nothing can be tuned here and now, and what would help; two empty strings if it can."""
    if not is_untraced() or _get_current_dispatch_mode() is not None:
        return "something traces or transforms this call", "call tune before, with ordinary tensors"
    operators = kernels.operators()
    if operators is None:
        return "the kernels are written in triton, and 3.6 or newer is not installed", "pip install triton"
    if operators.INTERPRETED:
        return "", ""
    if not torch.cuda.is_available():
        return "the kernels run on a GPU, and torch finds none", "call tune on the machine whose GPU it is for"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured", "call tune before it"
    return kernels.absence("cuda") or "", "convein runs as calls of torch here"


def _recorded(table: Any, function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """The launches of a call on tensors that are leaves of it, and of its backward pass."""
    arguments, keywords = tree_map_only(
        torch.Tensor, lambda x: x.detach().requires_grad_() if x.requires_grad else x.detach(), (arguments, keywords)
    )
    with table.recording() as recorder:
        results = tree_leaves(function(*arguments, **keywords))
        ends = [x for x in results if isinstance(x, torch.Tensor) and x.grad_fn is not None]
        leaves = list(_leaves(ends))
        if leaves:
            # What belongs to the caller's own graph must still be there afterwards.
            torch.autograd.grad(ends, leaves, [*map(torch.ones_like, ends)], retain_graph=True, allow_unused=True)
    return recorder.launches


def _leaves(ends: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors that the graph behind these ends in."""
    waiting: list[Any] = [x.grad_fn for x in ends]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for other, _ in node.next_functions:
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)


def _tuned(table: Any, launches: Sequence[Any], timer: Timer | None) -> Iterator[Tuned]:
    from tqdm import tqdm

    total = ROUNDS * sum(len(launch.configurations) for launch in launches)
    with tqdm(total=total, desc="convein tunes", leave=False) as bar, torch.no_grad():
        for launch in launches:
            device = launch.device
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                found = _times(launch, timer or (_on_gpu if device.type == "cuda" else _on_cpu), bar.update)
            before = launch.before
            fastest = min(found, key=found.__getitem__)
            after = fastest if found[fastest] <= MARGIN * found[before] else before
            table.adopt(launch, after)
            yield Tuned(launch.kernel, launch.key, before, after, found[before], found[after], len(found))


def _times(launch: Any, timer: Timer, advance: Callable[[], object]) -> dict[Any, float]:
    """Medians over the rounds; a configuration that this GPU cannot build is none, unless it is the one that ran."""
    samples: dict[Any, list[float]] = {configuration: [] for configuration in launch.configurations}
    for _ in range(ROUNDS):
        for configuration in launch.configurations:
            advance()
            if configuration not in samples:
                continue
            try:
                samples[configuration].append(timer(lambda one=configuration: launch(one)))  # type: ignore[misc]
            except kernels.build_errors():
                if configuration == launch.before:
                    raise
                del samples[configuration]
    return {configuration: statistics.median(spent) for configuration, spent in samples.items()}


def _on_gpu(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return 1e3 * float(do_bench(call, warmup=10, rep=40, return_mode="median"))


def _on_cpu(call: Callable[[], object]) -> float:
    """For the interpreter."""
    started = perf_counter()
    call()
    return 1e6 * (perf_counter() - started)


def _words(configuration: Any) -> str:
    return " ".join(f"{field.name}={getattr(configuration, field.name)}" for field in fields(configuration))
