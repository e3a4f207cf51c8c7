"""Report: what became of every layer of a model, as a table and as a value to rebuild it from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convein.tensorizing.figures import Figures
from convein.tensorizing.settings import Setting, written

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a model.

    Attributes:
        layer: its qualified name.
        also: its other names, where it is shared.
        type: of torch's layer.
        before, after: what it costs; None where that cannot be known.
        setting: how it is factorised; None where it is left alone.
        ranks: the size of every bond.
        error: of its weight, relative to the norm; None where nothing was decomposed.
        reason: why it is left alone.
    """

    layer: str
    also: tuple[str, ...]
    type: str
    before: Figures
    after: Figures
    setting: Setting | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    reason: str | None = None

    @property
    def form(self) -> str | None:
        """The name of the form; None where the layer is left alone."""
        return self.setting.form if self.setting else None


@dataclass(frozen=True, slots=True)
class Report:
    """Every convolution and linear layer of a model, before and after; `print` it.

    Attributes:
        rows: in the order of the forward pass where that is known.
        training: whether times are those of a training step.
    """

    rows: tuple[Row, ...]
    training: bool

    @property
    def before(self) -> Figures:
        """The sums over all layers."""
        return _sum(row.before for row in self.rows)

    @property
    def after(self) -> Figures:
        """The sums over all layers."""
        return _sum(row.after for row in self.rows)

    @property
    def spec(self) -> dict[str, Any]:
        """What `tensorize(model, spec=...)` makes the same layers from; json.dumps takes it.

        Raises:
            OptionError: a planning option is an object.
        """
        return {"layers": {row.layer: written(row.setting, row.ranks) for row in self.rows if row.setting}}

    def __str__(self) -> str:
        """The table."""
        if not self.rows:
            return "there is no convolution and no linear layer"
        known = self.before.time is not None
        time = "training step (us)" if self.training else "inference (us)"
        titles = ["parameters", *(["multiplies", time, "saved (MiB)"] if known else [])]
        left = [["layer", "type", "form", "ranks"], *([*_names(row)] for row in self.rows), ["all layers", "", "", ""]]
        pairs = [*((row.before, row.after) for row in self.rows), (self.before, self.after)]
        numbers = [
            ["before", "after"] * len(titles),
            *(_numbers(before, after, known=known) for before, after in pairs),
        ]
        ends = [["error"], *([_end(row)] for row in self.rows), [""]]
        return _table(left, titles, numbers, ends)


def _sum(figures: Iterable[Figures]) -> Figures:
    known = list(figures)
    with_inputs = [one for one in known if one.multiplies is not None]
    parameters = sum(one.parameters for one in known)
    if not with_inputs:
        return Figures(parameters)
    return Figures(
        parameters,
        sum(one.multiplies or 0 for one in with_inputs),
        sum(one.time or 0.0 for one in with_inputs),
        sum(one.saved or 0 for one in with_inputs),
    )


def _names(row: Row) -> list[str]:
    ranks = ", ".join(f"{bond}={size}" for bond, size in row.ranks.items())
    name = row.layer or "(the model)"
    return [f"{name} (also {', '.join(row.also)})" if row.also else name, row.type, row.form or "-", ranks]


def _numbers(before: Figures, after: Figures, *, known: bool) -> list[str]:
    cells = [f"{before.parameters:,}", f"{after.parameters:,}"]
    if known:
        for name, unit, digits in (("multiplies", 1, 0), ("time", 1, 1), ("saved", _MIB, 2)):
            values = (getattr(before, name), getattr(after, name))
            cells += ["" if value is None else f"{value / unit:,.{digits}f}" for value in values]
    return cells


def _end(row: Row) -> str:
    if row.reason:
        return row.reason
    return "" if row.error is None else f"{row.error:.2g}"


def _table(left: list[list[str]], titles: list[str], numbers: list[list[str]], ends: list[list[str]]) -> str:
    """Aligned columns: words to the left, numbers to the right, a title above each pair of numbers."""
    words, figures = _widths(left), _widths(numbers)
    for place, title in enumerate(titles):
        figures[2 * place] += max(0, len(title) - sum(figures[2 * place : 2 * place + 2]) - 2)
    pairs = [sum(figures[place : place + 2]) + 2 for place in range(0, len(figures), 2)]
    indent = " " * (sum(words) + 2 * len(words))
    lines = [indent + "  ".join(title.rjust(width) for title, width in zip(titles, pairs, strict=True))]
    for word, number, end in zip(left, numbers, ends, strict=True):
        cells = [*map(str.ljust, word, words), *map(str.rjust, number, figures), *end]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
