"""numpy arrays in, a numpy array out: np.convolve, np.einsum, scipy, and integers to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st

import convein
import reference

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = [(7, 3), (3, 7), (4, 4), (8, 2), (2, 8), (5, 1), (1, 5), (1, 1), (30, 11)]


def randn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("n", "k"), LENGTHS)
def test_convolve(mode: str, n: int, k: int) -> None:
    x, w = randn(n), randn(k)
    ours = convein.conv_einsum("i,i->i|i", x, w, padding=mode, flip=True, signal="largest")
    assert isinstance(ours, np.ndarray)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, np.convolve(x, w, mode), atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_no_warning_where_any_operand_may_be_the_signal() -> None:
    x, w = randn(3), randn(7)
    np.testing.assert_allclose(convein.conv_einsum("i,i->i|i", x, w, padding="full", flip=True), np.convolve(x, w))
    for options in ({"flip": True}, {"padding": "full"}, {"padding": "full", "flip": True, "stride": 2}):
        with pytest.raises(convein.ConveinWarning, match="operand 1 is longer"):
            convein.conv_einsum("i,i->i|i", x, w, **options)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("n", "k"), [(7, 3), (3, 7), (4, 4), (6, 2)])
def test_convolve_of_three(mode: str, n: int, k: int) -> None:
    x, v, w = randn(n), randn(k), randn(3)
    longest = max(n, k)
    ours = convein.conv_einsum("i,i,i->i|i", x, v, w, padding="full", flip=True, signal="first")
    np.testing.assert_allclose(ours, np.convolve(np.convolve(x, v), w), atol=1e-12)
    if mode == "same":
        ours = convein.conv_einsum("i,i,i->i|i", x, v, w, padding="same", flip=True, signal="largest")
        others = np.convolve(v if n >= k else x, w)
        full = np.convolve(x if n >= k else v, others)
        start = (len(others) - 1) // 2
        np.testing.assert_allclose(ours, full[start : start + longest], atol=1e-12)


@pytest.mark.parametrize("shapes", [((6, 5), (3, 2)), ((4, 4), (4, 4))])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_scipy_in_two_dimensions(mode: str, shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    x, w = (randn(*shape) for shape in shapes)
    ours = convein.conv_einsum("ij,ij->ij|ij", x, w, padding=mode, flip=True)
    np.testing.assert_allclose(
        ours, scipy.signal.convolve(x, w, "full" if mode == "full" else mode, "direct"), atol=1e-12
    )


@pytest.mark.parametrize(("ours", "theirs"), [("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")])
def test_borders_of_scipy(ours: str, theirs: str) -> None:
    x, w = randn(9, 8), randn(3)
    separable = convein.conv_einsum("ij,i,j->ij|ij", x, w, w[::-1], padding_mode=ours)
    expected = scipy.ndimage.correlate1d(scipy.ndimage.correlate1d(x, w, 0, mode=theirs), w[::-1], 1, mode=theirs)
    np.testing.assert_allclose(separable, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("expression", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 2)]),
        ("ii", [(3, 3)]),
        ("ii->i", [(3, 3)]),
        ("i,i", [(3,), (3,)]),
        ("ij,kj->ik", [(2, 3), (1, 3)]),
        ("ijk,ilm,njm,nlk,abc->abc", [(2, 3, 4), (2, 5, 6), (3, 3, 6), (3, 5, 4), (2, 1, 2)]),
        ("...i,...i->...", [(2, 3, 4), (3, 4)]),
        ("ij...,jk...->ik...", [(2, 3, 5), (3, 4, 5)]),
        ("ba", [(2, 3)]),
        (",->", [(), ()]),
        ("", [()]),
    ],
)
def test_einsum(expression: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [randn(*shape) for shape in shapes]
    ours = convein.conv_einsum(expression, *operands)
    theirs = np.einsum(expression, *operands)
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs)


def test_strides_numpy_has_and_torch_has_not() -> None:
    x = randn(6, 4)[::-1, ::-2]
    np.testing.assert_allclose(convein.conv_einsum("ij,kj->ik", x, x), x @ x.T)
    big_endian = randn(3).astype(">f8")
    np.testing.assert_allclose(convein.conv_einsum("i,i->", big_endian, big_endian), big_endian @ big_endian)
    frozen = randn(3)
    frozen.flags.writeable = False
    np.testing.assert_allclose(convein.conv_einsum("i,i->i", frozen, frozen), frozen**2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128, np.int8, np.int32, np.int64])
def test_dtypes_stay(dtype: type) -> None:
    x, w = np.arange(6).astype(dtype), np.array([1, 2, 3]).astype(dtype)
    ours = convein.conv_einsum("i,i->i|i", x, w, padding="full", flip=True)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, np.convolve(x, w))


@pytest.mark.parametrize("expression", ["ij,jk->ik", "ij,jk,kl->", "ij,jk->ij", "ij->j"])
def test_truth_values_are_or_of_and(expression: str) -> None:
    operands = [randn(3, 3) > 0.5 for _ in expression.split("->", maxsplit=1)[0].split(",")]
    ours = convein.conv_einsum(expression, *operands)
    assert ours.dtype == np.bool_
    assert ours.tolist() == np.einsum(expression, *operands).tolist()


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=8),
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=4),
    st.sampled_from(["full", "same", "valid"]),
)
def test_integers_are_exact(x: list[int], w: list[int], mode: str) -> None:
    ours = convein.conv_einsum("i,i->i|i", np.array(x), np.array(w), padding=mode, flip=True, signal="largest")
    assert ours.dtype == np.int64
    assert ours.tolist() == np.convolve(np.array(x), np.array(w), mode).tolist()


def test_large_integers_in_every_kind_of_step() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-(2**30), 2**30, shape) for shape in [(2, 3, 40), (4, 3, 17), (4, 5)])
    ours = convein.conv_einsum("bsh,tsh,tu->buh|h", a, b, c, padding="full", flip=True)
    expected = np.zeros((2, 5, 56), dtype=np.int64)
    with np.errstate(over="ignore"):
        for i in np.ndindex(2, 4, 3):
            full = np.convolve(a[i[0], i[2]], b[i[1], i[2]])
            expected[i[0]] += c[i[1]][:, None] * full[None]
    assert ours.tolist() == expected.tolist()


def test_torch_and_numpy_do_not_mix_silently() -> None:
    with pytest.raises(convein.ConveinError, match=r"numpy|ndarray|tensor"):
        convein.conv_einsum("i,i->", np.ones(3), torch.ones(3))


@pytest.mark.parametrize("number", range(9))
def test_the_published_value_of_two_operands(number: int) -> None:
    """Outputs of the published conv_einsum: true convolution, centred on the longer operand, whichever that is."""
    with np.load(GOLDEN / "conv_einsum_binary.npz") as arrays:
        expression, x, w, expected = (arrays[f"{number}/{name}"] for name in ("expr", "A", "B", "out"))
    ours = convein.conv_einsum(str(expression), x, w, flip=True, signal="largest")
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    oracle = reference.conv_einsum(str(expression), *map(torch.from_numpy, (x, w)), flip=True, signal="largest")
    np.testing.assert_allclose(oracle, expected, atol=1e-12)
