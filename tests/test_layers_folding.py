"""Outside of training a layer computes once what depends on its weights alone, and notices when they change."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.utils import parameters_to_vector, parametrize, prune, vector_to_parameters

import convein.layers.base
from contexts import deterministic
from convein.layers import Conv2d, ConvEinsum, ConvTranspose2d
from convein.layers.folding import unfolded


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The expressions that layers compile, one entry for each time."""
    seen: list[str] = []
    inner = convein.layers.base.compile

    def counted(text: str, *given: Any, **named: Any) -> Any:
        seen.append(text)
        return inner(text, *given, **named)

    monkeypatch.setattr(convein.layers.base, "compile", counted)
    return seen


def layer(**given: Any) -> Conv2d:
    return Conv2d(8, 12, 3, padding=1, **{"form": "tt", "rank": 0.5, **given})


def images(*batch: int) -> Tensor:
    return torch.randn(*(batch or (2,)), 8, 7, 6)


def dense(module: Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, module.dense_weight(), module.bias, padding=1)


def agree(module: Conv2d, x: Tensor) -> None:
    torch.testing.assert_close(module(x), dense(module, x), rtol=1e-4, atol=1e-5)


def test_once_for_each_shape_from_the_second_call(compilations: list[str]) -> None:
    module, x = layer().eval(), images()
    with torch.no_grad():
        agree(module, x)
        assert not compilations
        for _ in range(4):
            agree(module, x)
        assert len(compilations) == 1
        for _ in range(4):
            agree(module, images(3))
        assert len(compilations) == 2
        for _ in range(4):
            agree(module, x)
            agree(module, x.contiguous(memory_format=torch.channels_last))
        assert len(compilations) == 3


def test_not_in_training_and_not_where_weights_need_gradients(compilations: list[str]) -> None:
    module, x = layer(), images()
    with torch.no_grad():
        for _ in range(3):
            agree(module, x)
    module.eval()
    for _ in range(3):
        value = module(x)
    value.sum().backward()
    assert all(weight.grad is not None for weight in module.parameters())
    module.w2.requires_grad_(False)
    for _ in range(3):
        agree(module, x)
    assert not compilations


@pytest.mark.parametrize("form", ["tt", "tucker", "rcp"])
def test_not_where_every_call_must_give_the_same_bits(form: str, compilations: list[str]) -> None:
    module, x = Conv2d(64, 64, 3, padding=1, form=form).eval(), torch.randn(2, 64, 8, 8)
    for where in (deterministic, unfolded):
        with torch.no_grad(), where():
            first = module(x)
            assert all(torch.equal(module(x), first) for _ in range(3))
    assert not compilations


def test_frozen_weights_still_give_the_gradient_of_the_input(compilations: list[str]) -> None:
    module = layer().eval()
    for weight in module.weights:
        weight.requires_grad_(False)
    assert module.bias is not None
    for _ in range(3):
        x = images().requires_grad_()
        ours = torch.autograd.grad(module(x).pow(3).sum(), [x, module.bias])
        theirs = torch.autograd.grad(dense(module, x).pow(3).sum(), [x, module.bias])
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert len(compilations) == 1
    with torch.no_grad():
        agree(module, images())
        agree(module, images())
    x = images().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(module(x).sum(), x), torch.autograd.grad(dense(module, x).sum(), x), rtol=1e-4, atol=1e-4
    )


def optimizers() -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    return {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-4, momentum=0.9),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=False),
        "foreach": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=True),
        "fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    }


@pytest.mark.parametrize("name", optimizers())
def test_an_optimizers_step_is_noticed(name: str) -> None:
    module, x = layer().eval(), images()
    optimizer = optimizers()[name](module.parameters())
    for _ in range(3):
        with torch.no_grad():
            for _ in range(3):
                agree(module, x)
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


def other_numbers(module: Conv2d) -> dict[str, Tensor]:
    return layer(init=3.0).state_dict()


def written(module: Conv2d) -> None:
    module.w1.mul_(2)


def copied(module: Conv2d) -> None:
    module.w3.copy_(torch.randn_like(module.w3))


def loaded(module: Conv2d) -> None:
    module.load_state_dict(other_numbers(module))


def assigned(module: Conv2d) -> None:
    module.load_state_dict(other_numbers(module), assign=True)


def swapped(module: Conv2d) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.load_state_dict(other_numbers(module))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def replaced(module: Conv2d) -> None:
    module.w2 = nn.Parameter(torch.randn_like(module.w2))


def with_other_data(module: Conv2d) -> None:
    module.w2.data = torch.randn_like(module.w2)


def from_a_vector(module: Conv2d) -> None:
    vector_to_parameters(2 * parameters_to_vector(module.parameters()), module.parameters())


def drawn(module: Conv2d) -> None:
    module.reset_parameters()


def through_data_and_eval(module: Conv2d) -> None:
    module.w2.data.copy_(torch.randn_like(module.w2))
    module.eval()


CHANGES = [
    written, copied, loaded, assigned, swapped, replaced, with_other_data, from_a_vector, drawn, through_data_and_eval,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_a_weight_is_noticed(change: Callable[[Conv2d], None]) -> None:
    module, x = layer().eval(), images()
    with torch.no_grad():
        before = module(x)
        for _ in range(3):
            torch.testing.assert_close(module(x), before)
        change(module)
        for _ in range(3):
            agree(module, x)
        assert not torch.allclose(module(x), before, atol=0.1)


def test_conversions_are_noticed(compilations: list[str]) -> None:
    module, x = layer().eval(), images()
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float32):
            module.to(dtype)
            for _ in range(3):
                torch.testing.assert_close(
                    module(x.to(dtype)), dense(module, x.to(dtype)), rtol=0.05 if dtype == torch.bfloat16 else 1e-4,
                    atol=0.1 if dtype == torch.bfloat16 else 1e-5,
                )  # fmt: skip
    assert len(compilations) == 5


def test_evaluation_inference_mode_and_training_again(compilations: list[str]) -> None:
    module, x = layer().eval(), images()
    for _ in range(2):
        with torch.inference_mode():
            for _ in range(3):
                value = module(x)
            agree(module, x)
        assert value.is_inference()
        module.train()
        for _ in range(2):
            module.zero_grad()
            module(x).square().sum().backward()
        assert all(float(weight.grad.abs().sum()) > 0 for weight in module.parameters() if weight.grad is not None)
        module.eval()
    assert len(compilations) == 2
    module.requires_grad_(False)
    with torch.inference_mode():
        for _ in range(3):
            module(x)
    leaf = x.clone().requires_grad_()
    for _ in range(3):
        module(leaf).sum().backward()
    assert leaf.grad is not None


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module, x = layer().eval(), images()
        for _ in range(3):
            agree(module, x)
    with torch.no_grad():
        agree(module, x)


def test_values_are_new_each_time() -> None:
    """A bias is added in place of the value, a caller may write to it: neither reaches what is kept."""
    for expression, sizes, shape in [
        ("bs,st->bt", {"s": 3, "t": 4}, (2, 3)),
        ("bs,t->bt", {"t": 4}, (2, 3)),
        ("b,t->bt", {"t": 4}, (0,)),
        ("bs,->bs", {}, (2, 3)),
        ("bsh,t->bth|h[stride=3, padding=2]", {"t": 4}, (2, 3, 1)),
    ]:
        module = ConvEinsum(expression, sizes, bias="t" if "t" in sizes else None).eval()
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = module(x).clone()
            for _ in range(4):
                value = module(x)
                torch.testing.assert_close(value, wanted)
                value.zero_()


def test_many_shapes_cost_neither_memory_nor_compilations(compilations: list[str]) -> None:
    module = layer(form="cp", rank=1.0).eval()
    with torch.no_grad():
        for _ in range(2):
            for size in range(1, 81):
                module(torch.randn(1, 8, 3, size))
    assert not compilations
    assert len(module._folds._known) <= 64
    with torch.no_grad():
        for _ in range(3):
            for size in range(3, 23):
                module(torch.randn(1, 8, 3, size))
    assert len(compilations) == 20
    known = [expression for _, _, expression in module._folds._known.values() if expression is not None]
    storages = {folded.untyped_storage().data_ptr() for expression in known for folded in expression._folded}
    plans = {tuple(tuple(folded.shape) for folded in expression._folded) for expression in known}
    assert len(known) == 20
    assert len(storages) <= sum(map(len, plans)) < 20


def test_weights_that_change_before_every_call_cost_no_compilations(compilations: list[str]) -> None:
    module, x = layer().eval(), images()
    with torch.no_grad():
        for _ in range(4):
            module.w1.mul_(1.1)
            agree(module, x)
    assert not compilations


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_weights_that_are_computed(compilations: list[str]) -> None:
    x = images()
    parametrized, pruned, called = layer(), layer(), layer()
    parametrize.register_parametrization(parametrized, "w2", Twice())
    prune.random_unstructured(pruned, "w1", 0.5)
    for module in (parametrized.eval(), pruned.eval()):
        before = module(x).detach()
        with torch.no_grad():
            for _ in range(3):
                agree(module, x)
            with parametrize.cached():
                agree(module, x)
        torch.testing.assert_close(copy.deepcopy(module)(x), before)
        module.train()
        module(x).sum().backward()
    values = {name: 2 * weight.detach() for name, weight in called.eval().named_parameters()}
    with torch.no_grad():
        for _ in range(3):
            value = torch.func.functional_call(called, values, (x,))
            assert called.bias is not None
            wanted = 2**4 * (called(x) - called.bias.view(-1, 1, 1)) + 2 * called.bias.view(-1, 1, 1)
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)
    assert len(compilations) == 1  # of the call with its own weights


def test_what_looks_on_gets_no_folded_weights(compilations: list[str]) -> None:
    """Fake tensors must not leave fake constants behind, and graphs and autocast have their own weights."""
    module, x = layer().eval(), images()
    with torch.no_grad():
        for shapes in (None, ShapeEnv()):
            with FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes) as fake:
                for _ in range(3):
                    assert module(fake.from_tensor(x)).shape[1:] == (12, 7, 6)
                    module(x)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        for _ in range(3):
            assert isinstance(module(fake.from_tensor(x)), FakeTensor)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                assert module(x).dtype == torch.bfloat16
            assert torch.func.vmap(module)(x).shape == (2, 12, 7, 6)
        assert not compilations
        for _ in range(3):
            agree(module, x)


def test_copies_and_pickles_fold_for_themselves() -> None:
    module, x = layer().eval(), images()
    with torch.no_grad():
        for _ in range(3):
            module(x)
        assert len(module._folds) == 1
        saved = io.BytesIO()
        torch.save(module, saved)
        saved.seek(0)
        others = [
            copy.deepcopy(module),
            copy.copy(module),
            pickle.loads(pickle.dumps(module)),
            torch.load(saved, weights_only=False),
        ]
        for other in others:
            torch.testing.assert_close(other(x), module(x))
            if other is not others[1]:
                assert len(other._folds) == 0
        others[0].w1.mul_(2)
        for _ in range(3):
            agree(others[0], x)
            agree(module, x)


def test_an_output_size_has_its_own() -> None:
    module = ConvTranspose2d(8, 6, 3, stride=2, form="tucker", rank=0.5).eval()
    x = torch.randn(2, 8, 5, 4)
    with torch.no_grad():
        for _ in range(3):
            for height in (11, 12):
                theirs = F.conv_transpose2d(
                    x, module.dense_weight(), module.bias, stride=2, output_padding=(height - 11, 0)
                )
                torch.testing.assert_close(module(x, output_size=(height, 9)), theirs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(module(x), theirs[:, :, :11], rtol=1e-4, atol=1e-5)
    assert len(module._folds) == 3


def test_threads() -> None:
    module = layer().eval()
    inputs = [images(1 + number % 3) for number in range(24)]
    with torch.no_grad():
        wanted = [dense(module, x) for x in inputs]

    def evaluated(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    with ThreadPoolExecutor(4) as pool:
        for value, theirs in zip(pool.map(evaluated, inputs), wanted, strict=True):
            torch.testing.assert_close(value, theirs, rtol=1e-4, atol=1e-5)
