"""Convolutions in one, two and three dimensions, and their adjoints, with factorised weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from convein.errors import ConveinError, OptionError, ShapeError
from convein.layers.factorised import Factorised, Rank
from convein.layers.forms import SPATIAL, Weight
from convein.layers.initial import Init
from convein.layers.misfits import input_below_the_kernel, input_of_another_shape
from convein.layers.parts import without_output_padding
from convein.options import as_integer, shown

Size = int | tuple[int, ...]


class _ConvNd(Factorised):
    """Arguments of torch's convolution and of a form."""

    dimensions: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        form: str = "cp",
        rank: Rank = 0.1,
        factors: int = 3,
        multiple: int | None = None,
        init: Init | None = "kaiming",
        output_padding: Size = 0,
        **options: Any,
    ) -> None:
        modes = SPATIAL[self.dimensions]
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.groups = positive("groups", groups)
        self.kernel_size = each("kernel_size", kernel_size, self.dimensions)
        self.stride = each("stride", stride, self.dimensions)
        self.dilation = each("dilation", dilation, self.dimensions)
        self.padding = padding if isinstance(padding, str) else each("padding", padding, self.dimensions, 0)
        self.padding_mode = padding_mode
        self.output_padding = each("output_padding", output_padding, self.dimensions, 0)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise OptionError(f"{name}={getattr(self, name)} is no multiple of groups={self.groups}")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise OptionError(
                f"padding={padding!r} is no padding", hint='"same", "valid", a number, or one number for each dimension'
            )
        sides = self.padding if isinstance(self.padding, str) else [(one, one) for one in self.padding]
        given: dict[str, Any] = {"padding_mode": padding_mode}
        for name, value in (("stride", self.stride), ("dilation", self.dilation), ("padding", sides)):
            given[name] = value if isinstance(value, str) else dict(zip(modes, value, strict=True))
        if self.transposed or any(self.output_padding):
            given["output_padding"] = dict(zip(modes, self.output_padding, strict=True))
        if self.transposed:
            given["transposed"] = True
        weight = Weight(self.in_channels, self.out_channels, self.kernel_size, self.groups, self.transposed)
        super().__init__(
            weight, given, bias=bias, form=form, rank=rank, factors=factors, multiple=multiple, init=init,
            device=device, dtype=dtype, **options,
        )  # fmt: skip

    def _misfit(self, input: Tensor, error: ConveinError) -> ConveinError | None:
        found = super()._misfit(input, error)
        if found is not None or self.transposed or self.padding == "same" or not isinstance(error, ShapeError):
            return found
        padding = (0,) * self.dimensions if isinstance(self.padding, str) else self.padding
        return input_below_the_kernel(type(self).__name__, self.kernel_size, padding, self.dilation, input)

    def extra_repr(self) -> str:
        """Torch's arguments, then the form."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        usual = {
            "stride": (1,) * self.dimensions,
            "padding": (0,) * self.dimensions,
            "output_padding": (0,) * self.dimensions,
            "dilation": (1,) * self.dimensions,
            "groups": 1,
            "padding_mode": "zeros",
        }
        parts += [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join([*parts, *([] if self.bias is not None else ["bias=False"]), self._repr_form()])


def each(name: str, value: object, dimensions: int, least: int = 1) -> tuple[int, ...]:
    """One number for each dimension.

    Raises:
        OptionError: the value is neither a number from `least` nor so many of them.
    """
    number = as_integer(value)
    values = (number,) * dimensions if number is not None else value
    numbers = [as_integer(one) for one in values] if isinstance(values, Sequence) else []
    found = tuple(one for one in numbers if one is not None and one >= least)
    if len(found) != dimensions or len(numbers) != dimensions:
        raise OptionError(
            f"{name}={value!r} of {dimensions} dimensions",
            hint=f"a number from {least}, or {dimensions} of them: one for each dimension",
        )
    return found


def positive(name: str, value: object) -> int:
    """A number from 1, as the argument of this name."""
    number = as_integer(value)
    if number is None or number < 1:
        raise OptionError(f"{name}={value!r} is no size", hint="a number from 1")
    return number


class Conv1d(_ConvNd):
    """nn.Conv1d with a factorised weight: (..., in, length) -> (..., out, length')."""

    dimensions = 1


class Conv2d(_ConvNd):
    """nn.Conv2d with a factorised weight: (..., in, h, w) -> (..., out, h', w').

    The value is `F.conv2d` with `dense_weight()`, in whatever order is fastest. Any number of batch dimensions may
    stand before the channels.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for nn.Conv2d; padding="same" also with a stride.
        form: one of `convein.layers.FORMS` (J. Su, 2022, tables 2.1 and 2.2): "svd", "spatial-svd", "cp", "tucker"
            (the channels only; "bottleneck" is another name), "full-tucker", "block-term", "tt", "tr"; with the
            channels taken apart "rcp", "rtk", "rtt", "rtr"; "interleaved", "dense". With groups, all groups share the
            factors of the channels within a group.
        rank: a number for all bonds between the factors, a tuple with one for each (`layer.ranks` names them), a float:
            the most parameters, as a fraction of the dense weight's, or "same" for as many. Spatial modes are kept.
        factors: into how many factors a reshaped form takes the channels apart, as equal as possible; the number of
            Tucker terms of "block-term".
        multiple: round ranks down to a multiple: those of 16 are fast.
        init: variance of the dense weight, see `ConvEinsum`; None leaves all weights undrawn.
        **options: planning options of `conv_einsum`: optimize, cost, memory_limit, checkpoint, accumulate.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class Conv3d(_ConvNd):
    """nn.Conv3d with a factorised weight: (..., in, d, h, w) -> (..., out, d', h', w')."""

    dimensions = 3


class _ConvTransposeNd(_ConvNd):
    """Arguments in the order of torch's transposed convolution."""

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **given: Any,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, output_padding=output_padding, **given,
        )  # fmt: skip
        # What is called with an output padding of its own.
        self._open_text = without_output_padding(self._parts)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The transposed convolution.

        Args:
            input: (..., in, ...).
            output_size: the spatial sizes of the output, or its whole shape; it takes the place of `output_padding`.

        Raises:
            ShapeError: no output_padding gives this size, or the input does not fit.
        """
        if output_size is None:
            return super().forward(input)
        kind, space = type(self).__name__, SPATIAL[self.dimensions]
        if wrong := input_of_another_shape(kind, self.in_channels, space, input):
            raise wrong
        found = self._paddings(input.shape[-self.dimensions :], output_size)
        return self._biased(self._value(input, self._open_text, output_padding=found))

    def _paddings(self, sizes: Sequence[int], wanted: Sequence[int]) -> dict[str, int]:
        """The output padding of each mode that makes an input of these sizes as large as is wanted."""
        sides = [0] * self.dimensions if isinstance(self.padding, str) else [2 * side for side in self.padding]
        least = [
            n * s if self.padding == "same" else (n - 1) * s - side + d * (k - 1) + 1
            for n, s, side, d, k in zip(sizes, self.stride, sides, self.dilation, self.kernel_size, strict=True)
        ]
        room = [0 if self.padding == "same" else max(pair) - 1 for pair in zip(self.stride, self.dilation)]
        numbers = [as_integer(size) for size in wanted] if isinstance(wanted, Sequence) else []
        extra = [-1 if size is None else size - low for size, low in zip(numbers[-self.dimensions :], least)]
        if len(extra) != self.dimensions or not all(0 <= more <= most for more, most in zip(extra, room)):
            most = tuple(low + more for low, more in zip(least, room))
            raise ShapeError(
                f"output_size={shown(wanted)} cannot come from {tuple(sizes)}",
                hint=f"output sizes are from {tuple(least)} to {most} with this input",
            )
        return dict(zip(SPATIAL[self.dimensions], extra, strict=True))


class ConvTranspose1d(_ConvTransposeNd):
    """nn.ConvTranspose1d with a factorised weight: (..., in, length) -> (..., out, length')."""

    dimensions = 1


class ConvTranspose2d(_ConvTransposeNd):
    """nn.ConvTranspose2d with a factorised weight; the other arguments are those of `Conv2d`.

    With groups, all groups share the factor of the outputs. padding_mode may be "circular", too.
    """

    dimensions = 2


class ConvTranspose3d(_ConvTransposeNd):
    """nn.ConvTranspose3d with a factorised weight: (..., in, d, h, w) -> (..., out, d', h', w')."""

    dimensions = 3
