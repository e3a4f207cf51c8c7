"""What a layer keeps outside of training: its expression with the weights folded, for each kind of input."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from convein.execution.ops import is_untraced
from convein.expression import Expression
from convein.operands import is_dense

# How many kinds of input a layer remembers.
_REMEMBERED = 64

_thread = threading.local()

# Weights as they were: which objects, how often written to, and where their numbers lie.
_State = tuple[tuple[int, int, int], ...]


@contextmanager
def unfolded() -> Iterator[None]:
    """Here no layer folds: what a call returns, to the last bit, does not depend on the calls before it."""
    before = getattr(_thread, "unfolded", False)
    _thread.unfolded = True
    try:
        yield
    finally:
        _thread.unfolded = before


def may_fold(input: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether nothing here needs the weights themselves: no gradient, no graph, no change in sight.

    Nor where the same bits are wanted of every call: a folded expression adds in another order. Weights that are
    computed anew for every call (parametrized, pruned, passed by `functional_call`) are no parameters, and change each
    time.
    """
    return (
        is_untraced()
        and not getattr(_thread, "unfolded", False)
        and not torch.are_deterministic_algorithms_enabled()
        and _get_current_dispatch_mode() is None
        and type(input) in (Tensor, nn.Parameter)
        and is_dense(input)
        and all(type(weight) is nn.Parameter and not weight.is_meta and not weight.is_inference() for weight in weights)
        and not _need_gradients(weights)
        and not input.is_meta
        and not torch.is_autocast_enabled(input.device.type)
    )


def are_learning(weights: Sequence[Tensor]) -> bool:
    """Whether gradients go to weights here and now: they will change, and a fused optimizer's step leaves no trace."""
    return is_untraced() and _need_gradients(weights)


def _need_gradients(weights: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)


class Folds:
    """The expressions of one layer with its weights folded, by the kind of input.

    An expression is made when a kind of input comes for the second time with the same weights, and used as long as they
    stay the same: inputs that are all different, or weights that change between calls, cost no compilations. Copies
    and pickles are empty, since what they hold are other weights.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[_State, Sequence[Tensor], Expression | None]] = {}

    def __reduce__(self) -> tuple[type[Folds], tuple[()]]:
        return Folds, ()

    def __len__(self) -> int:
        return sum(expression is not None for _, _, expression in list(self._known.values()))

    def clear(self) -> None:
        """Forgets them all."""
        self._known.clear()

    def find(
        self, call: Hashable, input: Tensor, weights: Sequence[Tensor], fold: Callable[[Sequence[Tensor]], Expression]
    ) -> Expression | None:
        """The expression to be called with the input, or None if this is the first of its kind.

        Args:
            call: what tells apart the expressions that the layer evaluates.
            input: only its kind matters: shape, layout, dtype, device, whether it needs a gradient.
            weights: of the layer.
            fold: compiles the expression for the values of the weights.
        """
        layout = input.is_contiguous() or input.stride()
        needs_grad = input.requires_grad and torch.is_grad_enabled()
        key = (call, input.shape, layout, input.dtype, input.device, needs_grad)
        state = tuple([(id(weight), weight._version, weight.data_ptr()) for weight in weights])
        before, _, expression = self._known.get(key, (None, (), None))
        if before == state and expression is not None:
            return expression
        if len(self._known) >= _REMEMBERED and key not in self._known:
            self._known.clear()
        # Held for as long as they are compared: another tensor may not get the place of one that is gone.
        held = [*weights, *(weight.detach() for weight in weights)]
        made = self._shared(fold(held[len(weights) :])) if before == state else None
        self._known[key] = state, held, made
        return made

    def _shared(self, made: Expression) -> Expression:
        """What is folded for several inputs is often the same tensor, the dense weight say: it is kept once."""
        return made.sharing([other for _, _, other in list(self._known.values()) if other is not None])
