"""Skew-symmetric matrices -> orthogonal ones, a whole stack at once, in as few products as their norm allows.

torch.linalg.matrix_exp treats every matrix by itself, and differentiates by exponentiating a matrix of twice the size.
For a skew-symmetric A and M = A^T A it is exp(A) = cos(sqrt(M)) + A sinc(sqrt(M)): two series in one matrix that share
its powers, and plain products all the way, so that autograd differentiates it as often as wanted. Where only a subspace
is turned, A = [[0, -B^T], [B, 0]], and M = B^T B has the size of the subspace.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from convein.execution.ops import is_untraced
from convein.layers.sc_fac.series import cosine_and_sine, mirror, product

Map = Literal["exponential", "cayley"]


def skew(free: Tensor) -> Tensor:
    """The skew-symmetric matrices with the strictly lower triangles of `free` (..., n, n)."""
    lower = free.tril(-1)
    return lower - mirror(lower)


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
    cosine, sine, halvings = cosine_and_sine(A, pairs=True)
    turned = cosine + product(A / 2**halvings if halvings else A, sine)
    for _ in range(halvings):
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
    cosine, sine, halvings = cosine_and_sine(free, pairs=False)
    moved = product(free / 2**halvings if halvings else free, sine)
    for _ in range(halvings):
        # cos 2x = cos^2 x - sin^2 x keeps errors smaller than 2 cos^2 x - 1, and sin 2x = 2 sin x cos x.
        cosine, moved = product(cosine, cosine) - product(moved.mT, moved), 2 * product(moved, cosine)
    return torch.cat([cosine, moved], -2)


def turned_basis(free: Tensor, map: Map = "exponential") -> Tensor:
    """All columns of the rotation of which `turned_subspace` has the first: (batch, n + m, n + m)."""
    return rotation(_block(free), map)


def _block(free: Tensor) -> Tensor:
    """B as the lower left block of a square matrix."""
    above = free.new_zeros(*free.shape[:-2], free.shape[-1], sum(free.shape[-2:]))
    beside = free.new_zeros(*free.shape[:-2], free.shape[-2], free.shape[-2])
    return torch.cat([above, torch.cat([free, beside], -1)], -2)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand(*like.shape[:-2], -1, -1)
