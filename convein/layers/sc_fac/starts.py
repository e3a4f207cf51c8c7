"""Where an orthogonal layer starts: a rotation, and subspaces tied to it so that all taps but the middle one vanish."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Start = Literal["identity", "reverse", "permutation", "torus", "uniform"]


STARTS: tuple[Start, ...] = get_args(Start)


def haar(groups: int, size: int) -> Tensor:
    """Orthogonal matrices from the uniform distribution, in float64: (groups, size, size).

    The QR decomposition of normal numbers with the signs of R's diagonal moved to Q (F. Mezzadri, "How to generate
    random matrices from the classical compact groups", 2007).
    """
    Q, R = torch.linalg.qr(torch.randn(groups, size, size, dtype=torch.float64))
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    uniform: Tensor = Q * signs.unsqueeze(-2)
    return uniform


def start_matrices(init: Start, groups: int, size: int) -> Tensor:
    """The rotations that the layer starts with, in float64: (groups, size, size).

    Args:
        init: "identity"; "reverse": the channels in reverse order; "permutation": in any order; "torus": pairs of
            channels turned by angles from -pi to pi; "uniform": any orthogonal matrix.
        groups: number of matrices.
        size: rows of each.
    """
    if init == "uniform":
        return haar(groups, size)
    one = torch.eye(size, dtype=torch.float64).repeat(groups, 1, 1)
    if init == "reverse":
        return one.flip(-1)
    if init == "permutation":
        return torch.stack([rows[torch.randperm(size)] for rows in one])
    if init == "torus":
        angles = (2 * torch.rand(groups, size // 2, dtype=torch.float64) - 1) * math.pi
        even = torch.arange(0, size - 1, 2)
        one[:, even, even] = one[:, even + 1, even + 1] = angles.cos()
        one[:, even + 1, even] = angles.sin()
        one[:, even, even + 1] = -angles.sin()
    return one


def start_bases(init: Start, rotation: Tensor, factors: int) -> list[Tensor]:
    """The bases of the subspaces of one axis, in float64.

    With U_left = Q U_right every pair of factors cancels (J. Su, 2022, proposition 7.2): L * [Q] * R = [0, Q, 0].

    Args:
        init: "uniform" ties nothing.
        rotation: Q, (groups, size, size): of the second axis it is the identity.
        factors: of the axis.
    """
    bases: list[Tensor] = []
    for number in range(factors):
        tied = number % 2 == 1 and init != "uniform"
        bases.append(rotation @ bases[-1] if tied else haar(*rotation.shape[:2]))
    return bases
