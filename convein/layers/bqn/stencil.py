"""Stencil: which inputs a linear layer or a convolution sums with which weights, as strings that the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from convein.errors import OptionError, ShapeError
from convein.layers.constants import constant
from convein.layers.conv import each, positive
from convein.layers.forms import SPATIAL
from convein.pipeline import conv_einsum
from convein.tracing import is_proxy

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
Size = int | Sequence[int]

# For three dimensions: of the output, and of a filter once and once more.
_OUT, _TAP, _OTHER = "opq", "ijk", "lmn"


@dataclass(frozen=True, slots=True)
class Stencil:
    """The sums of a layer: y[t, o] = sum over s, i of w[t, s, i] x[s, stride o + dilation i - lo].

    Attributes:
        inputs, outputs: channels.
        kernel: sizes of the filters; empty for a linear layer, whose channels come last.
        stride, dilation: one number for each dimension.
        padding: (lo, hi) for each dimension.
        padding_mode: what stands outside of the input.
        groups: of channels.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def modes(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return SPATIAL[len(self.kernel)]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(outputs, inputs / groups, *kernel), as torch has it."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def fan_in(self) -> int:
        """How many products every output sums."""
        return prod(self.weight_shape[1:])

    @property
    def pads_zeros(self) -> bool:
        """Whether some outputs read zeros outside of the input."""
        return self.padding_mode == "zeros" and any(map(any, self.padding))

    def apply(self, input: Tensor, weight: Tensor) -> Tensor:
        """The sums: (..., inputs, *sizes) -> (..., outputs, *sizes').

        Raises:
            ShapeError: the input has other channels.
        """
        if not is_proxy((input,)):
            self._check(input.shape)
        if not self.kernel:
            return _run("...s,ts->...t", input, weight)
        space = "".join(self.modes)
        text = f"...{self._channels('s')}{space},{self._channels('t')}s{space}->...{self._channels('t')}{space}|{space}"
        return _run(text, input, weight, **self._options())

    def at_outputs(self, bias: Tensor) -> Tensor:
        """A vector over the outputs, as it is added to them."""
        return bias.reshape(-1, *(1 for _ in self.kernel))

    def patches(self, input: Tensor) -> Tensor:
        """What every output reads, of inputs with one dimension more at the end.

        Returns:
            (..., *sizes', groups, fan_in, c) of (..., inputs, *sizes, c).

        Raises:
            ShapeError: the input has other channels.
        """
        self._check(input.shape[:-1])
        if not self.kernel:
            return input.unsqueeze(-3)
        space, taps = "".join(self.modes), _TAP[: len(self.kernel)]
        text = f"...{self._channels('s')}{space}c,{taps}{space}->...{space}{self._channels('s')}{taps}c|{space}"
        picks = torch.eye(prod(self.kernel), dtype=input.dtype, device=input.device).reshape(self.kernel * 2)
        found = _run(text, input, picks, **self._options())
        return found.reshape(*found.shape[: input.ndim - 2], self.groups, self.fan_in, input.shape[-1])

    def spread(self, var: Tensor, weight: Tensor) -> Tensor:
        """The variance of the sums of independent inputs with known weights.

        An input that an output reads several times (what "reflect", "replicate" and "circular" put outside is a copy
        of what stands inside) is multiplied by the sum of those weights before it is squared.

        Args:
            var: of the inputs, (..., inputs, *sizes).
            weight: as `weight_shape`.
        """
        sizes = tuple(var.shape[var.ndim - len(self.kernel) :])
        if not self.reads_copies(sizes):
            return self.apply(var, weight.square())
        pairs, terms, reads = zip(self.modes, _OUT, _TAP, _OTHER), [], []
        for mode, out, tap, other in pairs:
            terms += [f"{out}{mode}{tap}", f"{out}{mode}{other}"]
        for index, size in enumerate(sizes):
            read = constant(self._sources(index, size), torch.long, var).unsqueeze(1)
            reads += [(read == torch.arange(size, device=var.device).view(-1, 1)).to(var.dtype)] * 2
        count, channels = len(self.kernel), self._channels("t")
        weights = f"{channels}s{_TAP[:count]},{channels}s{_OTHER[:count]}"
        text = f"...{self._channels('s')}{''.join(self.modes)},{weights},{','.join(terms)}->...{channels}{_OUT[:count]}"
        return _run(text, var, weight, weight, *reads, **self._sizes())

    def reads_copies(self, sizes: Sequence[int]) -> bool:
        """Whether some output reads one entry of an input of these sizes more than once."""
        if self.padding_mode == "zeros" or not any(map(any, self.padding)):
            return False
        return any(
            len(set(row)) < len(row) for index, size in enumerate(sizes) for row in self._sources(index, int(size))
        )

    def _check(self, shape: Sequence[int]) -> None:
        """Channels are counted here: the engine repeats an only one for every channel of a filter."""
        place = len(self.kernel) + 1
        if len(shape) < place or shape[-place] != self.inputs:
            kind = "convolution" if self.kernel else "linear layer"
            taken = ", ".join(["...", str(self.inputs), *self.modes])
            raise ShapeError(
                f"a {kind} of {self.inputs} inputs got the shape {tuple(shape)}", hint=f"it takes ({taken})"
            )

    def _sources(self, index: int, size: int) -> tuple[tuple[int, ...], ...]:
        return sources(
            size, self.kernel[index], self.stride[index], self.dilation[index], self.padding[index], self.padding_mode
        )

    def _channels(self, letter: str) -> str:
        return letter if self.groups == 1 else f"(g {letter})"

    def _sizes(self) -> dict[str, Any]:
        return {} if self.groups == 1 else {"sizes": {"g": self.groups}}

    def _options(self) -> dict[str, Any]:
        named = {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}
        options: dict[str, Any] = {name: dict(zip(self.modes, each, strict=True)) for name, each in named.items()}
        return {**options, "padding_mode": self.padding_mode, "signal": "first", **self._sizes()}

    def __str__(self) -> str:
        """Torch's arguments, those with their usual values left out."""
        parts = [f"{self.inputs}, {self.outputs}"]
        if self.kernel:
            parts.append(f"kernel_size={self.kernel}")
        ones = (1,) * len(self.kernel)
        parts += [f"{n}={v}" for n, v in (("stride", self.stride), ("dilation", self.dilation)) if v != ones]
        if any(map(any, self.padding)):
            even = all(lo == hi for lo, hi in self.padding)
            parts.append(f"padding={tuple(lo for lo, _ in self.padding) if even else self.padding}")
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        return ", ".join([*parts, *([f"padding_mode={self.padding_mode!r}"] if self.padding_mode != "zeros" else [])])


def linear(inputs: int, outputs: int) -> Stencil:
    """The sums of a linear layer."""
    return Stencil(positive("in_features", inputs), positive("out_features", outputs))


def convolution(
    inputs: int,
    outputs: int,
    kernel_size: Size,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    padding_mode: str,
    dimensions: int,
) -> Stencil:
    """The sums of a convolution, from torch's arguments.

    Raises:
        OptionError: an argument does not fit.
    """
    inputs, outputs = positive("in_channels", inputs), positive("out_channels", outputs)
    groups = positive("groups", groups)
    for name, channels in (("in_channels", inputs), ("out_channels", outputs)):
        if channels % groups:
            raise OptionError(f"{name}={channels} is no multiple of groups={groups}")
    if padding_mode not in PADDING_MODES:
        raise OptionError(
            f"padding_mode={padding_mode!r} is no padding mode", hint=f"one of {', '.join(PADDING_MODES)}"
        )
    kernel, dilation = each("kernel_size", kernel_size, dimensions), each("dilation", dilation, dimensions)
    if isinstance(padding, str):
        if padding not in {"same", "valid"}:
            raise OptionError(
                f"padding={padding!r} is no padding", hint='"same", "valid", a number, or one number for each dimension'
            )
        reach = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation)]
        sides = tuple((one // 2, one - one // 2) for one in reach)
    else:
        sides = tuple((one, one) for one in each("padding", padding, dimensions, 0))
    return Stencil(inputs, outputs, kernel, each("stride", stride, dimensions), sides, dilation, groups, padding_mode)


def sources(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], padding_mode: str
) -> tuple[tuple[int, ...], ...]:
    """Which entry of a line every output reads for every tap, where padding copies entries.

    Args:
        size: of the line.
        kernel: number of taps.
        stride: of the outputs.
        dilation: of the taps.
        padding: on both sides.
        padding_mode: "circular", "reflect" or "replicate".

    Returns:
        For each output, one index for each tap.
    """

    def inside(place: int) -> int:
        if padding_mode == "circular":
            return place % size
        if padding_mode == "replicate":
            return min(max(place, 0), size - 1)
        return abs(place) if place < size else 2 * (size - 1) - place

    count = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    return tuple(
        tuple(inside(stride * out + dilation * tap - padding[0]) for tap in range(kernel)) for out in range(count)
    )


def _run(text: str, *operands: Tensor, **options: Any) -> Tensor:
    value: Tensor = conv_einsum(text, *operands, **options)
    return value
