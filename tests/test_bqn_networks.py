"""Bayesian quantised networks as a whole: modes, plain networks, packed weights, copies, compiled and exported."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from convein.errors import ConveinError, OperandError, OptionError, ShapeError
from convein.layers import bqn
from convein.layers.bqn import Discrete, Gaussian, in_mode, monte_carlo, pack, set_mode, to_plain, unpack

WIDE = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def drawn(network: nn.Module) -> nn.Module:
    """Weights of which some are nearly known, and moments of normalisation that are not those of the start."""
    with torch.no_grad():
        for name, one in [*network.named_parameters(), *network.named_buffers()]:
            if "log_scale" not in name:
                one.normal_().add_(0.1)
            if name.endswith("running_var"):
                one.abs_()
    return network


def network(dtype: torch.dtype = WIDE, **given: Any) -> nn.Sequential:
    sign, made = bqn.Sign(), {"dtype": dtype, **given}
    return nn.Sequential(
        bqn.Conv2d(2, 6, 3, padding=1, **made),
        bqn.MaxPool2d(2),
        bqn.BatchNorm2d(6, dtype=dtype),
        sign,
        bqn.Residual(
            nn.Sequential(bqn.Conv2d(6, 6, 3, padding="same", padding_mode="circular", groups=2, **made), sign)
        ),
        bqn.Conv2d(6, 4, 2, 2, padding="same", levels="ternary", dtype=dtype),
        bqn.AvgPool2d((2, 1), padding=(1, 0), count_include_pad=False),
        bqn.Flatten(),
        bqn.Linear(8, 3, levels=(-2, 0.5), dtype=dtype),
        bqn.SoftmaxHead(4, dtype=dtype),
    )


def small() -> nn.Sequential:
    """Known numbers, normal ones, signs, and a lattice."""
    return nn.Sequential(
        bqn.Conv2d(2, 3, 3, dtype=WIDE),
        bqn.MaxPool2d((3, 1)),
        bqn.BatchNorm2d(3, dtype=WIDE),
        bqn.Sign(),
        bqn.Conv2d(3, 2, 1, levels="ternary", dtype=WIDE),
        bqn.Flatten(),
        bqn.Linear(8, 3, propagation="clt", dtype=WIDE),
        bqn.SoftmaxHead(4, dtype=WIDE),
    )


def images(batch: int = 3, dtype: torch.dtype = WIDE) -> Tensor:
    return torch.randn(batch, 2, 8, 4, dtype=dtype)


def same(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Modes


def test_the_network_in_a_mode_is_the_plain_network() -> None:
    model, x = drawn(network()).eval(), images()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with in_mode(model, "map"):
        likeliest = model(x)
    same(to_plain(model)(x), likeliest)
    with in_mode(model, "sampled"):
        torch.manual_seed(3)
        sampled = model(x)
    generator, untouched = torch.Generator().manual_seed(3), torch.get_rng_state()
    plain = to_plain(model, "sampled", generator)
    to_plain(model)
    assert torch.equal(torch.get_rng_state(), untouched)
    same(plain(x), sampled)
    assert not torch.allclose(sampled, likeliest)
    same(to_plain(model, "sampled", generator.manual_seed(3))(x), sampled)
    same(model.state_dict(), before)
    kinds = [type(one) for one in plain.modules()]
    assert {nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.AvgPool2d, nn.Linear} <= set(kinds)
    assert plain[3] is plain[4].body[1]
    assert not any(isinstance(one, (bqn.Linear, bqn.Conv2d, bqn.SoftmaxHead)) for one in plain.modules())
    assert sorted(plain[0].weight.unique().tolist()) == [-1, 1]
    assert sorted(plain[5][1].weight.unique().tolist()) == [-1, 0, 1]
    assert all(layer.mode == "analytic" for layer in model.modules() if hasattr(layer, "mode"))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1, "stride": 2}, {"padding": "same", "stride": 2}, {"padding": "same", "dilation": 3}]
)
def test_every_convolution_has_its_plain_one(dimensions: int, padding_mode: str, options: dict[str, Any]) -> None:
    kind = getattr(bqn, f"Conv{dimensions}d")
    layer = drawn(kind(4, 6, 2, groups=2, padding_mode=padding_mode, levels="quaternary", dtype=WIDE, **options))
    x = torch.randn(2, 4, *[5] * dimensions, dtype=WIDE)
    plain = to_plain(layer)
    set_mode(layer, "map")
    same(plain(x), layer(x))


def test_sampled_weights_have_the_mean_and_the_variance_of_the_analytic_mode() -> None:
    layer, x = drawn(bqn.Linear(5, 2, levels="ternary", dtype=WIDE)), torch.randn(5, dtype=WIDE)
    out = layer(x)
    set_mode(layer, "sampled")
    values = torch.stack([layer(x) for _ in range(4000)])
    errors = (out.var / 4000).sqrt()
    assert ((values.mean(0) - out.mean).abs() < 4 * errors).all()
    assert ((values.var(0) / out.var - 1).abs() < 0.15).all()


def test_monte_carlo_averages_probabilities() -> None:
    model = drawn(nn.Sequential(bqn.Linear(2, 2, bias=False, dtype=WIDE), bqn.SoftmaxHead(2, dtype=WIDE)))
    x, targets = torch.randn(7, 2, dtype=WIDE), torch.arange(7) % 2
    expected = torch.zeros(7, 2, dtype=WIDE)
    table = model[0].probabilities()[0].detach().reshape(4, 2)
    for chosen in itertools.product((0, 1), repeat=4):
        weight = torch.tensor(chosen, dtype=WIDE).mul(2).sub(1).view(2, 2)
        likely = math.prod(float(row[one]) for row, one in zip(table, chosen, strict=True))
        expected += likely * model[1](x @ weight.T)
    found = monte_carlo(model, x, 3000)
    assert (found - expected).abs().max() < 0.05
    same(found.sum(-1), torch.ones(7, dtype=WIDE))
    losses = bqn.negative_log_likelihood(expected, targets)
    same(losses, -(expected[torch.arange(7), targets] + 1e-6).log())
    # By Jensen's inequality, and by theorem 5.2.
    assert (losses <= model[1](model[0](x), targets)).all()


def test_normalisation_uses_running_moments_outside_of_the_analytic_mode() -> None:
    layer, x = drawn(bqn.BatchNorm1d(3, dtype=WIDE)), torch.randn(4, 3, dtype=WIDE)
    assert layer.training
    set_mode(layer, "map")
    before = layer.running_mean.clone()
    wanted = (x - before) / (layer.running_var.sqrt() + 1e-5) * layer.weight + layer.bias
    same(layer(x), wanted)
    same(layer.running_mean, before)
    same(to_plain(layer)(x), wanted)
    set_mode(layer, "analytic")
    layer(x)
    assert not torch.equal(layer.running_mean, before)
    layer.eval()
    same(layer(x).mean, layer(Gaussian(x, torch.zeros_like(x))).mean)


def test_a_network_learns() -> None:
    """All of these are told apart by one weight; the entropy keeps the others undecided."""
    x = torch.randn(200, 5).sign()
    targets = (x[:, 2] > 0).long()
    model, head = nn.Sequential(bqn.Linear(5, 8), bqn.Sign(), bqn.Linear(8, 2)), bqn.SoftmaxHead(2)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        bqn.objective(head(model(x), targets), model, 200, 1e-3).backward()
        optimizer.step()
    whole = nn.Sequential(*model, head)
    for found in (whole(x), to_plain(whole)(x), monte_carlo(whole, x)):
        assert (found.argmax(-1) == targets).float().mean() > 0.95


# Packed weights


def test_a_binary_network_takes_a_bit_for_a_weight() -> None:
    bayesian = nn.Sequential(bqn.Linear(1024, 1024), bqn.Sign(), bqn.Linear(1024, 1024))
    plain = to_plain(drawn(bayesian))
    file = io.BytesIO()
    torch.save(pack(plain.state_dict()), file)
    weights = 2 * 1024 * 1025
    learned = sum(one.numel() * one.element_size() for one in bayesian.parameters())
    assert learned == 8 * weights
    packed = sum(one["bits"].numel() for one in pack(plain.state_dict()).values())
    assert packed * 64 == learned
    assert file.tell() < 1.02 * learned / 64
    file.seek(0)
    other = to_plain(nn.Sequential(bqn.Linear(1024, 1024), bqn.Sign(), bqn.Linear(1024, 1024)))
    other.load_state_dict(unpack(torch.load(file, weights_only=True)))
    same(other.state_dict(), plain.state_dict(), 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_packed_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    state = {
        f"{levels} {size}": torch.randint(levels, (size, 3)).to(dtype)
        for levels in (1, 2, 3, 5, 200)
        for size in (0, 1, 7, 50)
    }
    state["scalar"] = torch.ones((), dtype=dtype)
    if dtype.is_floating_point:
        state["zeros"] = torch.tensor([0.0, -0.0, float("nan"), 1.0] * 40, dtype=dtype)
        state["many"] = torch.randn(3000).to(dtype)
    file = io.BytesIO()
    torch.save(pack(state), file)
    file.seek(0)
    found = unpack(torch.load(file, weights_only=True))
    assert list(found) == list(state)
    for name, one in state.items():
        assert found[name].dtype == one.dtype
        assert found[name].shape == one.shape
        torch.testing.assert_close(found[name], one, rtol=0, atol=0, equal_nan=True)
        if dtype.is_floating_point:
            assert torch.equal(found[name].signbit(), one.signbit())


def test_what_was_not_packed_is_refused() -> None:
    for wrong in ({"w": torch.ones(3)}, {"w": {"levels": torch.ones(2)}}, 3):
        with pytest.raises(OperandError, match="not what pack gives"):
            unpack(wrong)


# As modules of torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_copies_and_pickles(dtype: torch.dtype) -> None:
    model, x = drawn(network(dtype)).eval(), images(dtype=dtype)
    value = model(x)
    assert value.dtype == dtype
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = network(dtype).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(other) == repr(model)
        same(other(x), value, 0)


@pytest.mark.parametrize(("mode", "training"), [("analytic", True), ("map", False)])
def test_networks_compile_in_one_graph(mode: str, training: bool) -> None:
    model = drawn(small()).train(training)
    set_mode(model, mode)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    x = images()
    ours, theirs = compiled(x), model(x)
    same(ours, theirs, 1e-10)
    if mode == "analytic":
        left = torch.autograd.grad(ours.square().sum(), list(compiled.parameters()), allow_unused=True)
        right = torch.autograd.grad(theirs.square().sum(), list(model.parameters()), allow_unused=True)
        same(left, right, 1e-8)


def test_sampled_networks_compile() -> None:
    model = drawn(small()).eval()
    set_mode(model, "sampled")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(images())
    same(found.sum(-1), torch.ones(3, dtype=WIDE))


def test_copies_of_entries_compile_and_any_batch_exports() -> None:
    model = drawn(bqn.Residual(bqn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate", dtype=WIDE)))
    x = torch.randn(3, 2, 5, dtype=WIDE)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    same(compiled(Gaussian(x, x.square())).var, model(Gaussian(x, x.square())).var)
    exactly = drawn(
        nn.Sequential(bqn.Linear(5, 3, levels="ternary", dtype=WIDE), bqn.Sign(), bqn.Linear(3, 1, dtype=WIDE))
    )
    batch = torch.export.Dim("batch")
    program = torch.export.export(exactly, (x[0],), dynamic_shapes=({0: batch},), strict=False)
    more = torch.randn(8, 5, dtype=WIDE)
    same(program.module()(more).var, exactly(more).var)


def test_networks_export() -> None:
    model, x = drawn(small()).eval(), images()
    program = torch.export.export(model, (x,), strict=False)
    same(program.module()(x), model(x))
    plain = to_plain(model)
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True)
    x = images(5)
    same(program.module()(x), plain(x))
    body = torch.export.export(nn.Sequential(*model[:4]), (x,), strict=False)
    assert isinstance(body.module()(x), Discrete)


def test_functional_calls_and_batched_networks() -> None:
    model, x = (
        drawn(
            nn.Sequential(
                bqn.Linear(4, 3, dtype=WIDE), bqn.Sign(), bqn.Linear(3, 2, dtype=WIDE), bqn.SoftmaxHead(dtype=WIDE)
            )
        ),
        torch.randn(5, 4, dtype=WIDE),
    )
    parameters = dict(model.named_parameters())
    stacked = {name: torch.stack([one, 2 * one]).detach() for name, one in parameters.items()}
    both = vmap(lambda given: functional_call(model, given, (x,)))(stacked)
    same(both[0], model(x), 1e-10)
    found = grad(lambda given: functional_call(model, given, (x,)).square().sum())(parameters)
    wanted = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    same(tuple(found.values()), wanted, 1e-10)


def test_gradients_are_finite_where_nothing_is_random() -> None:
    model = nn.Sequential(bqn.Linear(4, 3, bias=False), bqn.Sign(), bqn.Linear(3, 2), bqn.SoftmaxHead())
    model(torch.zeros(2, 4))[:, 0].sum().backward()
    assert all(one.grad.isfinite().all() for one in model[:3].parameters())


def test_empty_batches_and_more_batch_dimensions() -> None:
    model = bqn.Conv2d(2, 3, 3, padding=1, dtype=WIDE)
    assert model(Discrete(torch.rand(0, 2, 4, 4, dtype=WIDE))).mean.shape == (0, 3, 4, 4)
    x = torch.randn(2, 3, 2, 4, 4, dtype=WIDE)
    same(model(x).var, model(x.flatten(0, 1)).var.unflatten(0, (2, 3)))
    exact = bqn.Linear(3, 2, dtype=WIDE)
    assert exact(Discrete(torch.rand(0, 3, dtype=WIDE))).mean.shape == (0, 2)


# Sentences


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bqn.Linear(3, 2, levels="octonary"), "no levels have this name"),
        (lambda: bqn.Linear(3, 2, levels=(1,)), "two different numbers or more"),
        (lambda: bqn.Linear(3, 2, levels=(1, 1)), "two different numbers or more"),
        (lambda: bqn.Linear(3, 2, propagation="fft"), 'propagation="fft": there is no such propagation'),
        (lambda: bqn.Linear(0, 2), "in_features=0"),
        (lambda: bqn.Linear(3, 2, dtype=torch.int64), "dtype=torch.int64 of log-probabilities"),
        (lambda: bqn.Conv2d(3, 4, 3, groups=2), "in_channels=3 is no multiple of groups=2"),
        (lambda: bqn.Conv2d(4, 4, 3, padding="SAME"), "'SAME' is no padding"),
        (lambda: bqn.Conv2d(4, 4, (3, 3, 3)), "of 2 dimensions"),
        (lambda: bqn.Conv2d(4, 4, 3, padding_mode="mirror"), "'mirror' is no padding mode"),
        (lambda: bqn.MaxPool2d(2, padding=2), "at most half of the window"),
        (lambda: bqn.AvgPool2d(2, variance="right"), "variance='right' of an average"),
        (lambda: bqn.AvgPool2d(2, propagation="contraction")(torch.ones(2, 2)), None),
        (lambda: bqn.AvgPool2d(2, propagation="contraction")(Gaussian(torch.ones(2, 2), torch.ones(2, 2))), "Gaussian"),
        (lambda: bqn.SoftmaxHead(0), "scale=0 of the logits"),
        (lambda: bqn.SoftmaxHead(bound="loose"), "no such bound"),
        (lambda: bqn.GaussianHead(3)(torch.ones(4, 3), torch.ones(4)), "targets have the shape"),
        (lambda: bqn.BatchNorm2d(3)(torch.ones(2, 3)), "BatchNorm2d of 3 channels got the shape"),
        (lambda: bqn.Linear(3, 2)("x"), "takes a tensor or an activation, not str"),
        (lambda: bqn.add(Discrete(torch.ones(2)), Discrete(torch.ones(3))), "a sum of the shapes"),
        (lambda: set_mode(nn.Linear(2, 2), "map"), "has no modes"),
        (lambda: set_mode(bqn.Linear(2, 2), "mean"), "is no mode of a Bayesian network"),
        (lambda: to_plain(bqn.Linear(2, 2), "analytic"), "gives no numbers for weights"),
        (lambda: bqn.entropy(nn.Linear(2, 2)), "no layers with quantised random weights"),
        (lambda: monte_carlo(bqn.Linear(2, 2), torch.ones(2), 0), "samples=0"),
        (lambda: monte_carlo(bqn.Linear(2, 2), torch.ones(3, 2)), "Linear gives no probabilities that sum to one"),
        (
            lambda: monte_carlo(nn.Sequential(bqn.Linear(2, 2), bqn.GaussianHead(2)), torch.ones(3, 2)),
            "no probabilities",
        ),
        (lambda: bqn.objective(torch.ones(4, 10), bqn.Linear(2, 2), 100), "losses of the shape (4, 10)"),
        (lambda: bqn.objective(torch.tensor(1.0), bqn.Linear(2, 2), 100), "losses of the shape ()"),
    ],
)  # fmt: skip
def test_what_does_not_fit_gets_a_sentence(call: Any, says: str | None) -> None:
    if says is None:
        call()
        return
    with pytest.raises(ConveinError) as caught:
        call()
    assert says in str(caught.value)


@pytest.mark.parametrize("mode", ["analytic", "sampled", "map"])
def test_an_only_channel_is_not_repeated(mode: str) -> None:
    convolution, linear = bqn.Conv2d(3, 4, 3), bqn.Linear(5, 4)
    block = bqn.Residual(bqn.Conv2d(1, 4, 3, padding=1))
    for layer in (convolution, linear, block):
        set_mode(layer, mode)
    with pytest.raises(ShapeError, match=r"convolution of 3 inputs got the shape \(2, 1, 8, 8\)") as caught:
        convolution(torch.rand(2, 1, 8, 8))
    assert "(..., 3, h, w)" in str(caught.value)
    with pytest.raises(ShapeError, match=r"linear layer of 5 inputs got the shape \(2, 1\)"):
        linear(torch.rand(2, 1))
    with pytest.raises(ShapeError, match=r"shapes \(2, 4, 8, 8\) and \(2, 1, 8, 8\)"):
        block(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("propagation", ["auto", "clt", "convolution"])
def test_an_only_random_channel_is_not_repeated(propagation: str) -> None:
    gray = torch.rand(2, 1, 8, 8)
    layer = bqn.Conv2d(3, 4, 3, propagation=propagation)
    for input in (Discrete(gray), bqn.Pmf(torch.stack([gray, 1 - gray], -1), 0, 1)):
        with pytest.raises(ShapeError, match=r"got the shape \(2, 1, 8, 8\)"):
            layer(input)


def test_averages_take_positions_that_share_weights_as_independent() -> None:
    layer, pool = drawn(bqn.Conv2d(1, 1, 1, bias=False, dtype=WIDE)), bqn.AvgPool2d(2)
    likely = layer.probabilities()[0].flatten()[0]
    true = 4 * likely * (1 - likely)  # of a picture of ones, whose average is the weight itself
    same(pool(layer(torch.ones(1, 2, 2, dtype=WIDE))).var.squeeze(), true / 4)


def test_random_inputs_of_drawn_weights_get_a_sentence() -> None:
    layer = bqn.Linear(2, 2)
    set_mode(layer, "map")
    with pytest.raises(OperandError, match="takes a tensor, not Discrete"):
        layer(Discrete(torch.rand(2)))
    with pytest.raises(ShapeError):
        layer(torch.ones(3))
    with pytest.raises(OptionError, match="gives no numbers"):
        layer.weights("analytic")
