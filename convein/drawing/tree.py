"""Plan -> Picture: the contraction tree, operands at the top and the result at the bottom.

A step stands under its two values; where one of them is an operand, under the other, so that a chain of steps is a
trunk and not a slope. Lines are the wider the more their step multiplies, on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from operator import sub

from convein.drawing.sketch import WIDEST, by, operand_lines, operand_styles
from convein.drawing.svg import (
    CONSTANT,
    CONVOLVED,
    PARTIAL,
    RESULT,
    Box,
    Picture,
    Style,
    bounds,
    labelled,
    named,
    number,
    path,
    shortened,
    text_box,
)
from convein.equation import written
from convein.planner import Plan, Step
from convein.planner.partial import partial

_BESIDE = 20.0
_BELOW = 36.0
_PLAIN_LINE = "#8aa4b8"
_CONVOLVED_LINE = "#eba36f"
_FOLDED_LINE = "#c7b05c"


@dataclass(frozen=True, slots=True)
class Card:
    """The box of a value: what is written in it, and its colours."""

    lines: tuple[str, ...]
    style: Style
    outline: str = ""

    @property
    def size(self) -> tuple[float, float]:
        """Its width and height."""
        box = text_box(self.shown)
        return box.width + 18, box.height + 8

    @property
    def shown(self) -> tuple[str, ...]:
        """Its lines, none of them too long."""
        return tuple(shortened(line, WIDEST) for line in self.lines)


@dataclass(frozen=True, slots=True)
class Branch:
    """A value and all that it is made of, placed relative to it.

    Attributes:
        places: (x, height in steps) of each value.
        left, right: the outline at each height.
    """

    places: Mapping[int, tuple[float, int]]
    left: tuple[float, ...]
    right: tuple[float, ...]


def contraction_tree(plan: Plan) -> Picture:
    """The contraction tree of a plan."""
    cards, joins = _cards(plan), _joins(plan)
    places = _places(joins, [card.size[0] for card in cards])
    highest = 1 + max(height for _, height in places.values())
    rows = [max(cards[value].size[1] for value, (_, h) in places.items() if h == height) for height in range(highest)]
    floors = [-sum(rows[:height]) - height * _BELOW for height in range(highest)]
    boxes = []
    for value, card in enumerate(cards):
        x, height = places[value]
        boxes.append(Box(complex(x, floors[height] - card.size[1] / 2), *card.size))
    first = len(plan.network.operands)
    marks = []
    for place, values in enumerate(joins):
        step = plan.steps[place] if plan.steps else None
        marks += [_twig(boxes[value], boxes[first + place], plan, step) for value in values]
    for card, box in zip(cards, boxes, strict=True):
        marks.append(named(" ".join(card.lines), labelled(box, card.shown, card.style, outline=card.outline)))
    return Picture(tuple(marks), bounds(boxes, 4))


def _joins(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The values that each box below is made of; one operand alone has a result too."""
    return plan.ssa_path or ((0,),)


def _cards(plan: Plan) -> list[Card]:
    network = plan.network
    styles = operand_styles(network, plan.needs_grad, plan.constants)
    cards = [Card(operand_lines(network, position), styles[position]) for position in range(len(network.operands))]
    result = (f"{network.equation.output}", by(network.output_shape))
    if not plan.steps:
        return [*cards, Card(("result", *result), RESULT)]
    for place, step in enumerate(plan.steps):
        is_last = place == len(plan.steps) - 1
        sizes = partial(network, step.result_set).sizes
        value = result if is_last else ("".join(map(written, sizes)), by(tuple(sizes.values())))
        convolved = network.join(step.left_set, step.right_set)
        lines = [f"{place + 1}. {step.kind}"]
        if convolved:
            lines.append(
                "* " + ", ".join(f"{c.mode} {max(c.n, 0)}*{c.kernel}\u2192{max(c.length, 0)}" for c in convolved)
            )
        lines += _value_lines(*value) + _cost_lines(step)
        style = RESULT if is_last else CONSTANT if step.folded else PARTIAL
        cards.append(Card(tuple(lines), style, CONVOLVED if convolved else ""))
    return cards


def _value_lines(modes: str, shape: str) -> list[str]:
    one = f"{modes} {shape}".strip()
    return [one] if len(one) <= WIDEST else [modes, shape]


def _cost_lines(step: Step) -> list[str]:
    if step.folded:
        return ["computed once"]
    lines = [f"{number(step.macs)} mult."]
    return [*lines, f"backward {number(step.backward_macs)}"] if step.backward_macs else lines


def _places(joins: Sequence[Sequence[int]], widths: Sequence[float]) -> Mapping[int, tuple[float, int]]:
    """Where each value stands: x, and how many steps above the result."""
    first = len(widths) - len(joins)
    branches = [Branch({value: (0.0, 0)}, (-widths[value] / 2,), (widths[value] / 2,)) for value in range(first)]
    for place, values in enumerate(joins):
        parts = sorted((branches[value] for value in values), key=lambda branch: -len(branch.places))
        branches.append(_joined(first + place, widths[first + place], parts))
    return branches[-1].places


def _joined(value: int, width: float, parts: Sequence[Branch]) -> Branch:
    """A value under the branches that it is made of, the later ones to the right of the first."""
    first, *rest = parts
    shifts = [0.0, *(max(map(sub, first.right, part.left)) + _BESIDE for part in rest)]
    is_trunk = len(parts[-1].places) == 1 < len(parts[0].places)
    middle = 0.0 if is_trunk else shifts[-1] / 2
    places = {value: (0.0, 0)}
    left, right = [-width / 2], [width / 2]
    for part, shift in zip(parts, shifts, strict=True):
        move = shift - middle
        places |= {name: (x + move, height + 1) for name, (x, height) in part.places.items()}
        for height, (low, high) in enumerate(zip(part.left, part.right, strict=True), start=1):
            if height == len(left):
                left.append(low + move)
                right.append(high + move)
            left[height] = min(left[height], low + move)
            right[height] = max(right[height], high + move)
    return Branch(places, tuple(left), tuple(right))


def _twig(upper: Box, lower: Box, plan: Plan, step: Step | None) -> str:
    """The line from a value down to what it becomes part of."""
    start = upper.center + 1j * upper.height / 2
    away = (upper.center - lower.center).real
    end = lower.center - 1j * lower.height / 2 + max(-0.3, min(0.3, away / max(lower.width, 1.0))) * lower.width
    bend = 1j * (end - start).imag * 0.55
    color = _PLAIN_LINE
    if step is not None and step.folded:
        color = _FOLDED_LINE
    elif step is not None and plan.network.join(step.left_set, step.right_set):
        color = _CONVOLVED_LINE
    return path((start, start + bend, end - bend, end), color=color, width=_thickness(plan, step))


def _thickness(plan: Plan, step: Step | None) -> float:
    """Seven for the step that multiplies most, less by the logarithm of the ratio, over three decades or more."""
    if step is None:
        return 3.0
    costs = [log(max(other.macs, 1)) for other in plan.steps]
    span = max(max(costs) - min(costs), log(1000))
    return 1.5 + 5.5 * (1 - (max(costs) - log(max(step.macs, 1))) / span)
