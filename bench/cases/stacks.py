"""Small stacks of factorised layers, whose training step is counted in bytes: a speech and a video network's.

Nothing is computed: parameters and inputs are fake tensors, which have sizes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cases.forms import parts
from convein.metering import LiveMemory, MemoryCapError

FRAMES_KERNEL = 31
PICTURE_KERNEL = 3
# The bisection ends where it knows the largest batch to a hundredth.
RESOLUTION = 100

Call = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        expression: what convein is given.
        picture: the shape of x, without the batch.
        factors: the shapes of its factors.
        by_hand: a function of x and the factors: plain calls, from left to right.
        after: what is done with its result.
    """

    expression: str
    picture: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]
    by_hand: Call
    after: Call


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers one after the other."""

    name: str
    layers: tuple[Layer, ...]


def speech(channels: int, frames: int, percent: int, *, depthwise: bool, blocks: int = 2) -> Stack:
    """As in a conformer's convolution modules, every convolution a CP: pointwise, gated, along the frames, pointwise.

    The one along the frames is `depthwise`, as a conformer's is, or joins all channels.
    """
    along = _depthwise if depthwise else _along_frames
    block = (
        _pointwise(channels, 2 * channels, frames, percent, lambda y: F.glu(y, 1)),
        along(channels, frames, percent, F.silu),
        _pointwise(channels, channels, frames, percent, lambda y: y),
    )
    kind = "depthwise" if depthwise else "full"
    return Stack(f"speech, {kind}, {channels} channels {frames} frames {percent}%", block * blocks)


def video(percent: int) -> Stack:
    """As in a ResNet-34: two layers of 3x3 reshaped CP (three channel modes) at each of four sizes."""
    layers: list[Layer] = []
    inner = 64
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        halves = channels < 512
        layers += [
            _reshaped(inner, channels, size, percent, F.relu),
            _reshaped(channels, channels, size, percent, _relu_and_pool if halves else F.relu),
        ]
        inner = channels
    return Stack(f"video 64 to 512 channels 56 to 7 pixels {percent}%", tuple(layers))


def largest_batch(stack: Stack, make: Callable[[Layer, int], Call], cap: int) -> int:
    """The largest batch whose training step keeps at most `cap` bytes alive, parameters excluded; 0 if not even one.

    It is found by bisection, as if a larger batch never took less.

    Args:
        stack: what is trained.
        make: from a layer and a batch, a function of x and the factors.
        cap: bytes.
    """
    fits, fails = 0, 1
    while trains(stack, [make(layer, fails) for layer in stack.layers], fails, cap):
        fits, fails = fails, 2 * fails
    while fails - fits > max(1, fits // RESOLUTION):
        middle = (fits + fails) // 2
        if trains(stack, [make(layer, middle) for layer in stack.layers], middle, cap):
            fits = middle
        else:
            fails = middle
    return fits


def trains(stack: Stack, calls: Sequence[Call], batch: int, cap: int | None) -> bool:
    """Whether forward and backward of a stack stay below the cap."""
    with FakeTensorMode():
        parameters = [[torch.empty(shape, requires_grad=True) for shape in layer.factors] for layer in stack.layers]
        try:
            with LiveMemory(cap):
                x = torch.empty(batch, *stack.layers[0].picture)
                for layer, call, factors in zip(stack.layers, calls, parameters, strict=True):
                    x = layer.after(call(x, *factors))
                x.sum().backward()  # type: ignore[no-untyped-call]
        except MemoryCapError:
            return False
    return True


def _rank(dense: int, per_rank: int, percent: int) -> int:
    """The largest rank, at least 1, with so many percent of the dense layer's parameters."""
    return max(1, dense * percent // 100 // per_rank)


def _pointwise(s: int, t: int, frames: int, percent: int, after: Call) -> Layer:
    rank = _rank(s * t, s + t, percent)

    def by_hand(x: Tensor, rs: Tensor, rt: Tensor) -> Tensor:
        return torch.einsum("brf,rt->btf", torch.einsum("bsf,rs->brf", x, rs), rt)

    return Layer("bsf,rs,rt->btf", (s, frames), ((rank, s), (rank, t)), by_hand, after)


def _along_frames(channels: int, frames: int, percent: int, after: Call) -> Layer:
    rank = _rank(channels**2 * FRAMES_KERNEL, 2 * channels + FRAMES_KERNEL, percent)

    def by_hand(x: Tensor, rs: Tensor, rf: Tensor, rt: Tensor) -> Tensor:
        z = torch.einsum("bsf,rs->brf", x, rs)
        z = F.conv1d(z, rf.unsqueeze(1), padding=FRAMES_KERNEL // 2, groups=rank)
        return torch.einsum("brf,rt->btf", z, rt)

    factors = ((rank, channels), (rank, FRAMES_KERNEL), (rank, channels))
    return Layer("bsf,rs,rf,rt->btf|f", (channels, frames), factors, by_hand, after)


def _depthwise(channels: int, frames: int, percent: int, after: Call) -> Layer:
    rank = _rank(channels * FRAMES_KERNEL, channels + FRAMES_KERNEL, percent)

    def by_hand(x: Tensor, rs: Tensor, rf: Tensor) -> Tensor:
        z = torch.einsum("bsf,rs->bsrf", x, rs).reshape(-1, rank, frames)
        return F.conv1d(z, rf.unsqueeze(0), padding=FRAMES_KERNEL // 2).view(-1, channels, frames)

    factors = ((rank, channels), (rank, FRAMES_KERNEL))
    return Layer("bsf,rs,rf->bsf|f", (channels, frames), factors, by_hand, after)


def _reshaped(s: int, t: int, size: int, percent: int, after: Call) -> Layer:
    inner, outer = parts(s, 3), parts(t, 3)
    taps = PICTURE_KERNEL**2
    rank = _rank(s * t * taps, sum(map(prod, zip(inner, outer, strict=True))) + taps, percent)

    def by_hand(x: Tensor, first: Tensor, second: Tensor, third: Tensor, rhw: Tensor) -> Tensor:
        z = torch.einsum("bijkhw,rxi->brxjkhw", x.view(-1, *inner, size, size), first)
        z = torch.einsum("brxjkhw,ryj->brxykhw", z, second)
        z = torch.einsum("brxykhw,rzk->bxyzrhw", z, third)
        y = F.conv2d(z.reshape(-1, rank, size, size), rhw.unsqueeze(0), padding=PICTURE_KERNEL // 2)
        return y.view(-1, t, size, size)

    factors = [(rank, x, i) for i, x in zip(inner, outer, strict=True)]
    expression = "b(s1 s2 s3)hw,r(t1)(s1),r(t2)(s2),r(t3)(s3),rhw->b(t1 t2 t3)hw|hw"
    shapes = (*factors, (rank, PICTURE_KERNEL, PICTURE_KERNEL))
    return Layer(expression, (s, size, size), shapes, by_hand, after)


def _relu_and_pool(y: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(y), 2)


def stacks(percents: Sequence[int]) -> Iterator[Stack]:
    """Two kinds and two sizes of the speech network, and the video network."""
    for percent in percents:
        for channels, frames in ((256, 1000), (512, 1600)):
            for depthwise in (True, False):
                yield speech(channels, frames, percent, depthwise=depthwise)
        yield video(percent)
