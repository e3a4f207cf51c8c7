"""What every decomposition starts from and ends with: the dense tensor in double precision, seeds, norms, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch

from convein.errors import OperandError, OptionError
from convein.options import as_integer, shown

# A loop that multiplies more often than this takes longer than a few seconds, and says how far it is.
LONG_WORK = 1e11
WIDE = 1024  # of a matrix larger than this both ways, few singular triples are found by iteration
TALL = 4  # a matrix with so many times as many columns as rows is decomposed by way of its QR


def prepared(dense: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 (complex128) on the CPU, without its history.

    Raises:
        OperandError: it is not a floating point tensor with at least one axis, is empty, or holds nan or inf.
    """
    if not isinstance(dense, torch.Tensor) or not (dense.is_floating_point() or dense.is_complex()):
        given = dense.dtype if isinstance(dense, torch.Tensor) else type(dense).__name__
        raise OperandError(f"a tensor to factorise must have a floating point or complex dtype, not {given}")
    if not dense.ndim or not dense.numel():
        raise OperandError(f"a tensor to factorise must have axes and entries, not the shape {tuple(dense.shape)}")
    exact = dense.detach().to("cpu", torch.complex128 if dense.is_complex() else torch.float64)
    if not exact.isfinite().all():
        raise OperandError("a tensor to factorise must be finite, and this one holds nan or inf")
    return exact


def check_ranks(ranks: Sequence[int | None], count: int, what: str, *, optional: bool = False) -> None:
    """Checks that there are as many ranks as there should be, each an integer from 1; None only where it is `optional`.

    Raises:
        OptionError: there are more or fewer, or one is not such a number.
    """
    if len(ranks) != count:
        raise OptionError(f"{what} needs {count} ranks, not {len(ranks)}: {list(ranks)}")
    for rank in ranks:
        if rank is None and optional:
            continue
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise OptionError(f"a rank of {what} must be an integer from 1, not {rank!r}")


def relative_error(dense: torch.Tensor, rebuilt: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of `dense`; of a zero tensor 0 if `rebuilt` is zero too, else inf."""
    dense, rebuilt = prepared(dense), prepared(rebuilt)
    norm, missed = float(torch.linalg.vector_norm(dense)), float(torch.linalg.vector_norm(dense - rebuilt))
    return missed / norm if norm else float("inf") if missed else 0.0


def svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first `rank` singular triples, without those that are rounding (at least one): U, S, V^H."""
    if min(matrix.shape) > max(WIDE, 8 * rank):
        left, values, right = _iterated(matrix, 2 * rank + 10)
    elif matrix.shape[1] > TALL * matrix.shape[0]:
        # The long side becomes a small triangle first: directly, 30 x 650,000 takes many times as long.
        basis, triangle = torch.linalg.qr(matrix.mH)
        left, values, right = torch.linalg.svd(triangle.mH)
        right = right @ basis.mH
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rounding = torch.finfo(values.dtype).eps * max(matrix.shape) * values[0]
    kept = min(rank, max(int((values > rounding).sum()), 1))
    return left[:, :kept], values[:kept], right[:kept]


def _iterated(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """About the first `count` singular triples (Halko, Martinsson and Tropp, SIAM Review 53(2), 2011, algorithm 4.4).

    Exact for a matrix of that rank; else the first half of them is nearly the best there is, in seconds where all
    triples of 2,560 x 7,680 take half a minute.
    """
    basis = torch.linalg.qr(matrix @ drawn((matrix.shape[1], count), matrix, seeded(0))).Q
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mH @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.mH @ matrix, full_matrices=False)
    return basis @ left, values, right


def leading(dense: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """Orthonormal `[size, rank]`: the first left singular vectors of the unfolding along an axis, rank <= size."""
    matrix = dense.movedim(axis, 0).flatten(1) if dense.ndim > 1 else dense[:, None]
    if matrix.shape[1] > matrix.shape[0]:
        matrix = torch.linalg.qr(matrix.mH, mode="r").R.mH  # the same left vectors, of a square matrix
    left: torch.Tensor = torch.linalg.svd(matrix, full_matrices=True)[0]
    return left[:, :rank]


def seeded(seed: int) -> torch.Generator:
    """A source of random numbers of its own: the global one is the user's."""
    return torch.Generator("cpu").manual_seed(checked_seed(seed))


def checked_seed(seed: object) -> int:
    """The option `seed` of starts that are drawn.

    Raises:
        OptionError: it is no integer.
    """
    number = as_integer(seed)
    if number is None:
        raise OptionError(f"seed={shown(seed)} is no seed", hint="an integer: seed=0")
    return number


def drawn(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers of variance 1."""
    return torch.randn(tuple(shape), dtype=like.dtype, device="cpu", generator=generator)


def padded(factor: torch.Tensor, axis: int, size: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """The factor with more slices along an axis: zeros, or with a generator noise as large as its entries.

    A bond that is wider than needed has noise on one side and zeros on the other: the product is the same tensor, and
    the zeros have a gradient. With zeros on both sides neither side would ever have one.
    """
    shape = list(factor.shape)
    shape[axis] = size - shape[axis]
    if not shape[axis]:
        return factor
    if generator is None:
        return torch.cat([factor, factor.new_zeros(shape)], axis)
    scale = torch.linalg.vector_norm(factor) / factor.numel() ** 0.5
    return torch.cat([factor, scale * drawn(shape, factor, generator)], axis)


def levelled(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same product with factors of one norm, so that training moves all of them alike."""
    norms = [float(torch.linalg.vector_norm(factor)) for factor in factors]
    if not all(norms):
        return list(factors)
    mean = prod(norm ** (1 / len(norms)) for norm in norms)
    return [factor * (mean / norm) for factor, norm in zip(factors, norms)]


def vanishing(shapes: Iterable[Sequence[int]], like: torch.Tensor) -> list[torch.Tensor]:
    """Factors of the zero tensor that can be trained: the last is zero, and no other."""
    *first, last = shapes
    generator = seeded(0)
    return [*(drawn(shape, like, generator) for shape in first), like.new_zeros(tuple(last))]


def steps(count: int, work: float, what: str) -> Iterable[int]:
    """`range(count)`, with a progress bar where so many steps of `work` multiplications each take their time."""
    if count * work < LONG_WORK:
        return range(count)
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(range(count), desc=what, leave=False)
    return bar
