"""Network -> tensor diagram, Plan -> contraction tree: pictures as SVG text."""

from __future__ import annotations

from collections.abc import Iterable

from convein.drawing.captions import Entry, captioned
from convein.drawing.diagram import tensor_diagram
from convein.drawing.sketch import by, operand_styles, sketched
from convein.drawing.svg import CONSTANT, FIXED, OPERAND, RESULT, Picture, Style, Svg, beside, document, number
from convein.drawing.tree import contraction_tree
from convein.network import Network
from convein.planner import Plan

__all__ = ["Svg", "draw_both", "draw_network", "draw_plan"]


def draw_network(network: Network) -> Svg:
    """The tensor diagram of a network, as SVG text."""
    return document(_network(network, operand_styles(network)), f"tensor diagram of {network.equation}")


def draw_plan(plan: Plan) -> Svg:
    """The contraction tree of a plan, as SVG text."""
    return document(_plan(plan, str(plan.network.equation)), f"contraction tree of {plan.network.equation}")


def draw_both(plan: Plan) -> Svg:
    """Both pictures of a plan as one, as SVG text."""
    both = beside(_network(plan.network, _styles(plan)), _plan(plan, "contraction tree"))
    return document(both, f"tensor diagram and contraction tree of {plan.network.equation}")


def _network(network: Network, styles: dict[int, Style]) -> Picture:
    drawn = sketched(network)
    entries = _operand_entries(styles.values())
    if any(node.position is None and not node.is_convolved for node in drawn.nodes):
        entries.append(("shared", "a mode of several operands"))
    if any(node.is_convolved for node in drawn.nodes):
        entries.append(("convolved", "convolved, arrow from the signal"))
    if any(leg.is_kept for leg in drawn.legs):
        entries.append(("kept", "in the result"))
    if not all(leg.is_kept for leg in drawn.legs):
        entries.append(("summed", "summed alone"))
    shape = by(network.output_shape)
    return captioned(tensor_diagram(network, styles), [str(network.equation), f"result {shape}"], entries)


def _plan(plan: Plan, title: str) -> Picture:
    entries = _operand_entries(_styles(plan).values())
    entries += [(RESULT, "result"), ("wide", "more multiplications")]
    backward = f", backward {number(plan.training_macs - plan.macs)}" if plan.needs_grad else ""
    numbers = f"multiplications: forward {number(plan.macs)}{backward}; largest result {number(plan.largest)} elements"
    order = f"order: {plan.optimizer}, cost {plan.cost}"
    return captioned(contraction_tree(plan), [title, numbers, order], entries)


def _styles(plan: Plan) -> dict[int, Style]:
    return operand_styles(plan.network, plan.needs_grad, plan.constants)


def _operand_entries(styles: Iterable[Style]) -> list[Entry]:
    """The legend of operands, where they differ."""
    words: dict[Style, str] = {OPERAND: "operand", FIXED: "needs no gradient", CONSTANT: "constant"}
    used = set(styles)
    return [(style, word) for style, word in words.items() if style in used] if used - {OPERAND} else []
