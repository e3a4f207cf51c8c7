"""Marks -> SVG text: the few shapes of the pictures, written without a plotting library.

Points are complex numbers, y downwards. Everything is an attribute of its mark: no styles, no ids, so that any number
of pictures can stand in one HTML page.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape

FONT = 12.0
LINE = 16.0
_FAMILY = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"

INK = "#333333"
QUIET = "#6b6b6b"
CONVOLVED = "#d55e00"


class Svg(str):
    """The text of an SVG; a notebook shows it as the picture."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class Style:
    """How a box is filled and outlined."""

    fill: str
    outline: str
    dashed: bool = False


# Okabe and Ito's colours, which colour-blind readers tell apart; the fills are light tints of them.
OPERAND = Style("#dcebf7", "#0072b2")
FIXED = Style("#f1f1f1", "#767676")
CONSTANT = Style("#fbf3c9", "#8a6d00", dashed=True)
PARTIAL = Style("#ffffff", "#555555")
RESULT = Style("#d9f0e6", "#009e73")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its centre."""

    center: complex
    width: float
    height: float

    def holds(self, point: complex, margin: float = 0.0) -> bool:
        """Whether a point is inside, or nearer than the margin."""
        away = point - self.center
        return abs(away.real) < self.width / 2 + margin and abs(away.imag) < self.height / 2 + margin

    def overlap(self, other: Box, margin: float = 0.0) -> float:
        """The area that both cover, each of them wider by half the margin on every side."""
        away = other.center - self.center
        wide = (self.width + other.width) / 2 + margin - abs(away.real)
        high = (self.height + other.height) / 2 + margin - abs(away.imag)
        return wide * high if wide > 0 and high > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Picture:
    """Marks, and the rectangle that they stay in."""

    marks: tuple[str, ...]
    box: Box


def bounds(boxes: Iterable[Box], margin: float = 0.0) -> Box:
    """The smallest rectangle around all boxes."""
    corners = [(b.center, complex(b.width, b.height) / 2) for b in boxes]
    low = complex(min((c - h).real for c, h in corners), min((c - h).imag for c, h in corners))
    high = complex(max((c + h).real for c, h in corners), max((c + h).imag for c, h in corners))
    return Box((low + high) / 2, (high - low).real + 2 * margin, (high - low).imag + 2 * margin)


def columns(text: str) -> int:
    """How many columns of a fixed-width font a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def text_box(lines: Sequence[str], center: complex = 0, size: float = FONT) -> Box:
    """The room that lines of text take."""
    width = max(map(columns, lines), default=0) * 0.603 * size
    return Box(center, width, len(lines) * LINE * size / FONT)


def shortened(text: str, width: int) -> str:
    """A text of at most so many columns, cut in the middle."""
    if columns(text) <= width:
        return text
    half = (width - 1) // 2
    while columns(text[:half]) + columns(text[-half:]) >= width and half > 1:
        half -= 1
    return f"{text[:half]}\u2026{text[-half:]}"


def number(value: int) -> str:
    """A count, exact while it is short."""
    if value < 100_000:
        return f"{value:,}"
    return f"{Decimal(value):.2e}".replace("e+", "e")


def lettering(
    lines: Sequence[str],
    center: complex,
    *,
    size: float = FONT,
    color: str = INK,
    bold: bool = False,
    anchor: str = "middle",
) -> str:
    """Lines of text: centred on a point, or with `anchor="start"` beginning at its right."""
    height = LINE * size / FONT
    weight = ' font-weight="bold"' if bold else ""
    marks = []
    for row, line in enumerate(lines):
        y = center.imag + (row - (len(lines) - 1) / 2) * height + 0.35 * size
        marks.append(
            f'<text {_at(complex(center.real, y))} font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{color}"{weight if row == 0 else ""}>{_clean(line)}</text>'
        )
    return "".join(marks)


def backed(lines: Sequence[str], center: complex, color: str = INK) -> str:
    """Lines of text on a light ground, to stand upon lines."""
    return _rectangle(text_box(lines, center), 'fill="#ffffff" fill-opacity="0.88"') + lettering(
        lines, center, color=color
    )


def labelled(box: Box, lines: Sequence[str], style: Style, *, outline: str = "", bold: bool = True) -> str:
    """A rounded box with lines of text in it."""
    dashed = ' stroke-dasharray="5 3"' if style.dashed else ""
    look = f'rx="9" fill="{style.fill}" stroke="{outline or style.outline}" stroke-width="1.6"{dashed}'
    return _rectangle(box, look) + lettering(lines, box.center, bold=bold)


def path(points: Sequence[complex], *, color: str, width: float, dashed: bool = False) -> str:
    """A line through two points, or a Bezier curve with three or four."""
    kind = {2: "L", 3: "Q", 4: "C"}[len(points)]
    start, *rest = [f"{_short(p.real)},{_short(p.imag)}" for p in points]
    pattern = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<path d="M{start} {kind}{" ".join(rest)}" fill="none" stroke="{color}" stroke-width="{width:.3g}"'
        f' stroke-linecap="butt"{pattern}/>'
    )


def double(points: Sequence[complex], color: str) -> str:
    """A double line."""
    return path(points, color=color, width=5) + path(points, color="#ffffff", width=2)


def arrow(tip: complex, direction: complex, color: str) -> str:
    """An arrowhead that ends at `tip`."""
    along = direction / abs(direction)
    corners = [tip, tip - along * (11 + 5j), tip - along * 8, tip - along * (11 - 5j)]
    return f'<polygon points="{" ".join(f"{_short(c.real)},{_short(c.imag)}" for c in corners)}" fill="{color}"/>'


def dot(center: complex, radius: float, *, fill: str, outline: str | None = None) -> str:
    """A filled circle."""
    stroke = f' stroke="{outline}" stroke-width="1.8"' if outline else ""
    return f'<circle cx="{_short(center.real)}" cy="{_short(center.imag)}" r="{radius:g}" fill="{fill}"{stroke}/>'


def asterisk(center: complex, radius: float, color: str) -> str:
    """A circle with an asterisk, drawn and not lettered: fonts put theirs at different heights."""
    arms = [radius * 0.58 * 1j ** (2 * k / 3 + 1) for k in range(3)]
    strokes = "".join(path((center - arm, center + arm), color=color, width=1.8) for arm in arms)
    return dot(center, radius, fill="#ffffff", outline=color) + strokes


def named(name: str, *marks: str) -> str:
    """Marks with a name, which viewers show under the pointer."""
    return f"<g><title>{_clean(name)}</title>{''.join(marks)}</g>"


def beside(first: Picture, second: Picture, gap: float = 30.0, widest: float = 1500.0) -> Picture:
    """Two pictures as one: side by side if that is not too wide, else one above the other."""
    a, b = first.box, second.box
    if a.width + gap + b.width <= widest:
        corner = complex(a.center.real + a.width / 2 + gap, a.center.imag - a.height / 2)
    else:
        corner = complex(a.center.real - a.width / 2, a.center.imag + a.height / 2 + gap)
    move = corner - (b.center - complex(b.width, b.height) / 2)
    moved = f'<g transform="translate({_short(move.real)} {_short(move.imag)})">{"".join(second.marks)}</g>'
    return Picture((*first.marks, moved), bounds([a, Box(b.center + move, b.width, b.height)]))


def document(picture: Picture, title: str) -> Svg:
    """The picture as a whole SVG text, on white whatever the viewer's background is."""
    box = picture.box
    corner = box.center - complex(box.width, box.height) / 2
    width, height = _short(box.width), _short(box.height)
    size = f'viewBox="{_short(corner.real)} {_short(corner.imag)} {width} {height}" width="{width}" height="{height}"'
    marks = [f"<title>{_clean(title)}</title>", _rectangle(box, 'fill="#ffffff"'), *picture.marks]
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{_FAMILY}">'
    return Svg("\n".join([start, *marks, "</svg>\n"]))


def _rectangle(box: Box, look: str) -> str:
    corner = box.center - complex(box.width, box.height) / 2
    return f'<rect {_at(corner)} width="{_short(box.width)}" height="{_short(box.height)}" {look}/>'


def _at(point: complex) -> str:
    return f'x="{_short(point.real)}" y="{_short(point.imag)}"'


def _short(value: float) -> str:
    """One decimal, and no minus sign before a zero."""
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"


def _clean(text: str) -> str:
    """Text for XML, which has no control characters."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
