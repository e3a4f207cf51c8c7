"""Orthogonal convolutions in one and two dimensions: SC-Fac (J. Su, 2022, chapter 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bias import biased
from convein.layers.conv import Size
from convein.layers.sc_fac.base import OrthogonalLayer, check_channels
from convein.layers.sc_fac.exponential import Map
from convein.layers.sc_fac.factors import Factor, Rotation, Subspace
from convein.layers.sc_fac.geometry import Geometry, checked_geometry, checked_ranks
from convein.layers.sc_fac.ordinary import ordinary_convolution
from convein.layers.sc_fac.starts import STARTS, Start, start_bases, start_matrices
from convein.layers.sc_fac.taps import axis_taps, separable_taps
from convein.options import one_of
from convein.pipeline import conv_einsum


class _OrthogonalConvNd(OrthogonalLayer):
    """A convolution all of whose singular values are one, and its adjoint."""

    dimensions: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        *,
        rank: int | Sequence[int] | None = None,
        init: Start | None = None,
        map: Map = "exponential",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.geometry: Geometry = checked_geometry(
            self.dimensions, in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode
        )
        self._forward, self._backward = self.geometry.forward, self.geometry.backward
        self._ordinary = ordinary_convolution(self.geometry)
        factors = self.geometry.factors
        ranks = checked_ranks(rank, sum(factors), self.geometry.channels)
        even = any(count % 2 for count in factors)
        start = ("uniform" if even else "permutation") if init is None else init
        self.init: Start = one_of("init", start, STARTS, "initialisation")
        if even and self.init != "uniform":
            raise OptionError(
                f"init={init!r} with kernel_size={kernel_size!r}: an even number of taps has no middle one",
                hint='init="uniform", or an odd number of taps (kernel_size / stride) along each axis',
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise OptionError(f"dtype={dtype!r} of orthogonal matrices", hint="dtype=torch.float32, torch.float64")
        blank = torch.empty(groups, self.geometry.channels, self.geometry.channels, device=device, dtype=dtype)
        self.rotation = Rotation(blank, map)
        self.subspaces = nn.ModuleList(Subspace(torch.empty_like(blank), rank, map) for rank in ranks)
        self.bias = nn.Parameter(torch.zeros(self._outputs(), device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _outputs(self) -> int:
        """How many channels the output has."""
        return self.geometry.outputs

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all matrices anew, as `init` says; the bias is zero."""
        if self.bias is not None:
            self.bias.zero_()
        if self.rotation.base.is_meta:
            return
        rotation = start_matrices(self.init, self.geometry.groups, self.geometry.channels)
        unit = torch.eye(self.geometry.channels, dtype=rotation.dtype).expand_as(rotation)
        starts = [rotation]
        for axis, count in enumerate(self.geometry.factors):
            starts += start_bases(self.init, unit if axis else rotation, count)
        for factor, start in zip(self.factors(), starts, strict=True):
            factor.assign(start)

    def factors(self) -> list[Factor]:
        """The rotation, then the subspaces in the order in which the taps grow, axis after axis."""
        return [self.rotation, *self.subspaces]

    def assembled(self, matrices: Sequence[Tensor]) -> Tensor:
        """(out, in / groups, *kernel_size): the weight of torch's convolution."""
        one, split = self.geometry.groups == 1, self.geometry.factors[0] + 1
        first, *rest = [matrix[0] for matrix in matrices] if one else matrices
        taps = axis_taps(first, rest[: split - 1])
        if self.dimensions == 2:
            taps = separable_taps(taps, rest[split - 1 :])
        return self.geometry.weight(taps.unsqueeze(0) if one else taps)

    def adjoint(self, output: Tensor) -> Tensor:
        """The transposed operator, without bias: (..., out, *sizes) -> (..., in, *sizes of the input)."""
        check_channels("channels", output.shape[-1 - self.dimensions], self.geometry.outputs)
        value: Tensor = conv_einsum(self._backward, output, self.dense_weight(), sizes=self.geometry.sizes)
        return value

    def _applied(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The operator, with a bias or without."""
        self.geometry.check_sizes(input.shape[-self.dimensions :])
        check_channels("channels", input.shape[-1 - self.dimensions], self.geometry.inputs)
        weight = self.dense_weight()
        # The kept weight lies as torch's convolution wants it, and there is nothing left to plan.
        if self._kept is not None and weight is self._kept.weight and self._ordinary.takes(input, weight, bias):
            return self._ordinary(input, weight, bias)
        value: Tensor = conv_einsum(self._forward, input, weight, sizes=self.geometry.sizes)
        return self._biased(value, bias)

    def _biased(self, value: Tensor, bias: Tensor | None) -> Tensor:
        return value if bias is None else biased(value, bias.view(-1, *[1] * self.dimensions))

    def _without_bias(self, value: Tensor) -> Tensor:
        return value if self.bias is None else value - self.bias.view(-1, *[1] * self.dimensions)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution: (..., in, *sizes) -> (..., out, *sizes / stride), longer with padding_mode="zeros".

        Raises:
            ShapeError: other channels, or sizes that are no multiples of the stride.
        """
        return self._applied(input, self.bias)

    def inverse(self, output: Tensor) -> Tensor:
        """The input that gives this output; of what is no output, the input whose output is nearest.

        Raises:
            ShapeError: several inputs give the same output.
        """
        if not self.geometry.is_injective:
            raise ShapeError(
                f"{self.geometry.values} channels in a window become {self.geometry.outputs}: inputs that differ give "
                "the same output",
                hint="an inverse needs out_channels >= in_channels * stride; `adjoint` is there always",
            )
        return self.adjoint(self._without_bias(output))

    def extra_repr(self) -> str:
        """Torch's arguments, then the expression."""
        return self._described(self.geometry, self._forward)

    def _described(self, arguments: Geometry, expression: str) -> str:
        ranks = {subspace.rank for subspace in self.subspaces}
        shown = [str(arguments), f"init={self.init!r}"]
        if ranks and ranks != {max(1, self.geometry.channels // 2)}:
            shown.append(f"rank={tuple(subspace.rank for subspace in self.subspaces)}")
        return f"{', '.join([*shown, *([] if self.bias is not None else ['bias=False'])])}\n{expression!r}"


class OrthogonalConv1d(_OrthogonalConvNd):
    """An orthogonal convolution in one dimension: (..., in, length) -> (..., out, length / stride).

    See `OrthogonalConv2d`.
    """

    dimensions = 1


class OrthogonalConv2d(_OrthogonalConvNd):
    """A convolution all of whose singular values are one (J. Su, 2022, algorithms 1 and 2).

    With circular padding it keeps the norm of every input if out_channels >= in_channels * stride^2, and otherwise that
    of every gradient; with equality it is invertible. Full padding with zeros keeps norms, too.

    Args:
        in_channels, out_channels: of input and output.
        kernel_size: any sizes, odd or even, that are multiples of the stride.
        stride, dilation: as for nn.Conv2d; along an axis at most one of them is larger than one.
        groups: each has matrices of its own.
        bias: whether a bias is added; it starts at zero.
        padding_mode: "circular": the input is periodic and the output has its size / stride; "zeros": zeros all around,
            and the output is longer by (kernel_size - 1) * dilation (with a stride: kernel_size / stride - 1).
        rank: dimension of the subspaces, a number for all or one for each: of every factor how many channels it
            delays; half the channels by default.
        init: "identity", "reverse", "permutation" (the default), "torus" start as a 1x1 convolution with such a matrix,
            exactly; "uniform" starts anywhere, and is the default where the number of taps is even.
        map: from free parameters to orthogonal matrices, "exponential" or "cayley".
        device, dtype: of the parameters.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class _OrthogonalConvTransposeNd(_OrthogonalConvNd):
    """The adjoint of the convolution with the same weight; its attributes are that one's."""

    def __init__(self, in_channels: int, out_channels: int, *given: Any, **named: Any) -> None:
        super().__init__(out_channels, in_channels, *given, **named)

    def _outputs(self) -> int:
        return self.geometry.inputs

    def adjoint(self, output: Tensor) -> Tensor:
        """The convolution, without bias."""
        return super()._applied(output, None)

    def forward(self, input: Tensor) -> Tensor:
        """The transposed convolution: (..., in, *sizes) -> (..., out, *sizes * stride).

        Raises:
            ShapeError: other channels.
        """
        return self._biased(super().adjoint(input), self.bias)

    def inverse(self, output: Tensor) -> Tensor:
        """The input that gives this output; of what is no output, the input whose output is nearest.

        Raises:
            ShapeError: several inputs give the same output.
        """
        if self.geometry.outputs > self.geometry.values:
            raise ShapeError(
                f"{self.geometry.outputs} channels become {self.geometry.values} in a window: inputs that differ give "
                "the same output",
                hint="an inverse needs out_channels * stride >= in_channels; `adjoint` is there always",
            )
        if not self.geometry.is_surjective:
            raise ShapeError(
                'padding_mode="zeros" cuts the border off: inputs that differ give the same output',
                hint='padding_mode="circular" cuts off nothing; `adjoint` is there always',
            )
        return super()._applied(self._without_bias(output), None)

    def extra_repr(self) -> str:
        """Torch's arguments, then the expression of the adjoint."""
        own = replace(self.geometry, inputs=self.geometry.outputs, outputs=self.geometry.inputs)
        return self._described(own, self._backward)


class OrthogonalConvTranspose1d(_OrthogonalConvTransposeNd):
    """The adjoint of `OrthogonalConv1d(out, in, ...)`: (..., in, length) -> (..., out, length * stride)."""

    dimensions = 1


class OrthogonalConvTranspose2d(_OrthogonalConvTransposeNd):
    """The adjoint of `OrthogonalConv2d(out, in, ...)`: (..., in, h, w) -> (..., out, h * stride, w * stride).

    The weight is laid out as nn.ConvTranspose2d's: (in, out / groups, *kernel_size).
    """

    dimensions = 2
