"""Orthogonal convolutions: the published vectors, sums written out, singular values of whole Jacobians."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from convein import OptionError, ShapeError, conv_einsum
from convein.layers.sc_fac import (
    GroupSort,
    LipschitzWideResNet,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalLinear,
    Rotation,
    Subspace,
    factors,
    flow_block,
    orthogonal_weights,
    rebase,
    singular_values,
)
from convein.layers.sc_fac.exponential import rotation, skew, turned_basis, turned_subspace
from convein.layers.sc_fac.taps import axis_taps, separable_taps

GOLDEN = Path(__file__).parent / "golden"
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as file:
        return {key: torch.tensor(file[key]) for key in file.files}


def same(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def orthonormal(size: int, columns: int | None = None, groups: int = 1) -> Tensor:
    return torch.linalg.qr(torch.randn(groups, size, size, dtype=DOUBLE)).Q[..., : columns or size]


def moved(layer: nn.Module, by: float = 0.3) -> nn.Module:
    """The layer with parameters that are not zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)
    return layer


# The published vectors


SCFAC = golden("scfac.npz")
CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...], dict[str, int]]] = {
    "c1d_k3": (OrthogonalConv1d, (6, 6, 3), {}),
    "c1d_k4": (OrthogonalConv1d, (6, 6, 4), {}),
    "c1d_k6_s2": (OrthogonalConv1d, (4, 8, 6), {"stride": 2}),
    "c1d_k3_g2": (OrthogonalConv1d, (8, 8, 3), {"groups": 2}),
    "c2d_k3": (OrthogonalConv2d, (4, 4, 3), {}),
    "c2d_k2_s2": (OrthogonalConv2d, (2, 8, 2), {"stride": 2}),
    "c2d_k3_row": (OrthogonalConv2d, (6, 4, 3), {}),
    "t1d_k3": (OrthogonalConvTranspose1d, (6, 6, 3), {}),
}


@pytest.mark.parametrize("key", [key for key in SCFAC if "/A_" in key])
def test_published_exponentials_and_their_gradients(key: str) -> None:
    A, U = SCFAC[key][None], SCFAC[key.replace("/A_", "/U_")]
    same(rotation(A)[0, :, : U.shape[1]], U)
    free, other = A.clone().requires_grad_(), A.clone().requires_grad_()
    weights = torch.randn(1, *U.shape, dtype=DOUBLE)
    ours = torch.autograd.grad((rotation(free)[..., : U.shape[1]] * weights).sum(), free)
    theirs = torch.autograd.grad((torch.linalg.matrix_exp(skew(other))[..., : U.shape[1]] * weights).sum(), other)
    same(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_published_layers(name: str) -> None:
    """With a rotation on each axis the second one is moved to the first, past the subspaces between."""
    make, sizes, options = CASES[name]
    layer = make(*sizes, **options, bias=False, dtype=DOUBLE)
    value = {key.split("/")[1]: one for key, one in SCFAC.items() if key.startswith(f"{name}/")}
    axes = ["_d0", "_d1"] if "U_g0_d0" in value else [""]
    groups = range(layer.geometry.groups)
    one = torch.eye(layer.geometry.channels, dtype=DOUBLE)
    past = [value[f"U_g{g}_d1"] if len(axes) == 2 else one for g in groups]
    layer.rotation.assign(torch.stack([past[g] @ value[f"U_g{g}{axes[0]}"] for g in groups]))
    subspaces = iter(layer.subspaces)
    for axis, count in zip(axes, layer.geometry.factors):
        for number in range(count):
            side = "rl"[number % 2]
            found = [value[f"U_g{g}{axis}_{side}{number // 2 + 1}"] for g in groups]
            if (axis, side) in {("_d0", "l"), ("_d1", "r")}:
                found = [past[g] @ found[g] for g in groups]
            bases = [torch.linalg.svd(U).U for U in found]
            # The published transposed layer tilts the other way: its projectors are our complements.
            next(subspaces).assign(torch.stack([V.flip(-1) if name[0] == "t" else V for V in bases]))
    same(layer.dense_weight(), value["weight"])
    same(layer(value["x"]), value["y"])
    same(layer.adjoint(value["y"]), value["y_reversed"])


def test_gradients_through_published_factors() -> None:
    """Of the whole weight, against plain products of matrices and torch's exponential."""
    value = {key.split("/")[1]: one for key, one in SCFAC.items() if key.startswith("c2d_k3/")}
    names = [key for key in value if key.startswith("A_")]
    results = []
    for build in (_published_weight, _our_weight):
        given = {name: value[name].clone().requires_grad_() for name in names}
        weight = build(given)
        same(weight, value["weight"])
        loss = (weight * torch.linspace(-1, 1, weight.numel(), dtype=DOUBLE).view_as(weight)).sum()
        results.append(torch.autograd.grad(loss, list(given.values())))
    same(*results)


def _published_weight(A: dict[str, Tensor]) -> Tensor:
    columns = {name: 4 if name.endswith(("d0", "d1")) else 2 for name in A}
    U = {name[2:]: torch.linalg.matrix_exp(skew(A[name]))[:, : columns[name]] for name in A}
    axes = []
    for axis in ("g0_d0", "g0_d1"):
        P = {side: U[f"{axis}_{side}1"] @ U[f"{axis}_{side}1"].mT for side in "rl"}
        R, L = torch.stack([P["r"], torch.eye(4) - P["r"]]), torch.stack([torch.eye(4) - P["l"], P["l"]])
        axes.append(conv_einsum("kab,bc,kcd->kad|k", L, U[axis], R, padding="full", flip=True))
    return conv_einsum("hrs,wtr->tshw", *axes)


def _our_weight(A: dict[str, Tensor]) -> Tensor:
    U = {name[2:]: rotation(A[name][None])[0] for name in A}
    rows, columns = (
        axis_taps(U[axis], [U[f"{axis}_r1"][:, :2], U[f"{axis}_l1"][:, :2]]) for axis in ("g0_d0", "g0_d1")
    )
    past = U["g0_d1"]
    across = [past @ U["g0_d1_r1"][:, :2], U["g0_d1_l1"][:, :2]]
    same(axis_taps(past, [U["g0_d1_r1"][:, :2], U["g0_d1_l1"][:, :2]]), columns)
    moved = separable_taps(torch.einsum("ab,kcb->kca", past, rows), across)
    return moved.permute(3, 2, 1, 0)


@pytest.mark.parametrize("init", ["identical", "reverse", "permutation", "torus"])
def test_published_initialisation_and_what_it_should_be(init: str) -> None:
    """The published code ties U_l = Q^T U_r; with Q U_r, as the proposition has it, only the middle tap is left."""
    value = {key.split("/")[1]: one for key, one in golden("scfac_init.npz").items() if key.startswith(f"{init}/")}
    Q, right = value["Q"], value["U_r"]
    published = axis_taps(Q, [right, value["U_l_code"]])
    same(published.permute(2, 1, 0), value["weight_code"])
    same(axis_taps(Q, [right, Q @ right]), torch.stack([0 * Q, Q.mT, 0 * Q]))


def test_published_group_sort() -> None:
    value = golden("groupsort.npz")
    same(GroupSort(2)(value["x"]), value["groupsort2"])
    same(GroupSort(3)(value["x"]), value["groupsort3"])


# Exponentials


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 5), st.floats(1e-6, 30), st.sampled_from([torch.float32, DOUBLE]))
def test_exponentials_of_any_norm(columns: int, more: int, scale: float, dtype: torch.dtype) -> None:
    numbers = torch.Generator().manual_seed(columns * 7 + more)
    free = torch.randn(3, columns + more, columns + more, dtype=dtype, generator=numbers) * scale
    tolerance = 1e-12 * max(1, scale) if dtype == DOUBLE else 1e-5 * max(1, scale)
    same(rotation(free).double(), torch.linalg.matrix_exp(skew(free.double())), tolerance)
    if not more:
        return
    B = free[:, columns:, :columns]
    block = torch.zeros(3, columns + more, columns + more, dtype=DOUBLE)
    block[:, columns:, :columns] = B
    whole = torch.linalg.matrix_exp(block - block.mT)
    same(turned_subspace(B).double(), whole[..., :columns], tolerance)
    same(turned_basis(B).double(), whole, tolerance)


@pytest.mark.parametrize("map", ["exponential", "cayley"])
def test_maps_are_orthogonal_and_differentiable_twice(map: Any) -> None:
    for build, shape in ((rotation, (2, 4, 4)), (turned_subspace, (2, 3, 2))):
        for scale in (0.0, 0.01, 0.7, 4.0):
            free = (scale * torch.randn(shape, dtype=DOUBLE)).requires_grad_()
            U = build(free, map)
            same(U.mT @ U, torch.eye(U.shape[-1], dtype=DOUBLE).expand(2, -1, -1), 1e-13)
            assert torch.autograd.gradcheck(lambda x, build=build: build(x, map), free)
            assert torch.autograd.gradgradcheck(lambda x, build=build: build(x, map), free)
    A = skew(torch.randn(1, 5, 5, dtype=DOUBLE))
    one = torch.eye(5, dtype=DOUBLE)
    same(rotation(A, "cayley"), torch.linalg.inv(one - A / 2) @ (one + A / 2))
    B = torch.randn(1, 3, 2, dtype=DOUBLE)
    same(turned_subspace(B, "cayley"), turned_basis(B, "cayley")[..., :2])


@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.05, 0.3])
def test_large_matrices_are_taken_one_by_one(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch)
    bases = orthonormal(205, groups=3).float()
    made = [Rotation(bases[:2, :101, :101].clone()), Subspace(bases[1:], 101), Subspace(bases[:1], 101)]
    wanted = []
    for factor in made:
        with torch.no_grad():
            factor.free.normal_(std=scale)
        A = factor.free.double()
        A = skew(A) if isinstance(factor, Rotation) else skew(F.pad(A, (0, 104, 101, 0)))
        wanted.append((factor.base.double() @ torch.linalg.matrix_exp(A))[..., :101])
    found = factors.orthogonal_matrices(made)
    assert shapes == [(101, 101)] * 2 + [(104, 101)] * 3
    same([value.double() for value in found], wanted, 1e-5)
    weights = [torch.randn_like(value) for value in found]
    parameters = [factor.free for factor in made]
    ours, theirs = (torch.autograd.grad(values, parameters, weights) for values in (found, wanted))
    same(ours, theirs, 1e-3)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1, 3, 12])
@pytest.mark.parametrize("build", [rotation, turned_subspace])
def test_adjoint_is_what_autograd_finds(build: Callable[..., Tensor], scale: float) -> None:
    free = (scale * torch.randn(2, 4, 4, dtype=DOUBLE)).requires_grad_()
    value = build(free)
    gradient = torch.randn_like(value)
    ours, theirs = (torch.autograd.grad(value, free, gradient, True, create)[0] for create in (False, True))
    same(ours, theirs, 1e-11)
    # Several gradients at once.
    both = torch.stack([gradient, 2 * gradient])
    same(torch.autograd.grad(value, free, both, is_grads_batched=True)[0], torch.stack([ours, 2 * ours]), 1e-11)


# Cascades


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 3), st.sampled_from([0, 2]))
def test_cascades_are_products_of_sequences(size: int, along: int, across: int, groups: int) -> None:
    torch.manual_seed(size + 7 * along)
    batch = groups or 1
    ranks = [1 + number % size for number in range(along + across)]
    Q, U = orthonormal(size, groups=batch), [orthonormal(size, rank, batch) for rank in ranks]
    ours = separable_taps(axis_taps(Q if groups else Q[0], [one if groups else one[0] for one in U[:along]]),
                          [one if groups else one[0] for one in U[along:]])  # fmt: skip
    ours = ours if groups else ours[None]
    one = torch.eye(size, dtype=DOUBLE)
    for group in range(batch):
        axes = []
        for start, chosen in ((Q[group], U[:along]), (one, U[along:])):
            taps = start[None]
            for number, basis in enumerate(chosen):
                P = basis[group] @ basis[group].mT
                pair = torch.stack([one - P, P] if number % 2 else [P, one - P])
                both = (pair, taps) if number % 2 else (taps, pair)
                taps = conv_einsum("kab,kbc->kac|k", *both, padding="full", flip=True, signal="largest")
            axes.append(taps)
        same(ours[group].permute(1, 0, 3, 2), torch.einsum("hrs,wtr->hwts", *axes), 1e-12)


# Every variant


def variants() -> Iterator[tuple[str, Callable[..., nn.Module], tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    one, two = OrthogonalConv1d, OrthogonalConv2d
    up_one, up_two = OrthogonalConvTranspose1d, OrthogonalConvTranspose2d
    for kernel in (1, 2, 3, 4, 5, 6, 7):
        yield f"1-D, {kernel} taps", one, (4, 4, kernel), (7,), {}
    yield "1-D, wider than the input", one, (4, 4, 5), (3,), {}
    yield "1-D, dilated", one, (4, 4, 3), (9,), {"dilation": 3}
    yield "1-D, stride", one, (3, 6, 4), (8,), {"stride": 2}
    yield "1-D, stride 3", one, (2, 6, 9), (9,), {"stride": 3}
    yield "1-D, fewer outputs", one, (5, 3, 3), (6,), {}
    yield "1-D, more outputs", one, (3, 5, 4), (6,), {}
    yield "1-D, groups", one, (6, 4, 3), (5,), {"groups": 2}
    yield "1-D, zeros", one, (4, 4, 3), (6,), {"padding_mode": "zeros"}
    yield "1-D, zeros, dilated", one, (3, 4, 4), (6,), {"padding_mode": "zeros", "dilation": 2}
    yield "1-D, zeros, stride", one, (2, 4, 6), (8,), {"padding_mode": "zeros", "stride": 2}
    yield "1-D, one channel", one, (1, 1, 3), (6,), {}
    yield "1-D, ranks", one, (5, 5, 3), (6,), {"rank": (1, 5)}
    yield "1-D, cayley", one, (4, 4, 3), (5,), {"map": "cayley"}
    yield "2-D", two, (4, 4, 3), (4, 5), {}
    yield "2-D, 2 x 5", two, (3, 3, (2, 5)), (4, 5), {}
    yield "2-D, 4 x 1", two, (3, 3, (4, 1)), (4, 3), {}
    yield "2-D, 1 x 2", two, (3, 3, (1, 2)), (4, 3), {}
    yield "2-D, dilated", two, (3, 4, 3), (5, 4), {"dilation": (2, 1)}
    yield "2-D, stride", two, (2, 8, 2), (4, 6), {"stride": 2}
    yield "2-D, stride, fewer outputs", two, (2, 5, (4, 3)), (4, 3), {"stride": (2, 1)}
    yield "2-D, groups and stride", two, (4, 8, 2), (4, 4), {"groups": 2, "stride": (1, 2)}
    yield "2-D, zeros", two, (2, 3, 3), (3, 4), {"padding_mode": "zeros"}
    yield "1-D transposed", up_one, (4, 4, 3), (6,), {}
    yield "1-D transposed, stride", up_one, (6, 3, 4), (4,), {"stride": 2}
    yield "1-D transposed, zeros", up_one, (4, 2, 4), (7,), {"stride": 2, "padding_mode": "zeros"}
    yield "2-D transposed", up_two, (8, 2, 2), (3, 2), {"stride": 2}
    yield "2-D transposed, groups", up_two, (4, 4, 3), (3, 4), {"groups": 2, "dilation": (1, 2)}
    yield "2-D transposed, more outputs", up_two, (4, 5, (3, 2)), (3, 4), {}


VARIANTS = pytest.mark.parametrize(("make", "sizes", "shape", "options"), [
    pytest.param(*rest, id=name) for name, *rest in variants()
])  # fmt: skip


def drawn(make: Callable[..., Any], sizes: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> Any:
    return moved(make(*sizes, **options, dtype=dtype, init="uniform"))


@VARIANTS
def test_all_singular_values_are_one(
    make: Any, sizes: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer = drawn(make, sizes, {**options, "bias": False}, DOUBLE)
    x = torch.randn(sizes[0], *shape, dtype=DOUBLE)
    y = layer(x)
    with torch.no_grad():
        units = torch.eye(x.numel(), dtype=DOUBLE).view(-1, *x.shape)
        whole = layer(units).flatten(1)
        values = torch.linalg.svdvals(whole)
    zeros = options.get("padding_mode") == "zeros" and y.numel() < x.numel()
    # The adjoint of full padding drops what lies beyond the border: of norm one at most.
    assert values.max() <= 1 + 1e-12
    if not zeros:
        same(values, torch.ones_like(values), 1e-12)
    if hasattr(layer, "geometry"):
        base = (
            y.shape[-len(shape) :]
            if isinstance(layer, (OrthogonalConvTranspose1d, OrthogonalConvTranspose2d))
            else shape
        )
        found = singular_values(layer, tuple(base))
        same(found, torch.ones_like(found), 1e-12)
    # The adjoint is the transposed matrix.
    v = torch.randn_like(y)
    same((layer(x) * v).sum(), (x * layer.adjoint(v)).sum(), 1e-11)
    if whole.shape[0] <= whole.shape[1] and not zeros:
        same(layer.inverse(y), x, 1e-10)
    else:
        with pytest.raises(ShapeError, match="inputs that differ"):
            layer.inverse(y)


@VARIANTS
def test_norms_in_single_precision(
    make: Any, sizes: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer = drawn(make, sizes, {**options, "bias": False}, torch.float32)
    x = torch.randn(20, sizes[0], *shape)
    y = layer(x)
    if y[0].numel() >= x[0].numel() and options.get("padding_mode") != "zeros":
        ratio = y.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    else:
        v = torch.randn_like(y)
        ratio = layer.adjoint(v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
        if options.get("padding_mode") == "zeros":
            ratio = layer(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
            ratio = ratio if y[0].numel() >= x[0].numel() else ratio.clamp_min(1)
    assert (ratio - 1).abs().max() < 1e-5


def test_singular_values_are_those_of_the_jacobian() -> None:
    """Of a weight that is not orthogonal, all of them."""
    layer = OrthogonalConv2d(4, 8, (4, 3), stride=(2, 1), groups=2, bias=False, dtype=DOUBLE, init="uniform")
    with torch.no_grad():
        layer.rotation.base.mul_(torch.rand(layer.rotation.base.shape, dtype=DOUBLE))
        units = torch.eye(4 * 6 * 5, dtype=DOUBLE).view(-1, 4, 6, 5)
        wanted = torch.linalg.svdvals(layer(units).flatten(1))
    found = singular_values(layer, (6, 5)).flatten().sort(descending=True).values
    assert wanted.std() > 0.1
    same(found, wanted, 1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_convolution_of_torch(bias: bool) -> None:
    layer = moved(OrthogonalConv2d(4, 6, 3, dilation=(1, 2), groups=2, bias=bias, dtype=DOUBLE))
    x = torch.randn(2, 4, 7, 6, dtype=DOUBLE)
    padded = F.pad(x, (2, 2, 1, 1), mode="circular")
    same(layer(x), F.conv2d(padded, layer.dense_weight(), layer.bias, dilation=(1, 2), groups=2))
    up = moved(OrthogonalConvTranspose2d(6, 4, 4, stride=2, bias=bias, dtype=DOUBLE, padding_mode="zeros"))
    y = torch.randn(2, 6, 5, 4, dtype=DOUBLE)
    same(up(y), F.conv_transpose2d(y, up.dense_weight(), up.bias, stride=2, padding=2))


@VARIANTS
def test_with_a_kept_weight(make: Any, sizes: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]) -> None:
    layer = drawn(make, sizes, options, DOUBLE)
    inputs = [torch.randn(*batch, sizes[0], *shape, dtype=DOUBLE) for batch in ((), (2,), (0,), (2, 1))]
    with torch.no_grad():
        wanted = [layer(x) for x in inputs]
        same([layer.eval()(x) for x in inputs], wanted)
        assert layer.dense_weight().is_contiguous()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(inputs[1].float()).dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"has dtype torch\.float64"):
            layer(inputs[1])


def test_a_kept_weight_goes_straight_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, around = OrthogonalConv2d(2, 8, 4, stride=2).eval(), moved(OrthogonalConv1d(3, 3, 6)).eval()
    x = torch.randn(3, 2, 4, 4)
    short = torch.randn(1, 3, 1)  # it is shorter than what is around it
    with torch.no_grad():
        wanted = layer(x), around(short.repeat(1, 1, 6))[..., :1]
        monkeypatch.setattr(f"{OrthogonalConv2d.__module__}.conv_einsum", None)
        assert torch.equal(layer(x), wanted[0])
        assert torch.equal(layer(x[0])[None], layer(x[:1]))
        monkeypatch.undo()
        same(around(short), wanted[1], 1e-5)


@pytest.mark.parametrize("init", ["identity", "reverse", "permutation", "torus"])
@pytest.mark.parametrize("kernel", [1, 3, 5, (3, 1)])
def test_a_layer_starts_as_its_matrix(init: Any, kernel: Any) -> None:
    layer = OrthogonalConv2d(5, 5, kernel, init=init, bias=False, dtype=DOUBLE)
    weight = layer.dense_weight()
    h, w = ((size - 1) // 2 for size in layer.geometry.kernel)
    Q = weight[:, :, h, w].clone()
    same(Q.mT @ Q, torch.eye(5, dtype=DOUBLE), 1e-13)
    assert (weight.square().sum() - 5).abs() < 1e-12
    if init in ("identity", "reverse"):
        wanted = torch.eye(5, dtype=DOUBLE)
        same(Q, wanted.flip(-1) if init == "reverse" else wanted, 1e-13)
    if init == "permutation":
        same(Q.abs().sort(-1).values[:, -1], torch.ones(5, dtype=DOUBLE), 1e-13)


def test_linear_layers() -> None:
    for sizes in ((6, 6), (7, 3), (3, 7), (1, 4)):
        layer = moved(OrthogonalLinear(*sizes, dtype=DOUBLE))
        weight = layer.dense_weight()
        same(singular_values(layer), torch.ones(1, min(sizes), dtype=DOUBLE), 1e-13)
        x = torch.randn(4, sizes[0], dtype=DOUBLE)
        same(layer(x), F.linear(x, weight, layer.bias))
        if sizes[0] <= sizes[1]:
            same(layer.inverse(layer(x)), x, 1e-12)
        else:
            with pytest.raises(ShapeError, match="inputs that differ"):
                layer.inverse(layer(x))
    assert torch.equal(OrthogonalLinear(3, 5, init="identity").dense_weight(), torch.eye(5)[:, :3])


def test_gradients_of_a_layer() -> None:
    layer = moved(OrthogonalConv2d(2, 4, (2, 3), stride=(2, 1), dtype=DOUBLE, init="uniform"))
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 2, 4, 3, dtype=DOUBLE, requires_grad=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values), nondet_tol=1e-12)


# Kept, shared, rebased


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all stacks that are exponentiated from now on."""
    shapes: list[tuple[int, ...]] = []
    for name in ("rotation", "turned_subspace"):
        original = getattr(factors, name)

        def call(free: Tensor, *rest: Any, original: Any = original) -> Tensor:
            shapes.append(tuple(free.shape))
            return original(free, *rest)

        monkeypatch.setattr(factors, name, call)
    return shapes


def stack() -> nn.Sequential:
    return nn.Sequential(
        OrthogonalConv2d(4, 4, 3), GroupSort(), OrthogonalConv2d(4, 4, 3), OrthogonalConv2d(4, 6, 3, groups=2),
        OrthogonalConvTranspose2d(6, 4, 1), nn.Flatten(), OrthogonalLinear(64, 3),
    )  # fmt: skip


def test_one_exponential_for_each_size_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = moved(stack().double()), torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    wanted = model(x)
    gradients = torch.autograd.grad(wanted.square().sum(), model.parameters())
    shapes = counted(monkeypatch)
    with orthogonal_weights(model):
        assert sorted(shapes) == [(1, 6, 6), (1, 61, 3), (2, 4, 4), (3, 3, 3), (8, 2, 1), (8, 2, 2)]
        made = list(shapes)
        value = model(x)
        same(model(2 * x), model(2 * x))
        assert shapes == made
        same(value, wanted)
        same(torch.autograd.grad(value.square().sum(), list(model.parameters())), gradients)
    model(x)
    assert len(shapes) > len(made)


def test_shared_weights_follow_what_changes() -> None:
    layer, x = moved(OrthogonalConv1d(4, 4, 3, dtype=DOUBLE)), torch.randn(2, 4, 6, dtype=DOUBLE)
    with orthogonal_weights(layer):
        before = layer(x)
        with torch.no_grad():
            layer.rotation.free.add_(0.1)
        after = layer(x)
    assert (before - after).abs().max() > 1e-3
    same(layer(x), after)
    with torch.no_grad(), orthogonal_weights(layer):
        assert not layer(x).requires_grad
        with torch.enable_grad():
            assert layer(x).requires_grad
    same(layer(x), after)


def test_weights_are_kept_in_evaluation_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = moved(OrthogonalConv2d(4, 4, 3, dtype=DOUBLE)).eval(), torch.randn(2, 4, 6, 5, dtype=DOUBLE)
    shapes = counted(monkeypatch)

    def builds() -> int:
        shapes.clear()
        with torch.no_grad():
            value = layer(x)
            same(value, functional_call(layer, dict(layer.named_parameters()), (x,)))
            same(value, copy.deepcopy(layer)(x))
        return len(shapes)

    fresh = builds()
    assert [builds(), builds()] == [fresh - 2] * 2
    for change in (
        lambda: (layer.rotation.free.data.add_(0.2), layer.eval()),
        lambda: nn.init.normal_(layer.subspaces[1].free),
        lambda: layer.load_state_dict(OrthogonalConv2d(4, 4, 3, dtype=DOUBLE).state_dict()),
        layer.reset_parameters,
        layer.to,
        lambda: rebase(layer),
        lambda: layer.train().eval(),
    ):
        before = layer.dense_weight().detach().clone()
        change()
        assert builds() == fresh, change
        assert before.shape == layer.dense_weight().shape
    layer(x).sum().backward()  # learns: the next call may not use what was kept
    assert layer._kept is None
    layer.requires_grad_(requires_grad=False)
    same(layer(x), layer(x))
    assert layer._kept is not None


def test_rebasing_changes_nothing_but_the_base() -> None:
    for layer in (
        OrthogonalConv2d(5, 6, 3, dtype=DOUBLE),
        OrthogonalConv1d(6, 6, 4, groups=2, dtype=DOUBLE, map="cayley"),
        OrthogonalLinear(6, 3, dtype=DOUBLE),
    ):
        wanted = moved(layer).dense_weight().detach()
        rebase(layer)
        same(layer.dense_weight(), wanted, 1e-12)
        assert not any(module.free.any() for module in layer.modules() if isinstance(module, (Rotation, Subspace)))
    with pytest.raises(OptionError, match="no orthogonal layers"):
        rebase(nn.Linear(2, 2))


def test_training_in_single_precision_stays_orthogonal() -> None:
    model = nn.Sequential(OrthogonalConv2d(6, 8, 3), GroupSort(), OrthogonalConv2d(8, 8, 3, map="cayley"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x, wanted = torch.randn(8, 6, 4, 4), torch.randn(8, 8, 4, 4)
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        with orthogonal_weights(model):
            loss = (model(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 19:
            rebase(model)
    assert losses[-1] < losses[0] - 0.1
    for layer in (model[0], model[2]):
        values = singular_values(layer, (4, 4))
        assert (values - 1).abs().max() < 2e-6


# As modules


def modules() -> list[nn.Module]:
    return [
        OrthogonalConv1d(4, 6, 4, stride=2), OrthogonalConv2d(4, 4, 3, groups=2), OrthogonalConvTranspose2d(4, 4, 3),
        OrthogonalConv2d(4, 4, 3, map="cayley", padding_mode="zeros"), OrthogonalLinear(6, 3), stack(),
    ]  # fmt: skip


def input_of(module: nn.Module, batch: int = 2) -> Tensor:
    shape = (6,) if isinstance(module, OrthogonalLinear) else (4, 4, 4)
    return torch.randn(batch, *(shape[:2] if isinstance(module, OrthogonalConv1d) else shape))


@pytest.mark.parametrize("place", range(6))
def test_saved_copied_and_pickled(place: int) -> None:
    module, other = (moved(modules()[place]) for _ in range(2))
    x = input_of(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(other(x), module(x), 1e-6)
    module.eval()
    with torch.no_grad():
        value = module(x)
        for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert repr(made) == repr(module)
            assert torch.equal(made(x), value)


@pytest.mark.parametrize(("place", "training"), [(0, True), (2, False), (3, True), (4, False)])
def test_compiled_and_exported(place: int, training: bool) -> None:
    module = moved(modules()[place]).train(training)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = input_of(module)
        same(compiled(x), module(x), 1e-5)
    parameters = list(module.parameters())
    ours, theirs = (torch.autograd.grad(call(x).square().sum(), parameters) for call in (compiled, module))
    same(ours, theirs, 1e-3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    for size in (2, 5):
        x = input_of(module, size)
        same(program.module()(x), module(x), 1e-5)


def test_transforms() -> None:
    layer, x = moved(OrthogonalConv1d(4, 4, 3, dtype=DOUBLE)), torch.randn(3, 4, 5, dtype=DOUBLE)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    ours = vmap(grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    layer(x[:1]).square().sum().backward()
    for name, value in layer.named_parameters():
        same(ours[name][0], value.grad)
    same(jacrev(layer)(x[0])[:, :, 0, 0].shape, torch.Size((4, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    layer = OrthogonalConv2d(4, 4, 3, bias=False, dtype=dtype)
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    assert layer(x).dtype == dtype
    assert (layer(x).float().norm() / x.float().norm() - 1).abs() < 3e-2
    wide = moved(OrthogonalConv2d(4, 4, 3))
    with torch.autocast("cpu", dtype):
        same(wide.dense_weight(), wide.assembled([factor().float() for factor in wide.factors()]), 1e-2)
        assert wide(x.float()).dtype == dtype


def test_without_numbers() -> None:
    layer = OrthogonalConv2d(4, 6, 3, device="meta")
    assert layer(torch.empty(2, 4, 5, 5, device="meta")).shape == (2, 6, 5, 5)
    empty = OrthogonalConv2d(4, 6, 3)(torch.empty(0, 4, 5, 5))
    assert empty.shape == (0, 6, 5, 5)


def test_a_transposed_layer_shows_its_own_arguments() -> None:
    found = repr(OrthogonalConvTranspose2d(8, 2, 4, stride=2))
    assert found.startswith("OrthogonalConvTranspose2d(\n  8, 2, kernel_size=(4, 4), stride=(2, 2), init='uniform'")
    assert "...thw,tshw->...shw|h[transposed, " in found
    assert "2, 8, kernel_size=(4, 4)" in repr(OrthogonalConv2d(2, 8, 4, stride=2))


def test_gradients_accumulate_over_contexts() -> None:
    model, x = OrthogonalConv2d(2, 2, 3, dtype=DOUBLE), torch.randn(2, 2, 4, 4, dtype=DOUBLE)
    target = torch.randn(2, 2, 4, 4, dtype=DOUBLE)
    free = model.rotation.free
    (wanted,) = torch.autograd.grad((model(x) * target).sum(), free)
    for part, aim in zip(x.split(1), target.split(1)):
        with orthogonal_weights(model):
            (model(part) * aim).sum().backward()
    same(free.grad, wanted)
    free.grad = None
    with orthogonal_weights(model):
        for part, aim, more in zip(x.split(1), target.split(1), (True, False)):
            (model(part) * aim).sum().backward(retain_graph=more)
    same(free.grad, wanted)


def test_checkpoints_use_the_shared_weights_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = moved(stack().double()), torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(model(x).square().sum(), parameters)
    shapes = counted(monkeypatch)
    with orthogonal_weights(model):
        middle = checkpoint(model[:4], x, use_reentrant=False)
        loss = checkpoint(model[4:], middle, use_reentrant=False).square().sum()
    made = len(shapes)
    for keeps in (True, False):
        same(torch.autograd.grad(loss, parameters, retain_graph=keeps), wanted)
    assert len(shapes) == made
    # What is lent goes when the graph goes, and only those who recompute get it.
    lent = model[0]._lent
    assert lent() is not None
    model(x)
    assert len(shapes) > made
    del loss, middle
    assert lent() is None
    copy.deepcopy(model)(x)


@pytest.mark.parametrize("kernel", [1, 3])
def test_other_modes_of_torch_around_a_flow(kernel: int) -> None:
    flow = flow_block(4, 6, kernel, dtype=DOUBLE)
    numbers = torch.Generator()
    x = torch.randn(2, 4, 5, 5, dtype=DOUBLE)
    wanted = flow.transform(x, numbers.manual_seed(1))
    for first in (x, None):
        with torch.inference_mode():
            given = x.clone() if first is None else first
            same(flow.transform(given, numbers.manual_seed(1)), tuple(one.detach() for one in wanted))
            with orthogonal_weights(flow.requires_grad_(first is x)):
                same(flow.transform(given, numbers.manual_seed(1))[1], wanted[1].detach())
    assert not flow.transform(x)[0].is_inference()


def test_device_and_type_of_a_network() -> None:
    bare = LipschitzWideResNet(10, 1, size=8, device="meta", dtype=DOUBLE)
    assert {(one.device.type, one.dtype) for one in [*bare.parameters(), *bare.buffers()]} == {("meta", DOUBLE)}
    assert LipschitzWideResNet(10, 1, size=8, dtype=DOUBLE)(torch.randn(1, 3, 8, 8, dtype=DOUBLE)).dtype == DOUBLE


def test_an_inverse_that_zeros_prevent() -> None:
    with pytest.raises(ShapeError, match='padding_mode="zeros" cuts the border off'):
        OrthogonalConvTranspose1d(4, 4, 3, padding_mode="zeros").inverse(torch.randn(1, 4, 6))
    with pytest.raises(ShapeError, match="4 channels become 2 in a window"):
        OrthogonalConvTranspose1d(4, 2, 3, padding_mode="zeros").inverse(torch.randn(1, 2, 6))


def test_a_start_takes_only_the_steps_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Tensor] = []
    original = factors._polished
    monkeypatch.setattr(factors, "_polished", lambda given: steps.append(given) or original(given))
    layer = OrthogonalLinear(40, 3, dtype=DOUBLE)
    assert not steps
    Q = orthonormal(40)[0]
    for error, count in ((1e-9, 1), (1e-3, 2)):
        steps.clear()
        layer.subspace.assign(Q + error * torch.randn(40, 40, dtype=DOUBLE).tanh())
        assert len(steps) == count
        same(layer.subspace.base.mT @ layer.subspace.base, torch.eye(40, dtype=DOUBLE)[None], max(1e-12, error**3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: OrthogonalConv2d(4, 4, 3, stride=2), "the taps must fill whole strides"),
        (lambda: OrthogonalConv2d(4, 4, 4, stride=2, dilation=2), "with dilation=2"),
        (lambda: OrthogonalConv2d(4, 4, 3, padding_mode="reflect"), "padding_mode='reflect' is not orthogonal"),
        (lambda: OrthogonalConv2d(4, 6, 3, groups=4), "out_channels=6 is no multiple of groups=4"),
        (lambda: OrthogonalConv2d(4, 4, 2, init="identity"), "has no middle one"),
        (lambda: OrthogonalConv2d(4, 4, 3, init="identical"), 'init="identical": there is no such initialisation'),
        (lambda: OrthogonalConv2d(4, 4, 3, map="expm"), "map='expm' makes no orthogonal matrices"),
        (lambda: OrthogonalConv2d(4, 4, 3, rank=5), "rank=5 of 4 subspaces"),
        (lambda: OrthogonalConv2d(4, 4, 3, rank=(1, 2)), r"rank=\(1, 2\) of 4 subspaces"),
        (lambda: OrthogonalConv2d(4, 4, (3, 3, 3)), "of 2 dimensions"),
        (lambda: OrthogonalConv2d(4, 4, 3, dtype=torch.int64), "dtype=torch.int64 of orthogonal matrices"),
        (lambda: OrthogonalConv2d(4, 4, 3)(torch.ones(1, 5, 4, 4)), "an input with 5 channels"),
        (lambda: OrthogonalConv2d(4, 4, 2, stride=2)(torch.ones(1, 4, 5, 4)), r"an input of \(5, 4\) with stride"),
        (lambda: OrthogonalLinear(4, 4)(torch.ones(1, 5)), "an input with 5 features"),
        (lambda: OrthogonalConv2d(4, 4, 3).rotation.assign(torch.ones(4, 4)), "miss orthogonality"),
        (lambda: OrthogonalConv2d(4, 4, 3).rotation.assign(torch.eye(5)), r"matrices of \(5, 5\)"),
        (lambda: orthogonal_weights(nn.ReLU()).__enter__(), '"ReLU" has no orthogonal layers'),
        (lambda: singular_values(OrthogonalConv2d(4, 4, 3), (4,)), "of 2 dimensions"),
        (lambda: singular_values(OrthogonalLinear(4, 4), (3,)), r"sizes=\(3,\) of a linear layer"),
        (lambda: singular_values(nn.Conv2d(4, 4, 3), (4, 4)), '"Conv2d" is no orthogonal layer'),  # type: ignore[arg-type]
        (lambda: GroupSort(2)(torch.ones(1, 3)), "3 channels in groups of 2"),
    ],
)
def test_errors_are_sentences(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises((OptionError, ShapeError), match=sentence):
        call()


@pytest.mark.parametrize("kernel", [3, 5])
def test_autocast_makes_and_keeps_no_weight_of_less_precision(kernel: int) -> None:
    layer, x = OrthogonalConv2d(8, 8, kernel).eval(), torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        expected = copy.deepcopy(layer)(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert (singular_values(copy.deepcopy(layer), (8, 8)) - 1).abs().max() < 1e-5


def test_a_weight_made_in_inference_mode_is_not_kept() -> None:
    layer = OrthogonalConv2d(4, 4, 1).eval().requires_grad_(False)
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        layer(x)
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_another_factor_or_map_is_noticed() -> None:
    layer, other, x = OrthogonalConv2d(4, 4, 3).eval(), OrthogonalConv2d(4, 4, 3), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        other.rotation.free.uniform_()
        layer(x)
        layer.rotation = other.rotation
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
        layer.subspaces[0] = other.subspaces[0]
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
        layer.rotation.map = "cayley"
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
        prune.identity(layer.rotation, "free")
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
