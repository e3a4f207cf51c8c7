"""Layers that come from trained ones: at full rank they are the same function, whatever the hyper-parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convein
from convein.layers import FORMS, Conv2d, ConvTranspose2d, Embedding, from_conv, from_linear, to_torch

DECOMPOSED = [form for form in FORMS if form != "interleaved"]
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FULL = 10**6


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    """Any convolution of torch, small."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    small = st.integers(1, 4 if axes < 3 else 2)
    inputs, outputs = groups * draw(small), groups * draw(small)

    def each(numbers: st.SearchStrategy[int]) -> Sequence[int]:
        return draw(st.tuples(*[numbers] * axes))

    kernel, stride = each(st.integers(1, 3)), each(st.integers(1, 2))
    dilation, bias = each(st.integers(1, 2)), draw(st.booleans())
    more: dict[str, Any] = {"bias": bias, "dtype": torch.float64}
    if draw(st.booleans()):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation)]
        return TRANSPOSED[axes - 1](
            inputs, outputs, kernel, stride, each(st.integers(0, 1)), extra, groups, dilation=dilation, **more
        )
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    padding: Any = each(st.integers(0, 2))
    if draw(st.booleans()):
        padding, stride = draw(st.sampled_from(["same", "valid"])), 1
    return PLAIN[axes - 1](inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode, **more)


@settings(max_examples=150)
@given(st.sampled_from(DECOMPOSED), convolutions(), st.integers(1, 3))
def test_a_convolution_at_full_rank_is_the_same_function(form: str, module: nn.Module, factors: int) -> None:
    layer = from_conv(module, form, FULL, factors=factors)
    axes = len(module.kernel_size)
    x = torch.randn(2, module.in_channels, *[7, 8, 7][:axes], dtype=torch.float64)
    torch.testing.assert_close(layer(x), module(x), rtol=1e-8, atol=1e-8)
    assert layer.error < 1e-9
    assert {name for name, _ in layer.named_parameters()} >= {"w1"}
    assert (layer.bias is None) == (module.bias is None)


@pytest.mark.parametrize("form", DECOMPOSED)
@pytest.mark.parametrize("sizes", [(6, 8), (5, 7), (1, 4)])
def test_a_linear_layer_at_full_rank_is_the_same_function(form: str, sizes: tuple[int, int]) -> None:
    module = nn.Linear(*sizes, dtype=torch.float64)
    x = torch.randn(2, 3, sizes[0], dtype=torch.float64)
    torch.testing.assert_close(from_linear(module, form, FULL)(x), module(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", DECOMPOSED)
def test_what_a_weight_misses_is_reported_and_less_than_everything(form: str) -> None:
    module = nn.Conv2d(12, 8, 3, dtype=torch.float64)
    layer = from_conv(module, form, 0.3)
    missed = (module.weight - layer.dense_weight()).detach()
    assert layer.error == pytest.approx(float(missed.norm() / module.weight.detach().norm()))
    assert form == "dense" or 0 < layer.error < 1


def test_a_weight_of_low_rank_is_found_again() -> None:
    for form in DECOMPOSED:
        rank = (2, 2, 3) if form == "block-term" else 2
        source = Conv2d(12, 8, 3, form=form, rank=rank, dtype=torch.float64)
        found = from_conv(to_torch(source), form, rank)
        # Least squares go downhill from a start: sums of several Tucker terms and rings may end beside the best.
        assert found.error < (0.9 if form in ("block-term", "tr", "rtr") else 1e-5), form


def test_everything_else_is_taken_over() -> None:
    module = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=True, dtype=torch.bfloat16).eval()
    module.weight.requires_grad_(False)
    layer = from_conv(module, "tt", 0.5, optimize="greedy")
    assert not layer.training
    assert [weight.dtype for weight in layer.weights] == [torch.bfloat16] * 4
    assert not any(weight.requires_grad for weight in layer.weights)
    assert layer.bias.requires_grad
    assert torch.equal(layer.bias, module.bias)
    assert layer.bias is not module.bias
    back = to_torch(layer)
    assert (back.stride, back.padding, back.training) == (module.stride, module.padding, False)
    torch.testing.assert_close(back.weight, layer.dense_weight())


def test_the_trained_layer_is_left_as_it_was_and_numbers_are_the_users() -> None:
    module = nn.Conv2d(6, 6, 3)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    from_conv(module, "cp", 0.2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_drawn_factors_take_the_place_of_a_weight() -> None:
    module = nn.Conv2d(8, 8, 3)
    layer = from_conv(module, "interleaved", decompose=False)
    assert layer.error is None
    assert layer.dense_weight().shape == module.weight.shape


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: from_conv(nn.Linear(2, 2)), "from_conv takes torch's convolutions, not Linear"),
        (lambda: from_linear(nn.Conv1d(2, 2, 1)), "from_linear takes nn.Linear, not Conv1d"),
        (lambda: from_conv(nn.Conv2d(4, 4, 3), "interleaved"), "form='interleaved' of a trained layer"),
        (lambda: from_conv(nn.Conv2d(4, 4, 3), "cpp"), "did you mean 'cp'?"),
        (lambda: from_conv(nn.Conv2d(4, 4, 3), "svd", seed="a"), 'seed="a" is no seed'),  # type: ignore[arg-type]
        (lambda: from_linear(nn.Linear(4, 4), "cp", seed=0.5), "seed=0.5 is no seed"),  # type: ignore[arg-type]
        (lambda: convein.tensorize(nn.Linear(4, 4), "svd", seed=None, dry_run=True), "seed=None is no seed"),
        (lambda: from_conv(nn.Conv2d(4, 4, 3), init="lecun"), "init='lecun' of a decomposed layer"),
        (lambda: to_torch(Embedding(4, 4)), "convolutions and linear layers here, not Embedding"),
        (lambda: to_torch(Conv2d(4, 4, 3, stride=2, padding="same")), "torch's Conv2d cannot be this layer: padding="),
        (lambda: to_torch(ConvTranspose2d(4, 4, 3, padding="same")), "padding='same' of a transposed convolution"),
        (lambda: to_torch(ConvTranspose2d(4, 4, 3, padding_mode="circular")), "torch's ConvTranspose2d cannot be"),
        (lambda: Embedding(10, 4, max_norm=1.0), "max_norm=1.0 of a factorised embedding"),
        (lambda: Embedding(10, 4, form="tr"), "form='tr' of an embedding"),
        (lambda: Embedding(10, 4, padding_idx=10), "padding_idx=10"),
        (lambda: Embedding(10, 4, rank=0), "rank=0"),
    ],
)
def test_what_does_not_fit_is_a_sentence(call: Any, text: str) -> None:
    with pytest.raises(convein.OptionError, match=text.replace("?", r"\?").replace("(", r"\(")):
        call()


@pytest.mark.parametrize("form", ["tt", "cp"])
@pytest.mark.parametrize(("count", "size", "digits"), [(1000, 60, 3), (97, 7, 2), (5, 4, 1), (1, 3, 3)])
def test_an_embedding_looks_up_the_rows_of_its_table(form: str, count: int, size: int, digits: int) -> None:
    layer = Embedding(count, size, padding_idx=-1, form=form, rank=3, factors=digits, dtype=torch.float64)
    table = layer.dense_weight()
    assert table.shape == (count, size)
    assert not table[-1].any()
    for index in (
        torch.arange(count),
        torch.randint(count, (2, 3)),
        torch.tensor(0),
        torch.empty(0, dtype=torch.int64),
    ):
        rows = layer(index)
        assert rows.shape == (*index.shape, size)
        torch.testing.assert_close(rows, table[index])
    gradient = torch.randn(count, size, dtype=torch.float64)
    mine = torch.autograd.grad(layer(torch.arange(count)), layer.weights, gradient, retain_graph=True)
    dense = torch.autograd.grad(layer.dense_weight(), layer.weights, gradient)
    torch.testing.assert_close(mine, dense)


@pytest.mark.parametrize("form", ["tt", "cp"])
def test_an_embedding_starts_with_the_variance_of_torchs(form: str) -> None:
    layer = Embedding(1000, 60, form=form, rank=0.2, factors=3)
    whole = super(Embedding, layer).dense_weight().detach()  # with the rows that nobody reads
    assert float(whole.square().mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("form", ["tt", "cp"])
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_an_embedding_at_full_rank_is_the_table(form: str, digits: int) -> None:
    table = torch.randn(23, 6, dtype=torch.float64)
    layer = Embedding.from_pretrained(table, form=form, rank=400, factors=digits)
    torch.testing.assert_close(layer(torch.arange(23)), table, rtol=1e-8, atol=1e-8)
    assert layer.error < 1e-9
    assert not any(weight.requires_grad for weight in layer.weights)


def test_an_index_outside_of_the_table_is_refused() -> None:
    layer = Embedding(10, 4)
    assert torch.tensor(layer.digits).prod() > 10  # a row that the factors have, and the table has not
    for index in (10, -1, 100):
        with pytest.raises(IndexError, match=f"index {index} in a table of 10 rows"):
            layer(torch.tensor([3, index]))
