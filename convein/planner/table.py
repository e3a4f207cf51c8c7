"""Plan -> PathInfo: what a plan costs in opt_einsum's terms and in ours, and the table that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import prod
from typing import TYPE_CHECKING

from opt_einsum import blas, get_symbol
from opt_einsum.contract import PathInfo as OptEinsumPathInfo

from convein.equation import ELLIPSIS, written
from convein.network import Network
from convein.planner.partial import taps_read
from convein.windows import Correlation

if TYPE_CHECKING:
    from convein.planner.plan import Plan, Step

WIDTH = 120
LEAST_REMAINING = 20
UNITS = {"time": "microseconds", "flops": "multiplications", "training": "multiplications", "memory": "elements"}


class PathInfo(OptEinsumPathInfo):  # type: ignore[misc] # it has no types
    """A path and its numbers, to be printed. Without a bar the fields of opt_einsum's PathInfo are what they are there.

    With a bar: a mode that a step convolves counts its output and its filter, in `scale_list` as two, in costs as
    (output size) x (filter size), and it counts as summed; `size_dict` has the signal's size.

    Attributes:
        plan: the plan itself.
        macs, training_macs: multiplications of a forward pass, and of a forward and a backward pass.
        saved_bytes: what the backward pass keeps of partial results, for elements of `itemsize` bytes.
        slices: modes that are looped over.
        ssa_path: pairs of values, numbered operands first, then results.
        optimizer: the search that found the order.
    """

    def __init__(self, plan: Plan, itemsize: int = 4) -> None:
        network = plan.network
        rows = tuple(_rows(plan))
        terms = [_distinct(operand.axes) for operand in network.operands]
        self.plan = plan
        self.macs, self.training_macs = plan.macs, plan.training_macs
        self.saved_bytes = plan.saved_bytes(itemsize)
        self.slices, self.ssa_path, self.optimizer = plan.slices, list(plan.ssa_path), plan.optimizer
        self.contraction_list = [row.contraction for row in rows]
        self.input_subscripts = ",".join(_written(_flat(operand.axes)) for operand in network.operands)
        self.output_subscript = _written(network.output)
        self.path = list(plan.path)
        self.indices = frozenset(network.carriers) | {mode for term in terms for mode in term}
        self.scale_list = [row.scaling for row in rows]
        self.size_list = [row.elements for row in rows]
        self.naive_cost = Decimal(_naive_cost(network, terms))
        self.opt_cost = Decimal(sum(row.flops for row in rows))
        self.speedup = self.naive_cost / max(self.opt_cost, Decimal(1))
        self.size_dict = {mode: _size(network, mode) for mode in sorted(self.indices)}
        self.shapes = [tuple(_size(network, mode) for mode in _flat(operand.axes)) for operand in network.operands]
        self.eq = f"{self.input_subscripts}->{self.output_subscript}"
        self.largest_intermediate = Decimal(max(self.size_list, default=1))
        self._rows = rows

    def __repr__(self) -> str:
        plan = self.plan
        backward = plan.training_macs - plan.macs
        gradients = f", backward {_number(backward)}" if plan.needs_grad else ""
        lines = [
            f"  Complete contraction:  {plan.network.equation}",
            f"         Naive scaling:  {self._naive_scaling()}",
            f"     Optimized scaling:  {max(self.scale_list, default=0)}",
            f"      Naive FLOP count:  {_number(self.naive_cost)}",
            f"  Optimized FLOP count:  {_number(self.opt_cost)}",
            f"   Theoretical speedup:  {_number(self.speedup)}",
            f"  Largest intermediate:  {_number(self.largest_intermediate)} elements",
            f"       Multiplications:  forward {_number(plan.macs)}{gradients}",
        ]
        if plan.needs_grad:
            lines.append(f"    Saved for backward:  {_number(plan.saved)} elements besides the operands")
        if plan.slices:
            lines.append(f"        Sliced, looped:  {', '.join(plan.slices)}")
        unit = f" {UNITS[plan.cost]}" if plan.cost in UNITS else ""
        lines.append(f"             Optimizer:  {plan.optimizer}, by {plan.cost}: {_number(plan.total)}{unit}")
        if plan.rates:
            lines.append(f"                 Rates:  {plan.rates}")
        return "\n".join([*lines, *_table(self._rows, bool(plan.needs_grad))])

    def _naive_scaling(self) -> int:
        extra = sum(len(convolution.filters) for convolution in self.plan.network.convolutions.values())
        return len(self.indices) + extra


def path_info(plan: Plan, itemsize: int = 4) -> PathInfo:
    """The numbers and the table of a plan, for elements of `itemsize` bytes."""
    return PathInfo(plan, itemsize)


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table. `step` is None where a path sums an operand alone, or there is one operand only."""

    contraction: tuple[object, ...]
    scaling: int
    flops: int
    elements: int
    step: Step | None
    convolved: tuple[Correlation, ...]
    current: str
    remaining: str


@dataclass(frozen=True, slots=True)
class _Term:
    """A value that is still to be joined: its modes as opt_einsum would write them."""

    operands: int
    modes: tuple[str, ...]


def _rows(plan: Plan) -> Iterator[_Row]:
    network = plan.network
    terms = [_Term(1 << place, _flat(operand.axes)) for place, operand in enumerate(network.operands)]
    steps = iter(plan.steps)
    for number, places in enumerate(plan.path):
        joined = [terms.pop(place) for place in sorted(places, reverse=True)]
        step = next(steps) if len(places) > 1 else None
        if step is not None and network.join(step.left_set, step.right_set):
            joined = [term for left in (True, False) for term in joined if (term.operands == step.left_set) is left]
        row = _row(network, step, places, joined, terms, last=number + 1 == len(plan.path))
        terms.append(row[1])
        yield row[0]


def _row(
    network: Network, step: Step | None, places: Sequence[int], joined: list[_Term], rest: list[_Term], *, last: bool
) -> tuple[_Row, _Term]:
    operands = sum(term.operands for term in joined)
    involved = dict.fromkeys(mode for term in joined for mode in term.modes)
    needed = {*network.output, *(mode for term in rest for mode in term.modes)}
    kept = [mode for mode in involved if mode in needed]
    removed = frozenset(involved) - frozenset(kept)
    result = _Term(operands, network.output if last else tuple(kept))
    convolved = network.join(step.left_set, step.right_set) if step else ()
    flops = prod(_loop(network, mode, [term.operands for term in joined]) for mode in involved)
    bar = "".join(written(correlation.mode) for correlation in convolved)
    current = f"{','.join(_written(term.modes) for term in joined)}->{_written(result.modes)}"
    left = tuple(_written(term.modes) for term in [*rest, result])
    contraction = (
        tuple(sorted(places, reverse=True)),
        removed,
        f"{current}|{bar}" if bar else current,
        left if len(left) <= 20 else None,
        False if convolved else _blas(network, joined, result, removed),
    )
    row = _Row(
        contraction,
        scaling=len(involved) + len(convolved),
        flops=flops * (max(1, len(joined) - 1) + bool(removed or convolved)),
        elements=prod(_extent(network, mode, operands) for mode in kept),
        step=step,
        convolved=convolved,
        current=contraction[2],
        remaining=_remaining(network, [*rest, result], left),
    )
    return row, result


def _remaining(network: Network, terms: Sequence[_Term], texts: Sequence[str]) -> str:
    """The expression that is left to evaluate."""
    if len(terms) > 20:
        return f"{len(terms)} values"
    met = [mode for mode, c in network.convolutions.items() if sum(bool(c.carriers & t.operands) for t in terms) > 1]
    return f"{','.join(texts)}->{_written(network.output)}" + (f"|{_written(met)}" if met else "")


def _loop(network: Network, mode: str, sets: list[int]) -> int:
    """How often a step runs through one mode."""
    convolution = network.convolutions.get(mode)
    if convolution is None:
        return network.sizes[mode]
    carrying = [operands for operands in sets if operands & convolution.carriers]
    if len(carrying) == 2:
        return taps_read(convolution, carrying[0], carrying[1])
    return _extent(network, mode, carrying[0])


def _naive_cost(network: Network, terms: Sequence[tuple[str, ...]]) -> int:
    """All operands at once: every output entry reads every combination of filter entries."""
    modes = {mode for term in terms for mode in term}
    loops = 1
    for mode in modes:
        convolution = network.convolutions.get(mode)
        loops *= network.sizes[mode] if convolution is None else convolution.length * prod(convolution.kernels)
    inner = sum(map(len, terms)) > len(modes)
    return loops * (max(1, len(terms) - 1) + inner)


def _extent(network: Network, mode: str, operands: int) -> int:
    convolution = network.convolutions.get(mode)
    return network.sizes[mode] if convolution is None else max(convolution.extent(operands), 0)


def _size(network: Network, mode: str) -> int:
    convolution = network.convolutions.get(mode)
    return network.sizes[mode] if convolution is None else convolution.n


def _blas(network: Network, joined: list[_Term], result: _Term, removed: frozenset[str]) -> str | bool:
    """opt_einsum's word for a step, asked in letters of its own."""
    modes = sorted({mode for term in joined for mode in term.modes})
    letters = {mode: get_symbol(number) for number, mode in enumerate(modes)}
    inputs = ["".join(letters[mode] for mode in term.modes) for term in joined]
    carried = [[bool(network.carriers[mode] & term.operands) for mode in term.modes] for term in joined]
    if not all(map(all, carried)):
        return False  # a mode of size 1 that is broadcast
    word = blas.can_blas(inputs, "".join(letters[m] for m in result.modes), frozenset(letters[m] for m in removed))
    return word if isinstance(word, str) else False


def _flat(axes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(mode for axis in axes for mode in axis)


def _distinct(axes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_flat(axes)))


def _written(modes: Sequence[str]) -> str:
    batch = [mode for mode in modes if mode.startswith(ELLIPSIS)]
    if batch != [f"{ELLIPSIS}{place}" for place in reversed(range(len(batch)))]:
        return "".join(map(written, modes))  # "..." is aligned on the right, and these dimensions are not
    return "".join(ELLIPSIS * (mode == batch[0]) if mode in batch else written(mode) for mode in modes)


def _table(rows: Sequence[_Row], gradients: bool) -> list[str]:
    """One line a step; where its expression is too long for that, a second line that has room for it."""
    columns = [
        ("scaling", ">", [str(row.scaling) for row in rows]),
        ("kind", "<", [row.step.kind if row.step else "sum" for row in rows]),
        ("current", ">", [row.current for row in rows]),
        ("convolved", "<", [_convolved(row) for row in rows]),
        ("forward", ">", [_forward(row.step) for row in rows]),
        ("backward", ">", [_number(row.step.backward_macs) if row.step else "" for row in rows]),
    ]
    shown = [
        c for c in columns if c[0] not in {"convolved", "backward"} or (any(c[2]) if c[0] == "convolved" else gradients)
    ]
    lines = _lines(shown)
    room = WIDTH - len(lines[0]) - 2
    if room >= LEAST_REMAINING:
        remaining = [_within(row.remaining, room) for row in rows]
        width = max(map(len, ["remaining", *remaining]))
        lines = [f"{line}  {text:>{width}}" for line, text in zip(lines, ["remaining", *remaining], strict=True)]
    elif room < -2:
        lines = _lines([column for column in shown if column[0] != "current"])
        below = [_within(text, WIDTH - 9) for text in ["current", *(row.current for row in rows)]]
        lines = [f"{line.rstrip()}\n{'':>9}{text}" for line, text in zip(lines, below, strict=True)]
    rule = "-" * max(len(part) for line in lines for part in line.split("\n"))
    return [rule, lines[0], rule, *lines[1:]]


def _lines(columns: Sequence[tuple[str, str, list[str]]]) -> list[str]:
    cells = [[title, *texts] for title, _, texts in columns]
    widths = [max(map(len, column)) for column in cells]
    sides = [side for _, side, _ in columns]
    return [
        "  ".join(f"{c:{side}{w}}" for c, side, w in zip(row, sides, widths, strict=True))
        for row in zip(*cells, strict=True)
    ]


def _convolved(row: _Row) -> str:
    return ", ".join(f"{c.mode} {c.n}*{c.kernel}->{c.length}" for c in row.convolved)


def _within(expression: str, width: int) -> str:
    """An expression in so many columns: operands are left out, the last ones first."""
    if len(expression) <= width:
        return expression
    inputs, arrow, output = expression.partition("->")
    terms, left_out = inputs.split(","), 0
    short = expression
    while len(terms) > 1 and len(short) > width:
        terms.pop()
        left_out += 1
        short = f"{','.join(terms)},+{left_out} more{arrow}{output}"
    return short if len(short) <= width else f"{expression[: width - 3]}..."


def _forward(step: Step | None) -> str:
    if step is None:
        return ""
    return "folded" if step.folded else _number(step.macs)


def _number(value: float | Decimal) -> str:
    return f"{float(value):.3e}" if value < 10**300 else f"{Decimal(value):.3e}"
