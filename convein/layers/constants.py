"""Numbers of Python beside a tensor: on a device that works by itself, copying them there waits until it is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from convein.execution.ops import PLAIN, is_untraced

# How many are kept. A network has a few kinds of layers, and each of them one or two.
_MOST = 256
_kept: dict[tuple[Any, ...], Tensor] = {}


def constant(values: tuple[Any, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Numbers as a tensor on the device of another one, copied there at the first call for them.

    Args:
        values: numbers, or tuples of them.
        dtype: of the result, which others have too: it is not to be written to.
        like: what it stands beside.
    """
    if not (is_untraced() and type(like) in PLAIN):
        return torch.tensor(values, dtype=dtype, device=like.device)
    key = (values, dtype, like.device)
    if (found := _kept.get(key)) is not None:
        return found
    with torch.inference_mode(False):
        made = torch.tensor(values, dtype=dtype, device=like.device)
    # Under a mode it may be no tensor but a stand-in.
    if _get_current_dispatch_mode() is None:
        if len(_kept) >= _MOST:
            _kept.clear()
        _kept[key] = made
    return made
