"""Picture + words -> Picture: a heading above it, the meaning of its marks below it."""

from __future__ import annotations

from collections.abc import Sequence

from convein.drawing.svg import (
    CONVOLVED,
    INK,
    QUIET,
    Box,
    Picture,
    Style,
    arrow,
    asterisk,
    bounds,
    dot,
    double,
    labelled,
    lettering,
    path,
    shortened,
    text_box,
)

_SMALL = 11.0
_LARGE = 14.0
_MARGIN = 16.0
_WIDEST = 96
_ROW = 22.0
_SWATCH = 34.0

Entry = tuple[str | Style, str]


def captioned(picture: Picture, heading: Sequence[str], entries: Sequence[Entry]) -> Picture:
    """The picture with a heading, a legend and a margin.

    Args:
        picture: what is explained.
        heading: lines, the first one a title.
        entries: a style or the name of a mark, and what it means.
    """
    title, *more = [shortened(line, _WIDEST) for line in heading]
    box = picture.box
    middle, top, bottom = box.center.real, box.center.imag - box.height / 2, box.center.imag + box.height / 2
    marks = list(picture.marks)
    boxes = [box]
    for row, line in enumerate(reversed([title, *more])):
        is_title = row == len(more)
        size = _LARGE if is_title else _SMALL
        boxes.append(text_box([line], complex(middle, top - 14 - row * 18), size=size))
        marks.append(lettering([line], boxes[-1].center, size=size, color=INK if is_title else QUIET, bold=is_title))
    for row, members in enumerate(_rows(entries, max(box.width, 560.0))):
        widths = [_width(entry) for entry in members]
        center = complex(middle - sum(widths) / 2, bottom + 20 + row * _ROW)
        boxes.append(Box(complex(middle, center.imag), sum(widths), _ROW))
        for (sign, words), width in zip(members, widths, strict=True):
            marks.append(_sign(sign, center + _SWATCH / 2))
            marks.append(lettering([words], center + _SWATCH + 6, size=_SMALL, color=QUIET, anchor="start"))
            center += width
    return Picture(tuple(marks), bounds(boxes, _MARGIN))


def _rows(entries: Sequence[Entry], widest: float) -> list[list[Entry]]:
    rows: list[list[Entry]] = []
    for entry in entries:
        if rows and sum(map(_width, rows[-1])) + _width(entry) <= widest:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows


def _width(entry: Entry) -> float:
    return _SWATCH + 6 + text_box([entry[1]], size=_SMALL).width + 18


def _sign(sign: str | Style, center: complex) -> str:
    """A small example of a mark."""
    start, end = center - _SWATCH / 2, center + _SWATCH / 2
    if isinstance(sign, Style):
        return labelled(Box(center, _SWATCH - 8, 14), (), sign)
    if sign == "convolved":
        hub = end - 8
        return double((start, hub), CONVOLVED) + arrow(hub - 8, 1, CONVOLVED) + asterisk(hub, 8, CONVOLVED)
    if sign == "wide":
        return path((start, center), color=QUIET, width=2) + path((center, end), color=QUIET, width=6)
    line = path((start, end), color=INK, width=1.6)
    return line if sign == "kept" else line + dot(center if sign == "shared" else end - 4, 4, fill=INK)
