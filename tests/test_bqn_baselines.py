"""What Bayesian quantised networks are compared with: binary networks trained straight through, normal weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convein.errors import OptionError, ShapeError
from convein.layers.bqn.binary import BinaryConv2d, BinaryLinear, BinarySign, Ensemble, binary, bootstrap, clip
from convein.layers.bqn.reparameterised import GaussianConv2d, GaussianLinear, divergence

WIDE = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_gradients_pass_straight_through_between_minus_one_and_one() -> None:
    value = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 7.0], requires_grad=True)
    signs = binary(value)
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    (signs * torch.arange(1.0, 8)).sum().backward()
    assert value.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    assert BinarySign()(value).tolist() == signs.tolist()


def test_binary_layers_are_torchs_with_signs() -> None:
    x = torch.randn(2, 4, 5, 6, dtype=WIDE)
    layer = BinaryConv2d(4, 6, 3, 2, 1, groups=2, padding_mode="reflect", dtype=WIDE)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight.sign(), layer.bias.sign(), 2, groups=2))
    dense = BinaryLinear(6, 3, bias=False, dtype=WIDE)
    torch.testing.assert_close(dense(x), F.linear(x, dense.weight.sign()))
    with torch.no_grad():
        dense.weight.mul_(5)
    clip(nn.Sequential(dense))
    assert dense.weight.abs().max() == 1
    copied = copy.deepcopy(layer)
    copied.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copied(x), layer(x))


def test_an_only_channel_is_refused_and_layers_are_traced() -> None:
    layer = BinaryConv2d(3, 4, 3)
    for kind in (layer, GaussianConv2d(3, 4, 3)):
        with pytest.raises(ShapeError, match=r"got the shape \(2, 1, 8, 8\)"):
            kind(torch.rand(2, 1, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))


def test_a_binary_network_learns() -> None:
    x = torch.randn(200, 6).sign()
    targets = (x[:, 1] + x[:, 2] + x[:, 4] > 0).long()
    model = nn.Sequential(BinaryLinear(6, 32), BinarySign(), BinaryLinear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x) / 5, targets).backward()
        optimizer.step()
        clip(model)
    assert (model(x).argmax(-1) == targets).float().mean() > 0.97


def test_ensembles_average_logits() -> None:
    members = [nn.Linear(3, 2) for _ in range(3)]
    x = torch.randn(4, 3)
    torch.testing.assert_close(Ensemble(members)(x), sum(member(x) for member in members) / 3)
    drawn = bootstrap(1000, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000,)
    assert 0.6 < len(drawn.unique()) / 1000 < 0.66  # 1 - 1 / e
    with pytest.raises(OptionError, match="no members"):
        Ensemble([])


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_outputs_are_distributed_as_those_of_drawn_weights(kind: str) -> None:
    layer = GaussianLinear(4, 3, dtype=WIDE) if kind == "linear" else GaussianConv2d(2, 3, 2, padding=1, dtype=WIDE)
    with torch.no_grad():
        for one in layer.parameters():
            one.normal_()
    x = torch.randn(4, dtype=WIDE) if kind == "linear" else torch.randn(1, 2, 3, 3, dtype=WIDE)
    drawn = torch.stack([layer(x) for _ in range(3000)])
    weights = layer.weight + layer.weight_log_var.div(2).exp() * torch.randn(3000, *layer.weight.shape, dtype=WIDE)
    biases = layer.bias + layer.bias_log_var.div(2).exp() * torch.randn(3000, 3, dtype=WIDE)
    if kind == "linear":
        direct = weights @ x + biases
    else:
        direct = F.conv2d(x, weights.flatten(0, 1), biases.flatten(), padding=1).view(3000, 1, 3, 4, 4)
    errors = (direct.var(0) / 3000).sqrt()
    assert ((drawn.mean(0) - direct.mean(0)).abs() < 6 * errors).all()
    assert ((drawn.var(0) / direct.var(0)).log().abs() < 0.25).all()


def test_the_divergence_is_that_of_torch() -> None:
    model = nn.Sequential(GaussianLinear(3, 2, prior=0.7), GaussianConv2d(1, 2, 2, bias=False))
    total = torch.zeros(())
    for layer in model:
        for mean, log_var in ((layer.weight, layer.weight_log_var), (layer.bias, layer.bias_log_var)):
            if mean is not None:
                normal = torch.distributions.Normal(mean, log_var.div(2).exp())
                prior = torch.distributions.Normal(0, layer.prior)
                total = total + torch.distributions.kl_divergence(normal, prior).sum()
    torch.testing.assert_close(divergence(model), total)
    model[0](torch.zeros(2, 3)).sum().backward()
    assert all(one.grad.isfinite().all() for one in model[0].parameters())
    with pytest.raises(OptionError, match="no layers of normal"):
        divergence(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="a number above 0"):
        GaussianLinear(3, 2, prior=-math.pi)
