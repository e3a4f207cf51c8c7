"""ConvEinsum: an nn.Module made of an expression string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from convein.dialect import Dialect
from convein.errors import ConveinError, OperandError, OptionError
from convein.expression import Expression
from convein.layers.bias import biased
from convein.layers.folding import Folds, are_learning, may_fold
from convein.layers.initial import Init, draw, standard_deviation
from convein.layers.misfits import input_of_another_kind
from convein.layers.parts import Parts, bias_parts, take_apart
from convein.pipeline import compile, conv_einsum  # noqa: A004
from convein.request import freeze


class ConvEinsum(nn.Module):
    """A layer that evaluates an expression: one operand is its input, the others are its weights.

    Outside of training, where no gradient goes to the weights, what depends on the weights alone is computed once for
    each shape of the input, when it comes for the second time, and kept, as much of it as makes the layer faster. It is
    forgotten when the layer trains or moves again and when a weight changes. Only what is written past autograd is not
    seen: after `weight.data.copy_(...)` call `layer.eval()`.

    Args:
        expression: as for `conv_einsum`, `"...shw,rt,rs,rh,rw->...thw|hw"`.
        sizes: the size of every mode that a weight has; of a convolved mode, that of the filters.
        names: names of the weights, in order; by default w1, w2, ...
        bias: the modes of the output that a bias has, as they are written there: "t", or "(g t)" for a composed one.
        input: the position of the input among the operands. It is the signal of the convolved modes it has.
        init: the variance that the dense weight of the expression gets: "kaiming" is 2 / fan_in (before a ReLU),
            "lecun" 1 / fan_in, "torch" 1 / (3 fan_in) as nn.Conv2d and nn.Linear draw theirs, a number is the gain,
            whose square stands over fan_in; None draws nothing. The draw is scaled to it exactly. A bias is drawn as
            that of torch's layers.
        device, dtype: of the weights.
        **options: those of `conv_einsum`: stride, padding, ..., optimize, memory_limit, checkpoint.

    Attributes:
        expression: the canonical text, every option of the convolutions included.

    Raises:
        ConveinError: whatever does not fit, with the place in the expression.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        expression: str,
        sizes: Mapping[str, int],
        *,
        names: Sequence[str] | None = None,
        bias: str | None = None,
        input: int = 0,
        init: Init | None = "kaiming",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        dialect: Dialect | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._parts: Parts = take_apart(expression, sizes, names, input, options, dialect)
        self.init = init
        self._folds = Folds()
        # Where the bias stands among the dimensions of the output.
        self._bias_view: tuple[int, ...] = ()
        if taken := {"bias", *dir(self)}.intersection(self._parts.names):
            raise OptionError(
                f"names={names!r}: {min(taken)} is something else of every layer", hint="choose another name"
            )
        if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
            raise OptionError(
                f"dtype={dtype!r} of weights", hint="weights are floating point or complex: dtype=torch.float32"
            )
        for name, shape in zip(self._parts.names, self._parts.shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter("bias", None)
        if bias is not None:
            shape, self._bias_view = bias_parts(self._parts, bias)
            self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if init is not None:
            self.reset_parameters()

    @property
    def expression(self) -> str:
        """The canonical text."""
        return self._parts.shown

    @property
    def planning(self) -> Mapping[str, Any]:
        """The options of its calls that are not the expression's."""
        return self._parts.given

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weights, in the order of the operands."""
        # Past nn.Module's slow __getattr__; what is parametrized or pruned is not there.
        known: dict[str, Any] = self._parameters
        return tuple([known[name] if name in known else getattr(self, name) for name in self._parts.names])

    def reset_parameters(self) -> None:
        """Draws all weights anew, and the bias."""
        draw(self._parts, self.weights, standard_deviation(self._parts, "kaiming" if self.init is None else self.init))
        if self.bias is not None:
            bound = self._parts.fan_in**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def dense_weight(self) -> Tensor:
        """The tensor that all weights make together, differentiably.

        Its dimensions are those that the weights share with the output, then those that they share with the input only,
        then the convolved modes: `F.conv2d(x, layer.dense_weight())` for the layers of a convolution. Several filters
        along one mode are one filter, as long as they reach together. What a dialect adds is not among the weights.
        """
        value: Tensor = conv_einsum(self._parts.dense, *self.weights, sizes=self._parts.given.get("sizes"))
        return value

    def forward(self, input: Tensor) -> Tensor:
        """The expression's value, and the bias.

        Args:
            input: the operand that the expression has at the input's place.
        """
        return self._biased(self._value(input, self._parts.text))

    def _biased(self, result: Tensor) -> Tensor:
        known: dict[str, Any] = self._parameters
        bias = known["bias"] if "bias" in known else self.bias  # noqa: SIM401 - as for the weights
        return result if bias is None else biased(result, bias.view(self._bias_view))

    def _value(self, input: Tensor, text: str, **more: Any) -> Tensor:
        """The value of the expression, which `more` says more about than the layer's own keywords."""
        weights, place, given = self.weights, self._parts.input, self._parts.given
        if more:
            given = {**given, **more}
        try:
            if not self.training and may_fold(input, weights):
                call = (text, freeze(more)) if more else text
                folded = self._folds.find(call, input, weights, lambda fixed: self._fold(input, fixed, text, given))
                if folded is not None:
                    found: Tensor = folded(input)
                    return found
            elif not self.training and are_learning(weights):
                self._folds.clear()
            value: Tensor = conv_einsum(text, *weights[:place], input, *weights[place:], **given)
        except ConveinError as error:
            plain = self._misfit(input, error)
            if plain is None:
                raise
            raise plain from None
        return value

    def _misfit(self, input: Tensor, error: ConveinError) -> ConveinError | None:
        """What is wrong with an input, in words that need no expression; None where the error itself says it best."""
        return input_of_another_kind(input, self.weights) if isinstance(error, OperandError) else None

    def _fold(
        self, input: Tensor | Sequence[int], fixed: Sequence[Tensor], text: str, given: Mapping[str, Any]
    ) -> Expression:
        place = self._parts.input
        numbers = [number for number in range(len(fixed) + 1) if number != place]
        return compile(text, *fixed[:place], input, *fixed[place:], constants=numbers, **given)

    def compiled(self, shape: Sequence[int], *, grad: bool) -> Expression:
        """The expression for inputs of one shape, as it is evaluated: `print` it, ask it for its price and bytes.

        Args:
            shape: of the input.
            grad: whether the input and the weights need gradients; if not, the weights are constants.
        """
        place, weights, given = self._parts.input, self.weights, {**self._parts.given, "grad": grad}
        if not grad:
            return self._fold(tuple(shape), [weight.detach() for weight in weights], self._parts.text, given)
        return compile(self._parts.text, *weights[:place], tuple(shape), *weights[place:], **given)

    def explain(self, shape: Sequence[int], *, grad: bool | None = None) -> str:
        """How inputs of one shape are evaluated: order, costs, program, and which kernels it calls, and why not others.

        It is `compiled(shape, grad=grad).explain()`, for the device and the dtype of the weights.

        Args:
            shape: of the input.
            grad: whether the input and the weights need gradients; by default, whether the layer is in training mode.

        Raises:
            ShapeError: the shape does not fit the layer.
        """
        return self.compiled(shape, grad=self.training if grad is None else grad).explain()

    def train(self, mode: bool = True) -> Self:
        """Also forgets what was folded."""
        self._folds.clear()
        return super().train(mode)

    def _apply(self, *given: Any, **named: Any) -> Self:
        self._folds.clear()
        super()._apply(*given, **named)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """The expression and the sizes of the modes."""
        sizes = ", ".join(f"{mode}={size}" for mode, size in self._parts.sizes.items())
        place = f", input={self._parts.input}" if self._parts.input else ""
        return f"{self.expression!r}, {sizes}{place}, bias={self.bias is not None}"
