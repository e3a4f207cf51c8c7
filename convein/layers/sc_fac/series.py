"""cos(sqrt(M)) and sin(sqrt(M)) / sqrt(M) of M = X^T X: two series in one matrix that share its powers.

All matrices are symmetric, and so may be what flows back to them: of a product L R the gradient G then goes to both
sides in one product, as G M + M G = G M + (G M)^T. That is half of what autograd does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convein.execution.ops import linear, transposed

# Powers of M that both series share, and the blocks of that many terms which each of them has: at most two.
_SHAPES = ((1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2))


def cosine_and_sine(root: Tensor, *, pairs: bool) -> tuple[Tensor, Tensor, int]:
    """Both series of M = X^T X / 4^halvings, differentiable as often as wanted, and the halvings of the angles.

    Args:
        root: X, (m, n) or (batch, m, n).
        pairs: whether all eigenvalues of X^T X come in pairs, as those of a skew-symmetric X do: it halves the squared
            Frobenius norm.

    Returns:
        Two tensors (n, n), or (batch, n, n), and a number for all of the batch: what takes the fewest products.
    """
    if torch.is_grad_enabled() and root.requires_grad:
        cosine, sine, halvings = _Series.apply(root, pairs)  # type: ignore[no-untyped-call]
        return cosine, sine, halvings
    powers, shape = _powers(root, pairs=pairs)
    return _value(shape.cosine, powers)[0], _value(shape.sine, powers)[0], shape.halvings


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices, or of two stacks of them."""
    return linear(left, right.mT) if left.dim() == 2 else left @ right


def mirror(matrix: Tensor) -> Tensor:
    """The transposed matrix or matrices."""
    return transposed(matrix[None])[0] if matrix.dim() == 2 else matrix.mT


@dataclass(frozen=True, slots=True)
class _Shape:
    """How both series are evaluated: by Paterson and Stockmeyer's scheme; the last block has one term more.

    Attributes:
        shared: powers of M.
        blocks: of that many terms, one or two.
        halvings: of the angles.
    """

    shared: int
    blocks: int
    halvings: int

    @property
    def cosine(self) -> list[float]:
        """The coefficients of cos(sqrt(M))."""
        return [(-1) ** k / math.factorial(2 * k) for k in range(self.shared * self.blocks + 1)]

    @property
    def sine(self) -> list[float]:
        """The coefficients of sin(sqrt(M)) / sqrt(M)."""
        return [(-1) ** k / math.factorial(2 * k + 1) for k in range(self.shared * self.blocks + 1)]


class _Series(torch.autograd.Function):
    """Both series with their adjoint."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, pairs: bool) -> tuple[Tensor, Tensor, int]:
        powers, shape = _powers(root, pairs=pairs)
        cosine, cosine_rest = _value(shape.cosine, powers)
        sine, sine_rest = _value(shape.sine, powers)
        ctx.save_for_backward(root, *powers, *(rest for rest in (cosine_rest, sine_rest) if rest is not None))
        ctx.pairs, ctx.shape = pairs, shape
        return cosine, sine, shape.halvings

    @staticmethod
    def backward(ctx: Any, to_cosine: Tensor, to_sine: Tensor, _: None) -> tuple[Tensor, None]:
        root, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more: product by product
            powers, shape = _powers(root, pairs=ctx.pairs)
            values = _value(shape.cosine, powers)[0], _value(shape.sine, powers)[0]
            (slope,) = torch.autograd.grad(values, root, (to_cosine, to_sine), create_graph=True)
            return slope, None
        shape, powers = ctx.shape, saved[: ctx.shape.shared]
        terms: _Terms = [[] for _ in powers]
        _spread(terms, shape.cosine, powers, _folded(to_cosine), saved[shape.shared :][:1])
        _spread(terms, shape.sine, powers, _folded(to_sine), saved[shape.shared :][1:])
        for place in range(shape.shared - 1, 0, -1):
            # A power is the one before it times M.
            to_power = _total(terms[place])
            terms[0].append((0.5, _folded(product(to_power, powers[place - 1]))))
            terms[place - 1].append((0.5, _folded(product(to_power, powers[0]))) if place > 1 else terms[0][-1])
        return product(root, _total(terms[0])) * 0.25**shape.halvings, None


# What flows to each power, doubled: numbers times symmetric matrices.
_Terms = list[list[tuple[float, Tensor]]]


def _spread(
    terms: _Terms, coefficients: list[float], powers: list[Tensor], gradient: Tensor, rest: list[Tensor]
) -> None:
    """Adds what flows from a series to the powers; `rest` is its second block, if it has one."""
    shared = len(powers)
    if rest:
        terms[-1].append((0.5, _folded(product(gradient, rest[0]))))
        inner = _folded(product(gradient, powers[-1]))
        for place in range(shared):
            terms[place].append((0.5 * coefficients[shared + 1 + place], inner))
        shared -= 1
    for place in range(shared):
        terms[place].append((coefficients[1 + place], gradient))


def _total(terms: list[tuple[float, Tensor]]) -> Tensor:
    (factor, matrix), *others = terms
    value = factor * matrix
    for factor, matrix in others:
        value = torch.add(value, matrix, alpha=factor)
    return value


def _folded(matrix: Tensor) -> Tensor:
    """Twice the symmetric part."""
    return matrix + mirror(matrix)


def _powers(root: Tensor, *, pairs: bool) -> tuple[list[Tensor], _Shape]:
    """The powers of M that the series need."""
    square = product(root.mT, root)
    powers = [square]
    angle = math.sqrt(_largest(square, pairs=pairs))
    if angle > _radius(1, square.dtype):
        powers.append(product(square, square))
        angle = min(angle, _largest(powers[1], pairs=pairs) ** 0.25)
    shape = _choice(angle, square.dtype)
    powers = powers[: shape.shared]
    if shape.halvings:
        powers = [power * 0.25 ** (shape.halvings * number) for number, power in enumerate(powers, 1)]
    while len(powers) < shape.shared:
        powers.append(product(powers[-1], powers[0]))
        # A higher power bounds the angle more closely; elsewhere than on a CPU, who asks waits.
        if not shape.halvings and square.device.type == "cpu":
            angle = min(angle, float(_frobenius(powers[-1], pairs=pairs)) ** (0.5 / len(powers)))
            shape = _choice(angle, square.dtype)
    return powers[: shape.shared], shape


def _value(coefficients: list[float], powers: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The polynomial of these coefficients, and its second block if there is one."""
    shared = len(powers)
    if len(coefficients) == shared + 1:
        return _combined(coefficients, powers), None
    rest = _combined(coefficients[shared:], powers)
    return _combined(coefficients[:shared], powers) + product(powers[-1], rest), rest


def _combined(coefficients: list[float], powers: list[Tensor]) -> Tensor:
    value = coefficients[1] * powers[0]
    for coefficient, power in zip(coefficients[2:], powers[1:]):
        value = value.add_(power, alpha=coefficient)
    value.diagonal(dim1=-2, dim2=-1).add_(coefficients[0])
    return value


def _choice(angle: float, dtype: torch.dtype) -> _Shape:
    """What takes the fewest products for angles up to this one."""
    if not math.isfinite(angle):
        return _Shape(*_SHAPES[0], 0)  # whatever it is, it is not a number
    options = []
    for shared, blocks in _SHAPES:
        halvings = max(0, math.ceil(math.log2(max(angle, 1e-300) / _radius(shared * blocks, dtype))))
        options.append((shared - 1 + 2 * (blocks - 1) + 2 * halvings, halvings, shared, blocks))
    _, halvings, shared, blocks = min(options)
    return _Shape(shared, blocks, halvings)


def _radius(degree: int, dtype: torch.dtype) -> float:
    """The largest angle of which so many terms of the series leave out less than half of the last digit."""
    order = 2 * degree + 2
    return float((torch.finfo(dtype).eps / 2 * math.factorial(order)) ** (1 / order))


@torch.no_grad()
def _largest(square: Tensor, *, pairs: bool) -> float:
    """A bound of the eigenvalues of symmetric positive semi-definite matrices."""
    if not square.numel():
        return 0.0
    return float(torch.minimum(_frobenius(square, pairs=pairs), square.abs().sum(-1).max()))


@torch.no_grad()
def _frobenius(square: Tensor, *, pairs: bool) -> Tensor:
    """The largest Frobenius norm, of one eigenvalue of each pair."""
    norms: Tensor = torch.linalg.matrix_norm(square)
    return norms.max() / math.sqrt(2 if pairs else 1)
