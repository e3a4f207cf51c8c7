"""Dense tensor -> factors, in float64: sums of products (CP), trains and rings, Tucker terms and sums of them.

Every function takes a tensor with one axis for each factor; which modes of a weight share an axis, the layer says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from convein.layers.canonical import cp
from convein.layers.dense import check_ranks, leading, padded, prepared, relative_error, seeded, steps
from convein.layers.trains import chain, ring

__all__ = ["blocks", "chain", "cp", "relative_error", "ring", "tucker"]

SWEEPS = 50
SLOWEST = 1e-6  # a sweep that changes the squared norm, or the squared error, by a smaller part is the last


def tucker(dense: torch.Tensor, ranks: Sequence[int | None]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A core and a factor for each axis with a rank: `einsum("xyc,ax,by->abc")`.

    Truncated HOSVD (De Lathauwer, De Moor and Vandewalle, "A multilinear singular value decomposition", SIAM J. Matrix
    Anal. Appl. 21(4), 2000), whose error is at most the square root of the number of ranks times the least possible,
    then sweeps of HOOI (in the same number, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of
    higher-order tensors"), of which none raises the error.

    Args:
        dense: any shape, floating point or complex, on any device.
        ranks: the size of the core along each axis; None keeps the axis as it is, without a factor.

    Returns:
        The core, and `[size, rank]` for each axis with a rank, in their order. Columns are orthonormal; those beyond
        the size are noise, and the core is zero there. Float64 or complex128 on the CPU.

    Raises:
        OperandError: the tensor is empty, not finite or of integers.
        OptionError: the ranks are not one integer from 1, or None, for each axis.
    """
    dense = prepared(dense)
    check_ranks(ranks, dense.ndim, "tucker", optional=True)
    return _widened(*_iterated(dense, _possible(dense, ranks)), ranks)


def blocks(dense: torch.Tensor, count: int, ranks: Sequence[int | None]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Cores and factors of a sum of Tucker terms (block-term): `einsum("nxyc,nax,nby->abc")`.

    Each term in turn is fitted to what the others leave (De Lathauwer and Nion, "Decompositions of a higher-order
    tensor in block terms, part III", SIAM J. Matrix Anal. Appl. 30(3), 2008); first come deflations, and no step raises
    the error.

    Args:
        dense: any shape, floating point or complex, on any device.
        count: the number of terms, from 1.
        ranks: of every term, as in `tucker`.

    Returns:
        The cores `[count, ...]`, and `[count, size, rank]` for each axis with a rank. Float64 or complex128 on the CPU.

    Raises:
        OperandError: the tensor is empty, not finite or of integers.
        OptionError: the count is not an integer from 1, or the ranks are not one such, or None, for each axis.
    """
    dense = prepared(dense)
    check_ranks(ranks, dense.ndim, "blocks", optional=True)
    check_ranks([count], 1, "the count of blocks")
    possible = _possible(dense, ranks)
    rest, terms = dense, []
    for _ in range(count):
        terms.append(_iterated(rest, possible))
        rest = rest - _times(terms[-1][0], possible, terms[-1][1])
    missed = float(torch.linalg.vector_norm(rest))
    for _ in steps(SWEEPS if count > 1 else 0, count * sum(dense.shape) * dense.numel(), "convein fits blocks"):
        for k, (core, factors) in enumerate(terms):
            wanted = rest + _times(core, possible, factors)
            terms[k] = _iterated(wanted, possible, factors)
            rest = wanted - _times(terms[k][0], possible, terms[k][1])
        before, missed = missed, float(torch.linalg.vector_norm(rest))
        if before**2 - missed**2 <= SLOWEST * missed**2:
            break
    wide = [_widened(*term, ranks) for term in terms]
    return torch.stack([core for core, _ in wide]), [torch.stack(group) for group in zip(*(part for _, part in wide))]


def _possible(dense: torch.Tensor, ranks: Sequence[int | None]) -> dict[int, int]:
    """The rank of each axis that has one, without what is beyond the axis's size."""
    return {axis: min(rank, dense.shape[axis]) for axis, rank in enumerate(ranks) if rank is not None}


def _iterated(
    dense: torch.Tensor, ranks: dict[int, int], start: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Core and orthonormal factors: sweeps of HOOI from the truncated HOSVD, or from factors that are already good."""
    factors = start or [leading(dense, axis, rank) for axis, rank in ranks.items()]
    total = float(dense.abs().square().sum())
    core = _times(dense, ranks, [factor.mH for factor in factors])
    for _ in range(SWEEPS if ranks else 0):
        before, factors = float(core.abs().square().sum()), list(factors)
        for k, axis in enumerate(ranks):
            held = {other: rank for other, rank in ranks.items() if other != axis}
            partial = _times(dense, held, [factor.mH for j, factor in enumerate(factors) if j != k])
            factors[k] = leading(partial, axis, ranks[axis])
        core = _times(dense, ranks, [factor.mH for factor in factors])
        kept = float(core.abs().square().sum())
        if kept - before <= SLOWEST * (total - kept):
            break
    return core, factors


def _times(dense: torch.Tensor, axes: Iterable[int], matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """The tensor with each of these axes multiplied by a matrix `[new, old]`."""
    for axis, matrix in zip(axes, matrices):
        dense = torch.tensordot(matrix, dense, ([1], [axis])).movedim(0, axis)
    return dense


def _widened(
    core: torch.Tensor, factors: Sequence[torch.Tensor], ranks: Sequence[int | None]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same product, with the ranks that were asked for."""
    generator, wide = seeded(0), []
    wanted = [(axis, rank) for axis, rank in enumerate(ranks) if rank is not None]
    for (axis, rank), factor in zip(wanted, factors):
        core = padded(core, axis, rank)
        wide.append(padded(factor, 1, rank, generator))
    return core, wide
