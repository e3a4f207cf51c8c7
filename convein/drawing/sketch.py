"""Network -> Sketch: what a tensor diagram consists of, before anything has a place.

Operands are boxes and modes are lines. A mode that two operands share and that is summed is the line between them; one
of more operands, or of two and the result, is a dot joined to all of them; a mode of the result has an open end. A mode
that is summed in one operand alone ends in a dot. A convolved mode is a circled asterisk with double lines, and an
arrow comes from its signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from convein.drawing.svg import CONSTANT, FIXED, OPERAND, Style, shortened
from convein.network import Network

WIDEST = 26


@dataclass(frozen=True, slots=True)
class Node:
    """An operand, or the point of a mode that more than one line or an option belongs to.

    Attributes:
        name: in full.
        lines: what is written, in the box of an operand or beside a point.
        position: of an operand; None for the point of a mode.
        is_convolved: whether it is the point of a convolved mode.
    """

    name: str
    lines: tuple[str, ...]
    position: int | None = None
    is_convolved: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """What joins an operand, `start`, and another node: `text` is empty where the node at the end says it."""

    start: int
    end: int
    text: str
    is_convolved: bool = False
    is_signal: bool = False


@dataclass(frozen=True, slots=True)
class Leg:
    """The line of a mode that leaves a node to the result, or to a sum over this node alone."""

    node: int
    text: str
    is_kept: bool
    is_convolved: bool = False


@dataclass(frozen=True, slots=True)
class Sketch:
    """A tensor diagram without places; lines and legs name nodes by their position in `nodes`, operands first."""

    nodes: tuple[Node, ...]
    lines: tuple[Line, ...]
    legs: tuple[Leg, ...]


def sketched(network: Network) -> Sketch:
    """The nodes, lines and legs of a network's tensor diagram."""
    free = {size.mode for size in network.symbolic}
    graph = network.graph()
    nodes = [_operand(network, position) for position in range(len(network.operands))]
    lines: list[Line] = []
    legs: list[Leg] = []
    for mode in network.carriers:
        about = graph.nodes[mode]
        carriers = sorted(graph.neighbors(mode))
        ends = len(carriers) + about["kept"]
        name = shortened(mode, WIDEST)
        sized = f"{name}={'?' if mode in free else ''}{about['size']}"
        if about["convolved"]:
            convolution = network.convolutions[mode]
            for position in carriers:
                text = f"{name}={convolution.operand_size(position)}"
                lines.append(Line(position, len(nodes), text, True, position == convolution.signal))
            if about["kept"]:
                legs.append(Leg(len(nodes), sized, True, True))
            nodes.append(Node(mode, tuple(_options(network, mode)), is_convolved=True))
        elif ends > 2:
            lines += [Line(position, len(nodes), "") for position in carriers]
            if about["kept"]:
                legs.append(Leg(len(nodes), sized, True))
            nodes.append(Node(mode, () if about["kept"] else (sized,)))
        elif len(carriers) == 2:
            lines.append(Line(carriers[0], carriers[1], sized))
        else:
            legs.append(Leg(carriers[0], sized, about["kept"]))
    return Sketch(tuple(nodes), tuple(lines), tuple(legs))


def operand_lines(network: Network, position: int) -> tuple[str, str]:
    """An operand's name and modes as they are written, and its shape."""
    operand = network.operands[position]
    term = "" if operand.constant else str(network.equation.inputs[position])
    shape = by(operand.shape)
    if operand.constant is not None:
        shape += f", all {operand.constant.value:.4g}"
    return shortened(f"x{position} {term}".rstrip(), WIDEST), shortened(shape, WIDEST)


def operand_styles(network: Network, needs_grad: int = 0, constants: int = 0) -> dict[int, Style]:
    """The colour of each operand: constants, and those that need no gradient where others do; both as bit sets."""
    styles = {}
    for position, operand in enumerate(network.operands):
        if constants >> position & 1 or operand.constant is not None:
            styles[position] = CONSTANT
        elif needs_grad and not needs_grad >> position & 1:
            styles[position] = FIXED
        else:
            styles[position] = OPERAND
    return styles


def by(sizes: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return "\u00d7".join(map(str, sizes)) or "scalar"


def _operand(network: Network, position: int) -> Node:
    name = f"x{position} {network.equation.inputs[position]} {by(network.operands[position].shape)}"
    return Node(name, operand_lines(network, position), position)


def _options(network: Network, mode: str) -> Iterator[str]:
    """The options of a convolved mode that are not the default."""
    for convolved in network.equation.convolved:
        if convolved.mode == mode:
            for option in fields(convolved.options):
                value = getattr(convolved.options, option.name)
                if value is True:
                    yield option.name
                elif value != option.default:
                    yield f"{option.name}={value}"
