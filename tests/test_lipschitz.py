"""Lipschitz networks: their parts, what they certify, residual flows against whole Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein import OptionError, ShapeError
from convein.layers.sc_fac import (
    ConcatenativeSkip,
    GroupSort,
    LipschitzPool2d,
    LipschitzWideResNet,
    LipSwish,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualFlow,
    ResidualSkip,
    certified_accuracy,
    certified_radius,
    flow_block,
    margin_loss,
    rebase,
)

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def same(ours: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def moved(layer: nn.Module, by: float = 0.3) -> Any:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)
    return layer


def jacobian(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Any = torch.autograd.functional.jacobian(call, x)
    return found.reshape(-1, x.numel())


# Activations, pooling, skips


@pytest.mark.parametrize("size", [2, 3, 4])
def test_group_sort_permutes_the_channels_of_a_group(size: int) -> None:
    x = torch.randn(2, 12, 3, dtype=DOUBLE)
    y = GroupSort(size)(x)
    for group in range(12 // size):
        members = slice(group, 12, 12 // size)
        wanted = x[:, members].sort(1, descending=size == 2).values
        assert torch.equal(y[:, members], wanted)
    J = jacobian(GroupSort(size), x)
    same(J.mT @ J, torch.eye(72, dtype=DOUBLE))
    assert torch.equal(GroupSort(size, dim=-1)(x.mT), y.mT)
    assert torch.equal(GroupSort(size, dim=-3)(x[0, :, None]), y[0, :, None])


@pytest.mark.parametrize("part", [GroupSort(), ConcatenativeSkip(nn.Identity())])
def test_channels_that_are_not_there(part: nn.Module) -> None:
    with pytest.raises(ShapeError, match=r"an input of \(4,\) has no channels at dim=1"):
        part(torch.rand(4))


@pytest.mark.parametrize("skip", ["residual", "concatenative"])
def test_wide_resnet_of_any_size_and_batch(skip: Any) -> None:
    model = LipschitzWideResNet(10, 1, size=28, channels=1, skip=skip, base=(4, 4, 4), dtype=DOUBLE)
    x = torch.randn(2, 1, 28, 28, dtype=DOUBLE)
    scores = model(x)
    assert scores.shape == (2, 10)
    same(model(x[0]), scores[0])
    same(model(x[None]), scores[None])
    for size in range(4, 72, 4):
        LipschitzWideResNet(10, 1, size=size, base=(2, 2, 2))


def test_lip_swish_has_slopes_of_at_most_one() -> None:
    activation = LipSwish(dtype=DOUBLE)
    x = torch.linspace(-20, 20, 2001, dtype=DOUBLE, requires_grad=True)
    beta = math.log1p(math.exp(0.5))
    same(activation(x), x / (1 + (-beta * x).exp()) / 1.1)
    for raw in (-2.0, 0.5, 3.0):
        with torch.no_grad():
            activation.raw.fill_(raw)
        (slopes,) = torch.autograd.grad(activation(x).sum(), x)
        assert 0.99 < slopes.max() <= 1
        assert slopes.min() >= -0.1


@pytest.mark.parametrize("windows", [1, 2, (1, 3), (2, 3)])
def test_pooling_has_orthonormal_rows(windows: Any) -> None:
    pool, x = LipschitzPool2d(windows), torch.randn(2, 4, 6, dtype=DOUBLE)
    rows = jacobian(pool, x)
    same(rows @ rows.mT, torch.eye(len(rows), dtype=DOUBLE))
    h, w = pool.kernel_size
    same(pool(x), F.avg_pool2d(x, pool.kernel_size) * math.sqrt(h * w))
    with pytest.raises(ShapeError, match="windows of"):
        LipschitzPool2d(5)(x)


def test_skips() -> None:
    x = torch.randn(1, 4, 3, 3, dtype=DOUBLE)
    branch, straight = (moved(OrthogonalConv2d(4, 6, k, bias=False, dtype=DOUBLE)) for k in (3, 1))
    skip = ResidualSkip(branch, straight)
    same(skip(x), (branch(x) + straight(x)) / 2)
    with torch.no_grad():
        skip.alpha.fill_(1.5)
    part = 1 / (1 + math.exp(-1.5))
    same(skip(x), part * branch(x) + (1 - part) * straight(x), 1e-6)
    assert torch.linalg.matrix_norm(jacobian(skip, x), 2) <= 1 + 1e-12
    with pytest.raises(ShapeError, match="a branch to"):
        ResidualSkip(branch)(x)
    halves = ConcatenativeSkip(moved(OrthogonalConv2d(2, 3, 3, dtype=DOUBLE)), OrthogonalConv2d(2, 3, 1, dtype=DOUBLE))
    y = halves(x)
    same(y[:, ::2], halves.shortcut(x[:, :2]))
    same(y[:, 1::2], halves.branch(x[:, 2:]))
    values = torch.linalg.svdvals(jacobian(halves, x))
    same(values, torch.ones_like(values), 1e-12)
    with pytest.raises(ShapeError, match="two halves"):
        halves(x[:, :3])


# Certificates


def test_radii_are_those_of_a_linear_classifier() -> None:
    """Of which the nearest input with another answer is known."""
    layer = moved(OrthogonalLinear(7, 4, dtype=DOUBLE))
    x, weight, bias = torch.randn(30, 7, dtype=DOUBLE), layer.dense_weight().detach(), layer.bias.detach()
    scores = layer(x).detach()
    labels = scores.argmax(1)
    distances = torch.stack([
        ((scores[:, [i]] - scores).squeeze() / (weight[i] - weight).norm(dim=1).clamp_min(1e-30)).index_fill(
            1, torch.tensor([i]), math.inf
        )[labels == i].amin(1).sum()
        for i in range(4)
    ])  # fmt: skip
    same(certified_radius(scores, labels).sum(), distances.sum())
    assert bias.shape == (4,)
    assert not certified_radius(scores, (labels + 1) % 4).any()
    same(certified_radius(scores, labels, 2.0), certified_radius(scores, labels) / 2)
    radii = certified_radius(scores, labels)
    assert certified_accuracy(scores, labels, float(radii.median())) == pytest.approx(0.5, abs=0.05)
    assert certified_accuracy(scores, labels, 0.0) == 1.0


def test_the_loss_vanishes_where_all_is_certified() -> None:
    scores = torch.randn(20, 5, dtype=DOUBLE)
    labels = scores.argmax(1)
    least = float(certified_radius(scores, labels).min())
    assert margin_loss(scores, labels, least * 0.999) == 0
    assert margin_loss(scores, labels, least * 1.001) > 0
    same(margin_loss(scores, labels, 0.5, norm=1), F.multi_margin_loss(scores, labels, margin=0.5))
    for call in (
        lambda: margin_loss(scores, labels, 0.0),
        lambda: margin_loss(scores, labels, 1.0, norm=0.5),
        lambda: certified_radius(scores, labels, -1.0),
        lambda: certified_accuracy(scores, labels, -0.5),
    ):
        with pytest.raises(OptionError):
            call()
    for call in (
        lambda: certified_radius(scores, labels[:1]),
        lambda: certified_accuracy(scores, labels[:1], 0.0),
        lambda: certified_accuracy(scores[0], labels[0], 0.0),
    ):
        with pytest.raises(ShapeError, match="labels of"):
            call()


# Wide residual networks


@pytest.mark.parametrize("skip", ["residual", "concatenative"])
def test_a_wide_residual_network_is_one_lipschitz(skip: Any) -> None:
    model = moved(LipschitzWideResNet(10, 1, 4, channels=2, size=8, base=(4, 8, 8), skip=skip, dtype=DOUBLE))
    x = torch.randn(2, 2, 8, 8, dtype=DOUBLE)
    assert model(x).shape == (2, 4)
    norm = torch.linalg.matrix_norm(jacobian(model, x[:1]), 2)
    assert norm <= 1 + 1e-12
    rebase(model)
    same(torch.linalg.matrix_norm(jacobian(model, x[:1]), 2), norm)


def test_the_published_network() -> None:
    with torch.device("meta"):
        model = LipschitzWideResNet()
    convolutions = [module for module in model.modules() if isinstance(module, OrthogonalConv2d)]
    assert len([layer for layer in convolutions if layer.geometry.kernel == (3, 3)]) == 19
    assert [layer.geometry.channels for layer in convolutions if layer.geometry.kernel == (1, 1)] == [160, 320, 640]
    assert model.head.in_features == 640 * 4


def test_a_wide_residual_network_compiles_and_learns() -> None:
    model = LipschitzWideResNet(10, 1, 3, channels=1, size=4, base=(2, 2, 4))
    x, labels = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        same(compiled(x), model(x), 1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = margin_loss(model(x), labels, 0.5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"depth": 12}, "depth=12"),
        ({"skip": "dense"}, 'skip="dense": there is no such connection'),
        ({"size": 30}, "size=30"),
        ({"pool": 3}, "pool=3"),
    ],
)
def test_networks_that_do_not_exist(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        LipschitzWideResNet(**given)


# Residual flows


def small_flow(scale: float = 0.8) -> ResidualFlow:
    return moved(flow_block(2, 3, 3, scale=scale, dtype=DOUBLE, activation=lambda: LipSwish(dtype=DOUBLE)))


def test_a_flow_comes_back() -> None:
    flow, x = small_flow(0.9), torch.randn(4, 2, 3, 3, dtype=DOUBLE)
    same(flow.inverse(flow(x), tolerance=1e-12), x)
    single = flow_block(2, 3, scale=0.5)
    same(single.inverse(single(x.float())), x.float(), 1e-5)
    with pytest.raises(OptionError, match="steps=3"):
        flow.inverse(x, steps=3)
    linear = ResidualFlow(nn.Linear(3, 3, dtype=DOUBLE), 0.1)
    same(linear.inverse(linear(x), tolerance=1e-12), x)


def test_the_series_is_the_log_determinant_and_its_gradient() -> None:
    """The mean over noise is the sum over unit vectors; every term weighs one."""
    flow, x = small_flow(0.6), torch.randn(1, 2, 2, 2, dtype=DOUBLE, requires_grad=True)
    leaves = [x, *flow.parameters()]
    J = torch.autograd.functional.jacobian(flow, x, create_graph=True).reshape(8, 8)
    exact = torch.linalg.slogdet(J).logabsdet
    units = torch.eye(8, dtype=DOUBLE).view(8, 1, 2, 2, 2)
    found = [flow.series(x, unit, [1.0] * 60) for unit in units]
    same(found[0][0], flow(x))
    total = torch.stack([value for _, value in found]).sum()
    same(total, exact, 1e-9)
    ours = torch.autograd.grad(total, leaves, allow_unused=True)
    theirs = torch.autograd.grad(exact, leaves, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        same(torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other, 1e-8)
    with torch.no_grad():
        value = sum(flow.series(x, unit, [1.0] * 60)[1] for unit in units)
    same(value.squeeze(), exact.detach(), 1e-9)


def test_roulette_has_no_bias() -> None:
    """The mean over all numbers of terms, each as likely as it is drawn, is the whole series; so is its gradient."""
    flow, x = small_flow(0.6), torch.randn(3, 2, 2, 2, dtype=DOUBLE)
    noise = torch.randn(x.shape, dtype=DOUBLE)
    stop, always = 0.4, 2
    leaf = next(flow.branch.parameters())
    value, gradient = torch.zeros(3, dtype=DOUBLE), torch.zeros_like(leaf)
    for more in range(60):
        weights = [1.0] * always + [(1 - stop) ** -(number + 1) for number in range(more)]
        chance = stop * (1 - stop) ** more
        _, found = flow.series(x, noise, weights)
        value += chance * found.detach()
        gradient += chance * torch.autograd.grad(found.sum(), leaf)[0]
    _, whole = flow.series(x, noise, [1.0] * 60)
    same(value, whole.detach(), 1e-9)
    same(gradient, torch.autograd.grad(whole.sum(), leaf)[0], 1e-8)


def test_draws_of_the_roulette(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x = ResidualFlow(nn.Tanh(), 0.5, terms=3, stop=0.25), torch.randn(2, 2)
    drawn: list[list[float]] = []
    monkeypatch.setattr(flow, "series", lambda x, noise, weights: drawn.append(weights))
    numbers = torch.Generator().manual_seed(0)
    for _ in range(4000):
        flow.transform(x, numbers)
    assert all(weights[:3] == [1.0] * 3 for weights in drawn)
    for more in range(4):
        reached = [weights for weights in drawn if len(weights) > 3 + more]
        assert len(reached) / len(drawn) == pytest.approx(0.75 ** (more + 1), abs=0.025)
        assert reached[0][3 + more] == pytest.approx(0.75 ** -(more + 1))


def test_a_flow_learns_a_density() -> None:
    flows = nn.Sequential(*(flow_block(1, 4, 1, scale=0.9) for _ in range(2)))
    data = 0.4 * torch.randn(64, 1, 2, 2) + 0.5
    optimizer = torch.optim.Adam(flows.parameters(), lr=0.02)
    numbers = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        x, change = data, torch.zeros(64)
        for flow in flows:
            x, more = flow.transform(x, numbers)
            change = change + more
        loss = (x.square().flatten(1).sum(1) / 2 - change).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ResidualFlow(nn.Tanh(), 1.0), "scale=1.0"),
        (lambda: ResidualFlow(nn.Tanh(), stop=1.0), "stop=1.0"),
        (lambda: flow_block(2, 3, depth=1), "depth=1"),
    ],
)
def test_flows_that_do_not_exist(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        call()


def test_the_margin_of_the_largest_norm() -> None:
    scores, labels = torch.zeros(2, 4), torch.tensor([0, 1])
    losses = [float(margin_loss(scores, labels, 0.1, norm=norm)) for norm in (1e9, math.inf)]
    assert losses == pytest.approx([0.15, 0.15])
