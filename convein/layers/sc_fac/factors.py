"""Rotation, Subspace: orthogonal matrices as functions of parameters that nothing constrains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.execution.ops import is_untraced
from convein.layers.sc_fac.exponential import Map, rotation, turned_basis, turned_subspace
from convein.layers.sc_fac.series import product
from convein.options import shown

_WIDE = (torch.float32, torch.float64)
# From this many rows and columns on, a product of two matrices by oneDNN is faster than one of stacks.
_LARGE = 100
# What float64 misses of orthogonality by rounding, with room for many rows.
_EXACT = 1e-13


class Factor(nn.Module, ABC):
    """Orthogonal matrices `base @ map(free)`: those at hand turned by what is learned.

    Attributes:
        free: the parameter; zero is no turn.
        base: a buffer, (groups, size, size), orthogonal.
        map: "exponential" or "cayley".
    """

    base: Tensor

    def __init__(self, base: Tensor, shape: tuple[int, ...], map: Map) -> None:
        super().__init__()
        if map not in ("exponential", "cayley"):
            raise OptionError(f"map={map!r} makes no orthogonal matrices", hint='"exponential" or "cayley"')
        self.map: Map = map
        self.free = nn.Parameter(base.new_zeros(len(base), *shape))
        self.register_buffer("base", base)

    @property
    def size(self) -> int:
        """Rows of every matrix."""
        return self.base.shape[-1]

    @abstractmethod
    def value(self, free: Tensor, base: Tensor) -> Tensor:
        """The matrices for parameters and bases of many factors like this one."""

    @abstractmethod
    def turn(self, free: Tensor) -> Tensor:
        """The square rotations that `free` stands for."""

    def forward(self) -> Tensor:
        """The matrices."""
        return orthogonal_matrices([self])[0]

    @torch.no_grad()
    def rebase(self) -> None:
        """Takes the matrices at hand as the base, and a parameter of zero: the same matrices, from nearby.

        Rounding errors do not add up: one step of Newton and Schulz makes the base as orthogonal as numbers of its type
        can be. What an optimizer remembers stays as good as it was, since both bases see a turn from the right.
        """
        self.base.copy_(_by_matrix(self._turned, _wide(self.free), _wide(self.base)))
        self.free.zero_()

    def _turned(self, free: Tensor, base: Tensor) -> Tensor:
        return _polished(product(base, self.turn(free)))

    @torch.no_grad()
    def assign(self, matrices: Tensor) -> None:
        """Takes these matrices as the base, and a parameter of zero.

        Args:
            matrices: (groups, size, size) or (size, size) for all groups, orthogonal up to rounding.

        Raises:
            ShapeError: the shape is another one.
            OptionError: they are not orthogonal.
        """
        if tuple(matrices.shape) not in (tuple(self.base.shape), tuple(self.base.shape[1:])):
            raise ShapeError(
                f"matrices of {tuple(matrices.shape)}", hint=f"{tuple(self.base.shape)}, or one of them for all groups"
            )
        wide = matrices.to(self.base.device, torch.float64)
        error = (wide.mT @ wide - torch.eye(self.size, dtype=wide.dtype, device=wide.device)).abs().max()
        if not error < 1e-2:
            raise OptionError(
                f"these matrices miss orthogonality by {float(error):.1e}",
                hint="torch.linalg.qr(matrix).Q is the nearest by columns",
            )
        # A step squares what they miss: none is needed for what a decomposition in float64 gives.
        for _ in range(2):
            if error > _EXACT:
                wide, error = _polished(wide), (self.size * error).square()
        self.base.copy_(wide)
        self.free.zero_()

    def extra_repr(self) -> str:
        """Shape and map."""
        groups = f", groups={len(self.base)}" if len(self.base) > 1 else ""
        return f"{self.size}{groups}, map={self.map!r}"


class Rotation(Factor):
    """Square orthogonal matrices Q = base exp(A), with the skew-symmetric A = tril(free) - tril(free)^T.

    Args:
        base: (groups, size, size); its determinant is that of all matrices it is turned into.
        map: "exponential", or "cayley": (I - A/2)^-1 (I + A/2).
    """

    def __init__(self, base: Tensor, map: Map = "exponential") -> None:
        super().__init__(base, tuple(base.shape[1:]), map)

    def value(self, free: Tensor, base: Tensor) -> Tensor:
        """(groups, size, size)."""
        return product(base, rotation(free, self.map))

    def turn(self, free: Tensor) -> Tensor:
        """The rotations."""
        return rotation(free, self.map)


class Subspace(Factor):
    """Bases U of subspaces, (groups, size, rank) with orthonormal columns, for the projectors P = U U^T.

    A projector does not change when the columns of U are turned among each other. So of the skew-symmetric matrix of a
    full orthogonal matrix only the block B between the subspace and its complement is a parameter: U = base times the
    first columns of exp([[0, -B^T], [B, 0]]). Every subspace is reached.

    Args:
        base: (groups, size, size); its first `rank` columns are the subspace for a parameter of zero.
        rank: dimension of the subspace, from 1 to size.
        map: as for `Rotation`.
    """

    def __init__(self, base: Tensor, rank: int, map: Map = "exponential") -> None:
        super().__init__(base, (base.shape[-1] - rank, rank), map)

    @property
    def rank(self) -> int:
        """Columns of U."""
        return self.free.shape[-1]

    def value(self, free: Tensor, base: Tensor) -> Tensor:
        """(groups, size, rank)."""
        if not free.numel():
            return base[..., : self.rank]
        return product(base, turned_subspace(free, self.map))

    def turn(self, free: Tensor) -> Tensor:
        """The rotations of the whole space."""
        return turned_basis(free, self.map)

    def extra_repr(self) -> str:
        """Shape, rank and map."""
        return f"{super().extra_repr()}, rank={self.rank}"


def orthogonal_matrices(factors: Sequence[Factor]) -> list[Tensor]:
    """The matrices of many factors: those of one kind and size by one exponential of one stack.

    On a CPU large ones are taken one by one: a matrix in the cache is worth more than a call less.

    Args:
        factors: of any kinds and sizes.

    Returns:
        For each factor (groups, size, size) or (groups, size, rank), differentiable, in the factor's type; of half
        precision, they are computed in single precision.
    """
    alike: dict[object, list[int]] = {}
    for number, factor in enumerate(factors):
        single = number if _is_large(factor.free) else None
        key = (type(factor), factor.map, factor.free.shape[1:], factor.base.dtype, factor.base.device, single)
        alike.setdefault(key, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in alike.values():
        members = [factors[number] for number in numbers]
        first = members[0]
        with nullcontext() if first.base.is_meta else torch.autocast(first.base.device.type, enabled=False):
            free = torch.cat([factor.free for factor in members]) if len(members) > 1 else first.free
            base = torch.cat([factor.base for factor in members]) if len(members) > 1 else first.base
            values = _by_matrix(first.value, _wide(free), _wide(base)).to(first.base.dtype)
        found.update(zip(numbers, torch.split(values, [len(factor.base) for factor in members]), strict=True))
    return [found[number] for number in range(len(factors))]


def rebase(model: nn.Module) -> None:
    """Rebases every factor in a model, see `Factor.rebase`: now and then in training, and before saving for long.

    Args:
        model: changed in place; its function stays the same up to rounding.

    Raises:
        OptionError: it has no orthogonal layers.
    """
    factors = [module for module in model.modules() if isinstance(module, Factor)]
    if not factors:
        raise OptionError(f"{shown(type(model).__name__)} has no orthogonal layers", hint="OrthogonalConv2d, ...")
    for factor in factors:
        factor.rebase()


def _is_large(free: Tensor) -> bool:
    return free.device.type == "cpu" and min(free.shape[1:]) >= _LARGE and is_untraced()


def _by_matrix(make: Callable[[Tensor, Tensor], Tensor], free: Tensor, base: Tensor) -> Tensor:
    """What is made of two stacks at once, or, if they are large, of their matrices one by one."""
    if not _is_large(free):
        return make(free, base)
    found = [make(*pair) for pair in zip(free.unbind(), base.unbind(), strict=True)]
    return torch.stack(found) if len(found) > 1 else found[0][None]


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.dtype in _WIDE else matrices.float()


def _polished(matrices: Tensor) -> Tensor:
    """One step of Newton and Schulz towards the nearest orthogonal matrices: it squares what they miss."""
    return 1.5 * matrices - 0.5 * product(matrices, product(matrices.mT, matrices))
