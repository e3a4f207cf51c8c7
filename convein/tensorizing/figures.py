"""What a layer costs: parameters, multiplications, expected time, memory kept for the backward pass."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convein.expression import Expression
from convein.layers.factorised import Factorised
from convein.metering import Sample


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one layer in one forward pass of its model; all but the parameters are None where its inputs are unknown.

    Attributes:
        parameters: entries of its weights and its bias.
        multiplies: multiplications forward; what is computed of weights alone once, in evaluation, is not counted.
        time: microseconds that the time model expects, in training with the backward pass.
        saved: bytes that autograd keeps for the backward pass besides the layer's input and weights.
    """

    parameters: int
    multiplies: int | None = None
    time: float | None = None
    saved: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicts what layers cost; nothing is run. A model has many equal layers: each kind is planned once.

    Attributes:
        training: whether times are those of a training step.
    """

    training: bool
    _known: MutableMapping[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def figures(self, layer: Factorised, inputs: Sequence[Sample] | None) -> Figures:
        """All figures.

        Args:
            layer: its weights need no values.
            inputs: of each of its calls; None where they are unknown.
        """
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        if inputs is None:
            return Figures(parameters)
        calls = [self._compiled(layer, sample.shape, grad=self.training) for sample in inputs]
        saved = sum(self._saved(layer, sample.shape) for sample in inputs)
        return Figures(parameters, sum(call.plan.macs for call in calls), sum(call.price for call in calls), saved)

    def time(self, layer: Factorised, inputs: Sequence[Sample]) -> float:
        """Microseconds that all calls are expected to take."""
        return sum(self._compiled(layer, sample.shape, grad=self.training).price for sample in inputs)

    def _compiled(self, layer: Factorised, shape: tuple[int, ...], *, grad: bool) -> Expression:
        key = _kind(layer, shape), grad
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = layer.compiled(shape, grad=grad)
        compiled: Expression = found
        return compiled

    def _saved(self, layer: Factorised, shape: tuple[int, ...]) -> int:
        key = _kind(layer, shape), "saved"
        if key not in self._known:
            self._known[key] = self._compiled(layer, shape, grad=True).saved_bytes
        saved: int = self._known[key]
        return saved


def _kind(layer: Factorised, shape: tuple[int, ...]) -> object:
    """What two layers that cost the same have in common."""
    weight = layer.weights[0]
    shapes = tuple(tuple(one.shape) for one in layer.weights)
    return layer.expression, shapes, shape, weight.dtype, weight.device, repr(sorted(layer.planning.items()))
