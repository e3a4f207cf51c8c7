"""Skew-symmetric matrices -> orthogonal ones, a whole stack at once, in as few products as their norm allows.

torch.linalg.matrix_exp treats every matrix by itself, and differentiates by exponentiating a matrix of twice the size.
For a skew-symmetric A and M = A^T A it is exp(A) = cos(sqrt(M)) + A sinc(sqrt(M)): two series in one matrix that share
its powers, and plain products all the way, so that autograd differentiates it as often as wanted. Where only a subspace
is turned, A = [[0, -B^T], [B, 0]], and M = B^T B has the size of the subspace.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from convein.execution.ops import is_untraced
from convein.pipeline import conv_einsum

Map = Literal["exponential", "cayley"]

# Powers of M that both series share, and the blocks of that many terms which each of them has.
_SHAPES = ((1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 2))
# From this many rows on, oneDNN's product of two matrices is faster than a batched product.
_LARGE = 100


def skew(free: Tensor) -> Tensor:
    """The skew-symmetric matrices with the strictly lower triangles of `free` (..., n, n)."""
    lower = free.tril(-1)
    return lower - lower.mT


def rotation(free: Tensor, map: Map = "exponential") -> Tensor:
    """The rotations of the skew-symmetric matrices A of `free`.

    Args:
        free: (batch, n, n); what is on and above the diagonal does not matter.
        map: "exponential" for exp(A), "cayley" for (I - A/2)^-1 (I + A/2).

    Returns:
        (batch, n, n), orthogonal, of determinant 1.
    """
    A = skew(free)
    if map == "cayley":
        half, one = A / 2, _identity(A)
        quotient: Tensor = torch.linalg.solve(one - half, one + half)
        return quotient
    if not is_untraced() or A.is_meta:
        whole: Tensor = torch.linalg.matrix_exp(A)
        return whole
    cosine, sine, doublings = _cosine_and_sine(product(A.mT, A), pairs=True)
    turned = cosine + product(A / 2**doublings, sine)
    for _ in range(doublings):
        turned = product(turned, turned)
    return turned


def turned_subspace(free: Tensor, map: Map = "exponential") -> Tensor:
    """The first n columns of the rotation of A = [[0, -B^T], [B, 0]] with B = `free`.

    They span the subspace that the first n unit vectors span, moved along the geodesic that starts into direction B
    (A. Edelman et al., "The Geometry of Algorithms with Orthogonality Constraints", 1998, section 2.5.1).

    Args:
        free: (batch, m, n).
        map: as for `rotation`.

    Returns:
        (batch, n + m, n), of orthonormal columns.
    """
    rows = free.shape[-1]
    if map == "cayley":
        half = free / 2
        square, one = product(half.mT, half), _identity(free)
        inverse = torch.linalg.solve(one + square, torch.cat([one - square, 2 * one], -1))
        return torch.cat([inverse[..., :rows], product(half, inverse[..., rows:])], -2)
    if not is_untraced() or free.is_meta:
        return rotation(_block(free))[..., :rows]
    cosine, sine, doublings = _cosine_and_sine(product(free.mT, free), pairs=False)
    moved = product(free / 2**doublings, sine)
    for _ in range(doublings):
        # cos 2x = cos^2 x - sin^2 x keeps errors smaller than 2 cos^2 x - 1, and sin 2x = 2 sin x cos x.
        cosine, moved = product(cosine, cosine) - product(moved.mT, moved), 2 * product(moved, cosine)
    return torch.cat([cosine, moved], -2)


def turned_basis(free: Tensor, map: Map = "exponential") -> Tensor:
    """All columns of the rotation of which `turned_subspace` has the first: (batch, n + m, n + m)."""
    return rotation(_block(free), map)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The products of two stacks of matrices, (batch, i, j) and (batch, j, k)."""
    if left.device.type == "cpu" and min(*left.shape[1:], right.shape[2]) >= _LARGE and is_untraced():
        pairs = zip(left.unbind(), right.unbind(), strict=True)
        return torch.stack([conv_einsum("ij,jk->ik", one, other) for one, other in pairs])
    return left @ right


def _block(free: Tensor) -> Tensor:
    """B as the lower left block of a square matrix."""
    above = free.new_zeros(*free.shape[:-2], free.shape[-1], sum(free.shape[-2:]))
    beside = free.new_zeros(*free.shape[:-2], free.shape[-2], free.shape[-2])
    return torch.cat([above, torch.cat([free, beside], -1)], -2)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand(*like.shape[:-2], -1, -1)


def _cosine_and_sine(square: Tensor, *, pairs: bool) -> tuple[Tensor, Tensor, int]:
    """cos(sqrt(M)) and sin(sqrt(M)) / sqrt(M) of angles that are halved so many times.

    Args:
        square: M, (batch, n, n), symmetric and positive semi-definite.
        pairs: whether all eigenvalues come in pairs, as those of A^T A do: it halves the squared Frobenius norm.
    """
    powers = [square]
    angle = math.sqrt(_largest(square, pairs=pairs))
    if angle > _radius(1, square.dtype):
        powers.append(product(square, square))
        angle = min(angle, _largest(powers[1], pairs=pairs) ** 0.25)
    shared, blocks, doublings = _choice(angle, square.dtype)
    while len(powers) < shared:
        powers.append(product(powers[-1], square))
    powers = [power * 0.25 ** (doublings * number) for number, power in enumerate(powers, 1)]
    terms = range(shared * blocks + 1)
    cosine = _series([(-1) ** k / math.factorial(2 * k) for k in terms], powers, shared)
    sine = _series([(-1) ** k / math.factorial(2 * k + 1) for k in terms], powers, shared)
    return cosine, sine, doublings


def _series(coefficients: list[float], powers: list[Tensor], shared: int) -> Tensor:
    """The polynomial of these coefficients by Paterson and Stockmeyer's scheme; the last block has one term more."""
    first = len(coefficients) - 1 - shared
    value = _combined(coefficients[first:], powers)
    while first > 0:
        first -= shared
        value = _combined(coefficients[first : first + shared], powers) + product(powers[shared - 1], value)
    return value


def _combined(coefficients: list[float], powers: list[Tensor]) -> Tensor:
    value = coefficients[1] * powers[0] if len(coefficients) > 1 else torch.zeros_like(powers[0])
    for coefficient, power in zip(coefficients[2:], powers[1:]):
        value = torch.add(value, power, alpha=coefficient)
    return value + torch.diag_embed(torch.full_like(value[..., 0], coefficients[0]))


def _choice(angle: float, dtype: torch.dtype) -> tuple[int, int, int]:
    """Shared powers, blocks and halvings of the angle: what takes the fewest products."""
    if not math.isfinite(angle):
        return (*_SHAPES[0], 0)  # whatever it is, it is not a number
    options = []
    for shared, blocks in _SHAPES:
        doublings = max(0, math.ceil(math.log2(max(angle, 1e-300) / _radius(shared * blocks, dtype))))
        options.append((shared - 1 + 2 * (blocks - 1) + 2 * doublings, doublings, shared, blocks))
    _, doublings, shared, blocks = min(options)
    return shared, blocks, doublings


def _radius(degree: int, dtype: torch.dtype) -> float:
    """The largest angle of which so many terms of the series leave out less than half of the last digit."""
    order = 2 * degree + 2
    return float((torch.finfo(dtype).eps / 2 * math.factorial(order)) ** (1 / order))


@torch.no_grad()
def _largest(square: Tensor, *, pairs: bool) -> float:
    """A bound of the eigenvalues of symmetric positive semi-definite matrices."""
    if not square.numel():
        return 0.0
    frobenius = torch.linalg.matrix_norm(square).max() / math.sqrt(2 if pairs else 1)
    return float(torch.minimum(frobenius, square.abs().sum(-1).max()))
