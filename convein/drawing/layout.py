"""Sizes of nodes + which of them are linked -> where every node stands.

Each connected part is laid out by stress majorisation (Gansner, Koren and North 2004): the distance of any two nodes
shall be the length of the shortest way between them. A chain becomes a line and a ring a circle. Then boxes that
overlap are pushed apart, and the parts stand in rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from convein.drawing.svg import Box, bounds

# NumPy's arrays of floats and of points; their shapes differ from line to line.
Array = Any

Sizes = Sequence[tuple[float, float]]
Links = Mapping[tuple[int, int], float]

_ROUNDS = 250
_SMALL = 24
_CROSSING = 0.25  # what a crossing of two links adds to the stress, as a share of it
_AROUND = 45.0  # room around a part, for the legs of its nodes
_ROW = 1100.0
_MARGIN = 22.0  # between boxes that are not linked


def arrange(sizes: Sizes, links: Links) -> list[Box]:
    """The box of every node.

    Args:
        sizes: width and height of each node.
        links: pairs of nodes that are joined, and how much of their line should be seen between their boxes.
    """
    boxes: list[Box | None] = [None] * len(sizes)
    corner, below, row = 0j, 0.0, 0.0
    for members in _parts(len(sizes), links):
        inner = {(members.index(a), members.index(b)): gap for (a, b), gap in links.items() if a in members}
        shapes = [sizes[node] for node in members]
        placed = _spread(_turned(_stress(_distances(shapes, inner), inner)), shapes, inner)
        around = bounds(placed, _AROUND)
        if row and row + around.width > _ROW:
            corner, row = complex(0, below), 0.0
        move = corner + complex(around.width, around.height) / 2 - around.center
        corner, row, below = corner + around.width, row + around.width, max(below, corner.imag + around.height)
        for node, box in zip(members, placed, strict=True):
            boxes[node] = Box(box.center + move, box.width, box.height)
    return [box for box in boxes if box is not None]


def _parts(count: int, links: Links) -> list[list[int]]:
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(links)
    return sorted(sorted(part) for part in networkx.connected_components(graph))


def _distances(sizes: Sizes, links: Links) -> Array:
    """Lengths of the shortest ways between all nodes of a connected part."""
    found = np.full((len(sizes), len(sizes)), np.inf)
    np.fill_diagonal(found, 0)
    for (a, b), gap in links.items():
        found[a, b] = found[b, a] = gap + sum(0.3 * sizes[node][0] + 0.2 * sizes[node][1] for node in (a, b))
    for middle in range(len(sizes)):
        np.minimum(found, found[:, middle, None] + found[None, middle, :], out=found)
    return found


def _stress(distances: Array, links: Links) -> Array:
    """Points whose distances are nearly the given ones, and few links cross: the best that some starts lead to."""
    count = len(distances)
    if count == 1:
        return np.zeros(1, complex)
    weights = np.where(distances > 0, distances, np.inf) ** -2.0
    inverse = np.linalg.pinv(np.diag(weights.sum(axis=1)) - weights)
    best, least = np.zeros(count, complex), np.inf
    for points in _starts(distances):
        for _ in range(_ROUNDS):
            gaps = np.abs(points[:, None] - points[None, :])
            pull = weights * distances / np.where(gaps > 0, gaps, np.inf)
            points = inverse @ (pull.sum(axis=1) * points - pull @ points)
        gaps = np.abs(points[:, None] - points[None, :])
        stress = (weights * (gaps - distances) ** 2).sum() * (1 + _CROSSING * _crossings(points, links))
        if stress < 0.98 * least:
            best, least = points, stress
    return best


def _starts(distances: Array) -> Iterator[Array]:
    """Classical scaling, a circle, and for small figures more circles in other orders."""
    count = len(distances)
    circle = np.exp(2j * np.pi * np.arange(count) / count) * distances.max() / 2
    yield _scaled(distances) + circle / 1e6
    yield circle
    random = np.random.default_rng(0)
    for _ in range(6 if count <= _SMALL else 0):
        yield random.permutation(circle)


def _crossings(points: Array, links: Links) -> int:
    """How many pairs of links cross."""
    pairs = np.array(list(links), int).reshape(-1, 2)
    start, end = points[pairs[:, 0]], points[pairs[:, 1]]
    along = end - start

    def side(other: Array) -> Array:
        return np.sign((along.conj()[:, None] * (other[None, :] - start[:, None])).imag)

    apart = side(start) * side(end) < 0
    shared = (pairs[:, None, :, None] == pairs[None, :, None, :]).any(axis=(2, 3))
    return int((apart & apart.T & ~shared).sum()) // 2


def _scaled(distances: Array) -> Array:
    """Classical scaling: the two directions in which the distances vary most."""
    squares = distances**2
    centred = squares.mean() + squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None]
    values, vectors = np.linalg.eigh(-(centred) / 2)
    axes = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return axes[:, 1] + 1j * axes[:, 0]


def _turned(points: Array) -> Array:
    """The same figure lying flat, its first node at the left; a round one has that node leftmost."""
    points = points - points.mean()
    spread = (np.abs(points) ** 2).sum()
    moment = (points**2).sum()
    if spread == 0:
        return points
    if abs(moment) < 0.1 * spread and abs(points[0]) > 0:
        turn = -abs(points[0]) / points[0]
    else:
        turn = np.exp(-0.5j * np.angle(moment))
    points = points * turn
    if points[0].real > 0:
        points = -points.conj()
    sides = points.imag[np.abs(points.imag) > 1]
    return points.conj() if len(sides) and sides[0] > 0 else points


def _spread(points: Array, sizes: Sizes, links: Links) -> list[Box]:
    """Boxes at these points, pushed apart where they overlap or leave too little of their line to see."""
    boxes = [Box(complex(point), *size) for point, size in zip(points, sizes, strict=True)]
    for _ in range(60):
        is_apart = True
        for i in range(len(boxes)):
            for j in range(i):
                a, b = boxes[i], boxes[j]
                gap = links.get((j, i), links.get((i, j), _MARGIN))
                away = a.center - b.center
                wide = (a.width + b.width) / 2 + max(0.85 * gap, _MARGIN) - abs(away.real)
                high = (a.height + b.height) / 2 + max(0.5 * gap, _MARGIN) - abs(away.imag)
                if wide <= 0.1 or high <= 0.1:
                    continue
                is_apart = False
                push = complex(wide if away.real >= 0 else -wide, 0)
                if high < wide:
                    push = complex(0, high if away.imag >= 0 else -high)
                boxes[i] = Box(a.center + push / 2, a.width, a.height)
                boxes[j] = Box(b.center - push / 2, b.width, b.height)
        if is_apart:
            break
    return boxes
