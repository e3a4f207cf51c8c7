"""What surrounds a call in torch: back ends of torch.compile, exporters, tracers, transforms, subclasses, processes."""

from __future__ import annotations

import copy
import importlib.util
import multiprocessing
import operator
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import DataLoader

import convein
import reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")

CP = "bshw,rt,rs,rh,rw->bthw|hw"
SHAPES = [(2, 4, 6, 5), (3, 5), (3, 4), (3, 3), (3, 3)]


class Layer(nn.Module):
    """A convolution in four factors."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.factors = nn.ParameterList(operands()[1:])
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(CP, x, *self.factors, **self.options)


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, *SHAPES[0][1:], generator=torch.Generator().manual_seed(size))


def oracle(x: torch.Tensor, module: nn.Module, **options: Any) -> torch.Tensor:
    return reference.conv_einsum(CP, *(value.detach().double() for value in (x, *module.parameters())), **options)


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def has_compiler() -> bool:
    """Whether inductor finds a C++ compiler, as it looks for one itself."""
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph_for_every_batch_and_back_end(backend: str, layout: torch.memory_format) -> None:
    module = Layer(padding={"h": (0, 1), "w": 1}, stride=2)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    if backend == "inductor" and not has_compiler():
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
            compiled(batch(2))
        return
    for size in (2, 3, 5, 8):
        x = batch(size).contiguous(memory_format=layout).requires_grad_()
        value = compiled(x)
        same(value, oracle(x, module, **module.options))
        gradients = torch.autograd.grad(value.square().sum(), [x, *module.parameters()])
        leaves = [v.detach().double().requires_grad_() for v in (x, *module.parameters())]
        wanted = reference.conv_einsum(CP, *leaves, **module.options).square().sum()
        for ours, theirs in zip(gradients, torch.autograd.grad(wanted, leaves), strict=True):
            same(ours, theirs, 1e-3)
    assert counter.frame_count == 1


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_autocast_and_torch_compile(inside: bool) -> None:
    module = Layer()

    def step(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            return module(x)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step if inside else module, backend=counter, fullgraph=True, dynamic=True)
    for size in (2, 3, 5):
        x = batch(size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            value = compiled(x)
        assert value.dtype == torch.bfloat16
        same(value, oracle(x, module), 0.1)
        value.float().sum().backward()
        assert {factor.grad.dtype for factor in module.factors if factor.grad is not None} == {torch.float32}
    assert counter.frame_count == 1


def exported(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module, (batch(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_of_an_exported_program(tmp_path: Path) -> None:
    module, path = Layer().eval(), tmp_path / "layer.onnx"
    program = exported(module)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        # Without the exporter the error is torch's own, and names what to install.
        with pytest.raises(ImportError, match="onnx"):
            torch.onnx.export(program, (batch(2),), path, dynamo=True)
        return
    torch.onnx.export(program, (batch(2),), path, dynamo=True)
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(str(path))
    for size in (1, 2, 5):
        (value,) = evaluator.run(None, {evaluator.input_names[0]: batch(size).numpy()})
        same(torch.from_numpy(value), oracle(batch(size), module))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_of_a_trace(tmp_path: Path) -> None:
    """The old exporter, by torch.jit.trace."""
    module, path = Layer().eval(), tmp_path / "layer.onnx"
    options: dict[str, Any] = {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    if importlib.util.find_spec("onnx") is None:
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match="onnx is not installed"):
            torch.onnx.export(module, (batch(2),), path, **options)
        return
    torch.onnx.export(module, (batch(2),), path, **options)
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(str(path))
    for size in (1, 2, 5):
        (value,) = evaluator.run(None, {"x": batch(size).numpy()})
        same(torch.from_numpy(value), oracle(batch(size), module))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("size", [1, 2])
def test_a_jit_trace_takes_any_batch(size: int) -> None:
    module = Layer(stride=2)
    entries = convein.cache_info().currsize
    torch.jit.trace(module, batch(size), check_trace=False)
    assert convein.cache_info().currsize == entries
    traced = torch.jit.trace(module, batch(size))
    for other in (1, 2, 5):
        same(traced(batch(other)), oracle(batch(other), module, stride=2))


def test_a_jit_trace_of_long_names_and_a_chain() -> None:
    def step(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("b(s1 s2),(s1)t,(s2)u->b(t u)", x, a, b)

    a, b = torch.randn(2, 4), torch.randn(3, 5)
    traced = torch.jit.trace(step, (torch.randn(2, 6), a, b))
    x = torch.randn(7, 6)
    same(traced(x, a, b), reference.conv_einsum("b(s1 s2),(s1)t,(s2)u->b(t u)", x, a, b))


def test_a_jit_trace_says_that_convolved_sizes_stay() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(lambda x, w: convein.conv_einsum("bh,h->bh|h", x, w), (torch.ones(2, 5), torch.ones(3)))
        found = [warning for warning in caught if issubclass(warning.category, torch.jit.TracerWarning)]
        caught.clear()
        torch.jit.trace(lambda x, w: convein.conv_einsum("bh,h->b", x, w), (torch.ones(2, 5), torch.ones(5)))
    assert found
    assert not [warning for warning in caught if issubclass(warning.category, torch.jit.TracerWarning)]


@pytest.mark.parametrize("options", [{}, {"stride": {"h": 2}, "padding": {"h": (0, 1)}, "optimize": "greedy"}])
def test_a_call_is_one_node_of_torch_fx(options: dict[str, Any]) -> None:
    module = Layer(**options)
    traced = torch.fx.symbolic_trace(module)
    calls = [node for node in traced.graph.nodes if node.op.startswith("call_")]
    assert [node.target for node in calls] == [convein.conv_einsum]
    planning = {name: value for name, value in options.items() if name != "optimize"}
    for size in (1, 3):
        same(traced(batch(size)), oracle(batch(size), module, **planning))


def test_the_interleaved_form_in_torch_fx() -> None:
    traced = torch.fx.symbolic_trace(lambda a, b: convein.conv_einsum(a, [0, 1], b, [1, 2], [0, 2]))
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    same(traced(a, b), a @ b)


def mapped(call: Callable[..., torch.Tensor], xs: list[torch.Tensor], position: int) -> torch.Tensor:
    """A call for each entry of one operand."""
    return torch.stack([call(*xs[:position], entry, *xs[position + 1 :]) for entry in xs[position]])


@pytest.mark.parametrize("options", [{}, {"padding_mode": "circular"}, {"transposed": True, "stride": 2}], ids=str)
def test_vmap_over_each_operand_alone(options: dict[str, Any]) -> None:
    def call(*xs: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(CP, *xs, **options)

    def exact(*xs: torch.Tensor) -> torch.Tensor:
        return reference.conv_einsum(CP, *xs, **options)

    for position in range(len(SHAPES)):
        xs = operands(torch.float64)
        xs[position] = torch.stack([xs[position], 2 - xs[position], xs[position].square()])
        wanted = mapped(exact, xs, position)
        dims = tuple(0 if place == position else None for place in range(len(SHAPES)))
        same(torch.func.vmap(call, in_dims=dims)(*xs), wanted, 1e-9)
        last = xs[position].dim() - 1
        xs[position] = xs[position].movedim(0, -1)
        dims = tuple(last if place == position else None for place in range(len(SHAPES)))
        same(torch.func.vmap(call, in_dims=dims, out_dims=-1)(*xs).movedim(-1, 0), wanted, 1e-9)


def test_vmap_in_vmap() -> None:
    x, w = torch.randn(2, 3, 4, 6), torch.randn(5, 7, 3, 4, 3)

    def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("sh,tsh->th|h", x, w)

    samples = torch.func.vmap(call, in_dims=(0, 1))
    ours = torch.func.vmap(torch.func.vmap(samples, in_dims=(None, 0)), in_dims=(0, None))(x, w)
    same(ours, reference.conv_einsum("absh,ctbsh->acbth|h", x, w))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_derivatives_of_torch_func() -> None:
    def ours(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("bsh,tsh->bth|h", x, w, stride=2)

    def theirs(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return reference.conv_einsum("bsh,tsh->bth|h", x, w, stride=2)

    x, w = torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    wanted = torch.autograd.functional.jacobian(theirs, (x, w))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for one, other in zip(transform(ours, argnums=(0, 1))(x, w), wanted, strict=True):
            same(one, other, 1e-9)

    def loss(call: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda w: call(x, w).pow(3).sum()

    same(torch.func.grad(loss(ours))(w), torch.autograd.functional.jacobian(loss(theirs), w), 1e-9)
    same(torch.func.hessian(loss(ours))(w), torch.autograd.functional.hessian(loss(theirs), w), 1e-9)
    value, linear = torch.func.linearize(lambda w: ours(x, w), w)
    same(value, theirs(x, w), 1e-9)
    same(linear(w.flip(0)), theirs(x, w.flip(0)), 1e-9)


def test_dual_tensors() -> None:
    xs, ts = operands(torch.float64), [t.flip(0) for t in operands(torch.float64)]
    for position in range(len(SHAPES)):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, t) if j == position else x for j, (x, t) in enumerate(zip(xs, ts))]
            value, tangent = forward_ad.unpack_dual(convein.conv_einsum(CP, *duals))
        same(value, reference.conv_einsum(CP, *xs), 1e-9)
        # Linear in every operand: the derivative is the value with the direction in the operand's place.
        same(tangent, reference.conv_einsum(CP, *xs[:position], ts[position], *xs[position + 1 :]), 1e-9)


class Counted(torch.Tensor):
    """A tensor that counts the calls of torch it is part of."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_sees_the_calls_of_the_program() -> None:
    x, *factors = operands()
    before = Counted.calls
    value = convein.conv_einsum(CP, x.as_subclass(Counted), *factors)
    assert type(value) is Counted
    assert Counted.calls > before
    same(value.as_subclass(torch.Tensor), reference.conv_einsum(CP, *operands(torch.float64)))


def test_a_subclass_that_wraps_two_tensors() -> None:
    x, *factors = operands()
    for _ in range(2):
        value = convein.conv_einsum(CP, TwoTensor(x, 2 * x), *factors)
        assert type(value) is TwoTensor
        wanted = reference.conv_einsum(CP, *operands(torch.float64))
        same(value.a, wanted)
        same(value.b, 2 * wanted)
        assert type(convein.conv_einsum(CP, x, *factors)) is torch.Tensor


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate", "transposed"])
def test_deterministic_algorithms(mode: str) -> None:
    options: dict[str, Any] = {"transposed": True, "stride": 2} if mode == "transposed" else {"padding_mode": mode}
    torch.use_deterministic_algorithms(True)
    try:
        xs = [x.requires_grad_() for x in operands()]
        runs = []
        for _ in range(2):
            value = convein.conv_einsum(CP, *xs, **options)
            runs.append([value, *torch.autograd.grad(value.square().sum(), xs)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    same(runs[0][0], reference.conv_einsum(CP, *operands(torch.float64), **options))


class Compiled(nn.Module):
    """A module that holds a compiled expression."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3))
        self.call = convein.compile("bsh,tsh->bth|h", (None, 3, 8), (4, 3, 3), grad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x, self.weight)


def test_a_module_with_a_compiled_expression_can_be_copied_and_saved() -> None:
    module, x = Compiled(), torch.randn(2, 3, 8)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
        other.weight.data.zero_()
        assert not other(x).any()
    assert list(module.state_dict()) == ["weight"]
    same(module(x), reference.conv_einsum("bsh,tsh->bth|h", x, module.weight.detach()))


def test_a_compiled_expression_in_a_new_process() -> None:
    compiled = convein.compile("bsh,tsh->bth|h", (None, 3, 8), (4, 3, 3))
    x, w = torch.randn(2, 3, 8), torch.randn(4, 3, 3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value = pool.apply_async(operator.call, (compiled, x, w)).get(timeout=60)
    assert torch.equal(value, compiled(x, w))


def filtered(samples: list[torch.Tensor]) -> torch.Tensor:
    return convein.conv_einsum("bh,h->bh|h", torch.stack(samples), torch.ones(3))


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_the_workers_of_a_data_loader(context: str) -> None:
    samples = list(torch.arange(32.0).reshape(4, 8))
    wanted = filtered(samples)  # planned here; a forked worker finds the plan
    loader = DataLoader(
        samples, batch_size=2, num_workers=1, collate_fn=filtered, multiprocessing_context=context, timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), wanted)


def test_a_plan_for_a_device_that_is_not_there() -> None:
    """Planning needs no device; only what runs there does."""
    compiled = convein.compile(CP, *SHAPES, device="cuda")
    assert compiled.device.type == "cuda"
    assert "def program" in compiled.source
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("distinct", [1, 8])
def test_many_threads(distinct: int) -> None:
    """Eight threads start together, with one expression or with eight, and train."""
    convein.cache_clear()
    start = threading.Barrier(8)
    failures: list[str] = []

    def work(number: int) -> None:
        size = 2 + number % distinct
        x, w = batch(size).requires_grad_(), torch.ones(3, 4, 3, 3)
        wanted = torch.nn.functional.conv2d(x.detach().double(), w.double(), padding=1)
        start.wait()
        for _ in range(20):
            value = convein.conv_einsum("bshw,tshw->bthw|hw", x, w)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            if not torch.allclose(value.double(), wanted, atol=1e-4) or gradient.shape != x.shape:
                failures.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    assert convein.cache_info().currsize == distinct
