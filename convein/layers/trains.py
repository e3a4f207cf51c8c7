"""Dense tensor -> the cores of a tensor train or a tensor ring, one core for each axis.

tensorly's `tensor_ring` shifts unequal ranks when it starts from another axis than the first, and its `tensor_ring_als`
starts from random cores only; here every start is a singular value decomposition. The tests compare where it is sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from convein.layers.dense import (
    check_ranks,
    levelled,
    padded,
    prepared,
    seeded,
    steps,
    svd,
    vanishing,
)

# A penalty on the cores' squared norms, relative to a tensor of norm 1: without it cores that cancel may grow for ever.
RIDGE = 1e-8
LARGEST_SOLVE = 1024  # a core with more products of its bonds is not refined: each sweep takes their cube
EXACT = 1e-12
SWEEPS = 40
SLOWEST = 1e-4  # a sweep that lowers the squared error by a smaller part is the last


def chain(dense: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Cores of a tensor train near a tensor: `einsum("ai,ibj,jc->abc")`.

    TT-SVD (Oseledets, SIAM J. Sci. Comput. 33(5), 2011, algorithm 1), whose error is at most sqrt(axes - 1) times the
    least possible at these ranks. The square roots of a bond's singular values go to both of its cores, and all cores
    get one norm.

    Args:
        dense: any shape, floating point or complex, on any device.
        ranks: the size of each bond between neighbours. Those beyond what a bond can use are padded: noise on one side
            and zeros on the other.

    Returns:
        `[size, rank]`, `[rank, size, rank]`..., `[rank, size]`, of a single axis `[size]`; float64 or complex128 on the
        CPU.

    Raises:
        OperandError: the tensor is empty, not finite or of integers.
        OptionError: the ranks are not one integer from 1 for each bond.
    """
    dense = prepared(dense)
    check_ranks(ranks, dense.ndim - 1, "chain")
    first, *others = levelled(_train(dense, ranks))
    *inner, last = (first.squeeze(0), *others)
    return [*inner, last.squeeze(-1)]


def ring(dense: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Cores of a tensor ring near a tensor: `einsum("kai,ibj,jck->abc")`.

    The best of a tensor train (one index of the closing bond) and of TR-SVDs from every axis (Zhao et al., "Tensor ring
    decomposition", arXiv:1606.05535, 2016, algorithm 1), as they are and after alternating least squares
    (algorithm 2) where its systems are not too large.

    Args:
        dense: any shape, floating point or complex, on any device.
        ranks: the size of the bond behind each axis; the last closes the ring.

    Returns:
        `[rank before, size, rank behind]` for each axis, of one norm; float64 or complex128 on the CPU. Their error is
        at most that of a tensor train of the same ranks.

    Raises:
        OperandError: the tensor is empty, not finite or of integers.
        OptionError: the ranks are not one integer from 1 for each axis.
    """
    dense = prepared(dense)
    check_ranks(ranks, dense.ndim, "ring")
    norm = torch.linalg.vector_norm(dense)
    if not norm:
        return vanishing([(ranks[k - 1], size, ranks[k]) for k, size in enumerate(dense.shape)], dense)
    unit = dense / norm
    train = _train(unit, ranks[:-1])
    train[0] = padded(train[0], 0, ranks[-1], seeded(0))
    train[-1] = padded(train[-1], 2, ranks[-1])
    found = [train]
    if dense.ndim > 1:
        found.append(min((_opened(unit, ranks, k) for k in range(dense.ndim)), key=lambda cores: _missed(unit, cores)))
        if max(a * b for a, b in pairwise([ranks[-1], *ranks])) <= LARGEST_SOLVE:
            found += [_refined(unit, cores) for cores in found]
    first, *others = min(found, key=lambda cores: _missed(unit, cores))
    return levelled([first * norm, *others])


def _train(dense: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Cores `[rank before, size, rank behind]`, with bonds of size 1 at both ends."""
    if not dense.any():
        wide = [1, *ranks, 1]
        return vanishing(zip(wide, dense.shape, wide[1:]), dense)
    cores, rest = [], dense.reshape(1, -1)
    for size, rank in zip(dense.shape, ranks):
        left, values, right = svd(rest.reshape(len(rest) * size, -1), rank)
        cores.append(left.reshape(len(rest), size, -1))
        rest = values[:, None] * right
    cores.append(rest[..., None])
    # Backwards again, for the singular values of the train itself at every bond. Half of them on each side leaves cores
    # root before * isometry / root behind, whose entries are at most 1: none is large where a singular value is small.
    roots = [dense.new_ones(1)]
    for k in range(len(cores) - 1, 0, -1):
        left, values, right = svd(cores[k].flatten(1), len(cores[k]))
        root = values.sqrt()
        cores[k] = root[:, None, None] * right.reshape(-1, *cores[k].shape[1:]) / roots[-1]
        cores[k - 1] = cores[k - 1] @ (left * values)
        roots.append(root)
    cores[0] = cores[0] / roots[-1]
    generator = seeded(0)
    for k, rank in enumerate(ranks):
        cores[k], cores[k + 1] = padded(cores[k], 2, rank, generator), padded(cores[k + 1], 0, rank)
    return cores


def _opened(dense: torch.Tensor, ranks: Sequence[int], axis: int) -> list[torch.Tensor]:
    """TR-SVD from an axis: its unfolding has both bonds of its core as one, and what is behind it is a train."""
    count, size = dense.ndim, dense.shape[axis]
    order = [(axis + k) % count for k in range(count)]
    before, behind = ranks[axis - 1], ranks[axis]
    left, values, right = svd(dense.permute(order).reshape(size, -1), before * behind)
    root = values.sqrt()
    core = padded(left * root, 1, before * behind, seeded(0)).reshape(size, before, behind).transpose(0, 1)
    rest = padded(root[:, None] * right, 0, before * behind).reshape(before, behind, -1)
    sizes = [dense.shape[k] for k in order[1:]]
    ends = [behind, *[1] * (count - 1)], [*[1] * (count - 1), before]
    merged = [a * middle * b for a, middle, b in zip(ends[0], sizes, ends[1][1:])]
    train = _train(rest.permute(1, 2, 0).reshape(merged), [ranks[k] for k in order[1:-1]])
    bonds = [ranks[k] for k in order]
    cores = [core, *(part.reshape(a, middle, b) for part, a, middle, b in zip(train, bonds, sizes, bonds[1:]))]
    return [cores[order.index(k)] for k in range(count)]


def _ring_operands(cores: Sequence[torch.Tensor], bond: int, skipped: int | None = None) -> list[object]:
    """The cores as operands of an einsum, with the number `bond + k` for the bond behind axis k."""
    count = len(cores)
    labels = [[bond + (k - 1) % count, k, bond + k] for k in range(count)]
    return [part for k in range(count) if k != skipped for part in (cores[k], labels[k])]


def _missed(dense: torch.Tensor, cores: Sequence[torch.Tensor]) -> float:
    rebuilt = torch.einsum(*_ring_operands(cores, dense.ndim), [*range(dense.ndim)])
    return float(torch.linalg.vector_norm(dense - rebuilt))


def _refined(dense: torch.Tensor, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The cores after alternating least squares, on a tensor of norm 1.

    From the last core to the first: where a bond was padded, noise is before it and zeros are behind it, and the zeros
    have to be solved for first.
    """
    cores, count, before = list(cores), dense.ndim, float("inf")
    widest = max(core.shape[0] * core.shape[2] for core in cores)
    exact = _missed(dense, cores) < EXACT
    for _ in steps(0 if exact else SWEEPS, 2 * dense.numel() * widest + count * widest**3, "convein fits a ring"):
        for k in reversed(range(count)):
            conjugates = [core.conj() for core in cores]
            left, right, kept = count + (k - 1) % count, count + k, cores[k].shape
            others = _ring_operands(conjugates, count, k)
            inner = torch.einsum(dense, [*range(count)], *others, [left, right, k]).reshape(-1, kept[1])
            twice = [left, right, left + count, right + count]
            gram = torch.einsum(*others, *_ring_operands(cores, 2 * count, k), twice)
            square = gram.reshape(len(inner), len(inner))
            solved = torch.linalg.solve(square + RIDGE * torch.eye(len(inner), dtype=dense.dtype, device="cpu"), inner)
            cores[k] = solved.reshape(kept[0], kept[2], kept[1]).transpose(1, 2)
        loss = 1 - float((inner.conj() * solved).sum().real)
        if before - loss <= SLOWEST * loss:
            break
        before, cores = loss, levelled(cores)
    return cores
