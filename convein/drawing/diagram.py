"""Sketch -> Picture: the tensor diagram of a network, everything in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convein.drawing.layout import arrange
from convein.drawing.placement import Array, bent, free_label, joined, leg_place, sampled, visible
from convein.drawing.sketch import Leg, Line, Node, Sketch, sketched
from convein.drawing.svg import (
    CONVOLVED,
    INK,
    Box,
    Picture,
    Style,
    arrow,
    asterisk,
    backed,
    bounds,
    dot,
    double,
    labelled,
    named,
    path,
    text_box,
)
from convein.network import Network

_GAP = 38.0  # of a line between two operands, besides its label
_SPOKE = 28.0  # of a line between an operand and the point of a mode
_CONVOLVED = 40.0  # of the line to the point of a convolved mode, besides its label
_BUNDLED = 16.0  # more for each further line between the same two
_HUB = 11.0
_DOT = 4.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a sketch with the points that draw it, two or three, and what of it the boxes leave to see."""

    line: Line
    points: tuple[complex, ...]
    visible: Array


def tensor_diagram(network: Network, styles: Mapping[int, Style]) -> Picture:
    """The tensor diagram of a network.

    Args:
        network: what is drawn.
        styles: colours of operands, by position.
    """
    drawn = sketched(network)
    nodes = arrange([_size(node) for node in drawn.nodes], _links(drawn))
    curves = _curves(drawn, nodes)
    ink = joined(curve.visible for curve in curves)
    labels: list[Box] = []
    middle = bounds(nodes).center.imag
    under = [_draw_curve(curve, nodes) for curve in curves]
    over = [_draw_node(node, box, styles) for node, box in zip(drawn.nodes, nodes, strict=True)]
    for curve in sorted(curves, key=lambda curve: len(curve.visible)):
        if curve.line.text:
            labels.append(_line_label(curve, [*nodes, *labels], ink))
            over.append(_draw_label((curve.line.text,), labels[-1], curve.line.is_convolved))
    for node, box in zip(drawn.nodes, nodes, strict=True):
        if node.position is None and node.lines:
            labels.append(_node_label(node, box, [*nodes, *labels], ink))
            over.append(_draw_label(node.lines, labels[-1], node.is_convolved))
    for leg in drawn.legs:
        up = nodes[leg.node].center.imag < middle - 10
        place = leg_place(nodes[leg.node], text_box([leg.text]), [*nodes, *labels], ink, up=up)
        labels.append(place.label)
        ink = joined([ink, sampled((place.start, place.tip))])
        under.append(_draw_leg(leg, place.start, place.tip))
        over.append(_draw_label((leg.text,), place.label, leg.is_convolved))
    corners = [Box(complex(point), 4, 4) for point in ink]
    return Picture((*under, *over), bounds([*nodes, *labels, *corners], 6))


def _size(node: Node) -> tuple[float, float]:
    if node.position is None:
        radius = _HUB if node.is_convolved else _DOT
        return 2 * radius, 2 * radius
    box = text_box(node.lines)
    return max(box.width + 18, 46.0), box.height + 8


def _links(drawn: Sketch) -> dict[tuple[int, int], float]:
    """How much of each line should be seen."""
    links: dict[tuple[int, int], float] = {}
    for line in drawn.lines:
        ends, end = (line.start, line.end), drawn.nodes[line.end]
        gap = _GAP if end.position is not None else _CONVOLVED if end.is_convolved else _SPOKE
        gap += text_box([line.text]).width
        if end.position is None:
            gap += text_box(end.lines).width / 3
        links[ends] = max(gap, links[ends] + _BUNDLED) if ends in links else gap
    return links


def _curves(drawn: Sketch, nodes: Sequence[Box]) -> list[Curve]:
    """The lines around boxes that are not theirs, and beside lines between the same nodes."""
    bends: dict[tuple[int, int], list[float]] = {}
    curves = []
    for line in drawn.lines:
        ends = (line.start, line.end)
        others = [box for number, box in enumerate(nodes) if number not in ends]
        taken = bends.setdefault(ends, [])
        bend, points = bent(nodes[line.start].center, nodes[line.end].center, others, taken)
        taken.append(bend)
        curves.append(Curve(line, points, visible(points, (nodes[line.start], nodes[line.end]))))
    return curves


def _line_label(curve: Curve, boxes: Sequence[Box], ink: Array) -> Box:
    """The label of a line stands on it, near the middle; that of a spoke nearer to the operand."""
    shares = (0.42, 0.32, 0.52, 0.22, 0.62) if curve.line.is_convolved else (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
    places = [complex(curve.visible[int(share * (len(curve.visible) - 1))]) for share in shares]
    return free_label(text_box([curve.line.text]), places, boxes, ink)


def _node_label(node: Node, box: Box, boxes: Sequence[Box], ink: Array) -> Box:
    """The label of a point stands beside it, in whatever direction is free."""
    label = text_box(node.lines)
    touching = complex(box.width + label.width, box.height + label.height) / 2
    side, corner = touching + (7 + 4j), touching + (3 + 3j)
    straight = [side.real, -side.real, 1j * side.imag, -1j * side.imag]
    aslant = [corner, corner.conjugate(), -corner, -corner.conjugate()]
    return free_label(label, [box.center + away for away in (*straight, *aslant)], boxes, ink)


def _draw_curve(curve: Curve, nodes: Sequence[Box]) -> str:
    if not curve.line.is_convolved:
        return path(curve.points, color=INK, width=1.6)
    marks = double(curve.points, CONVOLVED)
    if curve.line.is_signal:
        toward = curve.points[-1] - curve.points[-2]
        marks += arrow(nodes[curve.line.end].center - toward / abs(toward) * _HUB, toward, CONVOLVED)
    return marks


def _draw_leg(leg: Leg, start: complex, tip: complex) -> str:
    if leg.is_convolved:
        along = (tip - start) / abs(tip - start)
        return double((start, tip - 8 * along), CONVOLVED) + arrow(tip, along, CONVOLVED)
    return path((start, tip), color=INK, width=1.6) + ("" if leg.is_kept else dot(tip, _DOT, fill=INK))


def _draw_node(node: Node, box: Box, styles: Mapping[int, Style]) -> str:
    if node.position is not None:
        return named(node.name, labelled(box, node.lines, styles[node.position]))
    if node.is_convolved:
        return named(node.name, asterisk(box.center, _HUB, CONVOLVED))
    return named(node.name, dot(box.center, _DOT, fill=INK))


def _draw_label(lines: Sequence[str], box: Box, is_convolved: bool) -> str:
    return backed(lines, box.center, CONVOLVED if is_convolved else INK)
