"""The convolutional tensor-train: kernels of growing reach, composed of few and applied to several inputs at once.

J. Su, "Spectral Methods for Neural Network Designs", University of Maryland 2022, chapter 4; J. Su, W. Byeon et al.,
"Convolutional Tensor-Train LSTM for Spatio-Temporal Learning", NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.conv import each, positive
from convein.options import one_of, shown
from convein.pipeline import conv_einsum

# One stage of the train, by what lies outside of the picture. An input may be smaller than the kernel.
STAGE = {
    mode: f"...shw,tshw->...thw|h[padding_mode={mode}, signal=first], w[padding_mode={mode}, signal=first]"
    for mode in ("zeros", "circular")
}
PADDINGS = ("stage", "whole", "circular")
EVALUATIONS = ("recursive", "composed")

Sides = tuple[int, int]


class ConvTensorTrain(nn.Module):
    """Applies the kernels K(i) = G(1) o ... o G(i) to the inputs H(i), and adds: sum_i K(i) * H(i).

    K(i) reaches over i (k - 1) + 1 pixels and takes C(i) channels to C(0); it is made of i kernels of k pixels.

    Args:
        channels: C(0), C(1), ..., C(N): C(0) of the output, C(i) of the i-th input.
        kernel_size: k, or one number for each of h and w.
        padding: what lies outside of the picture. "stage": zeros, and every stage's result is cut to the picture's
            size, as in the published code; "whole": zeros, and only the sum is cut; "circular": the picture again.
        evaluation: "recursive", N convolutions in linear time: V(N) = H(N), V(i) = H(i) + G(i+1) * V(i+1), and the
            result is G(1) * V(1); "composed": for each input one expression of its whole chain of kernels. Both are
            the same function but with padding="stage", which has no composed kernel.
        init: "xavier" (uniform), or "torch" as nn.Conv2d draws weights.
        device, dtype: of the weights.

    Attributes:
        G1, ..., GN: the kernels (C(i-1), C(i), kh, kw).

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: int | tuple[int, int] = 5,
        *,
        padding: str = "stage",
        evaluation: str = "recursive",
        init: str = "xavier",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(channels, str) or not isinstance(channels, Sequence) or len(channels) < 2:
            raise OptionError(
                f"channels={shown(channels)} is no train", hint="C(0) of the output, then one for each input: (8, 4, 4)"
            )
        self.channels = tuple(positive("channels", one) for one in channels)
        self.kernel_size = each("kernel_size", kernel_size, 2)
        self.padding = one_of("padding", padding, PADDINGS)
        self.evaluation = one_of("evaluation", evaluation, EVALUATIONS)
        self.init = one_of("init", init, INITS)
        if (padding, evaluation) == ("stage", "composed"):
            raise OptionError(
                'evaluation="composed" with padding="stage": what every stage cuts off is in no composed kernel',
                hint='padding="whole" or "circular"',
            )
        for i, (outer, inner) in enumerate(zip(self.channels, self.channels[1:]), start=1):
            weight = torch.empty(outer, inner, *self.kernel_size, device=device, dtype=dtype)
            self.register_parameter(f"G{i}", nn.Parameter(weight))
        self.reset_parameters()

    @property
    def order(self) -> int:
        """N, the number of inputs."""
        return len(self.channels) - 1

    @property
    def kernels(self) -> tuple[Tensor, ...]:
        """G(1), ..., G(N)."""
        return tuple(getattr(self, f"G{i}") for i in range(1, len(self.channels)))

    def reset_parameters(self) -> None:
        """Draws all kernels anew."""
        for kernel in self.kernels:
            draw(kernel, self.init)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The sum of all terms (..., C(0), h, w).

        Args:
            inputs: H(1), ..., H(N): (..., C(i), h, w).

        Raises:
            ShapeError: another number of inputs, or channels or sizes that do not fit.
        """
        if len(inputs) != self.order:
            raise ShapeError(f"{len(inputs)} inputs for a train of order {self.order}", hint="H(1), ..., H(N)")
        for i, (input, channels) in enumerate(zip(inputs, self.channels[1:]), start=1):
            if input.ndim < 3 or input.shape[-3] != channels or input.shape[-2:] != inputs[0].shape[-2:]:
                raise ShapeError(
                    f"input {i} of the train is {tuple(input.shape)}",
                    hint=f"(..., {channels}, h, w), with h and w as in the first: {tuple(inputs[0].shape[-2:])}",
                )
        if self.evaluation == "composed":
            return composed(inputs, self.kernels, circular=self.padding == "circular")
        if self.padding == "whole":
            return _uncut(inputs, self.kernels)
        return horner(inputs, self.kernels, STAGE["circular" if self.padding == "circular" else "zeros"])

    def extra_repr(self) -> str:
        """Arguments, those that are usual left out."""
        usual = {"padding": "stage", "evaluation": "recursive", "init": "xavier"}
        more = [f", {name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.channels}, kernel_size={self.kernel_size}{''.join(more)}"


def horner(inputs: Sequence[Tensor], kernels: Sequence[Tensor], stage: str) -> Tensor:
    """The train in linear time, every stage of the picture's size.

    Args:
        inputs: H(1), ..., H(N).
        kernels: G(1), ..., G(N).
        stage: the expression of a stage.
    """
    value: Tensor = conv_einsum(stage, inputs[-1], kernels[-1])
    for input, kernel in zip(inputs[-2::-1], kernels[-2::-1], strict=True):
        value = conv_einsum(stage, input + value, kernel)
    return value


def composed(inputs: Sequence[Tensor], kernels: Sequence[Tensor], *, circular: bool) -> Tensor:
    """The train as one expression for each input, whose kernels the planner may compose first."""
    sides = [same_sides(kernel) for kernel in kernels]
    value: Tensor | None = None
    for i, input in enumerate(inputs, start=1):
        chain = ",".join(f"(c{j - 1})(c{j})hw" for j in range(i, 0, -1))
        term: Tensor = conv_einsum(
            f"...(c{i})hw,{chain}->...(c0)hw|hw",
            input,
            *reversed(kernels[:i]),
            padding={mode: _total([one[axis] for one in sides[:i]]) for axis, mode in enumerate("hw")},
            padding_mode="circular" if circular else "zeros",
            signal=0,
        )
        value = term if value is None else value + term
    assert value is not None  # a train has a first input
    return value


def _uncut(inputs: Sequence[Tensor], kernels: Sequence[Tensor]) -> Tensor:
    """The train in linear time, where V(i) keeps what lies beside the picture, is not zero, and will be read."""
    sides = [same_sides(kernel) for kernel in kernels]
    order = len(kernels)
    value = inputs[-1]
    before: tuple[Sides, Sides] = ((0, 0), (0, 0))
    for i in range(order - 1, -1, -1):
        margins = _margin([one[0] for one in sides], i), _margin([one[1] for one in sides], i)
        padding = {
            mode: (lo + new_lo - old_lo, hi + new_hi - old_hi)
            for mode, (lo, hi), (new_lo, new_hi), (old_lo, old_hi) in zip("hw", sides[i], margins, before, strict=True)
        }
        value = conv_einsum("...shw,tshw->...thw|hw", value, kernels[i], padding=padding, signal=0)
        if i:
            value = value + F.pad(inputs[i - 1], (*margins[1], *margins[0]))
        before = margins
    return value


def _margin(sides: Sequence[Sides], i: int) -> Sides:
    """How far V(i) matters on both sides of the picture, along one axis.

    The stages 1..i, yet to come, read so far; the stages i+1..N, which have been, spread so far, by what they read on
    the other side.
    """
    read, spread = _total(sides[:i]), _total(sides[i:])
    return min(read[0], spread[1]), min(read[1], spread[0])


def _total(sides: Sequence[Sides]) -> Sides:
    return sum(lo for lo, _ in sides), sum(hi for _, hi in sides)


def same_sides(kernel: Tensor) -> tuple[Sides, Sides]:
    """By how much a picture is extended along h and w, on both sides, so that it keeps its size."""
    high, wide = kernel.shape[-2:]
    return ((high - 1) // 2, high // 2), ((wide - 1) // 2, wide // 2)


INITS = ("xavier", "torch")


@torch.no_grad()
def draw(weight: Tensor, init: str, *, outputs: int | None = None, inputs: int | None = None) -> None:
    """Draws a kernel (out, in, ...) as part of a convolution with so many channels; by default it is the whole of it.

    Args:
        weight: the kernel.
        init: "xavier": uniform, of variance 2 / (fan_in + fan_out); "torch": uniform, of variance 1 / (3 fan_in).
        outputs: channels of the convolution.
        inputs: likewise.
    """
    taps = weight[0, 0].numel()
    fan_in, fan_out = taps * (inputs or weight.shape[1]), taps * (outputs or weight.shape[0])
    bound = (6 / (fan_in + fan_out)) ** 0.5 if init == "xavier" else fan_in**-0.5
    nn.init.uniform_(weight, -bound, bound)
