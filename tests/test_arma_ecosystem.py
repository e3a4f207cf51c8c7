"""ARMA layers as nn.Modules: saved, copied, compiled, exported, transformed, under autocast, in half types."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import convein
from convein.layers import ARMA1d, ARMA2d, ARMA3d, autoregress
from convein.layers.stability import STABILITIES


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def layer(**given: object) -> ARMA2d:
    return ARMA2d(3, 4, 3, padding=1, a_init=0.5, **given)


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 6, 5, dtype=dtype)


def same(ours: object, theirs: object, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stability", STABILITIES)
def test_saved_and_copied(stability: str) -> None:
    module, other, x = layer(stability=stability), layer(stability=stability), images()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == ["alpha", "moving_average.w1", "moving_average.bias"]
    other.load_state_dict(state)
    value = module(x)
    for copied in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copied) == repr(module)
        assert torch.equal(copied(x), value)
        copied.reset_parameters()
        assert not torch.equal(copied(x), value)
    assert torch.equal(module(x), value)


def test_a_layer_says_what_it_is() -> None:
    module = ARMA1d(2, 3, 3, factors=2, margin=0.1, bias=False)
    assert repr(module).startswith("ARMA1d(\n  factors=2, stability='bounded', a_init=0, margin=0.1\n")
    assert "2, 3, kernel_size=(3,), bias=False, form='dense'" in repr(module)


def test_meta_tensors_and_double_precision() -> None:
    module = ARMA3d(2, 3, 3, device="meta", a_init=0.5)
    assert module(torch.empty(2, 2, 4, 5, 6, device="meta")).shape == (2, 3, 2, 3, 4)
    real = module.to_empty(device="cpu").double()
    real.reset_parameters()
    assert real(torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("gradients", [True, False])
def test_one_graph_for_every_batch(gradients: bool) -> None:
    module = layer(factors=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(gradients):
        for batch in (2, 3, 5):
            x = images(batch).requires_grad_(gradients)
            ours, theirs = compiled(x), module(x)
            same(ours, theirs)
            if gradients:
                leaves = [x, *module.parameters()]
                same(*(torch.autograd.grad(value.square().sum(), leaves) for value in (ours, theirs)), 1e-3)
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_batch(strict: bool) -> None:
    module = nn.Sequential(layer(), nn.ReLU(), ARMA2d(4, 2, 3, stride=2, stability="free_difference", a_init=0.3))
    program = torch.export.export(module, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in (2, 1, 7):
        x = images(size)
        same(loaded.module()(x), module(x))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in")) for target in targets), targets


def test_tracers() -> None:
    module, x = layer(), images()
    with torch.no_grad():
        symbolic = torch.fx.symbolic_trace(module)
        same(symbolic(x[:1]), module(x[:1]))
        same(make_fx(module)(x)(x), module(x))


@pytest.mark.parametrize("taps_learn", [True, False])
def test_an_autoregression_compiles_by_itself(taps_learn: bool) -> None:
    compiled = torch.compile(autoregress, backend="aot_eager", fullgraph=True)
    sums, differences = (torch.full((3, 1, 2), 0.4).requires_grad_(taps_learn) for _ in range(2))
    x = images().requires_grad_()
    leaves = [x, sums, differences] if taps_learn else [x]
    ours, theirs = compiled(x, sums, differences), autoregress(x, sums, differences)
    same(ours, theirs)
    same(*(torch.autograd.grad(value.square().sum(), leaves) for value in (ours, theirs)), 1e-3)


def test_an_ensemble_and_its_gradients_by_vmap() -> None:
    modules = [layer(dtype=torch.float64) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    x = images(dtype=torch.float64)

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(modules[0], (values, buffers), (x,)).square().sum()

    found = vmap(grad(loss), (0, None))(parameters, x)
    singly = vmap(grad(loss), (None, 0))(dict(modules[0].named_parameters()), x)
    for number, module in enumerate(modules):
        wanted = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
        same([each[number] for each in found.values()], list(wanted), 1e-9)
        if number == 0:
            same([each.sum(0) for each in singly.values()], list(wanted), 1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")
def test_tangents_of_the_input_and_the_parameters() -> None:
    module, x, direction = layer(dtype=torch.float64), *(images(dtype=torch.float64) for _ in range(2))
    value, tangent = jvp(module, (x,), (direction,))
    same(value, module(x), 1e-12)
    same(tangent, module(direction) - module(torch.zeros_like(x)), 1e-9)
    of_alpha = torch.randn_like(module.alpha)

    def called(alpha: Tensor) -> Tensor:
        return functional_call(module, {"alpha": alpha}, (x,))

    _, tangent = jvp(called, (module.alpha.detach(),), (of_alpha,))
    step = 1e-6 * of_alpha
    same(tangent, (called(module.alpha + step) - called(module.alpha - step)) / 2e-6, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    x = images().to(dtype)
    sums, differences = torch.rand(3, 1, 2) - 0.5, torch.randn(3, 1, 2)
    ours = autoregress(x, sums, differences)
    assert ours.dtype == dtype
    assert torch.equal(ours, autoregress(x.float(), sums, differences).to(dtype))
    module = layer(dtype=dtype)
    value = module(x)
    assert value.dtype == dtype
    value.sum().backward()
    assert module.alpha.grad is not None
    assert module.alpha.grad.dtype == dtype
    wide = copy.deepcopy(module).float()
    wide.zero_grad()
    wide(x.float()).sum().backward()
    torch.testing.assert_close(value.float(), wide(x.float()), rtol=0.05, atol=0.05)
    torch.testing.assert_close(module.alpha.grad.float(), wide.alpha.grad, rtol=0.1, atol=0.5)


def test_autocast_runs_the_autoregression_in_single_precision() -> None:
    module, x = layer(), images()
    with torch.autocast("cpu", torch.bfloat16):
        value = module(x)
        moved = module.moving_average(x)
    assert moved.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    same(value, autoregress(moved.float(), *module.coefficients()), 1e-6)
    value.square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in module.parameters())


def test_an_empty_batch_and_a_broadcast_one() -> None:
    module = layer()
    nothing = module(images(0).requires_grad_())
    assert nothing.shape == (0, 4, 6, 5)
    nothing.sum().backward()
    assert torch.equal(module.alpha.grad, torch.zeros_like(module.alpha))
    x = images(1)
    same(module(x.expand(3, -1, -1, -1)), module(x).expand(3, -1, -1, -1), 1e-6)
    same(module(x.to(memory_format=torch.channels_last)), module(x), 1e-5)


def test_whole_models_keep_their_autoregressions() -> None:
    model, x = nn.Sequential(layer(), nn.Conv2d(4, 4, 3), ARMA2d(4, 2, 3, form="cp", rank=0.9)), images()
    plain = convein.densify(copy.deepcopy(model))
    assert type(plain[0]) is ARMA2d
    assert type(plain[0].moving_average) is nn.Conv2d
    same(plain(x), model(x))
    again = copy.deepcopy(plain)
    again[0].alpha.data.zero_()
    assert not torch.allclose(again(x), plain(x))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_an_old_trace() -> None:
    layer, x = ARMA2d(2, 3, 3, padding=1), torch.randn(2, 2, 8, 8)
    nn.init.uniform_(layer.alpha, -0.5, 0.5)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
