"""Layers as nn.Modules: saved, copied, compiled, exported, transformed, under autocast."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from convein.layers import FORMS, Conv2d, ConvEinsum, ConvTranspose2d, Linear

MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def layer(form: str = "tt", **given: Any) -> Conv2d:
    return Conv2d(8, 12, 3, padding=1, form=form, rank=0.5, **given)


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 8, 6, 5, dtype=dtype)


def same(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_comes_back(form: str) -> None:
    module, other, x = layer(form), layer(form), images()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == [*(f"w{i}" for i in range(1, len(module.weights) + 1)), "bias"]
    assert other.load_state_dict(state) == nn.modules.module._IncompatibleKeys([], [])
    assert torch.equal(other(x), module(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Conv2d(8, 13, 3, form=form, rank=0.5).load_state_dict(state)


@MODES
@pytest.mark.parametrize("form", FORMS)
def test_copies(form: str, training: bool) -> None:
    module, x = layer(form).train(training), images()
    value = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.training == training
        assert repr(other) == repr(module)
        assert torch.equal(other(x), value)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in module.parameters()}
        other.reset_parameters()
        assert torch.equal(module(x), value)


@MODES
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("form", ["cp", "rtr", "interleaved", "tucker"])
def test_one_graph_for_every_batch(form: str, gradients: bool, training: bool) -> None:
    module = layer(form).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(gradients):
        for batch in (2, 3, 5, 8):
            x = images(batch).requires_grad_(gradients)
            ours, theirs = compiled(x), module(x)
            same(ours, theirs)
            if gradients:
                leaves = [x, *module.parameters()]
                same(*(torch.autograd.grad(value.square().sum(), leaves) for value in (ours, theirs)), 1e-3)
        with torch.no_grad():
            module.w1.mul_(2)
        same(compiled(x), F.conv2d(x, module.dense_weight(), module.bias, padding=1))
    assert counter.frame_count == 1


@MODES
def test_compiled_after_folding_and_folded_after_compiling(training: bool) -> None:
    module, x = layer().train(training), images()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            same(compiled(x), module(x))


def test_a_transposed_layer_with_an_output_size_compiles() -> None:
    module = ConvTranspose2d(8, 6, 3, stride=2, form="cp")
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = images(batch)
        same(compiled(x, output_size=(14, 12)), module(x, output_size=(14, 12)))


@MODES
@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_batch(strict: bool, training: bool) -> None:
    module = nn.Sequential(layer(), nn.ReLU(), Conv2d(12, 4, 3, form="rcp")).train(training)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    assert set(program.state_dict) == set(module.state_dict())
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in (2, 1, 7):
        x = images(size)
        same(loaded.module()(x), module(x))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in")) for target in targets), targets


@MODES
def test_tracers(training: bool) -> None:
    module, x = layer().train(training), images()
    with torch.no_grad():
        symbolic = torch.fx.symbolic_trace(module)
        same(symbolic(x), module(x))
        same(symbolic(x[:1]), module(x[:1]))
        same(make_fx(module)(x)(x), module(x))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@MODES
def test_an_old_trace(training: bool) -> None:
    module, x = layer().train(training), images()
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        same(traced(x), module(x))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@MODES
@pytest.mark.parametrize("form", ["tucker", "tt", "rcp"])
def test_tracers_behind_another_layer_with_gradients(form: str, training: bool) -> None:
    """What comes out of it needs a gradient, but not in the second trace that torch.jit.trace compares with."""
    module = nn.Sequential(nn.Conv2d(8, 8, 1), layer(form)).train(training)
    x = images()
    same(torch.jit.trace(module, x)(x), module(x))
    same(torch.fx.symbolic_trace(module)(x), module(x))


@MODES
@pytest.mark.parametrize("form", ["cp", "rtt"])
def test_an_ensemble_by_vmap(form: str, training: bool) -> None:
    modules = [layer(form).train(training) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    x = images()

    def call(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (values, buffers), (x,))

    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            value = vmap(call, (0, None))(parameters, x)
            same(value, torch.stack([module(x) for module in modules]))
    ours = torch.autograd.grad(value.square().sum(), list(parameters.values()))
    for name, gradient in zip(parameters, ours, strict=True):
        for module, mine in zip(modules, gradient, strict=True):
            same(mine, torch.autograd.grad(module(x).square().sum(), module.get_parameter(name))[0], 1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")
@MODES
def test_transforms(training: bool) -> None:
    module = layer(dtype=torch.float64).train(training)
    x, direction = images(dtype=torch.float64), images(dtype=torch.float64)
    linear = module(direction) - module(torch.zeros_like(x))
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            for _ in range(3):
                value, tangent = jvp(module, (x,), (direction,))
                same(value, module(x), 1e-9)
                same(tangent, linear, 1e-9)
                with forward_ad.dual_level():
                    same(forward_ad.unpack_dual(module(forward_ad.make_dual(x, direction))).tangent, linear, 1e-9)
    values = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(module, values, (x,)).square().sum()

    theirs = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    same(list(grad(loss)(values).values()), list(theirs), 1e-9)
    small = images(1, torch.float64)[..., :2, :2]
    same(jacrev(module)(small), jacfwd(module)(small), 1e-9)
    same(torch.autograd.functional.jacobian(module, small, vectorize=True), jacrev(module)(small), 1e-9)


@MODES
def test_autocast(training: bool) -> None:
    module, x = layer().train(training), images()
    with torch.no_grad():
        wanted = module(x)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16):
                    value = module(x)
                assert value.dtype == torch.bfloat16
                same(value.float(), wanted, 0.1)
                assert module(x).dtype == torch.float32
                same(module(x), wanted)
    value.float().sum().backward()
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}


@MODES
@pytest.mark.parametrize("form", ["cp", "block-term", "rtr", "interleaved"])
def test_gradients_by_finite_differences(form: str, training: bool) -> None:
    module = Conv2d(4, 4, 3, stride=2, padding=1, form=form, rank=2, factors=2, dtype=torch.float64).train(training)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, *values))


@MODES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("form", ["dense", "svd", "cp", "tucker", "tt", "rcp", "interleaved"])
def test_dtypes(form: str, dtype: torch.dtype, bias: bool, training: bool) -> None:
    """As exact as torch's own convolution of the rounded dense weight, times the roundings between the factors."""
    tolerance = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for module, x in [
        (layer(form, dtype=dtype, bias=bias), images(dtype=dtype)),
        (Linear(8, 12, form=form, rank=0.5, dtype=dtype, bias=bias), torch.randn(5, 8, dtype=dtype)),
    ]:
        module.train(training)
        reference = copy.deepcopy(module)
        for parameter in reference.parameters():
            parameter.data = parameter.data.to(wide)
        dense, offset = reference.dense_weight(), reference.bias
        call = F.linear if isinstance(module, Linear) else F.conv2d
        more = {} if isinstance(module, Linear) else {"padding": 1}
        wanted = call(x.to(wide), dense, offset, **more)
        with torch.no_grad():
            for _ in range(3):
                value = module(x)
                assert value.dtype == dtype
                same(value.to(wide), wanted.detach(), tolerance)


@MODES
def test_the_meta_device(training: bool) -> None:
    for module, x in [(layer(device="meta"), images()), (Linear(8, 5, device="meta"), torch.randn(3, 8))]:
        module.train(training)
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                value = module(x.to("meta"))
        assert value.is_meta
        assert value.shape == copy.deepcopy(module).to_empty(device="cpu")(x).shape
        value.sum().backward()
    with torch.device("meta"):
        assert layer().w1.is_meta


@pytest.mark.parametrize("form", FORMS)
def test_linear_layers(form: str) -> None:
    for inputs, outputs in [(12, 20), (7, 1), (1, 5), (13, 17)]:
        module = Linear(inputs, outputs, form=form, rank=0.6, factors=2, dtype=torch.float64, bias=outputs != 5)
        for shape in [(3, inputs), (inputs,), (2, 3, inputs), (0, inputs), (2, 1, 1, inputs)]:
            wide = torch.randn(*shape[:-1], 2 * inputs, dtype=torch.float64)
            for x in (wide[..., ::2].contiguous().requires_grad_(), wide[..., ::2].requires_grad_()):
                leaves = [x, *module.parameters()]
                ours, theirs = module.train()(x), F.linear(x, module.dense_weight(), module.bias)
                torch.testing.assert_close(ours, theirs)
                gradients = [
                    torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True) for y in (ours, theirs)
                ]
                torch.testing.assert_close(*gradients)
                with torch.no_grad():
                    for _ in range(3):
                        torch.testing.assert_close(module.eval()(x), theirs)


def test_tied_and_hooked_weights() -> None:
    first, second, x = layer(), layer(), images()
    second.w1, second.w2 = first.w1, first.w2
    model = nn.Sequential(first, Conv2d(12, 8, 1, form="svd"), second)
    assert len(list(model.parameters())) == 5 + 3 + 3
    model(x).sum().backward()
    assert first.w1.grad is not None
    seen: list[torch.Size] = []
    first.register_forward_hook(lambda _module, _args, value: seen.append(value.shape))
    first.eval()
    with torch.no_grad():
        for _ in range(3):
            first(x)
    assert seen == [(2, 12, 6, 5)] * 3


def test_training_learns() -> None:
    """A network of layers fits what a network of the same layers makes."""
    teacher, student = (nn.Sequential(layer("cp"), nn.ReLU(), Conv2d(12, 4, 3, form="rtt", rank=0.5)) for _ in range(2))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    x = images(16)
    with torch.no_grad():
        wanted = teacher(x)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(student(x), wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_an_expressions_layer_too() -> None:
    module = ConvEinsum("bfshw,fghw,sthw->bgthw|hw", {"f": 2, "s": 3, "g": 2, "t": 3, "h": 3, "w": 3}, bias="gt")
    x = torch.randn(2, 2, 3, 6, 5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    same(compiled(x), module(x))
    same(pickle.loads(pickle.dumps(module))(x), module(x))
    same(torch.export.export(module, (x,)).module()(x), module(x))
