"""ARMA layers: a convolution, then an autoregression over its result, in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.autoregression import autoregress, taps
from convein.layers.conv import Conv1d, Conv2d, Conv3d, Size, positive
from convein.layers.factorised import Factorised
from convein.layers.pretrained import from_conv
from convein.layers.stability import STABILITIES, reparametrised, sums_and_differences
from convein.options import one_of
from convein.tracing import is_proxy, record

_CONVOLUTIONS = {1: Conv1d, 2: Conv2d, 3: Conv3d}
_REPLACED = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# What a trained convolution says itself.
_TAKEN = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class _ARMANd(nn.Module):
    """Arguments of torch's convolution and of an autoregression."""

    dimensions: ClassVar[int]

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
        factors: int = 1,
        stability: str = "bounded",
        a_init: float = 0.0,
        margin: float | None = None,
        form: str = "dense",
        **options: Any,
    ) -> None:
        super().__init__()
        _check_rank(form, options)
        self.moving_average: Factorised = _CONVOLUTIONS[self.dimensions](
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, form=form, **options,
        )  # fmt: skip
        self._autoregressive(out_channels, factors, stability, a_init, margin, device, dtype)

    def _autoregressive(
        self, channels: int, factors: int, stability: str, a_init: float, margin: float | None,
        device: torch.device | str | None, dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.factors = positive("factors", factors)
        self.stability = one_of("stability", stability, STABILITIES, "parametrisation")
        if isinstance(a_init, bool) or not isinstance(a_init, (int, float)) or not 0 <= a_init < 1:
            raise OptionError(f"a_init={a_init!r} is no coefficient", hint="a number from 0, and below 1")
        if margin is not None and not (isinstance(margin, float) and 0 < margin <= 1):
            raise OptionError(f"margin={margin!r} below |tanh| = 1", hint="a number above 0, and at most 1.0")
        self.a_init = a_init
        self.margin = margin
        shape = (channels, self.factors, self.dimensions, 2)
        self.alpha = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if self.alpha.is_complex():
            raise OptionError(f"dtype={dtype} of an autoregression", hint="its values are real: torch.float32, say")
        self._reset_alpha()

    @classmethod
    def from_conv(
        cls,
        module: nn.Module,
        *,
        factors: int = 1,
        stability: str = "bounded",
        a_init: float = 0.0,
        margin: float | None = None,
        form: str = "dense",
        **options: Any,
    ) -> Self:
        """A layer in place of a trained convolution: with a_init=0 the same function, which may learn to look further.

        Args:
            module: torch's convolution of as many dimensions; its arguments, weight, bias, dtype, device, what needs
                gradients and whether it is training are taken over.
            factors: of the autoregression, as the next three.
            stability: the parametrisation.
            a_init: how large the parameters are at first.
            margin: how far the sums of the taps stay below 1.
            form: of the weight, as for `convein.layers.from_conv`; "dense" is the weight itself.
            **options: rank and the like, for the form.

        Raises:
            OptionError: this is no such convolution, or what does not fit.
        """
        replaced = _REPLACED[cls.dimensions]
        if not isinstance(module, replaced):
            raise OptionError(f"{cls.__name__}.from_conv takes nn.{replaced.__name__}, not {type(module).__name__}")
        _check_rank(form, options)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.moving_average = from_conv(module, form, **options)
        weight = module.weight
        made._autoregressive(module.out_channels, factors, stability, a_init, margin, weight.device, weight.dtype)
        return made.train(module.training)

    def reset_parameters(self) -> None:
        """Draws the convolution's parameters and the autoregression's anew."""
        self.moving_average.reset_parameters()
        self._reset_alpha()

    @torch.no_grad()
    def _reset_alpha(self) -> None:
        """Of one draw, every parametrisation makes the same taps."""
        bound = -math.log1p(-self.a_init)
        drawn = nn.init.uniform_(self.alpha, -bound, bound) if bound else nn.init.zeros_(self.alpha)
        self.alpha.copy_(reparametrised(drawn, self.stability))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """The sums f(-1) + f(1) and the differences f(-1) - f(1) of all taps, each (out, factors, dimensions)."""
        return sums_and_differences(self.alpha, self.stability, self.margin)

    def taps(self) -> Tensor:
        """(out, factors, dimensions, 3): f(-1), f(0) = 1 and f(1); f(k) multiplies y[i - k]."""
        return taps(*self.coefficients())

    def gain(self) -> Tensor:
        """(out,): the most that the autoregression amplifies a wave, infinite where the taps are not stable."""
        sums, _ = self.coefficients()
        return (1 / (1 - sums.abs()).clamp(min=0)).flatten(1).prod(1)

    def forward(self, input: Tensor) -> Tensor:
        """The circular solution `y` of `A * y = moving_average(input)`, channel by channel.

        Args:
            input: (..., in, *space).
        """
        return _autoregressed(self.moving_average(input), self.alpha, self.stability, self.margin)

    def extra_repr(self) -> str:
        """The autoregression's arguments; the convolution shows its own."""
        margin = "" if self.margin is None else f", margin={self.margin:g}"
        return f"factors={self.factors}, stability={self.stability!r}, a_init={self.a_init:g}{margin}"


def _check_rank(form: str, options: Mapping[str, Any]) -> None:
    if form == "dense" and "rank" in options:
        raise OptionError(
            f'rank={options["rank"]!r} with form="dense", which has no rank', hint='name a form, too: form="cp"'
        )


def _autoregressed(moved: Tensor, alpha: Tensor, stability: str, margin: float | None) -> Tensor:
    if is_proxy((moved,)):
        recorded: Tensor = record(_autoregressed, (moved, alpha, stability, margin), {})
        return recorded
    return autoregress(moved, *sums_and_differences(alpha, stability, margin))


class ARMA1d(_ARMANd):
    """nn.Conv1d, then an autoregression: (..., in, length) -> (..., out, length')."""

    dimensions = 1


class ARMA2d(_ARMANd):
    """nn.Conv2d, then an autoregression: (..., in, h, w) -> (..., out, h', w') (J. Su, 2022, chapter 6).

    The moving average `T = conv2d(x, W) + bias` is the engine's. The result `y` solves `A * y = T` for every channel,
    circularly on the grid of `T`, so that each output sees all inputs. A is separable, `factors` filters of three taps
    f(-1), f(0) = 1, f(1) along each dimension. See `convein.layers.autoregression` for what the backward pass keeps.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for nn.Conv2d, of the moving average. The autoregression is over its grid: with a stride, the coarse one.
        factors: cascaded filters along each dimension: together they have 2 * factors + 1 taps. Grids with fewer points
            than that are as good as any, the taps wrap around.
        stability: "bounded" keeps |f(-1)| + |f(1)| below 1, "free_difference" f(-1) + f(1) within -1 and 1, which is
            all that stability needs, "none" has the taps themselves as parameters, and training them may diverge.
        a_init: parameters are drawn between -(-log(1 - a_init)) and that; with 0 the layer begins as its convolution.
        margin: how far |f(-1) + f(1)| stays below 1; None is 1e-8 in float64, 1e-4 in float32, 1e-2 in half types for
            up to two filters a channel, and more with more filters. The gain of a channel is at most
            (1 / margin) ** (factors * dimensions), and rounding errors grow with it. Past the margin a parameter has no
            gradient.
        form, **options: of the moving average's weight, as for `convein.layers.Conv2d`; "dense" is the weight itself.

    Attributes:
        moving_average: the convolution, a layer of its own.
        alpha: (out, factors, dimensions, 2), what `stability` makes taps of: difference, then sum.

    Raises:
        OptionError: what does not fit.
    """

    dimensions = 2


class ARMA3d(_ARMANd):
    """nn.Conv3d, then an autoregression: (..., in, d, h, w) -> (..., out, d', h', w')."""

    dimensions = 3
