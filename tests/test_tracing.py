"""torch.compile, torch.export, torch.func and fake tensors: a call is traceable, with one graph for every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

import convein

# torch's own derivatives of some operations are still torchscript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

BATCHES = (2, 3, 5, 8)


class Chain(nn.Module):
    """Three matrices."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.factors = nn.ParameterList(torch.randn(shape, generator=generator) for shape in [(4, 6), (6, 5), (5, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("bi,ij,jk,kl->bl", x, *self.factors)


class CP(nn.Module):
    """A convolution in four factors."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 5), (3, 4), (3, 3), (3, 3)]
        self.factors = nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("bshw,rt,rs,rh,rw->bthw|hw", x, *self.factors, **self.options)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (Chain, (4,)),
    "cp": (CP, (4, 6, 6)),
    "strided cp": (lambda: CP(stride=2, padding={"h": (0, 1), "w": 1}), (4, 6, 6)),
    "circular cp": (lambda: CP(padding_mode="circular"), (4, 6, 6)),
    "transposed cp": (lambda: CP(transposed=True, stride=2), (4, 6, 6)),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(size: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(size))


def run(layer: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    value = layer(x)
    return [value, *torch.autograd.grad(value.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("name", LAYERS)
def test_one_graph_for_every_batch(name: str) -> None:
    make, shape = LAYERS[name]
    module = make()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for size in BATCHES:
        x = batch(size, shape)
        for ours, theirs in zip(run(compiled, module, x), run(module, module, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_a_fixed_size_compiles_too() -> None:
    module = CP()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = batch(2, (4, 6, 6))
    torch.testing.assert_close(compiled(x), module(x))


def test_inside_a_larger_function() -> None:
    module = CP()

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(module(x * 2)).mean(dim=(2, 3)) + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch(2, (4, 6, 6))), step(batch(2, (4, 6, 6))))


@pytest.mark.parametrize("name", LAYERS)
def test_export_with_a_dynamic_batch(name: str) -> None:
    make, shape = LAYERS[name]
    module = make().eval()
    program = export(module, (batch(2, shape),), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    tensor_ops = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert tensor_ops
    assert {target.namespace for target in tensor_ops} == {"aten"}
    for size in (1, *BATCHES):
        x = batch(size, shape)
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-4)


def test_vmap() -> None:
    x, w = torch.randn(3, 2, 4, 6), torch.randn(3, 5, 4, 3)

    def one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("bsh,tsh->bth|h", a, b, padding=1)

    def same(mapped: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-5)

    same(torch.func.vmap(one)(x, w), torch.stack([one(a, b) for a, b in zip(x, w, strict=True)]))
    same(torch.func.vmap(one, in_dims=(0, None))(x, w[0])[1], one(x[1], w[0]))
    same(torch.func.vmap(one, in_dims=(None, 0))(x[2], w)[1], one(x[2], w[1]))
    moved = torch.func.vmap(one, in_dims=(1, None), out_dims=2)(x.transpose(0, 1), w[0])
    same(moved[:, :, 2], one(x[2], w[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_each_sample(name: str) -> None:
    make, shape = LAYERS[name]
    module = make()
    parameters = dict(module.named_parameters())

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, values, (x[None],)).square().sum()

    x = batch(3, shape)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for factor, parameter in parameters.items():
        (whole,) = torch.autograd.grad(module(x).square().sum(), parameter)
        torch.testing.assert_close(each[factor].sum(0), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_reverse_mode_agree(name: str) -> None:
    make, shape = LAYERS[name]
    module = make().double()
    x, v = batch(2, shape).double(), batch(3, shape)[:2].double()
    value, tangent = torch.func.jvp(module, (x,), (v,))
    _, pullback = torch.func.vjp(module, x)
    torch.testing.assert_close((tangent * value).sum(), (pullback(value)[0] * v).sum())


def test_jacobians() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("h,h->h|h", x, x)

    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacrev(call)(x), torch.func.jacfwd(call)(x))
    hessian = torch.func.hessian(lambda x: call(x).square().sum())(x)
    torch.testing.assert_close(hessian, hessian.T)


@pytest.mark.parametrize("name", LAYERS)
def test_fake_tensors_have_the_shape(name: str) -> None:
    make, shape = LAYERS[name]
    expected = make()(batch(2, shape)).shape
    with FakeTensorMode():
        assert make()(torch.randn(2, *shape)).shape == expected


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", LAYERS)
def test_make_fx_sees_aten_only(name: str, mode: str) -> None:
    make, shape = LAYERS[name]
    module = make()
    graph = make_fx(module, tracing_mode=mode, _allow_non_fake_inputs=True)(batch(2, shape))
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert nodes
    torch.testing.assert_close(graph(batch(2, shape)), module(batch(2, shape)), rtol=1e-4, atol=1e-4)
    if mode == "symbolic":
        torch.testing.assert_close(graph(batch(5, shape)), module(batch(5, shape)), rtol=1e-4, atol=1e-4)


def test_a_traced_call_leaves_no_trace_in_the_cache() -> None:
    module = CP()
    with FakeTensorMode():
        CP()(torch.randn(7, 4, 6, 6))
    value = module(batch(7, (4, 6, 6)))
    assert type(value) is torch.Tensor
    assert value.isfinite().all()
