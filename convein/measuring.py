"""The best few programs of a call -> the fastest: each is run on the call's own operands, in turns.

Nothing of it is seen outside: the operands are detached, gradients go nowhere, no random number is drawn from torch's
generators, and everything runs in a thread of its own, where no mode, hook or transform of the caller is switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from torch.nn import Parameter

from convein.lowering import Program, Target, lower
from convein.metering import Sample
from convein.network import Network
from convein.planner.candidates import candidates, chained

# So many programs are timed, those that should be the fastest of so many orders for each.
TIMED = 5
ORDERS = 3
# After two calls, what takes so many times longer than the fastest is out.
HOPELESS = 1.5
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
# The rounds together take about so long, and a bar appears if they take much longer.
SECONDS = 0.2
LONG_SECONDS = 4.0

_turn = Lock()


def is_wanted(optimize: object) -> bool:
    """Whether `optimize` asks for measuring."""
    return isinstance(optimize, str) and optimize.lower() == "measure"


def is_possible(device: torch.device, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether times may decide here and now.

    Not in a trace, nor where a mode watches the calls; not on tensors without data; not where several processes must
    do the same, nor where the next run must do what this one does.
    """
    if device.type not in ("cpu", "cuda") or torch.are_deterministic_algorithms_enabled():
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    if torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack():
        return False
    if device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing()):
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return all(type(tensor) in (torch.Tensor, Parameter) and not wrapped(tensor) for tensor in tensors)


def programs(
    network: Network, target: Target, orders: Sequence[tuple[int, ...]], options: Mapping[str, Any], count: int = TIMED
) -> list[Program]:
    """The `count` programs worth timing, the most promising first: of the best orders those with the lowest price.

    Where there are kernels, as many without them are timed too.

    Args:
        network: what is planned.
        target: what they will run on.
        orders: how the operands lie in memory, as for `lower`.
        options: what `candidates` is told.
        count: how many.
    """
    plans = [*candidates(network, ORDERS * count, **options)]
    targets = [target]
    if target.refusal is not None:
        plans += chained(network, ORDERS * count, **options)
        targets += [] if target.forced else [replace(target, refusal=None, absence="measured to be slower")]
    found: dict[str, Program] = {}
    for aimed in targets:
        lowered = (lower(replace(plan, optimizer="measure"), aimed, orders) for plan in plans)
        own = {program.source: program for program in lowered if program.source not in found}
        found |= {program.source: program for program in sorted(own.values(), key=_price)[:count]}
    return sorted(found.values(), key=_price)


def _price(program: Program) -> float:
    return program.price


def fastest(
    functions: Sequence[Callable[..., Any]], operands: Sequence[torch.Tensor | Sample], grads: Sequence[bool]
) -> int:
    """The place of the function that takes least, backward pass included where gradients are needed.

    One that fails, for want of memory perhaps, is none; if all fail, or have no operands, it is the first.

    Args:
        functions: they do the same; the most promising first.
        operands: what they are called with; a sample stands for random numbers like it.
        grads: for each of them, whether its gradient is needed.
    """
    if len(functions) == 1 or not operands:
        return 0
    device = torch.device(operands[0].device)
    autocast = torch.autocast(
        device.type, torch.get_autocast_dtype(device.type), enabled=torch.is_autocast_enabled(device.type)
    )

    def run() -> int:
        with autocast, torch.set_grad_enabled(any(grads)), _on(device):
            mine = [_own(operand, grad) for operand, grad in zip(operands, grads, strict=True)]
            return _compete([_job(function, mine) for function in functions], device)

    with _turn, ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, to the end of what it starts."""
    started = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started


def _compete(jobs: Sequence[Callable[[], object]], device: torch.device) -> int:
    """The place of the job with the least time over some rounds."""
    best: dict[int, float] = {}
    for place, job in enumerate(jobs):
        try:
            seconds(job, device)  # the first call makes what later ones use again
            best[place] = seconds(job, device)
        except RuntimeError:
            continue
    if not best:
        return 0
    limit = HOPELESS * min(best.values())
    best = {place: spent for place, spent in best.items() if spent <= limit}
    total = max(sum(best.values()), 1e-9)
    rounds = min(max(int(SECONDS / total), LEAST_ROUNDS), MOST_ROUNDS)
    if len(best) > 1:
        for _ in _bar(rounds) if rounds * total > LONG_SECONDS else range(rounds):
            best = {place: min(spent, seconds(jobs[place], device)) for place, spent in best.items()}
    return min(best, key=best.__getitem__)


def _bar(rounds: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return range(rounds)
    return tqdm(range(rounds), desc="convein measures", leave=False)


def _job(function: Callable[..., Any], operands: Sequence[torch.Tensor]) -> Callable[[], object]:
    """A call, with the backward pass to those operands that want gradients."""
    leaves = [operand for operand in operands if operand.requires_grad]
    if not leaves:
        return lambda: function(*operands)

    def train() -> object:
        result = function(*operands)
        return torch.autograd.grad(result, leaves, torch.ones_like(result), allow_unused=True)

    return train


def _own(operand: torch.Tensor | Sample, grad: bool) -> torch.Tensor:
    """A leaf of its own: the data of a tensor, or for a sample random numbers of a generator of its own."""
    if isinstance(operand, torch.Tensor):
        return operand.detach().requires_grad_(grad)
    made = operand.make().detach()
    numbers = torch.Generator(made.device).manual_seed(0)
    if made.is_floating_point() or made.is_complex():
        return made.normal_(generator=numbers).requires_grad_(grad)
    return made.random_(0, 2, generator=numbers)


def _on(device: torch.device) -> Any:
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.synchronize(device)
    return torch.cuda.device(device)
