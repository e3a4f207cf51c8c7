"""Skip connections that keep the Lipschitz constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convein.errors import ShapeError
from convein.layers.sc_fac.base import channel_axis


class ResidualSkip(nn.Module):
    """sigmoid(alpha) branch(x) + (1 - sigmoid(alpha)) shortcut(x): a mean of two maps, alpha learned, 0 at first.

    It is L-Lipschitz if both are; norms need not be kept.

    Args:
        branch: one of the maps.
        shortcut: the other one.
        device, dtype: of alpha.
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.alpha = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """The mean of both.

        Raises:
            ShapeError: they differ in shape.
        """
        found, straight = self.branch(input), self.shortcut(input)
        if found.shape != straight.shape:
            raise ShapeError(
                f"a branch to {tuple(found.shape)} and a shortcut to {tuple(straight.shape)}",
                hint="the shortcut is an OrthogonalConv2d of kernel size 1 where channels change",
            )
        value: Tensor = torch.lerp(straight, found, torch.sigmoid(self.alpha).to(found.dtype))
        return value


class ConcatenativeSkip(nn.Module):
    """The shortcut of one half of the channels beside the branch of the other, shuffled: orthogonal if both are.

    Args:
        branch: of the second half of the channels.
        shortcut: of the first half.
        dim: of the channels, as for `GroupSort`; -3 for pictures with any number of batch dimensions or none.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, input: Tensor) -> Tensor:
        """(batch, c, ...) -> (batch, 2 c', ...) for halves that become c' channels each, in turns.

        Raises:
            ShapeError: there are no channels, they have no halves, or the halves become different shapes.
        """
        dim = channel_axis(input, self.dim)
        if input.shape[dim] % 2:
            raise ShapeError(f"{input.shape[dim]} channels in two halves", hint="an even number")
        first, second = input.chunk(2, dim)
        straight, found = self.shortcut(first), self.branch(second)
        if found.shape != straight.shape:
            raise ShapeError(f"a branch to {tuple(found.shape)} and a shortcut to {tuple(straight.shape)}")
        return torch.stack([straight, found], dim + 1).flatten(dim, dim + 1)

    def extra_repr(self) -> str:
        """Where the channels are."""
        return f"dim={self.dim}"
