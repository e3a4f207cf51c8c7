"""An orthogonal layer -> its singular values, frequency by frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from convein.errors import OptionError, ShapeError
from convein.layers.sc_fac.convolution import _OrthogonalConvNd
from convein.layers.sc_fac.linear import OrthogonalLinear
from convein.options import shown


@torch.no_grad()
def singular_values(layer: _OrthogonalConvNd | OrthogonalLinear, sizes: tuple[int, ...] = ()) -> Tensor:
    """All singular values of a layer, in float64, largest first for each frequency.

    A circular convolution is a product with one matrix at each frequency of its output; with a stride the channels of a
    window are the rows of that matrix, which stacks the aliases of the frequency up to a rotation.

    Args:
        layer: whose weight is taken as it is.
        sizes: of a convolution's input, one for each axis; zeros all around are as a circular input long enough for
            them; of a linear layer none.

    Returns:
        (groups * frequencies, smaller number of channels of a group); for a linear layer (1, smaller side).

    Raises:
        OptionError: no orthogonal layer.
        ShapeError: sizes that do not fit.
    """
    if not isinstance(layer, _OrthogonalConvNd | OrthogonalLinear):
        raise OptionError(
            f"{shown(type(layer).__name__)} is no orthogonal layer",
            hint="OrthogonalConv2d, OrthogonalLinear, ...; torch.linalg.svdvals takes the weight of any linear layer",
        )
    weight = layer.dense_weight().double()
    if isinstance(layer, OrthogonalLinear):
        if sizes:
            raise ShapeError(f"sizes={sizes!r} of a linear layer", hint="none: they are of a convolution's input")
        alone: Tensor = torch.linalg.svdvals(weight)
        return alone[None]
    geometry = layer.geometry
    if len(sizes) != len(geometry.kernel):
        raise ShapeError(f"sizes={sizes!r} of {len(geometry.kernel)} dimensions", hint="one size for each axis")
    geometry.check_sizes(sizes)
    groups, rows = geometry.groups, geometry.outputs // geometry.groups
    shape, lengths = [groups, rows, geometry.inputs // groups], []
    for length, size, step in zip(sizes, geometry.kernel, geometry.stride):
        shape += [size // step, step]
        lengths.append(length // step + (size // step if geometry.padding_mode == "zeros" else 0))
    # The channels of a window stand beside each other, then the taps.
    axes = range(len(sizes))
    split = weight.reshape(shape).permute(0, 1, 2, *(4 + 2 * axis for axis in axes), *(3 + 2 * axis for axis in axes))
    transfer = split.flatten(2, 2 + len(sizes)).to(torch.complex128)
    for length, size, step, apart in zip(lengths, geometry.kernel, geometry.stride, geometry.dilation):
        turns = torch.outer(torch.arange(length), apart * torch.arange(size // step)).double() / length
        waves = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(weight.device)
        transfer = torch.tensordot(transfer, waves, ([3], [1]))
    found: Tensor = torch.linalg.svdvals(transfer.flatten(3).permute(0, 3, 1, 2))
    return found.flatten(0, 1)
