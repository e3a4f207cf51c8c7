"""tensorize and densify: what is replaced, what is left alone, what the report says, and the way back."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import convein
from convein.__main__ import main
from convein.layers import Conv2d, Linear
from convein.layers.factorised import Factorised
from convein.tensorizing import Report, Row

FULL = 10**6


class Residual(nn.Module):
    """A block that stands at two places of `Cnn`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class Cnn(nn.Module):
    """Images (b, 3, 12, 12) -> (b, 5). The head is registered first and called last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(18, 5)
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.block = Residual(8)
        self.again = self.block
        self.down = nn.Conv2d(8, 12, (3, 2), stride=2, dilation=(1, 2), groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1)
        self.middle = nn.Linear(6 * 100, 18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.block(self.stem(x)))
        return self.head(F.relu(self.middle(self.up(F.relu(self.down(x))).flatten(1))))


class Sequence(nn.Module):
    """Tokens (b, n) -> (b, n, 11): an encoder of torch's, convolutions along the sequence, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.mix = nn.Conv1d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        return self.head(self.mix(x.mT).mT)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cnn() -> Cnn:
    """One whose batch norm is not trivial."""
    model = Cnn()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 12, 12))
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 12, 12)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (3, 7))


def factorised(model: nn.Module) -> dict[str, str]:
    """The names of the factorised layers and their forms."""
    return {name: m.form for name, m in model.named_modules() if isinstance(m, Factorised)}


def reasons(report: Report) -> dict[str, str]:
    return {row.layer: row.reason for row in report.rows if row.reason}


def row(report: Report, layer: str) -> Row:
    return next(row for row in report.rows if row.layer == layer)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# What comes out.


@pytest.mark.parametrize("form", ["svd", "spatial-svd", "cp", "tucker", "tt", "tr", "rtk", "rtt", "dense"])
def test_a_model_at_full_rank_is_the_same_function(form: str, cnn: Cnn, images: Tensor) -> None:
    made, report = convein.tensorize(cnn, form, FULL, skip=())
    assert set(factorised(made)) == {"head", "stem", "block.conv", "down", "up", "middle"}
    assert all(row.error is not None and row.error < 1e-5 for row in report.rows)
    close(made(images), cnn(images))


def test_the_error_in_the_report_is_that_of_the_weight(cnn: Cnn) -> None:
    made, report = convein.tensorize(cnn, "svd", 0.3, skip=())
    layer = made.get_submodule("down")
    assert isinstance(layer, Conv2d)
    wanted = cnn.down.weight.detach()
    missed = float(torch.dist(layer.dense_weight().detach(), wanted) / wanted.norm())
    assert row(report, "down").error == pytest.approx(missed, rel=1e-4)
    assert missed > 0.1


@pytest.mark.parametrize("example", [False, True])
def test_layers_in_one_and_three_dimensions_and_their_adjoints(example: bool) -> None:
    model = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ConvTranspose3d(4, 3, 2, stride=2), nn.Flatten(2),
        nn.Conv1d(3, 6, 5, stride=2, padding=2, padding_mode="circular"), nn.ConvTranspose1d(6, 2, 3),
    )  # fmt: skip
    x = torch.randn(2, 2, 3, 4, 3)
    made, report = convein.tensorize(model, "svd", FULL, skip=(), example_inputs=x if example else None)
    assert list(factorised(made)) == ["0", "1", "3", "4"]
    assert [row.type for row in report.rows] == ["Conv3d", "ConvTranspose3d", "Conv1d", "ConvTranspose1d"]
    close(made(x), model(x))


def test_a_training_step_of_the_model_changes_its_factors(cnn: Cnn, images: Tensor) -> None:
    made, _ = convein.tensorize(cnn.train(), "svd", 0.5, skip=())
    assert all(module.training for module in made.modules())
    made(images).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())


def test_the_model_itself_may_be_a_layer() -> None:
    layer = nn.Linear(6, 7)
    made, report = convein.tensorize(layer, "svd", FULL, skip=())
    assert isinstance(made, Linear)
    assert isinstance(layer, nn.Linear)
    close(made(torch.ones(2, 6)), layer(torch.ones(2, 6)))
    assert "(the model)" in str(report)
    rebuilt, _ = convein.tensorize(nn.Linear(6, 7), spec=report.spec, decompose=False)
    rebuilt.load_state_dict(made.state_dict())
    close(convein.densify(rebuilt)(torch.ones(2, 6)), layer(torch.ones(2, 6)))
    with pytest.raises(convein.OptionError, match="the model is itself the layer"):
        convein.tensorize(layer, "svd", skip=(), inplace=True)
    with pytest.raises(convein.OptionError, match="the model is itself the layer"):
        convein.densify(made, inplace=True)


# The model that was given.


def test_nothing_of_the_model_changes(cnn: Cnn, images: Tensor) -> None:
    before, modules = copy.deepcopy(cnn), dict(cnn.named_modules())
    state, random = [dict(vars(module)) for module in modules.values()], torch.get_rng_state()
    cnn.block.norm.train()
    convein.tensorize(cnn, "svd", 0.3, example_inputs=images)
    assert torch.equal(torch.get_rng_state(), random)
    assert cnn.block.norm.training
    assert not cnn.training
    assert dict(cnn.named_modules()) == modules
    cnn.block.norm.eval()
    assert [dict(vars(module)) for module in modules.values()] == state
    for name, tensor in before.state_dict().items():
        assert torch.equal(cnn.state_dict()[name], tensor), name


def test_what_is_not_replaced_is_a_copy(cnn: Cnn) -> None:
    made, _ = convein.tensorize(cnn, "svd", 0.3)
    kept = {tensor.data_ptr() for tensor in [*cnn.parameters(), *cnn.buffers()]}
    assert kept.isdisjoint(tensor.data_ptr() for tensor in [*made.parameters(), *made.buffers()])


def test_weights_that_go_are_not_copied(cnn: Cnn, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    plain = nn.Parameter.__deepcopy__

    def counted(self: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
        copied.append(self.numel())
        return plain(self, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", counted)
    convein.tensorize(cnn, "svd", 0.3, skip=())
    assert sum(copied) == 16  # the batch norm's


def test_in_place_the_model_itself_changes(cnn: Cnn, images: Tensor) -> None:
    before = cnn(images)
    norm = cnn.block.norm
    made, _ = convein.tensorize(cnn, "svd", FULL, inplace=True, skip=())
    assert made is cnn
    assert len(factorised(cnn)) == 6
    assert cnn.block.norm is norm
    close(cnn(images), before)
    assert convein.densify(cnn, inplace=True) is cnn
    assert not factorised(cnn)
    close(cnn(images), before)


def test_a_dry_run_leaves_the_model_and_says_what_would_be(cnn: Cnn, images: Tensor) -> None:
    same, dry = convein.tensorize(cnn, "svd", 0.3, example_inputs=images, dry_run=True)
    assert same is cnn
    assert not factorised(cnn)
    _, wet = convein.tensorize(cnn, "svd", 0.3, example_inputs=images)
    assert dry.spec == wet.spec
    assert [(row.before, row.after) for row in dry.rows] == [(row.before, row.after) for row in wet.rows]
    assert all(row.error is None for row in dry.rows)
    assert all(row.error is not None for row in wet.rows if row.setting)


def test_without_decomposition_the_weights_are_drawn(cnn: Cnn) -> None:
    made, report = convein.tensorize(cnn, "svd", FULL, decompose=False)
    layer = made.get_submodule("down")
    assert isinstance(layer, Conv2d)
    assert row(report, "down").error is None
    assert float(layer.dense_weight().detach().square().mean()) == pytest.approx(2 / 24, rel=1e-4)


# Modules at several places, and places to leave alone.


def test_a_module_at_two_places_stays_one_module(cnn: Cnn, images: Tensor) -> None:
    made, report = convein.tensorize(cnn, "svd", FULL, skip=(), example_inputs=images)
    assert made.get_submodule("block") is made.get_submodule("again")
    assert row(report, "block.conv").also == ("again.conv",)
    assert list(report.spec["layers"]).count("block.conv") == 1
    twice = nn.ModuleDict({"a": (layer := nn.Linear(4, 4)), "b": nn.Sequential(layer)})
    both, _ = convein.tensorize(twice, "svd", FULL, skip=())
    assert both["a"] is both["b"][0]
    convein.tensorize(twice, "svd", FULL, skip=(), inplace=True)
    assert isinstance(twice["a"], Linear)
    assert twice["a"] is twice["b"][0]
    back = convein.densify(twice)
    assert back["a"] is back["b"][0]


def test_first_and_last_are_those_of_the_forward_pass(cnn: Cnn, images: Tensor) -> None:
    _, report = convein.tensorize(cnn, "svd", example_inputs=images, dry_run=True)
    assert reasons(report) == {"stem": "skipped: first", "head": "skipped: last"}
    assert [row.layer for row in report.rows] == ["stem", "block.conv", "down", "up", "middle", "head"]
    _, report = convein.tensorize(cnn, "svd", dry_run=True)
    assert reasons(report) == {"head": "skipped: first", "middle": "skipped: last"}
    _, report = convein.tensorize(cnn, "svd", skip="last", example_inputs=images, dry_run=True)
    assert list(reasons(report)) == ["head"]
    _, report = convein.tensorize(cnn, "svd", overrides={"stem": {"rank": 2}}, example_inputs=images, dry_run=True)
    assert list(reasons(report)) == ["head"]


def test_patterns_skip_layers_and_everything_in_a_module(cnn: Cnn) -> None:
    made, report = convein.tensorize(cnn, "svd", skip=("block", "[dm]*"))
    assert list(factorised(made)) == ["head", "stem", "up"]
    assert reasons(report) == {"block.conv": "skipped: block", "down": "skipped: [dm]*", "middle": "skipped: [dm]*"}
    _, report = convein.tensorize(cnn, "svd", skip="again.*", dry_run=True)
    assert list(reasons(report)) == ["block.conv"]


def test_overrides_refine_each_other(cnn: Cnn) -> None:
    overrides = {
        "*": {"rank": 3, "optimize": "greedy"}, "up": {"form": "tt", "rank": 4}, "mid*": None, "stem": {"factors": 2}
    }  # fmt: skip
    made, report = convein.tensorize(cnn, "svd", 0.5, skip=("head",), overrides=overrides)
    assert factorised(made) == {"stem": "svd", "block.conv": "svd", "down": "svd", "up": "tt"}
    assert reasons(report) == {"head": "skipped: head", "middle": "overridden: mid*"}
    assert row(report, "down").ranks == {"r": 3}
    assert max(row(report, "up").ranks.values()) == 4
    assert report.spec["layers"]["up"]["options"] == {"optimize": "greedy"}
    assert report.spec["layers"]["stem"]["factors"] == 2
    _, report = convein.tensorize(cnn, skip=(), overrides={"*": None, "up": {"rank": 2}}, dry_run=True)
    assert [row.layer for row in report.rows if row.setting] == ["up"]


class Named(nn.Linear):
    """Another name."""


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Helpful(nn.Linear):
    def half(self) -> int:
        return self.in_features // 2


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    return layer


def patched(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def extended(layer: nn.Linear) -> nn.Linear:
    layer.register_buffer("scale", torch.ones(1))
    return layer


SPECIAL = {
    "its class Scaled defines forward": lambda: Scaled(4, 4),
    "its class Helpful defines half": lambda: Helpful(4, 4),
    "its weight is parametrized": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "hooks are registered on it": lambda: hooked(nn.Linear(4, 4)),
    "its forward was replaced": lambda: patched(nn.Linear(4, 4)),
    "it has more than a weight and a bias: scale": lambda: extended(nn.Linear(4, 4)),
    "its weight has no shape before the first call": lambda: nn.LazyLinear(4),
}


@pytest.mark.parametrize("reason", SPECIAL)
def test_what_a_factorised_layer_cannot_stand_in_for_is_left_alone(reason: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), SPECIAL[reason](), Named(4, 4))
    made, report = convein.tensorize(model, "svd", FULL, skip=())
    assert reasons(report) == {"1": reason}
    assert list(factorised(made)) == ["0", "2"]
    if "shape" not in reason:
        close(made(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_first_and_last_are_of_those_that_can_be_replaced() -> None:
    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), Scaled(4, 4))
    made, _ = convein.tensorize(model, "svd")
    assert list(factorised(made)) == ["2"]


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7))
    model[2].weight = model[0].weight
    made, report = convein.tensorize(model, "svd", skip=())
    assert made[2].weight is made[0].weight
    assert list(factorised(made)) == ["1"]
    assert reasons(report) == {"2": "its weight is one tensor with another: 0.weight, 2.weight"}


class Reader(nn.Module):
    """Uses one weight itself, asks another for its dtype, and never calls a third."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.asked, self.idle, self.plain = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.used.weight)
        return self.plain(self.asked(x.to(self.asked.weight.dtype)))


def test_weights_that_the_model_reads_are_seen_in_the_forward_pass() -> None:
    made, report = convein.tensorize(Reader(), "svd", skip=(), example_inputs=torch.ones(2, 4))
    elsewhere = "its weight is used outside of its forward"
    assert reasons(report) == {
        "used": elsewhere, "asked": elsewhere, "idle": "the forward pass does not call it"
    }  # fmt: skip
    assert list(factorised(made)) == ["plain"]
    made(torch.ones(2, 4))


def test_a_layer_too_small_for_any_rank_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 20))
    _, report = convein.tensorize(model, "svd", 0.5, skip=())
    assert reasons(report) == {"0": "even rank 1 has more parameters: 1.500 times as many"}
    made, _ = convein.tensorize(model, "svd", 1, skip=())
    assert len(factorised(made)) == 2


# Transformers.


@pytest.mark.parametrize("padded", [False, True])
def test_encoders_of_torch_work_in_evaluation_too(padded: bool, tokens: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*prototype")
        model = Sequence().eval()
        padding = torch.zeros(3, 7, dtype=torch.bool)
        padding[1, 5:] = True
        arguments = (tokens, padding) if padded else (tokens,)
        made, report = convein.tensorize(model, "svd", FULL, skip=(), example_inputs=arguments)
        attention = [name for name, reason in reasons(report).items() if "nn.MultiheadAttention" in reason]
        assert attention == ["encoder.layers.0.self_attn.out_proj", "encoder.layers.1.self_attn.out_proj"]
        assert len(factorised(made)) == 6
        back = convein.densify(made)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                wanted = model(*arguments)[:, :4]  # what stands beside padding is padding's neighbour in `mix`
                close(made(*arguments)[:, :4], wanted)
                close(back(*arguments)[:, :4], wanted)
        assert back.encoder.layers[0].activation_relu_or_gelu == 2
        assert made.encoder.layers[0].activation_relu_or_gelu == 0


def test_arguments_by_name(tokens: Tensor) -> None:
    named = {"tokens": tokens, "padding": None}
    _, report = convein.tensorize(Sequence(), "svd", example_inputs=named, dry_run=True)
    assert row(report, "mix").before.multiplies == 3 * 7 * 16 * 4 * 3


# The report.


def test_the_numbers_are_those_counted_by_hand(cnn: Cnn, images: Tensor) -> None:
    _, report = convein.tensorize(cnn, "svd", 2, example_inputs=images, skip=("stem", "head"), cost="flops")
    down = row(report, "down")
    assert down.before.parameters == 12 * 4 * 6 + 12
    assert down.after.parameters == 2 * (4 * 6 + 12) + 12
    assert down.before.multiplies == 4 * 12 * 5 * 5 * 4 * 6
    block = row(report, "block.conv")
    assert block.before.multiplies == 2 * 4 * 8 * 8 * 9 * 144  # called twice
    assert block.after.multiplies == 2 * 4 * 2 * (8 * 9 + 8) * 144
    assert block.after.parameters == 2 * (8 * 9 + 8) + 8
    assert row(report, "up").before.parameters == 12 * 6 * 9 + 6
    assert row(report, "middle").before.multiplies == 4 * 600 * 18
    stem = row(report, "stem")
    assert stem.before == stem.after
    assert stem.before.multiplies == 4 * 8 * 3 * 9 * 144
    assert report.before.parameters == sum(p.numel() for p in cnn.parameters()) - 16
    made, report = convein.tensorize(cnn, "svd", 2, example_inputs=images)
    assert report.after.parameters == sum(p.numel() for p in made.parameters()) - 16


def test_times_and_memory_are_those_of_the_compiled_expressions(cnn: Cnn, images: Tensor) -> None:
    made, report = convein.tensorize(cnn.train(), "svd", 2, example_inputs=images, skip=())
    assert report.training
    layer = made.get_submodule("block.conv")
    assert isinstance(layer, Conv2d)
    compiled = layer.compiled((4, 8, 12, 12), grad=True)
    after = row(report, "block.conv").after
    assert after.time == pytest.approx(2 * compiled.program.price)
    assert after.saved == 2 * compiled.saved_bytes
    made, report = convein.tensorize(cnn.eval(), "svd", 2, example_inputs=images, skip=())
    assert not report.training
    faster = row(report, "block.conv").after
    assert faster.saved == after.saved
    assert faster.time is not None
    assert after.time is not None
    assert 0 < faster.time < after.time


def test_the_table(cnn: Cnn, images: Tensor) -> None:
    _, report = convein.tensorize(cnn, "svd", 2, example_inputs=images)
    lines = str(report).splitlines()
    assert len({len(line.split("error")[0]) for line in lines if "error" in line}) == 1
    assert "multiplies" in lines[0]
    assert "inference (us)" in lines[0]
    assert lines[1].split()[:4] == ["layer", "type", "form", "ranks"]
    down = next(line for line in lines if line.startswith("down"))
    assert down.split()[:7] == ["down", "Conv2d", "svd", "r=2", "300", "84", "28,800"]
    assert next(line for line in lines if line.startswith("block.conv (also again.conv)"))
    assert next(line for line in lines if line.startswith("stem")).endswith("skipped: first")
    assert lines[-1].startswith("all layers")
    assert f"{report.before.parameters:,}" in lines[-1]
    short = str(convein.tensorize(cnn, "svd", 2)[1])
    assert "multiplies" not in short
    assert "None" not in short
    assert str(convein.tensorize(nn.ReLU())[1]) == "there is no convolution and no linear layer"


# There and back.


def through_json(report: Report) -> Any:
    return json.loads(json.dumps(report.spec))


def rebuilt(made: nn.Module, report: Report, fresh: nn.Module) -> nn.Module:
    """The model saved, made again from its spec, and loaded."""
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    again, _ = convein.tensorize(fresh, spec=through_json(report), decompose=False)
    again.load_state_dict(torch.load(file, weights_only=True))
    return again.train(made.training)


@pytest.mark.parametrize("form", ["svd", "tucker", "tt", "rtt"])
def test_a_saved_model_is_rebuilt_from_its_spec(form: str, cnn: Cnn, images: Tensor) -> None:
    overrides = {"up": {"form": "tr", "rank": 2, "accumulate": torch.float64, "factors": 2}}
    made, report = convein.tensorize(cnn, form, 0.4, overrides=overrides, example_inputs=images, decompose=False)
    again = rebuilt(made, report, Cnn())
    assert factorised(again) == factorised(made)
    close(again(images), made(images))
    assert convein.tensorize(Cnn(), spec=report.spec, dry_run=True)[1].spec == report.spec


def test_a_densified_model_is_plain_and_the_same_function(cnn: Cnn, images: Tensor) -> None:
    cnn.down.weight.requires_grad_(False)
    made, _ = convein.tensorize(cnn.double(), "svd", 0.4, skip=())
    back = convein.densify(made)
    assert {name: type(m) for name, m in back.named_modules()} == {name: type(m) for name, m in cnn.named_modules()}
    assert {name: (p.shape, p.dtype, p.requires_grad) for name, p in back.named_parameters()} == {
        name: (p.shape, p.dtype, p.requires_grad) for name, p in cnn.named_parameters()
    }
    assert str(back) == str(cnn)
    assert all(not module.training for module in back.modules())
    assert len(factorised(made)) == 6
    close(back(images.double()), made(images.double()), 1e-10)
    full, _ = convein.tensorize(cnn, "svd", FULL, skip=())
    back = convein.densify(full)
    for name, parameter in cnn.named_parameters():
        close(back.get_parameter(name), parameter, 1e-10)


def test_an_exported_model(cnn: Cnn, images: Tensor) -> None:
    made, _ = convein.tensorize(cnn, "tt", 0.4)
    exported = torch.export.export(made, (images,))
    close(exported.module()(images), made(images))


@pytest.mark.parametrize("model", [Cnn, Sequence])
def test_a_compiled_model(model: Callable[[], nn.Module], images: Tensor, tokens: Tensor) -> None:
    made, _ = convein.tensorize(model().train(), "svd", 0.4)
    made.eval()
    x = images if model is Cnn else tokens
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    close(compiled(x), made(x))


# The fastest form.


def test_auto_takes_what_is_faster_and_leaves_the_rest() -> None:
    model = nn.Sequential(nn.Linear(28, 28), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1, groups=64))
    x = torch.randn(8, 64, 28, 28)
    made, report = convein.tensorize(model, "auto", 0.2, example_inputs=x, skip=(), decompose=False)
    assert list(factorised(made)) == ["1"]
    wide = row(report, "1")
    assert wide.form != "auto"
    assert wide.before.time is not None
    assert wide.after.time is not None
    assert wide.after.time <= 0.9 * wide.before.time
    layer = made[1]
    assert isinstance(layer, Conv2d)
    assert layer.rate <= 0.2
    for name in ("svd", "tucker", "tt"):
        _, other = convein.tensorize(model, name, 0.2, example_inputs=x, skip=(), dry_run=True)
        time = row(other, "1").after.time
        assert time is not None
        assert wide.after.time <= time
    assert reasons(report)["2"] == "no form has as few as 0.2 of its parameters"
    assert all(reason.startswith(("would be slower", "no form has")) for reason in reasons(report).values())
    again, _ = convein.tensorize(model, spec=through_json(report), decompose=False)
    assert factorised(again) == factorised(made)


def test_auto_for_some_layers_only(cnn: Cnn, images: Tensor) -> None:
    overrides = {"middle": {"form": "auto", "rank": 0.2}}
    made, _ = convein.tensorize(cnn.train(), "svd", 0.5, overrides=overrides, example_inputs=images, decompose=False)
    assert factorised(made)["down"] == "svd"
    assert "auto" not in factorised(made).values()


# Errors, and models that are hard to look at.


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"skip": ("dwn",)}, 'skip: "dwn" matches no convolution or linear layer\n\ndid you mean "down"'),
    "override": (
        {"overrides": {"blok.*": None}},
        'overrides: "blok.*" matches no convolution or linear layer\n\ndid you mean "block"',
    ),
    "word": ({"skip": "frist"}, 'skip: "frist" matches no convolution or linear layer\n\ndid you mean "first"'),
    "value": ({"overrides": {"down": "tt"}}, 'overrides of "down" is "tt"\n\na dict, as {"rank": 0.2}, or None'),
    "name": ({"overrides": {"down": {"ranks": 3}}}, "ranks=3: tensorize has no such option\n\ndid you mean rank?"),
    "keyword": ({"optimise": "greedy"}, 'optimise="greedy": tensorize has no such option\n\ndid you mean optimize?'),
    "form": ({"form": "tuckr"}, "form='tuckr'\n\ndid you mean 'tucker'?"),
    "auto": ({"form": "auto"}, "form='auto' without example_inputs\n\nwhich form is fastest depends on"),
    "fraction": (
        {"form": "auto", "rank": 8, "example_inputs": torch.ones(1, 3, 12, 12)},
        "layer block.conv: rank=8 with form='auto'\n\na fraction of the dense parameters",
    ),
    "rank": ({"rank": 0}, "layer stem: rank=0 is no rank\n\na rank is at least 1"),
    "tuple": ({"rank": (2, 3)}, "layer stem: rank=(2, 3): form 'cp' has 1 bond (r)\n\na tuple of ranks has"),
    "input": (
        {"example_inputs": torch.ones(1, 4, 12, 12)},
        "the model does not run on example_inputs: RuntimeError: Given groups=1",
    ),
    "spec": ({"spec": {"forms": 3}}, "a spec is `report.spec`"),
    "other spec": (
        {"spec": {"layers": {"dwon": {"form": "svd", "rank": [2], "factors": 3}}}},
        'spec: "dwon" matches no convolution or linear layer\n\ndid you mean "down"?',
    ),
    "both": ({"spec": {"layers": {}}, "rank": 3}, "the spec says it all"),
    "object": ({"cost": lambda step: 1.0}, "cannot be written to a spec"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_would_be_right(case: str, cnn: Cnn) -> None:
    given, words = ERRORS[case]
    with pytest.raises(convein.OptionError) as raised:
        _ = convein.tensorize(cnn, **given, dry_run=True)[1].spec
    assert words in str(raised.value)
    assert not factorised(cnn)


def test_weights_without_values_cannot_be_decomposed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(convein.OptionError, match="layer 0 is on the meta device"):
        convein.tensorize(model, "svd", skip=())
    made, _ = convein.tensorize(model, "svd", skip=(), decompose=False)
    assert next(made.parameters()).is_meta


def test_the_forward_pass_is_that_of_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    _, report = convein.tensorize(model, "svd", example_inputs=torch.ones(1, 4), skip=(), dry_run=True)
    assert report.training
    assert row(report, "2").before.multiplies == 16
    assert all(module.training for module in model.modules())


class Restless(nn.Module):
    """Asks for values, counts its calls in a buffer, draws numbers, keeps what it has seen."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("counter", torch.zeros(()))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        self.seen = x
        x = x + torch.rand(4)
        return self.b(x) if float(x.sum()) > 0 else self.a(self.b(x))


def test_a_model_that_asks_for_values_runs_on_real_tensors() -> None:
    model, random = Restless(), torch.get_rng_state()
    _, report = convein.tensorize(model, "svd", skip=(), example_inputs=torch.ones(2, 4), dry_run=True)
    assert reasons(report) == {"a": "the forward pass does not call it"}
    assert model.seen is None
    assert float(model.counter) == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_is_skipped_without_words(cnn: Cnn) -> None:
    made, _ = convein.tensorize(cnn, "svd", 0.3, skip=None, decompose=False)
    assert len(factorised(made)) == 6


def test_a_layer_that_cannot_have_the_form_is_left_alone(cnn: Cnn, images: Tensor) -> None:
    made, report = convein.tensorize(cnn, "interleaved", example_inputs=images, decompose=False, skip=())
    assert reasons(report) == {"down": "form='interleaved' cannot have groups=2"}
    assert set(factorised(made)) == {"head", "stem", "block.conv", "up", "middle"}
    assert made(images).shape == cnn(images).shape
    again, _ = convein.tensorize(cnn, spec=through_json(report), decompose=False)
    assert factorised(again) == factorised(made)
    even = nn.Sequential(nn.Conv1d(4, 4, 2), nn.Conv1d(4, 4, 3))
    _, dry = convein.tensorize(even, "interleaved", skip=(), dry_run=True)
    assert reasons(dry) == {"0": "form='interleaved' cannot have kernel_size=(2,)"}
    spec = {"layers": {"0": {"form": "interleaved", "factors": 3, "rank": []}}}
    with pytest.raises(convein.OptionError, match="layer 0 cannot be replaced: form='interleaved' cannot have"):
        convein.tensorize(even, spec=spec, decompose=False)


def test_a_weight_that_torch_does_not_copy() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(4, 4))
    model, x = nn.Sequential(nn.Sequential(old), nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(2, 4)
    before = model(x)
    for change in (convein.tensorize, convein.densify):
        with pytest.raises(convein.OptionError, match=r"0\.0\.weight of the model is computed from other tensors"):
            change(model)
    _, report = convein.tensorize(model, "svd", skip="2", dry_run=True)
    model[2].cache = before  # of a layer that is replaced: it is not copied
    made, _ = convein.tensorize(nn.Sequential(*model[1:]), "svd", skip="0")
    assert set(factorised(made)) == {"1"}
    made, _ = convein.tensorize(model, "svd", FULL, skip="2", inplace=True)
    assert made is model
    assert set(factorised(made)) == {row.layer for row in report.rows if row.form} == {"1"}
    close(made(x), before)


@pytest.mark.parametrize(
    ("first", "example"),
    [
        (nn.Linear(7, 4), "torch.randn(1, 7)"),
        (nn.Conv1d(3, 4, 3), "torch.randn(1, 3, 1000)"),
        (nn.ConvTranspose2d(3, 4, 3), "torch.randn(1, 3, 224, 224)"),
        (nn.Conv3d(3, 4, 3), "torch.randn(1, 3, 16, 112, 112)"),
        (nn.Embedding(9, 4), "torch.randint(9, (1, 128))"),
        (nn.LSTM(5, 4), "torch.randn(1, 128, 5)"),
        (nn.LazyLinear(5), "torch.randn(...)"),
    ],
)
def test_inputs_are_proposed_that_the_model_takes(first: nn.Module, example: str) -> None:
    with pytest.raises(convein.OptionError) as raised:
        convein.tensorize(nn.Sequential(nn.Sequential(first), nn.Linear(4, 4)), "auto", skip=())
    assert str(raised.value).endswith(f": example_inputs={example}")


def test_nothing_is_logged_where_shapes_do_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    try:
        with pytest.raises(convein.OptionError, match="does not run on example_inputs"):
            convein.tensorize(nn.Linear(4, 4), example_inputs=torch.ones(2, 5), dry_run=True)
        assert not caplog.records
        assert not log.disabled
    finally:
        log.removeHandler(caplog.handler)


# The command line.

NETWORKS = """
import torch
from torch import nn


def small():
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))


def words():
    return nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 9))


ready = small()
number = 3


def nothing():
    return None


def wide(width, depth=2):
    return nn.Linear(width, width)


def broken():
    return nn.Linear(4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of models."""
    (tmp_path / "some_networks.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "some_networks", raising=False)
    return tmp_path


def test_the_command_prints_the_dry_run(folder: Path) -> None:
    command = [sys.executable, "-m", "convein", "tensorize", "some_networks:small", "--input", "1,3,16,16"]
    paths = {**os.environ, "PYTHONPATH": str(Path(convein.__file__).parents[1])}
    run = subprocess.run(
        [*command, "--form", "svd", "--rank", "0.2"], cwd=folder, env=paths, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    spec: dict[str, Any] = {}
    exec(NETWORKS, spec)
    model = spec["small"]().eval()
    _, report = convein.tensorize(model, "svd", 0.2, example_inputs=torch.zeros(1, 3, 16, 16), dry_run=True)
    assert run.stdout == f"{report}\n"


def test_the_options_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "tensorize some_networks:words --input 2,5:int64 --form tt --rank 3 --skip --training --spec spec.json"
    assert main([*line.split(), "--override", "2:form=svd,rank=4,multiple=2", "--override", "3"]) == 0
    printed = capsys.readouterr().out
    assert "training step (us)" in printed
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    assert {name: (entry["form"], entry["rank"]) for name, entry in spec["layers"].items()} == {
        "1": ("tt", [3]),
        "2": ("svd", [4]),
    }
    line = "tensorize some_networks:ready --form tucker --rank 8,4 --skip 0 --factors 2 --multiple 4"
    assert main(line.split()) == 0
    assert "q=8, r=4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("some_networks", "some_networks names no model\n\na model is written module:factory"),
        ("some_network:small", "some_network:small: No module named 'some_network'"),
        ("some_networks:smal", "there is no smal in some_networks\n\ndid you mean small?"),
        ("some_networks:nothing", "some_networks:nothing gives a NoneType\n\nan nn.Module, or a function"),
        (
            "some_networks:wide",
            "some_networks:wide cannot be called without arguments: missing a required argument: 'width'",
        ),
        ("some_networks:nn.Conv2d", "some_networks:nn.Conv2d cannot be called without arguments: missing"),
        ("some_networks:nn.functional.relu", "name a function that takes none: def small(): return Network(10)"),
        ("some_networks:number", "some_networks:number gives a int"),
        ("some_networks:small --input 1,x", "--input 1,x\n\na shape is written 1,3,224,224"),
        ("some_networks:small --input 1,3:pixels", "--input 1,3:pixels\n\na shape is written 1,3,224,224"),
        ("some_networks:small --form auto", "form='auto' without example_inputs"),
        ("some_networks:small --override 2:tt", '--override "2:tt"\n\nas "layer4.*:form=tt,rank=0.05"'),
        ("some_networks:small --rank many", "rank='many' is no rank\n\na rank is a number for all bonds"),
    ],
)
def test_errors_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    assert folder
    assert main(["tensorize", *line.split()]) == 2
    out, complaint = capsys.readouterr()
    assert not out
    assert words in complaint


def test_a_mistake_within_a_factory_is_its_own(folder: Path) -> None:
    assert folder
    with pytest.raises(TypeError, match="out_features"):
        main(["tensorize", "some_networks:broken"])


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_model_is_watched_as_it_was_written(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    compiled: Any = model if inplace else torch.compile(model)
    if inplace:
        model.compile()
    x = torch.randn(1, 1, 8, 8)
    _, report = convein.tensorize(compiled, "tt", 0.3, example_inputs=x, skip=(), decompose=False)
    assert [row.before.multiplies for row in report.rows] == [72 * 36, 576 * 16]
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Doubled(convein.layers.Conv2d):
    def forward(self, *given: Any, **named: Any) -> Tensor:
        return 2 * super().forward(*given, **named)


def test_a_layer_that_does_more_than_torchs_is_not_densified() -> None:
    with pytest.raises(convein.OptionError, match=r"layer 0: its class Doubled defines forward"):
        convein.densify(nn.Sequential(Doubled(8, 8, 3)))
    layer = convein.layers.Conv2d(8, 8, 3)
    layer.register_forward_hook(lambda module, given, made: 2 * made)
    with pytest.raises(convein.OptionError, match=r"layer 0: hooks are registered on it"):
        convein.densify(nn.Sequential(layer))
