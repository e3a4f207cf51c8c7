"""Program -> what each of its statements makes, keeps and takes: run one by one on tensors without memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convein.execution import kernels, ops
from convein.lowering import Program, Statement
from convein.lowering.checkpoint import Demand
from convein.lowering.program import OPS
from convein.metering import Sample, isolated, storages

# One core of a recent machine: operations and bytes a microsecond. Only their ratio matters here.
FLOPS, BYTES = 1e5, 1e4
CALL = 2.0
_NAMES = {"torch": torch, "F": F, "kernel": kernels.kernel, **{name: getattr(ops, name) for name in OPS}}


def observe(program: Program, samples: Sequence[Sample]) -> list[Demand]:
    """What the statements of a program demand on operands like these."""

    def run() -> list[Demand]:
        operands = [sample.make() for sample in samples]
        names: dict[str, Any] = dict(zip(program.parameters, operands, strict=True))
        given = {storage._cdata for storage in storages(operands)}
        with torch.set_grad_enabled(any(sample.grad for sample in samples)):
            return [_demand(statement, names, given) for statement in program.statements]

    return isolated(run, samples, autocast_off=bool(program.autocast_off))


def _demand(statement: Statement, names: dict[str, Any], given: set[int]) -> Demand:
    """Runs one statement. All earlier values are alive, so that a storage's address says which one it is."""
    clock = _Clock()
    saved: dict[int, int] = {}
    until_saved = 0.0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal until_saved
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            saved[storage._cdata] = storage.nbytes()
        until_saved = clock.time
        return tensor

    with clock, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = eval(statement.expression, _NAMES, names)
    names[statement.target] = made
    if not isinstance(made, torch.Tensor):
        return Demand(0, is_tensor=False, saves=frozenset(), unnamed=0, time=0.0, until_saved=0.0)
    read = {name: key for name in statement.uses for key in _keys(names[name])}
    own = made.untyped_storage()
    return Demand(
        bytes=0 if own._cdata in given else own.nbytes(),
        is_tensor=True,
        saves=frozenset(name for name, key in read.items() if key in saved),
        unnamed=sum(size for key, size in saved.items() if key not in read.values()),
        time=clock.time,
        until_saved=until_saved,
    )


class _Clock(TorchDispatchMode):
    """Adds up what calls of torch are expected to take, in microseconds; views take nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.time = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        read = {storage._cdata: storage.nbytes() for storage in storages((args, kwargs))}
        written = {storage._cdata: storage.nbytes() for storage in storages(made)}
        if not written.keys() <= read.keys():
            moved = sum((read | written).values())
            self.time += CALL + _flops(func.overloadpacket.__name__, args, made) / FLOPS + moved / BYTES
        return made


def _flops(name: str, args: Sequence[Any], made: Any) -> int:
    if name in {"mm", "bmm", "_linear_pointwise"}:
        return int(2 * made.numel() * args[0].shape[-1])
    if name == "convolution":
        signal, weight, *_ = args
        transposed = args[6]
        return int(2 * (signal if transposed else made).numel() * weight[0].numel()) if weight.numel() else 0
    return 0


def _keys(value: Any) -> list[int]:
    return [storage._cdata for storage in storages(value)]
