"""Bytes that torch keeps: counted while tensors live and die, or predicted on tensors that have no memory at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convein.execution.ops import predicting

T = TypeVar("T")


class MemoryCapError(RuntimeError):
    """More bytes are alive than a `LiveMemory` allows."""


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside the context and are still alive.

    A storage counts once, however many views it has, from the call of torch that returns it until it is freed, also
    after the context. What was there before is not counted, nor is what a call of torch needs for itself. Meta and fake
    tensors count as real ones would.

    Args:
        cap: bytes; a call that leaves more of them alive raises `MemoryCapError`.

    Attributes:
        live: bytes that are alive now.
        peak: the most that have been alive so far.
    """

    def __init__(self, cap: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cap = cap
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one call of torch. A storage that comes in unknown was there before the context."""
        for storage in storages((args, kwargs)):
            self._add(storage, 0)
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            self._add(storage, storage.nbytes())
        self.peak = max(self.peak, self.live)
        if self.cap is not None and self.live > self.cap:
            raise MemoryCapError(f"{self.live} bytes are alive after {func}, and the cap is {self.cap}")
        return made

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self.live += size
            self._known[key] = weakref.finalize(storage, self._remove, key, size)
            self._known[key].atexit = False

    def _remove(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


class SavedMemory:
    """Counts the bytes of all storages that autograd keeps for the backward pass of what is computed in the context.

    A storage counts once, however many tensors of it are kept.

    Args:
        operands: tensors whose storages do not count.
    """

    def __init__(self, operands: Iterable[torch.Tensor] = ()) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        # The weak references keep other storages from getting these addresses.
        self._references = [_reference(storage) for storage in storages(list(operands))]
        self._sizes = {reference.cdata: 0 for reference in self._references}

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)

    @property
    def bytes(self) -> int:
        """Bytes kept so far."""
        return sum(self._sizes.values())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        reference = _reference(storage)
        if reference.cdata not in self._sizes:
            self._sizes[reference.cdata] = storage.nbytes()
            self._references.append(reference)
        return tensor


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a call takes, in bytes, its operands excluded.

    Attributes:
        saved: partial results that autograd keeps for the backward pass.
        peak: the most that is alive at any time of the call and, where gradients are needed, of its backward pass. The
            result and, with a backward pass, the gradient that comes for it stay alive to the end; the operands'
            gradients count too.
    """

    saved: int
    peak: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one operand of a call is like.

    Attributes:
        shape: its sizes.
        dtype: its numbers.
        device: where it is: "cpu", "cuda", ....
        strides: how far apart neighbours along each axis are in memory; empty where it is contiguous.
        grad: whether its gradient is needed.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    strides: tuple[int, ...] = ()
    grad: bool = False

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Sample:
        """What a tensor is like."""
        made = cls(tuple(tensor.shape), tensor.dtype, str(tensor.device), grad=tensor.requires_grad)
        return made.placed_as(tensor)

    def placed_as(self, tensor: torch.Tensor | None) -> Self:
        """The same, in memory as a tensor of this shape is; as it was if there is none, or if that is not known yet."""
        if tensor is None or tensor.is_contiguous() or not all(type(step) is int for step in tensor.stride()):
            return self
        return replace(self, strides=tuple(tensor.stride()))

    def make(self) -> torch.Tensor:
        """A tensor like that."""
        inexact = self.dtype.is_floating_point or self.dtype.is_complex
        # torch has no gradients of a GPU's tensors where it knows no GPU, not even of those without memory.
        device = "meta" if self.device.startswith("cuda") and not torch.cuda.is_available() else self.device
        kind: dict[str, Any] = {"dtype": self.dtype, "device": device, "requires_grad": self.grad and inexact}
        if self.strides:
            return torch.empty_strided(self.shape, self.strides, **kind)
        return torch.empty(self.shape, **kind)


def memory_order(x: torch.Tensor) -> tuple[int, ...]:
    """The axes of a tensor from the slowest to the fastest in memory; empty where that is their own order."""
    if x.is_contiguous():
        return ()
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda axis: -strides[axis]))


def footprint(function: Callable[..., torch.Tensor], operands: Sequence[torch.Tensor]) -> Footprint:
    """Measures one call, and a backward pass to those operands that require gradients."""
    wanted = [operand for operand in operands if operand.requires_grad]
    with torch.set_grad_enabled(bool(wanted)), LiveMemory() as live:
        with SavedMemory(operands) as saved:
            result = function(*operands)
        if wanted and result.requires_grad:
            gradient = torch.empty_like(result)
            gradients = torch.autograd.grad(result, wanted, gradient, allow_unused=True)
            del gradients
    return Footprint(saved.bytes, live.peak)


def predict(
    function: Callable[..., torch.Tensor], samples: Sequence[Sample], *, autocast_off: bool = False
) -> Footprint:
    """What `footprint` would measure on such operands; no memory is touched, and no data is computed."""
    return isolated(
        lambda: footprint(function, [sample.make() for sample in samples]), samples, autocast_off=autocast_off
    )


def isolated(run: Callable[[], T], samples: Sequence[Sample], *, autocast_off: bool = False) -> T:
    """Calls a function that makes tensors from these samples, where all new tensors are fake ones.

    It runs in a thread of its own, where nothing is switched on that the caller may be in: tracing, transforms, hooks,
    autocast (but for operands of several dtypes, which need it, unless `autocast_off` says that they are converted).
    """
    device = samples[0].device if samples else "cpu"
    mixed = not autocast_off and any(sample.dtype != samples[0].dtype for sample in samples)
    autocast = torch.autocast(device, torch.get_autocast_dtype(device), enabled=True) if mixed else nullcontext()

    def inside() -> T:
        from torch._subclasses import FakeTensorMode

        with FakeTensorMode(), autocast, predicting():
            return run()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(inside).result()


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The memory of all tensors in it."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _reference(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]
