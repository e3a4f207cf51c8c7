"""LipschitzWideResNet: a wide residual network of Lipschitz constant one."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from convein.errors import OptionError
from convein.execution.ops import is_untraced
from convein.layers.conv import positive
from convein.layers.sc_fac.activations import GroupSort
from convein.layers.sc_fac.base import orthogonal_weights
from convein.layers.sc_fac.convolution import OrthogonalConv2d
from convein.layers.sc_fac.linear import OrthogonalLinear
from convein.layers.sc_fac.pooling import LipschitzPool2d
from convein.layers.sc_fac.skips import ConcatenativeSkip, ResidualSkip
from convein.options import one_of

Skip = Literal["residual", "concatenative"]
SKIPS: tuple[Skip, ...] = get_args(Skip)


class LipschitzWideResNet(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis, 2016) of orthogonal layers (J. Su, 2022, section 7.6).

    Three stages of blocks of two convolutions, GroupSort between and after them; the second and third stage begin with
    a pooling of 2 x 2 behind the convolutions of their first block. Where the channels change the shortcut is a
    convolution of kernel size 1. A forward pass makes all weights together.

    Args:
        depth: 6 n + 4 with n blocks in a stage.
        width: the channels of the stages are 16, 32 and 64 times it.
        classes: scores.
        channels: of the input.
        size: height and width of the input, a multiple of 4.
        pool: windows of the last pooling, which divide size / 4; by default those that leave 2 x 2 positions, or one
            where size / 4 is odd.
        base: the channels of the stages before they are multiplied by the width.
        skip: "residual", a mean, or "concatenative", which keeps norms.
        **given: of all convolutions: map, init, rank, device, dtype.

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        depth: int = 22,
        width: int = 10,
        classes: int = 10,
        *,
        channels: int = 3,
        size: int = 32,
        pool: int | None = None,
        base: tuple[int, int, int] = (16, 32, 64),
        skip: Skip = "residual",
        **given: Any,
    ) -> None:
        super().__init__()
        repeats, rest = divmod(positive("depth", depth) - 4, 6)
        if rest or repeats < 1:
            raise OptionError(
                f"depth={depth} of three stages", hint="6 n + 4 with n blocks in each: 10, 16, 22, 28, ..."
            )
        skip = one_of("skip", skip, SKIPS, "connection")
        last = positive("size", size) // 4
        if size % 4:
            raise OptionError(f"size={size} is halved twice", hint="a multiple of 4")
        if pool is None:
            pool = last if last % 2 else last // 2
        elif last % positive("pool", pool):
            raise OptionError(f"pool={pool} of {last} x {last} positions", hint=f"a divisor of {last}: size / 4")
        blocks: list[nn.Module] = [OrthogonalConv2d(channels, base[0], 3, **given), GroupSort(dim=-3)]
        inputs = base[0]
        for stage, outputs in enumerate(number * positive("width", width) for number in base):
            for block in range(repeats):
                made = _block(inputs, outputs, skip, pools=stage > 0 and block == 0, given=given)
                blocks += [made, GroupSort(dim=-3)]
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = LipschitzPool2d(pool)
        kept = {name: value for name, value in given.items() if name in ("map", "device", "dtype")}
        self.head = OrthogonalLinear(inputs * (last // pool) ** 2, classes, **kept)

    def forward(self, input: Tensor) -> Tensor:
        """(..., channels, size, size) -> (..., classes)."""
        if not is_untraced():
            return self._scores(input)
        with orthogonal_weights(self):
            return self._scores(input)

    def _scores(self, input: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pool(self.blocks(input)).flatten(-3))
        return scores


def _block(inputs: int, outputs: int, skip: Skip, *, pools: bool, given: dict[str, Any]) -> nn.Module:
    """Two convolutions and the way around them."""
    if skip == "concatenative":
        inputs, outputs = inputs // 2, outputs // 2
    pooling: list[nn.Module] = [LipschitzPool2d(2)] if pools else []
    branch = nn.Sequential(
        OrthogonalConv2d(inputs, outputs, 3, **given),
        GroupSort(dim=-3),
        OrthogonalConv2d(outputs, outputs, 3, **given),
        *pooling,
    )
    change: list[nn.Module] = [OrthogonalConv2d(inputs, outputs, 1, **given)] if inputs != outputs else []
    shortcut = nn.Sequential(*change, *pooling)
    if skip == "concatenative":
        return ConcatenativeSkip(branch, shortcut, dim=-3)
    return ResidualSkip(branch, shortcut, device=given.get("device"), dtype=given.get("dtype"))
