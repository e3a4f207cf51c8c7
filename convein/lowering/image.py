"""Images as fused kernels take them: channels last, rows and columns, and what a convolution does along these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from convein.lowering import axis
from convein.lowering.chain import Factor, Run
from convein.lowering.values import Axis, Size, Value
from convein.lowering.writer import Writer
from convein.windows import Correlation


@dataclass(frozen=True, slots=True)
class Image:
    """A signal before a convolution.

    Attributes:
        value: with axes for the batch, rows, columns and channels, in this order in memory.
        lines: what happens along rows and along columns; None where nothing does.
    """

    value: Value
    lines: tuple[Correlation | None, Correlation | None]

    @property
    def places(self) -> tuple[Axis, Axis]:
        """The modes that are rows, and those that are columns."""
        return self.value.axes[1], self.value.axes[2]

    @property
    def size(self) -> list[Size]:
        """Rows and columns of the result."""
        pairs = zip(self.lines, self.places, strict=True)
        return [self.value.size(place) if line is None else line.size for line, place in pairs]

    def numbers(self, name: str, otherwise: int) -> list[int]:
        """An attribute of the correlations, along rows and columns."""
        return [otherwise if line is None else getattr(line, name) for line in self.lines]

    def pixels(self, writer: Writer) -> int:
        """Pixels of the result, those of all images together."""
        passing = (mode for place in self.value.axes[:3] for mode in place)
        reached = {line.mode: line.size for line in self.lines if line is not None}
        return prod(reached.get(mode) or writer.target.number(mode, self.value.sizes[mode]) for mode in passing)


def image(writer: Writer, x: Value, core: Factor, channels: Axis) -> Image:
    """The signal of a convolution along one or two modes; what its padding mode puts around it is added first."""
    for c in core.correlations:
        x = axis.extend(writer, x, c)
    by_mode = {c.mode: axis.extended(c) for c in core.correlations}
    convolved = [mode for mode in x.modes if mode in by_mode]
    passing = [mode for mode in x.modes if mode not in by_mode and mode not in channels]
    places: list[Axis] = [(mode,) for mode in convolved]
    if len(places) == 1:
        # Behind the first mode that matters, modes that only pass are rows or columns: no copy for them.
        first = min(x.modes.index(mode) for mode in (*convolved, *channels))
        rest = tuple(mode for mode in passing if x.modes.index(mode) > first)
        passing = [mode for mode in passing if mode not in rest]
        before = not rest or x.modes.index(rest[0]) < x.modes.index(convolved[0])
        places.insert(0 if before else 1, rest)
    rows, columns = places
    arranged = writer.arrange(x, (tuple(passing), rows, columns, channels), dense=True)
    lines = [by_mode.get(place[0]) if place else None for place in (rows, columns)]
    return Image(arranged, (lines[0], lines[1]))


def filters(writer: Writer, w: Value, lead: Sequence[Axis], given: Image) -> Value:
    """A factor with these axes, and then its filters along rows and columns."""
    for line in given.lines:
        if line is not None and line.flip:
            w = axis.flip(writer, w, line.mode)
    last = [() if line is None else (line.mode,) for line in given.lines]
    return writer.arrange(w, (*lead, *last))


def finish(writer: Writer, y: Value, core: Factor, run: Run) -> Value:
    """The result of a kernel, whose channels are its second axis and lie last in memory, as the run's."""
    y = writer.transpose(y, (0, 2, 3, 1))
    for c in core.correlations:
        y = axis.fold(writer, y, c)
    return writer.sum_out(y, [mode for mode in y.modes if mode not in run.kept])
