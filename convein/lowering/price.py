"""What a call is expected to take: its class, its multiplications and its bytes against the machine's rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from convein.lowering.target import Target
from convein.lowering.values import Value
from convein.planner import rates
from convein.planner.accelerators import accelerator
from convein.planner.rates import Rate

# A strip of an image goes through the first pointwise convolution with the pixels around it: so many times its own.
HALO = 1.7
# A product outside of the matrix units takes as long as so many inside.
VECTOR = 6
# Vector units work on blocks of channels: fewer than this cost as much.
BLOCK = 16
# With channels last, gradients for many channels of several images of few pixels take longer by this factor. Channels
# first, they are as fast as others where the blocks of channels can be split.
SMALL_IMAGE = 32
MANY_CHANNELS = 256
SMALL_IMAGES = 1.25
# Products of matrices by MKL have smaller blocks, as long as the caches hold matrices of so many entries.
SMALL_BLOCK = 4
SMALL = 2**17
# With fewer than so many columns a product takes as long as if it read its first side so many times more, by whether
# its sides are transposed.
NARROW = 16
AGAIN = {(False, False): 6, (True, False): 14, (True, True): 28, (False, True): 0}
# With few products to a sum, rows of the result that are multiples of so many entries get into each other's way in
# the cache: as if each of its entries were read so many times more.
PAGE = 1024
ALIASED = 5


@dataclass(frozen=True, slots=True)
class Pricer:
    """Prices calls for one target, in microseconds."""

    target: Target

    def copy(self, value: Value) -> float:
        """A change of the order in memory: read, written, and once more for the gradient."""
        moved = 2 * self._bytes(value)
        return self._time(rates.COPY, 0, moved, 1 if value.grad else 0)

    def transposed(self, value: Value) -> float:
        """The same where two groups of axes change places, by the call that is made for it."""
        if not (self.target.device == "cpu" and self.target.dtype is torch.float32):
            return math.inf
        return self._time(rates.TRANSPOSED, 0, 2 * self._bytes(value), 1 if value.grad else 0)

    def pointwise(self, x: Value, rows: int, summed: int, free: int, w: Value) -> float:
        """A product by pixels of x, whose channels are not last: it is transposed, and again for the gradient of w."""
        copies = (2 if w.grad else 1) * self.transposed(replace(x, grad=False))
        return copies + self.matrix(rates.ROWS, 1, rows, summed, free, (x, w))

    def elementwise(self, made: int, parts: Iterable[Value]) -> float:
        """A product entry by entry with `made` results."""
        parts = list(parts)
        moved = made * self.target.dtype.itemsize + sum(map(self._bytes, parts))
        return self._time(rates.ELEMENTWISE, made, moved, sum(part.grad for part in parts))

    def product(self, a: Value, b: Value, sizes: tuple[int, int, int], turned: tuple[bool, bool]) -> float:
        """A product of two plain matrices, (rows, summed) and (summed, free).

        Args:
            a: the first side.
            b: the second one.
            sizes: rows, summed, free.
            turned: whether the memory of each side has its columns one after the other.
        """
        (rows, summed, free), (first, second) = sizes, turned
        again = _again(rows, summed, free, first, second)
        # For a transposed side autograd computes the transposed gradient.
        if a.grad:
            again += (
                _again(summed, free, rows, second, True) if first else _again(rows, free, summed, False, not second)
            )
        if b.grad:
            again += _again(free, rows, summed, True, first) if second else _again(summed, rows, free, not first, False)
        if not self.target.chooses_layouts:
            again = 0
        rate = self.target.rates.forward[rates.MATRIX]
        more = rate.time(0, again * self.target.dtype.itemsize) - rate.overhead
        return self.matrix(rates.MATRIX, 1, rows, summed, free, (a, b)) + more

    def matrix(self, kind: str, batch: int, rows: int, summed: int, free: int, parts: tuple[Value, Value]) -> float:
        """`batch` products of a (rows, summed) and a (summed, free) matrix."""
        largest = max(rows * summed, summed * free, rows * free)
        block = SMALL_BLOCK if kind == rates.MATRIX and largest <= SMALL else BLOCK

        def blocks(count: int) -> int:
            # A single column is a vector, for which there are calls of their own.
            return 1 if count == 1 and kind != rates.ROWS else _blocks(count, block)

        flops = 2 * batch * rows * summed * blocks(free)
        # In the backward pass the rows are columns, or are summed.
        padded = 2 * batch * blocks(rows) * blocks(summed) * blocks(free)
        moved = self.target.dtype.itemsize * batch * (rows * summed + summed * free + rows * free)
        return self._time(kind, flops, moved, parts[0].grad + parts[1].grad, padded)

    def convolution(
        self, x: Value, w: Value, made: int, groups: int, summed: int, free: int, taps: int, image: int, *, last: bool
    ) -> float:
        """A convolution with `made` outputs, `image` of them in a channel of one image; other channels are those of its
        groups, and a filter has `taps` entries.
        """
        if summed == free == 1:
            kind = rates.DEPTHWISE_LAST if last else rates.DEPTHWISE_FIRST
            padded = flops = 2 * made * taps * (_blocks(groups) / groups if last else 1)
        else:
            kind = (
                (rates.GROUPED_LAST if last else rates.GROUPED_FIRST)
                if groups > 1
                else (rates.DENSE_LAST if last else rates.DENSE_FIRST)
            )
            flops = 2 * made / free * _blocks(free) * summed * taps
            # The gradient of the signal has its channels as outputs; those of groups are not padded again.
            padded = flops * _blocks(summed) / summed if groups == 1 else flops
            several = made > image * groups * free
            if kind == rates.DENSE_LAST and several and image < SMALL_IMAGE and _split(summed) and _split(free):
                padded *= SMALL_IMAGES
        moved = self._bytes(x) + self._bytes(w) + made * self.target.dtype.itemsize
        return self._time(kind, flops, moved, x.grad + w.grad, padded)

    def small_convolution(
        self, x: Value, w: Value, made: int, summed: int, taps: int, axes: int, *, last: bool
    ) -> float:
        """One that torch does by a product of matrices, for which it copies every entry to each tap; channels first.

        These copies, of all bytes times the taps, are slow, and along three axes slower still.
        """
        itemsize = self.target.dtype.itemsize
        columns = self._bytes(x) * taps * (12 if axes > 2 else 3)
        price = self._time(rates.MATRIX, 2 * made * summed * taps, columns + self._bytes(w), x.grad + w.grad)
        moved = self._bytes(x) + self._bytes(w) + made * itemsize
        return price + (self._time(rates.COPY, 0, 2 * moved, x.grad + w.grad) if last else 0.0)

    def pointwise_depthwise(
        self, x: Value, a: Value | None, d: Value, c: Value | None, pixels: int, *, dense: bool
    ) -> float:
        """The kernel with `pixels` pixels in its result; the gradient of x is a kernel of the same kind, and those of
        the factors come from that of the one dense filter that they make.
        """
        entries = [0 if value is None else self.target.count(value) for value in (a, d, c)]
        made = self._size(d, 0) if c is None else self._size(c, 0)
        moved = self._bytes(x) + pixels * made * self.target.dtype.itemsize
        products = HALO * entries[0] + (1 if dense else VECTOR) * entries[1] + entries[2]
        found = (2 if x.grad else 1) * self._fused.time(2 * pixels * products, moved)
        if any(value is not None and value.grad for value in (a, d, c)):
            taps = self._size(d, -2) * self._size(d, -1)
            flops = 2 * pixels * self._size(x, -1) * made * taps
            found += self.target.rates.backward[rates.DENSE_LAST].time(flops, moved)
        return found

    def depthwise_pointwise(self, x: Value, d: Value, c: Value, pixels: int) -> float:
        """The kernel with `pixels` pixels in its result; its gradients are products as large, of as many bytes."""
        moved = self._bytes(x) + pixels * self._size(c, 0) * self.target.dtype.itemsize
        flops = 2 * pixels * (VECTOR * self.target.count(d) + self.target.count(c))
        return (1 + x.grad + (d.grad or c.grad)) * self._fused.time(flops, moved)

    def product_reduce(self, tensors: Sequence[Value], gone: Iterable[str]) -> float:
        """The kernel, and as much again for the gradient of each tensor."""
        made = self.target.count(tensors[0])
        left = made // math.prod(self.target.number(mode, tensors[0].sizes[mode]) for mode in gone)
        moved = sum(map(self._bytes, tensors)) + left * self.target.dtype.itemsize
        return (1 + sum(x.grad for x in tensors)) * self._fused.time(VECTOR * made * len(tensors), moved)

    def pair(self, x: Value, w: Value, made: Sequence[int], summed: int) -> float:
        """The kernel of one product with `summed` products for each entry of the result; each gradient is another."""
        entries = math.prod(made)
        moved = self._bytes(x) + self._bytes(w) + entries * self.target.dtype.itemsize
        return (1 + x.grad + w.grad) * self._fused.time(2 * entries * summed, moved)

    @property
    def _fused(self) -> Rate:
        """The rate of our own kernels. On a CPU triton interprets them, and nobody asks how long that takes."""
        return self.target.rates.forward.get(rates.FUSED) or accelerator(self.target.dtype).forward[rates.FUSED]

    def _size(self, value: Value, axis: int) -> int:
        """The size of one axis."""
        return math.prod(self.target.number(mode, value.sizes[mode]) for mode in value.axes[axis])

    def _bytes(self, value: Value) -> int:
        return self.target.count(value) * self.target.dtype.itemsize

    def _time(self, kind: str, flops: float, moved: float, gradients: int, backward: float = 0.0) -> float:
        """Microseconds; `backward` are the operations of one gradient, where they are not those of the product."""
        table = self.target.rates
        found = table.forward[kind].time(flops, moved)
        if gradients:
            found += table.backward[kind].time((backward or flops) * gradients, moved * gradients)
        return found


def _again(rows: int, summed: int, free: int, first: bool, second: bool) -> int:
    """How many entries a product with few columns, or with few products to a sum, seems to read again."""
    if 1 < free < NARROW:
        return rows * summed * AGAIN[first, second]
    return rows * free * ALIASED if 1 < summed < NARROW and free % PAGE == 0 else 0


def _split(channels: int) -> bool:
    """Whether channels are many and the number of their blocks is no prime."""
    count = -(-channels // BLOCK)
    return channels >= MANY_CHANNELS and any(count % part == 0 for part in range(2, count))


def _blocks(channels: int, block: int = BLOCK) -> int:
    return -(-channels // block) * block
