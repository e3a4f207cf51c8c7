"""Bayesian quantised layers: the research vectors, and brute-force enumeration of every weight and input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.errors import OperandError, OptionError, ShapeError
from convein.layers import bqn
from convein.layers.bqn import Dirac, Discrete, Gaussian, Pmf
from convein.layers.bqn.sums import LARGEST_TABLE, choose, multiplications
from convein.layers.bqn.windows import larger

GOLDEN = Path(__file__).parent / "golden"
WIDE = torch.float64


def vectors(name: str, prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key.removeprefix(prefix): torch.tensor(file[key]) for key in file.files if key.startswith(prefix)}


def close(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def loaded(layer: Any, found: dict[str, Tensor]) -> Any:
    state = {name: found[name] for name in ("theta", "theta_bias") if name in found}
    layer.load_state_dict(state)
    return layer


# The published vectors


@pytest.mark.parametrize("kind", ["dirac", "discrete", "gaussian"])
def test_linear_golden(kind: str) -> None:
    found = vectors("bqn", f"linear_binary_{kind}/")
    layer = loaded(bqn.Linear(6, 5, levels="binary", propagation="clt", dtype=WIDE), found)
    inputs: dict[str, Callable[[], Any]] = {
        "dirac": lambda: Dirac(found["in"], 0.01),
        "discrete": lambda: Discrete(found["in"]),
        "gaussian": lambda: Gaussian(found["in_mean"], found["in_var"]),
    }
    out = layer(inputs[kind]())
    close(out.mean, found["out_mean"])
    close(out.var, found["out_var"])
    close(layer.entropy(), found["entropy"])
    loss = (out.mean * found["R_mean"]).sum() + (out.var * found["R_var"]).sum()
    loss.backward()
    close(layer.theta.grad, found["grad_theta"])
    close(layer.theta_bias.grad, found["grad_theta_bias"])
    if kind == "dirac":
        bqn.set_mode(layer, "map")
        close(layer(found["in"]), found["map_out"])


@pytest.mark.parametrize(("name", "stride"), [("binary_dirac_s1p1d1g1", 1), ("ternary_discrete_s2p1d1g1", 2)])
def test_convolution_golden(name: str, stride: int) -> None:
    found = vectors("bqn", f"conv_{name}/")
    levels, kind, _ = name.split("_")
    layer = bqn.Conv2d(4, 6, 3, stride, 1, levels=levels, propagation="clt", dtype=WIDE)
    loaded(layer, found)
    out = layer(Dirac(found["in"], 0.01) if kind == "dirac" else Discrete(found["in"]))
    close(out.mean, found["out_mean"])
    close(out.var, found["out_var"])
    close(layer.entropy(), found["entropy"])
    ((out.mean * found["R_mean"]).sum() + (out.var * found["R_var"]).sum()).backward()
    close(layer.theta.grad, found["grad_theta"])
    bqn.set_mode(layer, "map")
    close(layer(found["map_in"]), found["map_out"])


def test_sign_golden() -> None:
    found = vectors("bqn", "sign/")
    close(bqn.Sign()(Gaussian(found["mean"], found["var"])).minus, found["prob_minus1"])
    close(bqn.Sign()(found["point_in"]), found["point_out"])


def test_softmax_golden() -> None:
    found = vectors("bqn", "softmax_scale1/")
    mean, var = (found[name].requires_grad_() for name in ("mean", "var"))
    logits = Gaussian(mean, var)
    theorem = bqn.SoftmaxHead(8, dtype=WIDE)
    published = bqn.SoftmaxHead(8, bound="published", dtype=WIDE)
    close(published.log_scale.exp(), found["s"])
    close(theorem(logits, found["targets"]), found["nll_theorem_5_2"])
    losses = published(logits, found["targets"])
    close(losses, found["nll_original_code"])
    losses.sum().backward()
    close(mean.grad, found["grad_mean_original"])
    close(var.grad, found["grad_var_original"])
    close(published.log_scale.grad, found["grad_log_s_original"])
    close(theorem(found["mean"]), found["point_prob"])
    close(theorem(found["mean"], found["targets"]), found["point_nll"])
    # 200,000 samples of a loss of deviation below one know its mean to 0.01.
    assert (found["mc_expected_nll"] <= theorem(logits, found["targets"]) + 0.01).all()


def test_pooling_golden() -> None:
    found = vectors("bqn", "pool/")
    normal, signs = Gaussian(found["mean"], found["var"]), Discrete(found["prob_minus1"])
    for layer, var in (
        (bqn.AvgPool2d(2), "avg_var_correct"),
        (bqn.AvgPool2d(2, variance="published"), "avg_var_original_code"),
    ):
        out = layer(normal)
        close(out.mean, found["avg_mean"])
        close(out.var, found[var])
    largest = bqn.MaxPool2d(2)(normal)
    close(largest.mean, found["max_mean"])
    close(largest.var, found["max_var"])
    close(bqn.RandomPool2d(2)(signs).minus, found["prob_out"])
    close(bqn.MaxPool2d(2)(signs).minus, found["max_after_sign_prob"])
    for options in ({}, {"propagation": "clt"}, {"variance": "published"}):
        out = bqn.AvgPool2d(2, **options)(signs)
        close(out.mean, found["avg_after_sign_mean"])
        times = 1 if "variance" in options else 4
        close(times * out.var, found["avg_after_sign_var_original_code"])


def test_batch_norm_golden() -> None:
    found = vectors("bqn", "bn_train/")
    layer = bqn.BatchNorm2d(3, dtype=WIDE)
    names = {
        "weight": "weight",
        "bias": "bias",
        "running_mean": "running_mean_before",
        "running_var": "running_var_before",
    }
    layer.load_state_dict({name: found[key] for name, key in names.items()})
    out = layer(Gaussian(found["in_mean"], found["in_var"]))
    close(out.mean, found["out_mean"])
    close(out.var, found["out_var"])
    close(layer.running_mean, found["running_mean_after"])
    close(layer.running_var, found["running_var_after"])


@pytest.mark.parametrize("propagation", ["contraction", "convolution", "auto"])
@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_enumerated_golden(levels: str, propagation: str) -> None:
    found = vectors("bqn_exact_own", f"D{2 + (levels == 'ternary')}/")
    layer = loaded(bqn.Linear(4, 2, levels=levels, propagation=propagation, dtype=WIDE), found)
    signs = Discrete(found["prob_h_minus1"])
    out = layer(signs)
    assert isinstance(out, Pmf)
    on_support = found["pmf_out"].new_zeros(2, 11)
    for place, value in enumerate(out.values.tolist()):
        on_support[:, found["support"].tolist().index(value)] = out.probabilities[:, place]
    close(on_support, found["pmf_out"])
    close(out.mean, found["mean"])
    close(out.var, found["var"])
    after = bqn.Sign()(out)
    if isinstance(after, Discrete):
        close(after.minus, found["p_neg"])
        close(found["p_zero"], torch.zeros(2, dtype=WIDE))
    else:
        close(after.probabilities[..., 0], found["p_neg"])
        close(after.probabilities[..., 1], found["p_zero"])
    layer.propagation = "clt"
    normal = layer(signs)
    close(normal.mean, found["mean"])
    close(normal.var, found["var"])
    close(torch.erfc(normal.mean / (2 * normal.var).sqrt()) / 2, found["p_minus1_clt"])  # with no 1e-6


@pytest.mark.parametrize("propagation", ["contraction", "convolution"])
def test_the_average_of_signs_golden(propagation: str) -> None:
    found = vectors("bqn_exact_own", "avgpool4/")
    signs = Discrete(found["prob_minus1"].reshape(1, 2, 2))
    out = bqn.AvgPool2d(2, propagation=propagation)(signs)
    close(out.values, found["support"])
    close(out.probabilities[0, 0, 0], found["pmf"])


# Enumeration


def drawn(layer: Any) -> Any:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def outcomes(layer: Any, signs: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Every combination of a layer's weights and of the signs of its input, with its probability and its output."""
    weight, bias = layer.probabilities()
    tables = [weight.reshape(-1, len(layer.levels)), *([] if bias is None else [bias])]
    table, numbers = torch.cat(tables).tolist(), layer.levels
    minus = signs.flatten().tolist()
    for chosen in itertools.product(range(len(numbers)), repeat=len(table)):
        likely = math.prod(row[one] for row, one in zip(table, chosen, strict=True))
        values = torch.tensor([numbers[one] for one in chosen], dtype=WIDE)
        kernel, shift = (
            values[: weight[..., 0].numel()].view(layer.stencil.weight_shape),
            values[weight[..., 0].numel() :],
        )
        for input in itertools.product((-1.0, 1.0), repeat=len(minus)):
            also = math.prod(p if one < 0 else 1 - p for p, one in zip(minus, input, strict=True))
            x = torch.tensor(input, dtype=WIDE).view(signs.shape)
            value = layer.stencil.apply(x, kernel)
            yield likely * also, value if bias is None else value + layer.stencil.at_outputs(shift)


def enumerated(layer: Any, signs: Tensor) -> tuple[Tensor, Tensor, dict[float, Tensor]]:
    """Mean, variance, and the probability of every value, of every output."""
    mean, second, found = torch.zeros(()), torch.zeros(()), {}
    for likely, value in outcomes(layer, signs):
        mean, second = mean + likely * value, second + likely * value.square()
        for number in value.unique().tolist():
            found[number] = found.get(number, 0) + likely * (value == number).to(WIDE)
    return mean, second - mean.square(), found


def agrees(out: Any, mean: Tensor, var: Tensor, found: dict[float, Tensor]) -> None:
    close(out.mean, mean, 1e-10)
    close(out.var, var, 1e-10)
    if isinstance(out, Pmf):
        values = out.values.tolist()
        for place, value in enumerate(values):
            expected = [one for number, one in found.items() if abs(number - value) < 1e-9]
            close(out.probabilities[..., place], expected[0] if expected else torch.zeros_like(mean), 1e-10)
        assert all(any(abs(number - value) < 1e-9 for value in values) for number in found)


CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "linear": (lambda **o: bqn.Linear(3, 1, levels="ternary", **o), (3,)),
    "levels": (lambda **o: bqn.Linear(2, 2, bias=False, levels=(-0.5, 0.25, 2), **o), (2,)),
    "zeros": (lambda **o: bqn.Conv1d(1, 1, 3, padding=2, dilation=2, stride=2, **o), (1, 5)),
    "grouped": (lambda **o: bqn.Conv1d(2, 2, 2, groups=2, **o), (2, 3)),
    "two dimensions": (lambda **o: bqn.Conv2d(1, 1, (2, 1), padding="same", bias=False, **o), (1, 2, 3)),
    "three dimensions": (lambda **o: bqn.Conv3d(1, 1, (1, 2, 2), stride=(1, 2, 1), bias=False, **o), (1, 1, 2, 3)),
}
PADDED = {
    "circular": (lambda **o: bqn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", **o), (1, 4)),
    "wrapped": (lambda **o: bqn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False, **o), (1, 2)),
    "reflect": (lambda **o: bqn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect", **o), (1, 4)),
    "replicate": (
        lambda **o: bqn.Conv1d(2, 2, 3, padding=1, groups=2, padding_mode="replicate", bias=False, **o),
        (2, 2),
    ),
    "both": (lambda **o: bqn.Conv2d(1, 1, 2, padding="same", padding_mode="replicate", **o), (1, 2, 2)),
}


@pytest.mark.parametrize("propagation", ["clt", "contraction", "convolution", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_every_way_agrees_with_enumeration(case: str, propagation: str) -> None:
    make, shape = CASES[case]
    layer = drawn(make(propagation=propagation, dtype=WIDE))
    signs = torch.rand(shape, dtype=WIDE)
    out = layer(Discrete(signs))
    assert isinstance(out, Gaussian if propagation == "clt" else Pmf)
    agrees(out, *enumerated(layer, signs))
    batch = layer(Discrete(torch.stack([signs, signs]).unsqueeze(0)))
    close(batch.mean[0, 1], out.mean)
    close(batch.var[0, 0], out.var)


@pytest.mark.parametrize("case", PADDED)
def test_copies_of_an_entry_are_one_random_number(case: str) -> None:
    make, shape = PADDED[case]
    layer = drawn(make(dtype=WIDE))
    signs = torch.rand(shape, dtype=WIDE)
    mean, var, found = enumerated(layer, signs)
    agrees(layer(Discrete(signs)), mean, var, found)
    layer.propagation = "clt"
    agrees(layer(Discrete(signs)), mean, var, found)
    normal = Gaussian(1 - 2 * signs, 4 * signs * (1 - signs))
    agrees(layer(normal), mean, var, found)
    if case != "circular":
        layer.propagation = "convolution"
        with pytest.raises(OperandError, match="several times"):
            layer(Discrete(signs))


def test_signs_of_sums_are_exact_through_two_layers() -> None:
    """Zero is a sign of its own: the second layer reads -1, 0 and 1."""
    first = drawn(bqn.Linear(2, 1, levels="ternary", dtype=WIDE))
    second = drawn(bqn.Linear(1, 1, bias=False, levels="ternary", dtype=WIDE))
    signs = torch.rand(2, dtype=WIDE)
    _, _, sums = enumerated(first, signs)
    tie = bqn.Sign()(first(Discrete(signs)))
    expected = [sum(p for v, p in sums.items() if np.sign(v) == s) for s in (-1, 0, 1)]
    close(tie.probabilities[0], torch.cat(expected))
    q = second.probabilities()[0][0, 0]
    out = second(tie)
    minus = q[0] * expected[2] + q[2] * expected[0]
    close(out.probabilities[0, 0], minus[0])
    close(out.probabilities.sum(), torch.ones((), dtype=WIDE))


@pytest.mark.parametrize("count", [1, 2, 5, 8, 40, 200])
def test_convolved_distributions_of_signs_are_binomial(count: int) -> None:
    layer = bqn.Linear(count, 1, bias=False, propagation="convolution", dtype=WIDE)
    with torch.no_grad():
        layer.theta[..., 1] = layer.theta[..., 0] + math.log(0.3 / 0.7)
    out = layer(Discrete(torch.zeros(count, dtype=WIDE)))  # all 1: the sum of the weights
    ups = torch.arange(count + 1, dtype=WIDE)
    logs = math.lgamma(count + 1) - torch.lgamma(ups + 1) - torch.lgamma(count + 1 - ups)
    close(out.probabilities[0], (logs + ups * math.log(0.3) + (count - ups) * math.log(0.7)).exp(), 1e-12)
    close(out.values, 2 * ups - count)


def test_gradients_of_the_exact_ways_are_equal_and_right() -> None:
    layer = drawn(bqn.Conv1d(1, 1, 3, padding=1, levels="ternary", dtype=WIDE))
    signs = torch.rand(2, 1, 4, dtype=WIDE).requires_grad_()
    weighting, found = None, []
    for way in ("contraction", "convolution", "clt"):
        layer.propagation = way
        out = layer(Discrete(signs))
        weighting = torch.randn_like(out.mean) if weighting is None else weighting
        loss = (out.mean * weighting).sum() + (out.var * weighting.square()).sum()
        found.append(torch.autograd.grad(loss, [signs, *layer.parameters()]))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            close(ours, theirs)


def test_ways_are_chosen_by_cost_and_refused_by_a_sentence() -> None:
    assert multiplications("contraction", 3, 2) == 4 * 8
    assert multiplications("convolution", 4, 2) == 2 * 4 + 9
    assert multiplications("convolution", 3, 2) == 4 + 9
    assert choose("auto", 2, 2) == "convolution"
    assert choose("auto", 32, 2) == "convolution"
    assert choose("auto", 33, 2) == "clt"
    assert choose("auto", 1, 3) in {"contraction", "convolution"}
    with pytest.raises(OptionError, match=rf"needs a table of .* and {LARGEST_TABLE:,} are the most"):
        bqn.Linear(30, 1, propagation="contraction")(Discrete(torch.rand(30)))
    with pytest.raises(OperandError, match='"convolution" sums numbers of a lattice, and the input is Dirac'):
        bqn.Linear(3, 1, propagation="convolution")(torch.rand(3))
    with pytest.raises(OptionError, match="no common step"):
        bqn.Linear(3, 1, levels=(-1, math.pi), propagation="convolution")(Discrete(torch.rand(3)))
    assert isinstance(bqn.Linear(3, 1, levels=(-1, math.pi))(Discrete(torch.rand(3))), Gaussian)


def test_known_inputs_agree_with_noise_that_vanishes() -> None:
    layer, x = drawn(bqn.Conv2d(2, 3, 3, padding=1, dtype=WIDE)), torch.randn(2, 2, 5, 4, dtype=WIDE)
    close(layer(x).var, layer(Dirac(x, 1e-14)).var, 1e-11)
    assert isinstance(layer(x), Gaussian)


# Pooling


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1}, {"padding": 1, "count_include_pad": False}])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_averages_have_the_variance_of_averages(dimensions: int, options: dict[str, Any]) -> None:
    kind, torchs = getattr(bqn, f"AvgPool{dimensions}d"), getattr(F, f"avg_pool{dimensions}d")
    mean, var = torch.randn(2, 3, *[4] * dimensions, dtype=WIDE), torch.rand(2, 3, *[4] * dimensions, dtype=WIDE)
    layer = kind(2, **options)
    out = layer(Gaussian(mean, var))
    ordinary = torchs(mean, 2, **options)
    close(layer(mean), ordinary)
    close(layer.plain("map", None)(mean), ordinary)
    close(out.mean, ordinary)
    counts = 2**dimensions * torchs(torch.ones_like(mean), 2, **{**options, "count_include_pad": True})
    counts = counts if "count_include_pad" in options else torch.full_like(counts, 2**dimensions)
    close(out.var, torchs(var, 2, **options) / counts)
    if "count_include_pad" not in options:
        signs = Discrete(torch.rand_like(mean))
        by_moments = kind(2, **options, propagation="clt")(signs)
        exactly = kind(2, **options, propagation="convolution")(signs)
        assert isinstance(exactly, Pmf)
        close(exactly.mean, by_moments.mean)
        close(exactly.var, by_moments.var)
        close(exactly.probabilities.sum(-1), torch.ones_like(by_moments.mean))


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1}, {"dilation": 2}])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_largest_numbers(dimensions: int, options: dict[str, Any]) -> None:
    layer = getattr(bqn, f"MaxPool{dimensions}d")(3, **options)
    x = torch.randn(2, 3, *[7] * dimensions, dtype=WIDE)
    ordinary = getattr(F, f"max_pool{dimensions}d")(x, 3, **options)
    close(layer(x), ordinary)
    close(layer.plain("map", None)(x), ordinary)
    close(layer(Gaussian(x, torch.zeros_like(x))).mean, ordinary)
    out = layer(Gaussian(x, torch.full_like(x, 1e-12)))
    close(out.mean, ordinary, 1e-4)
    signs = x.sign()
    close(
        layer(Discrete((signs < 0).to(WIDE))).minus,
        (getattr(F, f"max_pool{dimensions}d")(signs, 3, **options) < 0).to(WIDE),
    )
    numbers = F.one_hot(torch.randint(4, x.shape), 4).to(WIDE)
    largest = layer(Pmf(numbers, -1.0, 0.5))
    close(largest.mean, getattr(F, f"max_pool{dimensions}d")(Pmf(numbers, -1.0, 0.5).mean, 3, **options))


def test_the_larger_of_two_normal_numbers_has_its_exact_moments() -> None:
    mean, var = torch.tensor([0.3, -0.4], dtype=WIDE), torch.tensor([0.5, 1.7], dtype=WIDE)
    found = larger(Gaussian(mean[0], var[0]), Gaussian(mean[1], var[1]))
    grid = torch.linspace(-12, 12, 4001, dtype=WIDE)
    normals = [torch.distributions.Normal(m, v.sqrt()) for m, v in zip(mean, var)]
    density = sum(normals[i].log_prob(grid).exp() * normals[1 - i].cdf(grid) for i in (0, 1)) * (grid[1] - grid[0])
    expected = (density * grid).sum()
    close(found.mean, expected, 1e-12)
    close(found.var, (density * grid.square()).sum() - expected**2, 1e-12)
    flat = Gaussian(torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True))
    still = larger(flat, flat)
    assert all(
        one.isfinite().all() for one in torch.autograd.grad((still.mean + still.var).sum(), [flat.mean, flat.var])
    )


def test_random_pooling_is_a_mixture() -> None:
    mean, var = torch.randn(1, 1, 2, 2, dtype=WIDE), torch.rand(1, 1, 2, 2, dtype=WIDE)
    out = bqn.RandomPool2d(2)(Gaussian(mean, var))
    close(out.mean.squeeze(), mean.mean())
    close(out.var.squeeze(), (var + mean.square()).mean() - mean.mean() ** 2)
    chosen = torch.stack([bqn.RandomPool2d(2)(mean).squeeze() for _ in range(60)])
    assert set(chosen.tolist()) == set(mean.flatten().tolist())


# Sums of branches and heads


def test_residual_sums() -> None:
    p, q = torch.rand(3, dtype=WIDE), torch.rand(3, dtype=WIDE)
    out = bqn.add(Discrete(p), Discrete(q))
    close(out.probabilities, torch.stack([p * q, p * (1 - q) + (1 - p) * q, (1 - p) * (1 - q)], -1))
    close(out.values, torch.tensor([-2.0, 0, 2], dtype=WIDE))
    mixed = bqn.add(out, Gaussian(p, q))
    close(mixed.mean, out.mean + p)
    close(mixed.var, out.var + q)
    block = bqn.Residual(nn.Sequential(bqn.Linear(3, 3, dtype=WIDE), bqn.Sign()))
    assert isinstance(block(Discrete(p)), Pmf)
    bqn.set_mode(block, "map")
    close(block(p), block.body(p) + p)


def test_bounds_are_in_order_and_probabilities_sum_to_one() -> None:
    mean, var = 4 * torch.randn(50, 6, dtype=WIDE), 6 * torch.rand(50, 6, dtype=WIDE)
    targets = torch.randint(6, (50,))
    head, looser = (bqn.SoftmaxHead(1.5, bound=one, dtype=WIDE) for one in ("theorem", "published"))
    logits = mean + var.sqrt() * torch.randn(20_000, 50, 6, dtype=WIDE)
    losses = F.cross_entropy(logits.flatten(0, 1) / 1.5, targets.repeat(20_000), reduction="none").view(-1, 50)
    sampled, errors = losses.mean(0), losses.std(0) / 20_000**0.5
    bound = head(Gaussian(mean, var), targets)
    assert (sampled <= bound + 4 * errors).all()
    assert (sampled <= bound).double().mean() > 0.9
    assert (bound <= looser(Gaussian(mean, var), targets)).all()
    found = head(Gaussian(mean, 0.2 * var))
    close(found.sum(-1), torch.ones(50, dtype=WIDE))
    assert (head(Gaussian(mean, 100 * var)) >= 0).all()
    exact = (logits.sub(mean).mul(0.2**0.5).add(mean) / 1.5).softmax(-1).mean(0)
    assert (found - exact).abs().max() < 0.02
    assert (found - exact).abs().max() < 0.5 * ((mean / 1.5).softmax(-1) - exact).abs().max()


def test_regression_counts_the_noise_once() -> None:
    head = drawn(bqn.GaussianHead(3, 2, dtype=WIDE))
    signs, targets = torch.rand(3, dtype=WIDE), torch.randn(2, dtype=WIDE)
    noise, expected, moments = head.log_var.exp(), 0.0, torch.zeros(2, 2, dtype=WIDE)
    for input in itertools.product((-1.0, 1.0), repeat=3):
        likely = math.prod(p if one < 0 else 1 - p for p, one in zip(signs.tolist(), input, strict=True))
        value = head.weight @ torch.tensor(input, dtype=WIDE)
        moments = moments + likely * torch.stack([value, value.square()])
        loss = ((targets - value) ** 2 / noise + noise.log() + math.log(2 * math.pi)) / 2
        expected = expected + likely * loss.sum()
    out = head(Discrete(signs))
    close(out.mean, moments[0])
    close(out.var, moments[1] - moments[0] ** 2 + noise)
    close(head(Discrete(signs), targets), expected)
    point = torch.randn(3, dtype=WIDE)
    normal = torch.distributions.Normal(head.weight @ point, noise.sqrt())
    close(head(point, targets), -normal.log_prob(targets).sum())


def test_the_objective_scales_the_entropy() -> None:
    network = nn.Sequential(bqn.Linear(4, 3, levels="ternary"), bqn.Sign(), bqn.Linear(3, 2, bias=False))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    close(bqn.entropy(network), torch.tensor(15 * math.log(3) + 6 * math.log(2)), 1e-4)
    with torch.no_grad():
        network[0].theta[..., 1] = -math.inf  # an excluded level: two are left
    close(bqn.entropy(network), torch.tensor(3 * math.log(3) + 18 * math.log(2)), 1e-4)
    bqn.entropy(network).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    losses = torch.tensor([1.0, 2.0])
    wanted = 3 - 0.5 * bqn.entropy(network) * 2 / 10
    close(bqn.objective(losses, network, 10, 0.5), wanted, 1e-5)
    with pytest.raises(OptionError, match="the minibatch has 2"):
        bqn.objective(losses, network, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_by_far_keeps_its_variance(swapped: bool) -> None:
    numbers = [Gaussian(torch.tensor(1e4), torch.tensor(0.01)), Gaussian(torch.tensor(0.0), torch.tensor(2.0))]
    found = larger(*(reversed(numbers) if swapped else numbers))
    torch.testing.assert_close((found.mean, found.var), (torch.tensor(1e4), torch.tensor(0.01)))


def test_nothing_leaves_the_running_moments_as_they_are() -> None:
    norm = bqn.BatchNorm1d(2)
    assert norm(torch.randn(0, 2)).mean.shape == (0, 2)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(norm.running_var, torch.ones(2))


def test_rare_levels_are_drawn_rarely_in_half_precision_too() -> None:
    layer = bqn.Linear(1, 100_000, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.theta.copy_(torch.tensor([0.0, 9.0]))
    drawn, _ = layer.draw(torch.Generator().manual_seed(0))
    assert int((drawn < 0).sum()) < 40  # 12 are expected


@pytest.mark.parametrize("random", [False, True])
def test_a_head_takes_one_target_for_each_example(random: bool) -> None:
    head, mean = bqn.SoftmaxHead(), torch.randn(4, 3)
    logits = Gaussian(mean, torch.ones(4, 3)) if random else mean
    assert head(logits, torch.tensor([0, 1, 2, 0])).shape == (4,)
    for targets in (torch.tensor([1]), torch.tensor(1), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="one class for each example"):
            head(logits, targets)
    one = Gaussian(mean[0], torch.ones(3)) if random else mean[0]
    assert head(one, torch.tensor(1)).shape == ()


def test_an_average_without_a_common_step_is_by_moments() -> None:
    input = Pmf(torch.tensor([0.25, 0.5]).expand(1, 1, 2, 2, 2) / 0.75, 2**0.5, 1.0)
    assert isinstance(bqn.AvgPool2d(2, padding=1)(input), Gaussian)
    with pytest.raises(OptionError):
        bqn.AvgPool2d(2, padding=1, propagation="convolution")(input)
