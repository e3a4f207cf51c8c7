"""Dense tensor -> the factors of a sum of products of vectors (CP), by alternating least squares.

tensorly's `parafac` finds the same, and the tests compare with it. It writes the Khatri-Rao product out, which for a
weight of 512 x 512 x 3 x 3 at rank 229 takes 1.4 GB and forty times as long, and its backend context sets the backend
of the whole process when it ends.
"""

from __future__ import annotations

import torch

from convein.layers.dense import check_ranks, drawn, leading, padded, prepared, seeded, steps, svd

# A best approximation need not exist: products that cancel can grow for ever (de Silva and Lim, SIAM J. Matrix Anal.
# Appl. 30(3), 2008). The penalty on the factors' squared norms forbids it, and is taken back as far as they stay small.
# It is relative to a tensor of norm 1.
RIDGE = 1e-5
RELEASED = (1e-8, 1e-11)
MOST_GROWTH = 1.25
STARTS = 3
SCREENING_SWEEPS = 50
SWEEPS = 400
LEAP_EVERY = 3
SLOWEST = 1e-6  # a sweep that lowers the squared error by a smaller part is the last


def cp(dense: torch.Tensor, rank: int, *, seed: int = 0) -> list[torch.Tensor]:
    """Factors whose sum of products is near a tensor: `einsum("ra,rb,rc->abc")`.

    Alternating least squares with a small penalty on the factors (Carroll and Chang, Psychometrika 35(3), 1970; Kolda
    and Bader, SIAM Review 51(3), 2009, section 3.4), the best of a few starts. With up to two axes longer than 1 it is
    the truncated SVD, and from the rank `numel / longest axis` on it is exact.

    Args:
        dense: any shape, floating point or complex, on any device.
        rank: the number of products, from 1.
        seed: of the starts.

    Returns:
        One `[rank, size]` for each axis, float64 or complex128 on the CPU; the vectors of a product have the same norm.

    Raises:
        OperandError: the tensor is empty, not finite or of integers.
        OptionError: the rank is not an integer from 1.
    """
    dense = prepared(dense)
    check_ranks([rank], 1, "cp")
    generator = seeded(seed)
    # The longest axis last: one product with its factor serves the updates of all others.
    long = [axis for axis, size in enumerate(dense.shape) if size > 1] or [0]
    axes = sorted(long, key=lambda axis: dense.shape[axis])
    core = dense.reshape([dense.shape[axis] for axis in long]).permute([long.index(axis) for axis in axes])
    norm = torch.linalg.vector_norm(core)
    if core.ndim == 2:
        left, values, right = svd(core, rank)
        found = [padded(left * values, 1, rank, generator), padded(right.mT, 1, rank)]
    elif not norm or rank >= core.numel() // core.shape[-1]:
        found = _fibres(core, rank, generator)
    else:
        first, *others = _approximated(core / norm, rank, generator)
        found = [first * norm, *others]
    factors = [dense.new_ones(size, rank) for size in dense.shape]
    for axis, factor in zip(axes, found):
        factors[axis] = factor
    return [factor.mT.contiguous() for factor in _spread(factors)]


def _fibres(core: torch.Tensor, rank: int, generator: torch.Generator) -> list[torch.Tensor]:
    """One product for each fibre along the longest axis: the unit vectors that say which it is, times the fibre.

    Products beyond those are noise times a zero along the longest axis, as the one of a zero fibre is a unit times a
    zero: a product with a single zero vector has a gradient.
    """
    *short, longest = core.shape
    kept = core.reshape(-1, longest).mT[:, :rank]  # fewer only where all are zero
    places = torch.ones(short, device="cpu").nonzero()[:rank]
    names = [torch.eye(size, dtype=core.dtype, device="cpu")[:, places[:, k]] for k, size in enumerate(short)]
    return [*(padded(name, 1, rank, generator) for name in names), padded(kept, 1, rank)]


def _spread(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same products, with vectors of one norm in each; beside a zero vector they are as long as in the others."""
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in factors])
    wanted = norms.pow(1 / len(factors)).prod(0)
    alive = wanted > 0
    wanted = wanted.where(alive, wanted[alive].mean() if alive.any() else wanted.new_ones(()))
    return [factor * (wanted / norm.where(norm > 0, norm.new_ones(()))) for factor, norm in zip(factors, norms)]


def _approximated(core: torch.Tensor, rank: int, generator: torch.Generator) -> list[torch.Tensor]:
    """The factors `[size, rank]` of a tensor of norm 1 with at least three axes, the longest last."""
    singular = [
        torch.cat([vectors, drawn((size, rank - vectors.shape[1]), core, generator)], 1)
        for size, vectors in ((size, leading(core, axis, min(rank, size))) for axis, size in enumerate(core.shape))
    ]
    random = [[drawn((size, rank), core, generator) for size in core.shape] for _ in range(STARTS - 1)]
    screened = [_minimised(core, start, RIDGE, SCREENING_SWEEPS) for start in (singular, *random)]
    best = _minimised(core, min(screened, key=lambda factors: _missed(core, factors)), RIDGE, SWEEPS)
    allowed = MOST_GROWTH * _weight(best)
    for ridge in RELEASED:
        freed = _minimised(core, best, ridge, SWEEPS // 2)
        if _weight(freed) <= allowed and _missed(core, freed) < _missed(core, best):
            best = freed
    return best


def _missed(core: torch.Tensor, factors: list[torch.Tensor]) -> float:
    operands = [part for axis, factor in enumerate(factors) for part in (factor, [axis, core.ndim])]
    return float(torch.linalg.vector_norm(core - torch.einsum(*operands, [*range(core.ndim)])))


def _weight(factors: list[torch.Tensor]) -> float:
    """The sum of the squared norms of all vectors: it grows without bound where products cancel."""
    return sum(float(factor.abs().square().sum()) for factor in factors)


def _minimised(core: torch.Tensor, factors: list[torch.Tensor], ridge: float, most: int) -> list[torch.Tensor]:
    """The factors after sweeps that lower `|core - product|^2 + ridge * sum |factor|^2`.

    Between sweeps they leap ahead in the direction of the last one, where that lowers it further (Harshman, UCLA
    Working Papers in Phonetics 16, 1970): plain sweeps can take thousands where products are nearly parallel.
    """
    before, leap = float("inf"), 1.0
    for sweep in steps(most, 4 * core.numel() * factors[0].shape[1], "convein fits CP"):
        last, (factors, loss) = factors, _swept(core, factors, ridge)
        if before - loss <= SLOWEST * loss:
            break
        if sweep % LEAP_EVERY == LEAP_EVERY - 1:
            ahead = [new + leap * (new - old) for old, new in zip(last, factors)]
            gained = _missed(core, ahead) ** 2 + ridge * _weight(ahead) < loss
            factors, leap = (ahead, 2 * leap) if gained else (factors, max(leap / 2, 1.0))
        before = loss
    return factors


def _swept(core: torch.Tensor, factors: list[torch.Tensor], ridge: float) -> tuple[list[torch.Tensor], float]:
    """Every factor solved for once while the others are held, and the penalised squared error."""
    factors, last, product = list(factors), core.ndim - 1, core.ndim
    grams = [factor.mT @ factor.conj() for factor in factors]
    penalty = ridge * torch.eye(grams[0].shape[0], dtype=core.dtype, device="cpu")
    shorter = core @ factors[last].conj()
    for axis in range(core.ndim):
        fixed = [k for k in range(core.ndim) if k != axis]
        if axis == last:
            shorter, known = core, [*range(core.ndim)]
        else:
            fixed.remove(last)
            known = [*range(last), product]
        conjugates = [part for k in fixed for part in (factors[k].conj(), [k, product])]
        inner = torch.einsum(shorter, known, *conjugates, [axis, product])
        gram = torch.stack([grams[k] for k in range(core.ndim) if k != axis]).prod(0) + penalty
        factors[axis] = torch.linalg.solve(gram.mT, inner.mT).mT
        grams[axis] = factors[axis].mT @ factors[axis].conj()
    missed = 1 - float((inner * factors[last].conj()).sum().real)  # with the last factor's part of the penalty
    return _spread(factors), missed + ridge * _weight(factors[:last])
