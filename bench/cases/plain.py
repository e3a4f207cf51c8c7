"""Terms and an order -> plain torch calls, as a person writes them.

A product is one torch.einsum; where x meets a factor that it is convolved with, the step is one F.conv2d in torch's own
order of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from cases.forms import KERNEL, SPATIAL

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that join values, numbered operands first; a value is freed by the step that reads it.

    `largest` is the number of elements of the largest result, `modes` the order of the last one's dimensions.
    """

    steps: tuple[tuple[int, int, Step], ...]
    largest: int
    modes: str

    def __call__(self, *operands: Tensor) -> Tensor:
        """The last value."""
        values = dict(enumerate(operands))
        for number, (first, second, step) in enumerate(self.steps, len(operands)):
            left, right = values.pop(first), values.pop(second)
            values[number] = step(left, right)
        return values.popitem()[1]


def chain(
    inputs: Sequence[str], output: str, sizes: Mapping[str, int], size: int, order: Iterable[tuple[int, ...]]
) -> Chain:
    """The calls of an order.

    Args:
        inputs: the letters of x and of the factors.
        output: the letters of the result, a permutation of the last value's.
        sizes: of all modes but the spatial ones, which are `size` in x and a kernel's in the factors.
        size: of the picture.
        order: pairs of values.
    """
    values = dict(enumerate(inputs))
    steps: list[tuple[int, int, Step]] = []
    largest = 0
    for number, (i, j) in enumerate(order, len(inputs)):
        first, second = (j, i) if "b" in values[j] else (i, j)
        left, right = values.pop(first), values.pop(second)
        kept = {*output, *"".join(values.values())}
        meets = "b" in left and any(mode in right for mode in SPATIAL)
        modes, step = _convolution(left, right, kept, sizes) if meets else _product(left, right, kept)
        values[number] = modes
        steps.append((first, second, step))
        spatial = size if "b" in modes else KERNEL
        largest = max(largest, prod(spatial if mode in SPATIAL else sizes[mode] for mode in modes))
    return Chain(tuple(steps), largest, values.popitem()[1])


def left_to_right(count: int, order: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The order in which x meets one factor after the other."""
    met = [0, *range(count, count + len(order) - 1)]
    return tuple(zip(met, order, strict=True))


def _product(left: str, right: str, kept: set[str]) -> tuple[str, Step]:
    both = [*left, *(mode for mode in right if mode not in left)]
    inner = [mode for mode in both if mode in kept and mode not in SPATIAL]
    modes = "".join([*inner, *(mode for mode in SPATIAL if mode in both)])
    equation = f"{left},{right}->{modes}"
    return modes, lambda a, b: torch.einsum(equation, a, b)


def _convolution(left: str, right: str, kept: set[str], sizes: Mapping[str, int]) -> tuple[str, Step]:
    inner = [mode for mode in left if mode not in SPATIAL]
    batch = [mode for mode in inner if mode not in right]
    groups = [mode for mode in inner if mode in right and mode in kept]
    summed = [mode for mode in inner if mode in right and mode not in kept]
    new = [mode for mode in right if mode not in left]
    filters = [mode for mode in SPATIAL if mode in right]

    signal_axes = tuple(left.index(mode) for mode in [*batch, *groups, *summed, *SPATIAL])
    filter_axes = tuple(right.index(mode) for mode in [*groups, *new, *summed, *filters])
    count = prod(sizes[mode] for mode in groups)
    taken = prod(sizes[mode] for mode in summed)
    kernel = [KERNEL if mode in filters else 1 for mode in SPATIAL]
    filter_shape = (count * prod(sizes[mode] for mode in new), taken, *kernel)
    padding = [length // 2 for length in kernel]
    outer = [sizes[mode] for mode in [*batch, *groups, *new]]

    def step(signal: Tensor, weight: Tensor) -> Tensor:
        picture = signal.shape[-2:]
        signal = signal.permute(signal_axes).reshape(-1, count * taken, *picture)
        weight = weight.permute(filter_axes).reshape(filter_shape)
        return F.conv2d(signal, weight, padding=padding, groups=count).view(*outer, *picture)

    return "".join([*batch, *groups, *new, *SPATIAL]), step
