"""One convolved mode, and the window of addresses that each partial result keeps of it.

Output index o of a mode reads the signal at ``i = s*o + d*(h_1 + ... + h_K) - lo``. Evaluated pairwise, a partial
result that has met the signal and a subset A of the filters holds partial addresses ``t = i - d*sum_A(h)``. Only
addresses that some output can still reach matter, and those form one interval that depends on A alone, never on the
order in which A was met: that is what makes every order exact. A transposed mode reads the same formula from the other
side: output index ``s*i + d*sum(h) - lo``, partial addresses ``t = s*i + d*sum_A(h)``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Correlation:
    """What one pairwise step does to one convolved mode that both sides carry, as a single cross-correlation.

    ``y[o] = sum_h up[stride*o + dilation*h - lo] * w[h]`` for ``0 <= o < size``, where ``up`` is the signal side with
    ``upsample - 1`` zeros between neighbours, read as zero outside, and ``w`` is the filter side, reversed if `flip`.

    Attributes:
        mode: the convolved mode.
        signal_left: whether the step's left value is the signal side.
        n: length of the signal side, before `extend`.
        kernel: length of the filter side.
        extend: entries that `padding_mode` adds before and after the signal side first.
        padding_mode: how they are made; `"zeros"` goes with `extend == (0, 0)`.
        upsample, stride, dilation, lo, size, flip: as in the formula; `lo` may be negative.
        fold: `(length, shift)`: afterwards output index o gathers all entries congruent to o + shift modulo length.
    """

    mode: str
    signal_left: bool
    n: int
    kernel: int
    upsample: int
    stride: int
    dilation: int
    lo: int
    size: int
    flip: bool
    extend: tuple[int, int] = (0, 0)
    padding_mode: str = "zeros"
    fold: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        """Length of the result, after folding."""
        return self.size if self.fold is None else self.fold[0]

    @property
    def reach(self) -> int:
        """How far the filter side extends beyond one address."""
        return self.dilation * (self.kernel - 1)

    @property
    def hi(self) -> int:
        """Zeros read after the (extended, upsampled) signal side; negative where its end is never read."""
        upsampled = (self.n + sum(self.extend) - 1) * self.upsample + 1
        return self.stride * (self.size - 1) + self.reach + 1 - self.lo - upsampled


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolved mode, bound to sizes.

    Attributes:
        mode: its name.
        signal: the operand that is the signal; `filters`: the others that carry it, in operand order.
        n: size of the signal; `kernels`: sizes of the filters.
        stride, dilation, flip, padding_mode, transposed: as the user gave them.
        lo, hi: padding in numbers.
        length: size of the output.
    """

    mode: str
    signal: int
    filters: tuple[int, ...]
    n: int
    kernels: tuple[int, ...]
    stride: int
    dilation: int
    lo: int
    hi: int
    length: int
    flip: bool
    padding_mode: str
    transposed: bool

    @property
    def carriers(self) -> int:
        """All operands that carry the mode, as a bit set."""
        return _bits(self.filters) | 1 << self.signal

    def __str__(self) -> str:
        filters = ", ".join(f"x{j}[{k}]" for j, k in zip(self.filters, self.kernels, strict=True))
        kind = "transposed " if self.transposed else ""
        return (
            f"{kind}convolution {self.mode}: x{self.signal}[{self.n}] by {filters or 'nothing'}, "
            f"stride {self.stride}, dilation {self.dilation}, padding ({self.lo}, {self.hi}) {self.padding_mode}"
            f"{', flipped' if self.flip else ''} -> {self.length}"
        )

    def operand_size(self, operand: int) -> int:
        """Size of the mode in one of its carriers."""
        return self.n if operand == self.signal else self.kernels[self.filters.index(operand)]

    def taps(self, subset: int) -> int:
        """Length of the merged filter made of the subset's filters (1 if it has none)."""
        return 1 + sum(k - 1 for j, k in zip(self.filters, self.kernels, strict=True) if subset >> j & 1)

    def extent(self, subset: int) -> int:
        """Size of the mode in the partial result made of a set of operands, one of which carries it."""
        if not subset >> self.signal & 1:
            return self.taps(subset)
        if self.carriers & ~subset == 0:
            return self.length
        first, last = self._window(subset)
        return last - first + 1

    def join(self, left: int, right: int) -> Correlation:
        """The correlation that joins two disjoint sets of operands that both carry the mode."""
        if left >> self.signal & 1:
            return self._meet(left, right, signal_left=True)
        if right >> self.signal & 1:
            return self._meet(right, left, signal_left=False)
        n, kernel = self.taps(left), self.taps(right)
        # Filters merge by index addition, whatever the options: reversing both reverses the merged one.
        return Correlation(
            self.mode,
            n >= kernel,
            max(n, kernel),
            min(n, kernel),
            1,
            1,
            1,
            min(n, kernel) - 1,
            n + kernel - 1,
            flip=True,
        )

    def alone(self) -> Correlation:
        """What a mode that no filter carries does to its one operand: the correlation with a filter of length one."""
        return self._meet(1 << self.signal, 0, signal_left=True)

    @property
    def is_trivial(self) -> bool:
        """Whether a mode without filters leaves its operand as it is."""
        return not self.filters and self.length == self.n and self.stride == 1 and self.lo == 0

    @property
    def is_empty(self) -> bool:
        """Whether no output reads any entry of the signal: every partial window is empty then, and the result zero."""
        if self.n == 0:
            return True
        n, lo, length = self._effective()
        reach = self._reach(self.carriers)
        if self.transposed:
            return lo - reach > (n - 1) * self.stride or length - 1 + lo < 0
        return self.stride * (length - 1) + reach - lo < 0

    def _reach(self, subset: int) -> int:
        return self.dilation * (self.taps(subset) - 1)

    def _effective(self) -> tuple[int, int, int]:
        """Signal size, lo and length as if the padding were zeros.

        A signal extended by values is a longer signal without padding; the output of a circular transposed mode is the
        whole adjoint, folded afterwards.
        """
        if self.padding_mode == "zeros":
            return self.n, self.lo, self.length
        if self.transposed:
            return self.n, 0, (self.n - 1) * self.stride + self._reach(self.carriers) + 1
        return self.n + self.lo + self.hi, 0, self.length

    def _window(self, subset: int) -> tuple[int, int]:
        """First and last partial address kept by a set that holds the signal and not every filter."""
        n, lo, length = self._effective()
        if not any(subset >> j & 1 for j in self.filters):
            return 0, self.n - 1
        met = self._reach(subset)
        missing = self._reach(self.carriers & ~subset)
        if self.transposed:
            return max(0, lo - missing), min((n - 1) * self.stride + met, length - 1 + lo)
        return max(-met, -lo), min(n - 1, self.stride * (length - 1) + missing - lo)

    def _meet(self, signal: int, other: int, *, signal_left: bool) -> Correlation:
        """The set that holds the signal meets a set of filters."""
        _, lo, length = self._effective()
        first_filter = not any(signal >> j & 1 for j in self.filters)
        complete = self.carriers & ~(signal | other) == 0
        start, end = self._window(signal) if not first_filter else (0, self.n - 1)
        n, kernel = end - start + 1, self.taps(other)
        if self.transposed:
            new_start, size = lo, length
            if not complete:
                new_start, new_end = self._window(signal | other)
                size = new_end - new_start + 1
            return Correlation(
                self.mode, signal_left, n, kernel,
                upsample=self.stride if first_filter else 1, stride=1, dilation=self.dilation,
                lo=self.dilation * (kernel - 1) + start - new_start, size=size, flip=not self.flip,
                padding_mode="zeros",
                fold=(self.length, self.lo) if complete and self.padding_mode != "zeros" else None,
            )  # fmt: skip
        if complete:
            stride, lead, size = self.stride, start + lo, length
        else:
            new_start, new_end = self._window(signal | other)
            stride, lead, size = 1, start - new_start, new_end - new_start + 1
        extended = first_filter and self.padding_mode != "zeros"
        return Correlation(
            self.mode, signal_left, n, kernel,
            upsample=1, stride=stride, dilation=self.dilation, lo=lead, size=size, flip=self.flip,
            extend=(self.lo, self.hi) if extended else (0, 0),
            padding_mode=self.padding_mode if extended else "zeros",
        )  # fmt: skip


def _bits(positions: tuple[int, ...]) -> int:
    return sum(1 << j for j in positions)
