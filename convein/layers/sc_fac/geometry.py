"""Arguments of a convolution -> Geometry: its matrices, its padding, the strings that evaluate it and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from convein.errors import OptionError, ShapeError
from convein.layers.conv import Size, each, positive
from convein.options import as_integer, shown

_MODES = {1: "h", 2: "hw"}
_PADDING_MODES = ("circular", "zeros")


@dataclass(frozen=True, slots=True)
class Geometry:
    """An orthogonal convolution without its numbers.

    Attributes:
        inputs, outputs, kernel, stride, dilation, groups, padding_mode: as given, numbers for each axis.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @property
    def values(self) -> int:
        """Numbers in a window of the stride: a position of the output has as many of the input's."""
        return self.inputs * prod(self.stride)

    @property
    def channels(self) -> int:
        """Rows of the square matrices, for each group."""
        return max(self.outputs, self.values) // self.groups

    @property
    def factors(self) -> tuple[int, ...]:
        """Subspaces along each axis: one less than taps between windows."""
        return tuple(size // step - 1 for size, step in zip(self.kernel, self.stride))

    @property
    def is_injective(self) -> bool:
        """Whether the norm of every input is kept."""
        return self.outputs >= self.values

    @property
    def is_surjective(self) -> bool:
        """Whether the norm of every gradient is kept; zeros all around make outputs that are no free choice."""
        full = any(size > step for size, step in zip(self.kernel, self.stride))
        return self.outputs <= self.values and not (self.padding_mode == "zeros" and full)

    @property
    def paddings(self) -> tuple[tuple[int, int], ...]:
        """Before and behind, along each axis."""
        found = []
        for size, step, dilation in zip(self.kernel, self.stride, self.dilation):
            reach = dilation * (size - 1) + 1
            shift = step // 2
            sides = (reach // 2 - shift, (reach - 1) // 2 + shift - step + 1)
            found.append(sides if self.padding_mode == "circular" else (reach - step, reach - step))
        return tuple(found)

    @property
    def forward(self) -> str:
        """The expression of input and weight."""
        return self._expression("s", "t", "")

    @property
    def backward(self) -> str:
        """The expression of the adjoint, of output and weight."""
        return self._expression("t", "s", "transposed, ")

    def _expression(self, source: str, target: str, kind: str) -> str:
        modes = _MODES[len(self.kernel)]
        pieces = []
        for mode, step, dilation, (low, high) in zip(modes, self.stride, self.dilation, self.paddings):
            options = [f"{kind}signal=first, padding=({low},{high})"]
            options += [f"stride={step}"] * (step > 1) + [f"dilation={dilation}"] * (dilation > 1)
            options += ["padding_mode=circular"] * (self.padding_mode == "circular")
            pieces.append(f"{mode}[{', '.join(options)}]")
        first, second, weight = source, target, "t"
        if self.groups > 1:
            first, second, weight = f"(g {source})", f"(g {target})", "(g t)"
        return f"...{first}{modes},{weight}s{modes}->...{second}{modes}|{', '.join(pieces)}"

    @property
    def sizes(self) -> dict[str, int] | None:
        """The sizes that the expression is told."""
        return {"g": self.groups} if self.groups > 1 else None

    def weight(self, taps: Tensor) -> Tensor:
        """The weight of torch's convolution: taps between windows, channels within a window, cropped.

        Args:
            taps: (groups, taps, c, c), or (groups, w, h, c, c): the input's channels are (s, r) or (s, r_h, r_w), then
                come the output's.
        """
        outputs, inputs = self.outputs // self.groups, self.inputs // self.groups
        taps = taps[..., : inputs * prod(self.stride), :outputs]
        split = taps.reshape(*taps.shape[:-2], inputs, *self.stride, outputs)  # g k s r t, or g w h s p q t
        moved = split.permute((0, 4, 2, 1, 3) if len(self.kernel) == 1 else (0, 6, 3, 2, 4, 1, 5))
        return moved.reshape(self.outputs, inputs, *self.kernel)

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """The input is made of whole windows.

        Raises:
            ShapeError: a size is no multiple of the stride.
        """
        for size, step in zip(sizes, self.stride):
            if step > 1 and size % step:
                raise ShapeError(
                    f"an input of {tuple(sizes)} with stride {self.stride}",
                    hint=f"sizes are multiples of the stride, as {size + step - size % step} is",
                )

    def __str__(self) -> str:
        one = (1,) * len(self.kernel)
        shown = [f"{self.inputs}, {self.outputs}, kernel_size={self.kernel}"]
        shown += [f"stride={self.stride}"] * (self.stride != one) + [f"dilation={self.dilation}"] * (
            self.dilation != one
        )
        shown += [f"groups={self.groups}"] * (self.groups > 1)
        shown += [f"padding_mode={self.padding_mode!r}"] * (self.padding_mode != "circular")
        return ", ".join(shown)


def checked_geometry(
    dimensions: int,
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size,
    dilation: Size,
    groups: int,
    padding_mode: str,
) -> Geometry:
    """The geometry of these arguments.

    Raises:
        OptionError: an argument that no orthogonal convolution has.
    """
    found = Geometry(
        positive("in_channels", inputs),
        positive("out_channels", outputs),
        each("kernel_size", kernel, dimensions),
        each("stride", stride, dimensions),
        each("dilation", dilation, dimensions),
        positive("groups", groups),
        padding_mode,
    )
    for name, channels in (("in_channels", inputs), ("out_channels", outputs)):
        if channels % groups:
            raise OptionError(f"{name}={channels} is no multiple of groups={groups}")
    for size, step, apart in zip(found.kernel, found.stride, found.dilation):
        if size % step:
            raise OptionError(
                f"kernel_size={kernel!r} with stride={stride!r}: the taps must fill whole strides",
                hint=f"kernel_size is a multiple of the stride, as {size + step - size % step} is",
            )
        if step > 1 and apart > 1:
            raise OptionError(
                f"stride={stride!r} with dilation={dilation!r}",
                hint="one of them is 1 along each axis: the taps between would be missed",
            )
    if padding_mode not in _PADDING_MODES:
        raise OptionError(
            f"padding_mode={padding_mode!r} is not orthogonal", hint='"circular", or "zeros" all around the input'
        )
    return found


def checked_ranks(rank: int | Sequence[int] | None, count: int, channels: int) -> tuple[int, ...]:
    """The dimension of every subspace.

    Raises:
        OptionError: not one for each, or not from 1 to the number of channels.
    """
    number = as_integer(rank)
    if rank is None:
        return (max(1, channels // 2),) * count
    values = [number] * count if number is not None else [as_integer(one) for one in rank]  # type: ignore[union-attr]
    if len(values) != count or not all(one is not None and 1 <= one <= channels for one in values):
        raise OptionError(
            f"rank={shown(rank)} of {count} subspaces",
            hint=f"a number from 1 to {channels}, or {count} of them, one for each subspace",
        )
    return tuple(one for one in values if one is not None)
