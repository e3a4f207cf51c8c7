"""Decompositions: exact where they can be, within the published bounds where not, as good as tensorly's."""

from __future__ import annotations

import random
from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly import decomposition as peer
from torch import Tensor

from convein.errors import OperandError, OptionError
from convein.layers.decompositions import blocks, chain, cp, relative_error, ring, tucker

SHAPES = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5]), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from([torch.float64, torch.complex128])
SEEDS = st.integers(0, 2**16)


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def of_cp(factors: list[Tensor]) -> Tensor:
    letters = ascii_lowercase[: len(factors)]
    return torch.einsum(",".join(f"R{letter}" for letter in letters) + "->" + letters, *factors)


def of_chain(cores: list[Tensor]) -> Tensor:
    rebuilt, *others = cores
    for core in others:
        rebuilt = torch.tensordot(rebuilt, core, 1)
    return rebuilt


def of_ring(cores: list[Tensor]) -> Tensor:
    return torch.einsum("a...a->...", of_chain(cores))


def of_tucker(core: Tensor, factors: list[Tensor], ranks: list[int | None], block: str = "") -> Tensor:
    kept = ascii_lowercase[: len(ranks)]
    inner = "".join(small if rank is None else big for small, big, rank in zip(kept, ascii_uppercase, ranks))
    terms = [block + small + big for small, big, rank in zip(kept, ascii_uppercase, ranks) if rank is not None]
    return torch.einsum(",".join([block + inner, *terms]) + "->" + kept, core, *factors)


def of_blocks(core: Tensor, factors: list[Tensor], ranks: list[int | None]) -> Tensor:
    return of_tucker(core, factors, ranks, "z")


def tails(dense: Tensor, unfold: Callable[[Tensor, int], Tensor], ranks: dict[int, int]) -> float:
    """The root of the sum over unfoldings of the squared singular values that a rank leaves out."""
    lost = (torch.linalg.svdvals(unfold(dense, k))[rank:].square().sum() for k, rank in ranks.items())
    return float(sum(lost)) ** 0.5 / float(torch.linalg.vector_norm(dense))


def largest(dense: Tensor, unfold: Callable[[Tensor, int], Tensor], ranks: dict[int, int]) -> float:
    """The largest of those tails: no approximation of these ranks is nearer."""
    return max((tails(dense, unfold, {k: rank}) for k, rank in ranks.items()), default=0.0)


def at_axis(dense: Tensor, axis: int) -> Tensor:
    return dense.movedim(axis, 0).reshape(dense.shape[axis], -1)


def after_axis(dense: Tensor, axis: int) -> Tensor:
    return dense.flatten(0, axis).reshape(dense.shape[: axis + 1].numel(), -1)


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, more=st.integers(0, 3))
def test_everything_is_exact_at_full_rank(shape: tuple[int, ...], dtype: torch.dtype, seed: int, more: int) -> None:
    dense = drawn(shape, dtype, seed)
    full = dense.numel() // max(shape) + more
    count = len(shape)

    factors = cp(dense, full)
    assert [factor.shape for factor in factors] == [(full, size) for size in shape]
    assert relative_error(dense, of_cp(factors)) < 1e-13

    bonds = [full] * (count - 1)
    cores = chain(dense, bonds)
    wide = [[*([full] if k else []), size, *bonds[k : k + 1]] for k, size in enumerate(shape)]
    assert [list(core.shape) for core in cores] == wide
    assert relative_error(dense, of_chain(cores)) < 1e-13

    for closing in (1, 2):
        cores = ring(dense, [*bonds, closing])
        around = [*bonds, closing]
        assert [core.shape for core in cores] == [(around[k - 1], size, around[k]) for k, size in enumerate(shape)]
        assert relative_error(dense, of_ring(cores)) < 1e-13

    ranks = [size + more if k % 2 else None for k, size in enumerate(shape)]
    core, factors = tucker(dense, ranks)
    assert core.shape == tuple(rank or size for rank, size in zip(ranks, shape))
    assert relative_error(dense, of_tucker(core, factors, ranks)) < 1e-13

    core, factors = blocks(dense, 2, ranks)
    assert core.shape == (2, *(rank or size for rank, size in zip(ranks, shape)))
    assert [factor.shape for factor in factors] == [(2, size, rank) for rank, size in zip(ranks, shape) if rank]
    assert relative_error(dense, of_blocks(core, factors, ranks)) < 1e-13


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, ranks=st.lists(st.integers(1, 4), min_size=4, max_size=4))
@settings(max_examples=60)
def test_no_error_is_above_its_bound(shape: tuple[int, ...], dtype: torch.dtype, seed: int, ranks: list[int]) -> None:
    dense = drawn(shape, dtype, seed)
    bonds = ranks[: len(shape) - 1]

    found = relative_error(dense, of_chain(chain(dense, bonds)))
    assert found <= tails(dense, after_axis, dict(enumerate(bonds))) + 1e-12
    assert found >= largest(dense, after_axis, dict(enumerate(bonds))) - 1e-12

    closed = relative_error(dense, of_ring(ring(dense, [*bonds, ranks[-1]])))
    assert closed <= found + 1e-12

    around: list[int | None] = [None if k == 1 else rank for k, rank in enumerate(ranks[: len(shape)])]
    kept = {k: rank for k, rank in enumerate(around) if rank is not None}
    one = relative_error(dense, of_tucker(*tucker(dense, around), around))
    assert one <= tails(dense, at_axis, kept) + 1e-12
    assert one >= largest(dense, at_axis, kept) - 1e-12

    before = one
    for count in (2, 3):
        error = relative_error(dense, of_blocks(*blocks(dense, count, around), around))
        assert error <= before + 1e-12
        before = error

    error = relative_error(dense, of_cp(cp(dense, ranks[0])))
    assert error <= 1 + 1e-12
    assert error >= largest(dense, at_axis, dict.fromkeys(range(len(shape)), ranks[0])) - 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("shape", "rank"), [((8, 9, 3, 3), 4), ((6, 7, 5), 3), ((12, 10, 3, 3), 7), ((4, 1, 6, 5), 5)])
def test_a_tensor_of_low_rank_is_found_again(shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> None:
    count = len(shape)
    products = of_cp([drawn((rank, size), dtype, seed) for seed, size in enumerate(shape)])
    for wanted in (rank, rank + 1):
        assert relative_error(products, of_cp(cp(products, wanted))) < 1e-6
    assert relative_error(products, of_cp(cp(products, rank - 1))) > 1e-3

    shapes = [(2 if k else 1, size, 2 if k < count - 1 else 1) for k, size in enumerate(shape)]
    train = of_ring([drawn(core, dtype, seed) for seed, core in enumerate(shapes)])
    assert relative_error(train, of_chain(chain(train, [2] * (count - 1)))) < 1e-10
    assert relative_error(train, of_ring(ring(train, [2] * count))) < 1e-10

    ranks: list[int | None] = [2, None, *[2] * (count - 2)]
    core = drawn(tuple(rank or size for rank, size in zip(ranks, shape)), dtype)
    leaves = [drawn((size, rank), dtype, size) for rank, size in zip(ranks, shape) if rank]
    term = of_tucker(core, leaves, ranks)
    assert relative_error(term, of_tucker(*tucker(term, ranks), ranks)) < 1e-10
    assert relative_error(term, of_blocks(*blocks(term, 2, ranks), ranks)) < 1e-10


def test_a_ring_that_is_no_train_is_found_again() -> None:
    dense = of_ring([drawn((2, 7, 2), seed=seed) for seed in range(3)])
    assert relative_error(dense, of_chain(chain(dense, [2, 2]))) > 1e-2
    assert relative_error(dense, of_ring(ring(dense, [2, 2, 2]))) < 1e-5


def test_blocks_are_more_than_one_term() -> None:
    """Two orthogonal terms of rank (2, 2, 2): two blocks have them both, and one has one of them."""
    dense = torch.zeros(5, 6, 4, dtype=torch.float64)
    dense[:2, :2, :2], dense[2:4, 2:4, 2:4] = drawn((2, 2, 2)), 2 * drawn((2, 2, 2), seed=1)
    ranks = [2, 2, 2]
    assert relative_error(dense, of_tucker(*tucker(dense, ranks), ranks)) > 0.1
    assert relative_error(dense, of_blocks(*blocks(dense, 2, ranks), ranks)) < 1e-4


def test_products_that_cancel_do_not_grow() -> None:
    """aab + aba + baa has rank 3 and rank-2 neighbours at any distance, whose two products grow for ever."""
    a, b = torch.eye(2, dtype=torch.float64)
    dense = sum(
        (torch.einsum("a,b,c->abc", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a))), a.new_zeros(())
    )
    assert relative_error(dense, of_cp(cp(dense, 3))) < 1e-6
    factors = cp(dense, 2)
    assert relative_error(dense, of_cp(factors)) < 0.05
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=1) for factor in factors])
    assert float(norms.max()) < 2  # products of norm 8, of a tensor of norm 1.7
    assert torch.allclose(norms, norms[0])


def test_factors_have_one_norm() -> None:
    dense = 1e3 * drawn((6, 7, 5))
    for factors in (chain(dense, [3, 4]), ring(dense, [3, 4, 2])):
        norms = [float(torch.linalg.vector_norm(factor)) for factor in factors]
        assert norms == pytest.approx([norms[0]] * 3)
    for factors in (cp(dense, 6), cp(dense, 40)):
        norms = torch.stack([torch.linalg.vector_norm(factor, dim=1) for factor in factors])
        assert torch.allclose(norms, norms[0].expand_as(norms)) or not factors[1][35:].any()


def test_a_bond_of_a_train_has_half_of_its_singular_values_on_each_side() -> None:
    dense = drawn((6, 7, 5), torch.complex128)
    first, middle, last = chain(dense, [3, 4])
    behind, before = torch.tensordot(middle, last, 1).flatten(1), torch.tensordot(first, middle, 1).flatten(0, 1)
    for left, right in ((first, behind), (before, last)):
        values = torch.linalg.svdvals(left @ right)[: len(right)].to(left.dtype)
        for gram in (left.mH @ left, right @ right.mH):
            assert torch.allclose(gram * values.sum() / gram.trace(), values.diag(), atol=1e-10)


def live(factors: list[Tensor], rebuild: Callable[[list[Tensor]], Tensor]) -> None:
    """Two steps down any loss move every entry: none is behind zeros for ever."""
    leaves = [factor.clone().requires_grad_() for factor in factors]
    weights = drawn(tuple(rebuild(leaves).shape), seed=5)
    for _ in range(2):
        gradients = torch.autograd.grad((rebuild(leaves) * weights).sum(), leaves)
        leaves = [(leaf - 0.1 * gradient).detach().requires_grad_() for leaf, gradient in zip(leaves, gradients)]
    moved = torch.autograd.grad((rebuild(leaves) * weights).sum(), leaves)
    assert all(bool((gradient.abs() > 1e-6).all()) for gradient in moved)


@pytest.mark.parametrize("dense", [drawn((3, 4, 2)), torch.zeros(3, 4, 2), torch.ones(3, 1, 2)])
def test_padded_ranks_and_zero_tensors_can_be_trained(dense: Tensor) -> None:
    ranks: list[int | None] = [5, None, 3]
    core, factors = tucker(dense, ranks)
    for found, rebuild in (
        (cp(dense, 9), of_cp),
        (chain(dense, [5, 4]), of_chain),
        (ring(dense, [5, 4, 2]), of_ring),
        ([core, *factors], lambda leaves: of_tucker(leaves[0], leaves[1:], ranks)),
    ):
        assert relative_error(dense, rebuild(found)) < 1e-13
        live(found, rebuild)


def test_any_dtype_is_computed_in_double_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        dense = drawn((4, 3, 5)).to(dtype).requires_grad_()
        (core, factors), cores = tucker(dense, [2, None, 2]), chain(dense, [4, 5])
        assert {part.dtype for part in (core, *factors, *cores, *ring(dense, [2, 2, 2]), *cp(dense, 2))} == {
            torch.float64
        }
        assert not any(part.requires_grad for part in (core, *factors, *cores))
        assert relative_error(dense, of_chain(cores)) < 1e-13
    assert {factor.dtype for factor in cp(drawn((4, 3, 5), torch.complex64), 2)} == {torch.complex128}


def test_the_same_seed_gives_the_same_factors_and_no_other_state_moves() -> None:
    dense = drawn((6, 5, 4))
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    calls = [
        lambda: cp(dense, 5, seed=2),
        lambda: chain(dense, [9, 9]),
        lambda: ring(dense, [3, 3, 3]),
        lambda: tucker(dense, [9, 2, 2])[1],
        lambda: blocks(dense, 2, [2, 9, 2])[1],
    ]
    for call in calls:
        assert all(torch.equal(one, other) for one, other in zip(call(), call()))
    assert not torch.equal(cp(dense, 7, seed=0)[0], cp(dense, 7, seed=1)[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_errors_are_relative() -> None:
    dense = drawn((3, 4))
    assert relative_error(dense, 1.25 * dense) == pytest.approx(0.25)
    assert relative_error(0 * dense, 0 * dense) == 0
    assert relative_error(0 * dense, dense) == float("inf")


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: cp(torch.ones(2, 2, dtype=torch.int32), 1),
            OperandError,
            "a floating point or complex dtype, not torch.int32",
        ),
        (lambda: cp([[1.0]], 1), OperandError, "not list"),
        (lambda: cp(torch.ones(2, 0), 1), OperandError, r"not the shape \(2, 0\)"),
        (lambda: cp(torch.ones(()), 1), OperandError, r"not the shape \(\)"),
        (lambda: tucker(torch.tensor([1.0, float("nan")]), [1]), OperandError, "nan or inf"),
        (lambda: cp(torch.ones(2, 2), 0), OptionError, "a rank of cp must be an integer from 1, not 0"),
        (lambda: chain(torch.ones(2, 2), [1.0]), OptionError, "a rank of chain must be an integer from 1, not 1.0"),
        (lambda: chain(torch.ones(2, 2), [None]), OptionError, "a rank of chain must be an integer from 1, not None"),
        (lambda: chain(torch.ones(2, 2), [1, 1]), OptionError, r"chain needs 1 ranks, not 2: \[1, 1\]"),
        (lambda: ring(torch.ones(2, 2), [1]), OptionError, r"ring needs 2 ranks, not 1: \[1\]"),
        (lambda: tucker(torch.ones(2, 2), [True, None]), OptionError, "not True"),
        (
            lambda: blocks(torch.ones(2, 2), 0, [1, 1]),
            OptionError,
            "the count of blocks must be an integer from 1, not 0",
        ),
    ],
)
def test_what_cannot_be_factorised_is_refused(call: Callable[[], object], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call()


@pytest.mark.parametrize(("shape", "rank"), [((16, 12, 3, 3), 6), ((8, 9, 10), 5)])
def test_no_worse_than_tensorly(shape: tuple[int, ...], rank: int) -> None:
    """On a tensor with decaying singular values, as trained weights have them."""
    dense = of_tucker(drawn(shape), [drawn((n, n), seed=n) / torch.arange(1, n + 1) for n in shape], [*shape])
    array, count = dense.numpy(), len(shape)

    def missed(rebuilt: np.ndarray) -> float:
        return relative_error(dense, torch.from_numpy(rebuilt))

    theirs = peer.parafac(array, rank, n_iter_max=400, init="random", random_state=0, l2_reg=1e-5)
    assert relative_error(dense, of_cp(cp(dense, rank))) <= 1.01 * missed(tensorly.cp_to_tensor(theirs))

    ranks = [min(rank, size) for size in shape]
    theirs = peer.tucker(array, ranks)
    assert (
        relative_error(dense, of_tucker(*tucker(dense, ranks), ranks))
        <= missed(tensorly.tucker_to_tensor(theirs)) + 1e-4
    )

    theirs = peer.tensor_train(array, [1, *[3] * (count - 1), 1])
    ours = relative_error(dense, of_chain(chain(dense, [3] * (count - 1))))
    assert ours == pytest.approx(missed(tensorly.tt_to_tensor(theirs)), abs=1e-10)

    ours = relative_error(dense, of_ring(ring(dense, [2] * count)))
    assert ours <= missed(tensorly.tr_to_tensor(peer.tensor_ring(array, [2] * (count + 1)))) + 1e-10
    theirs = peer.tensor_ring_als(array, [2] * (count + 1), random_state=0)
    assert ours <= 1.05 * missed(tensorly.tr_to_tensor(theirs))


def test_few_singular_triples_of_a_large_matrix_are_nearly_the_best() -> None:
    numbers = torch.Generator().manual_seed(0)
    low = (
        torch.randn(1100, 6, generator=numbers, dtype=torch.float64) @ torch.randn(6, 1200, generator=numbers).double()
    )
    first, last = chain(low, [6])
    assert relative_error(low, first @ last) < 1e-10
    noisy = low + torch.randn(1100, 1200, generator=numbers, dtype=torch.float64)
    first, last = chain(noisy, [20])
    values = torch.linalg.svdvals(noisy)
    best = float(values[20:].norm() / values.norm())
    assert relative_error(noisy, first @ last) < 1.01 * best
