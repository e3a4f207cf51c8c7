"""What orthogonal layers share: a weight made of factors, kept while nothing changes, or made all together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.execution.ops import is_untraced
from convein.layers.sc_fac.factors import Factor, orthogonal_matrices
from convein.options import shown

# Where a tensor was found, by which name, which it was, how often written to, and where its numbers lay.
_Source = tuple[Mapping[str, Tensor | None], str, Tensor, int, int]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Made:
    """A weight, and what it was made from: held, so that no other tensor can get its place.

    Attributes:
        sources: the tensors; none where nobody would tell of their changes.
        parts: where each factor was found, by which name, it, and how it makes matrices.
        weight: it.
    """

    sources: tuple[_Source, ...]
    parts: tuple[tuple[Mapping[str, nn.Module | None], str, Factor, str], ...]
    weight: Tensor

    def is_current(self) -> bool:
        """Whether the layer still has these factors and tensors, and nobody wrote to them."""
        for place, name, factor, map in self.parts:
            if place.get(name) is not factor or factor.map != map:
                return False
        for holder, name, tensor, version, pointer in self.sources:
            if holder.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return bool(self.sources)


# Weights by the layer's identity, of the models that are within `orthogonal_weights` now.
_SHARED: ContextVar[Mapping[int, _Made] | None] = ContextVar("_SHARED", default=None)


class OrthogonalLayer(nn.Module, ABC):
    """A layer whose weight is a function of orthogonal matrices.

    Outside of training, where no gradient goes to the parameters, the weight is computed once and kept: a call is then
    an ordinary convolution or product. It is forgotten when the layer trains or moves again and when a parameter
    changes. Only what is written past autograd is not seen: after `parameter.data.copy_(...)` call `layer.eval()`.
    """

    bias: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self._kept: _Made | None = None
        self._lent: ReferenceType[_Made] | None = None

    @abstractmethod
    def factors(self) -> list[Factor]:
        """The orthogonal matrices that the weight is made of."""

    @abstractmethod
    def assembled(self, matrices: Sequence[Tensor]) -> Tensor:
        """The weight of these matrices, one for each factor."""

    def dense_weight(self) -> Tensor:
        """The weight, laid out as that of torch's layer of the same kind, differentiably."""
        if not is_untraced():
            return self._made().weight
        kept = self._kept
        if kept is not None and not self.training and kept.is_current() and not self._needs_gradients():
            return kept.weight
        shared = self._shared()
        if shared is not None and shared.is_current() and (shared.weight.requires_grad or not self._needs_gradients()):
            if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
                return shared.weight
            weight: Tensor = _Held.apply(shared.weight, shared)  # type: ignore[no-untyped-call]
            return weight
        self._kept = None
        made = self._made()
        if not self.training and self._may_keep():
            made = self._kept = replace(made, weight=made.weight.contiguous())
        return made.weight

    def _shared(self) -> _Made | None:
        """What was made together with other layers' weights, within the block or by what recomputes a part of it."""
        shared = (_SHARED.get() or {}).get(id(self))
        if shared is None and self._lent is not None and torch._C._current_graph_task_id() >= 0:
            shared = self._lent()
        if shared is not None and shared.weight.is_inference() and not torch.is_inference_mode_enabled():
            return None
        return shared

    def _needs_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(factor.free.requires_grad for factor in self.factors())

    def _may_keep(self) -> bool:
        """Whether the numbers stay where they are: they are parameters, of the layer itself, and do not learn.

        What is made in inference mode can be used there only.
        """
        return not (torch.is_inference_mode_enabled() or self._needs_gradients()) and all(
            type(factor.free) is nn.Parameter and not factor.free.is_meta for factor in self.factors()
        )

    def _sources(self) -> Iterator[_Source]:
        """All tensors of the layer of which it is told when they change."""
        for factor in self.factors():
            for place, name, tensor in (
                (factor._parameters, "free", factor.free),
                (factor._buffers, "base", factor.base),
            ):
                if name in place and not tensor.is_inference():
                    yield place, name, tensor, tensor._version, tensor.data_ptr()

    def _parts(self) -> Iterator[tuple[Mapping[str, nn.Module | None], str, Factor, str]]:
        """All factors, with the places in which others might be put."""
        for module in self.modules():
            for name, part in module._modules.items():
                if isinstance(part, Factor):
                    yield module._modules, name, part, part.map

    def _made(self, matrices: Sequence[Tensor] | None = None) -> _Made:
        factors = self.factors()
        device = factors[0].base.device
        # Of half precision the cascade would lose what makes the weight orthogonal; the weight itself may be rounded.
        with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False):
            weight = self.assembled(orthogonal_matrices(factors) if matrices is None else matrices)
        if not is_untraced():
            return _Made((), (), weight)
        sources = tuple(self._sources())
        return _Made(sources if len(sources) == 2 * len(factors) else (), tuple(self._parts()), weight)

    def train(self, mode: bool = True) -> Self:
        """Also forgets the weight."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *given: Any, **named: Any) -> Self:
        self._kept = None
        super()._apply(*given, **named)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_lent": None}


class _Held(torch.autograd.Function):
    """The weight, which is there as long as the graph that it is in: for calls whose saved tensors somebody packs.

    A part that is checkpointed saves nothing, and is computed again in the backward pass, perhaps after the block that
    lent the weight: it must find the same one, since its own would save other tensors than the first time.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, made: _Made) -> Tensor:
        ctx.made = made
        return weight.view_as(weight)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@contextmanager
def orthogonal_weights(model: nn.Module) -> Iterator[None]:
    """Within it, the orthogonal layers of a model use weights that were made once, together.

    Small matrices of one size share one exponential; on a CPU large ones are taken one by one.

    Enter it for every step of training, with the backward pass inside or outside, and what is recomputed in it
    (`torch.utils.checkpoint` with `use_reentrant=False`) uses the same weights. Weights are differentiable if they
    are when it is entered; a layer whose parameters change within it makes its own weight again. What is traced
    (compiled, exported, transformed) makes its weights by itself. Weights that are kept outside of training stay so.

    All calls within it share one graph: to accumulate gradients over several backward passes, enter it for each, or add
    up the losses, or pass `retain_graph=True` to all but the last.

    Args:
        model: any module with orthogonal layers.

    Raises:
        OptionError: it has none.
    """
    layers = [module for module in model.modules() if isinstance(module, OrthogonalLayer)]
    if not layers:
        raise OptionError(f"{shown(type(model).__name__)} has no orthogonal layers", hint="OrthogonalConv2d, ...")
    if not is_untraced():
        yield
        return
    making = [layer for layer in layers if layer.training or not layer._may_keep()]
    matrices = iter(orthogonal_matrices([factor for layer in making for factor in layer.factors()]))
    made = {id(layer): layer._made([next(matrices) for _ in layer.factors()]) for layer in making}
    for layer in making:
        layer._lent = ref(made[id(layer)])
    before = _SHARED.set({**(_SHARED.get() or {}), **made})
    try:
        yield
    finally:
        _SHARED.reset(before)


def channel_axis(input: Tensor, dim: int) -> int:
    """The dimension of the channels, counted from the front.

    Raises:
        ShapeError: the input has no such dimension.
    """
    if not -input.dim() <= dim < input.dim():
        raise ShapeError(
            f"an input of {tuple(input.shape)} has no channels at dim={dim}",
            hint="dim=-1 for vectors, dim=-3 for pictures without a batch",
        )
    return dim % input.dim()


def check_channels(name: str, found: int, wanted: int) -> None:
    """An input has the channels that a layer takes.

    Raises:
        ShapeError: it has others.
    """
    if found != wanted:
        raise ShapeError(f"an input with {found} {name}", hint=f"this layer takes {wanted}")
