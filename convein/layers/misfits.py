"""What does not fit a layer, said in the layer's own terms: an input, an option."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from convein.errors import OperandError, OptionError, ShapeError
from convein.options import OPTION_NAMES, shown
from convein.request import PLANNING

# What a layer decides about its expression itself.
FIXED = (*OPTION_NAMES, "sizes", "convolved", "dialect", "input")
OF_THE_PLAN = tuple(name for name in PLANNING if name not in FIXED)

# What the layers of tensorly-torch call these things, and conv_einsum's callers elsewhere.
_OTHER_NAMES: Mapping[str, str] = {
    "factorization": "did you mean form?",
    "decomposition": "did you mean form?",
    "implementation": "convein chooses the order of evaluation itself; optimize= and cost= say how",
    "n_factors": "did you mean factors?",
    "has_bias": "did you mean bias?",
    "cr": "did you mean rank? a fraction there is the most parameters that are kept",
    "fixed_rank_modes": "spatial modes keep their sizes; rank= may be a tuple with one number for each bond",
}


def unknown_option(owner: str, name: str, value: object, own: Sequence[str], others: Sequence[str]) -> OptionError:
    """The error for an option that a layer does not have.

    Args:
        owner: what does not have it.
        name: of the option.
        value: of the option.
        own: those that say how its weight is factorised.
        others: its other arguments, the planning options excluded.
    """
    close = get_close_matches(name.lower(), (*own, *others, *OF_THE_PLAN), 1)
    hint = _OTHER_NAMES.get(name) or (f"did you mean {close[0]}?" if close else None)
    if hint is None:
        more = "; ConvEinsum takes what an expression has" if name in OPTION_NAMES else ""
        hint = f"a weight is factorised by {', '.join(own)}, and planned by {', '.join(OF_THE_PLAN)}{more}"
    return OptionError(f"{name}={shown(value)}: {owner} has no such option", hint=hint)


def arguments_of(kind: type, own: Sequence[str]) -> list[str]:
    """The names of a layer's arguments that are torch's."""
    names = [one.name for one in inspect.signature(kind).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return [name for name in names if name not in own]


def input_of_another_kind(input: object, weights: Sequence[Tensor]) -> OperandError | None:
    """The error for an input whose dtype or device is not that of the weights; None if that is not wrong."""
    if not isinstance(input, Tensor) or len({(one.dtype, one.device) for one in weights}) > 1:
        return None
    theirs = weights[0]
    if input.device != theirs.device:
        hint = f"move the input with .to({str(theirs.device)!r}), or the layer with .to({str(input.device)!r})"
        if input.is_meta or theirs.is_meta:
            hint = "tensors on the meta device have no values: either both are there, or none of them"
        return OperandError(f"the input is on device {input.device}, and the weights are on {theirs.device}", hint=hint)
    if input.dtype == theirs.dtype:
        return None
    layer, how = f"the layer with .to({input.dtype})", f"the input with .to({theirs.dtype})"
    if input.is_complex() and not theirs.is_complex():
        hint = f"convert {layer}"
    elif input.is_floating_point() and theirs.is_floating_point():
        cast = torch.float64 not in (input.dtype, theirs.dtype)
        hint = f"convert {how}, or {layer}{', or call under torch.autocast' * cast}"
    else:
        hint = f"convert {how}"
    return OperandError(f"the input has dtype {input.dtype}, and the weights have {theirs.dtype}", hint=hint)


def input_of_another_shape(kind: str, channels: int, space: Sequence[str], input: object) -> ShapeError | None:
    """The error for an input with too few dimensions or other channels; None if that is not wrong.

    Args:
        kind: of the layer.
        channels: that it takes.
        space: names of the dimensions behind the channels.
        input: it.
    """
    if not isinstance(input, Tensor):
        return None
    wanted = f"(..., {', '.join([str(channels), *space])})"
    shape, place = tuple(input.shape), -1 - len(space)
    what = "channels" if space else "features"
    if len(shape) <= len(space):
        return ShapeError(f"the input of {kind} is {shape}", hint=f"it takes {wanted}")
    if shape[place] == channels:
        return None
    hint = f"it takes {wanted}: {channels} {what} in dimension {place}, not {shape[place]}"
    if space and channels in shape:
        hint += f"; .movedim({shape.index(channels)}, {place}) puts dimension {shape.index(channels)} there"
    return ShapeError(f"the input of {kind} is {shape}", hint=hint)


def input_below_the_kernel(
    kind: str, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], input: Tensor
) -> ShapeError | None:
    """The error for an input that is, padded, shorter than the kernel; None if it is not."""
    sizes = input.shape[-len(kernel) :]
    reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    if all(size + 2 * side >= long for size, side, long in zip(sizes, padding, reach, strict=True)):
        return None
    return ShapeError(
        f"the input of {kind} is {tuple(input.shape)}, which is too small for kernel_size={tuple(kernel)}",
        hint=f"with padding={tuple(padding)} and dilation={tuple(dilation)} the last {len(kernel)} dimensions are at "
        f"least {tuple(max(1, long - 2 * side) for long, side in zip(reach, padding))}",
    )
