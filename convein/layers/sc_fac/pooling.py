"""Pooling of Lipschitz constant one."""

from __future__ import annotations

import math

from torch import Tensor, nn

from convein.errors import ShapeError
from convein.layers.conv import Size, each
from convein.pipeline import conv_einsum


class LipschitzPool2d(nn.Module):
    """The sum of every window over the root of its size: the rows of the operator are orthonormal.

    Average pooling shrinks: in a window of k x k its singular values are 1 / k. (..., c, h, w) becomes
    (..., c, h / k, w / k).

    Args:
        kernel_size: of the windows, which do not overlap.
    """

    def __init__(self, kernel_size: Size = 2) -> None:
        super().__init__()
        self.kernel_size = each("kernel_size", kernel_size, 2)
        self._sizes = dict(zip("pq", self.kernel_size, strict=True))

    def forward(self, input: Tensor) -> Tensor:
        """The pooled input.

        Raises:
            ShapeError: it is not made of whole windows.
        """
        height, width = input.shape[-2:]
        if height % self.kernel_size[0] or width % self.kernel_size[1]:
            raise ShapeError(
                f"an input of {(height, width)} in windows of {self.kernel_size}",
                hint="sizes are multiples of the windows",
            )
        value: Tensor = conv_einsum("...(h p)(w q)->...hw", input, sizes=self._sizes)
        return value / math.sqrt(math.prod(self.kernel_size))

    def extra_repr(self) -> str:
        """The windows."""
        return f"kernel_size={self.kernel_size}"
