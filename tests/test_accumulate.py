"""`accumulate`: narrow operands are computed in a wider dtype, partial results included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import convein
import reference
from convein import drafting
from convein.execution import load
from convein.lowering import Target
from convein.metering import Sample, SavedMemory, footprint

CHAIN = "ab,bc,cd,de,ef->af"
CP = "bshw,rt,rs,rh,rw->bthw|hw"
# expression, shapes, options
CALLS: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "a long chain": (CHAIN, [(32, 32)] * 5, {}),
    "a cp layer": (CP, [(2, 16, 6, 6), (8, 12), (8, 16), (8, 3), (8, 3)], {"stride": 2}),
    "a transposed convolution": (
        "bsh,sth,sth->bth|h", [(2, 8, 9), (8, 4, 3), (8, 4, 3)], {"transposed": True, "stride": 2},
    ),
    "a sum": ("ij->j", [(4096, 3)], {}),
}  # fmt: skip


def operands(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in CALLS[name][1]]


def exact(name: str, xs: list[torch.Tensor]) -> torch.Tensor:
    expression, _, options = CALLS[name]
    return reference.conv_einsum(expression, *(x.double() for x in xs), **options)


def call(name: str, xs: list[torch.Tensor], **more: Any) -> torch.Tensor:
    expression, _, options = CALLS[name]
    return convein.conv_einsum(expression, *xs, **options, **more)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    xs = operands(name, dtype)
    xs = [x / x.shape[-1] if dtype is torch.float16 else x for x in xs]
    value, wanted = call(name, xs, accumulate=torch.float32), exact(name, xs)
    assert value.dtype == dtype
    # Half a unit in the last place, and a little for float32's own rounding.
    torch.testing.assert_close(value.double(), wanted, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-6)


@pytest.mark.parametrize("name", ["a long chain", "a cp layer"])
def test_without_it_errors_are_larger(name: str) -> None:
    xs = [x - 0.5 for x in operands(name, torch.bfloat16)]
    wanted = exact(name, xs)
    narrow, wide = ((call(name, xs, accumulate=dtype).double() - wanted).norm() for dtype in (None, torch.float32))
    assert wide < 0.7 * narrow


@pytest.mark.parametrize("name", CALLS)
def test_gradients_have_the_dtype_of_the_operands(name: str) -> None:
    xs = [x.requires_grad_() for x in operands(name, torch.bfloat16)]
    call(name, xs, accumulate=torch.float32).sum().backward()
    leaves = [x.detach().double().requires_grad_() for x in xs]
    exact(name, leaves).sum().backward()
    for x, leaf in zip(xs, leaves, strict=True):
        assert x.grad is not None
        assert leaf.grad is not None
        assert x.grad.dtype == torch.bfloat16
        torch.testing.assert_close(x.grad.double(), leaf.grad, rtol=0.005, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "accumulate", "inside"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.complex64, torch.float64, torch.complex128),
        (torch.bfloat16, torch.float16, torch.float32),
    ],
    ids=str,
)
def test_no_dtype_becomes_narrower(dtype: torch.dtype, accumulate: torch.dtype, inside: torch.dtype) -> None:
    x = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    compiled = convein.compile("ij,jk->ik", x, x, accumulate=accumulate)
    assert f".to({inside})" in compiled.source
    value = convein.conv_einsum("ij,jk->ik", x, x, accumulate=accumulate)
    assert value.dtype == dtype
    torch.testing.assert_close(value, (x.to(inside) @ x.to(inside)).to(dtype))


def compiled(xs: list[torch.Tensor], free: bool, constants: list[int]) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    shapes: list[Any] = [(None, *xs[0].shape[1:]) if free else xs[0].shape, *xs[1:]]
    expression = convein.compile(
        CP, *shapes, stride=2, dtype=torch.bfloat16, accumulate=torch.float32, constants=constants
    )
    return lambda given: expression(*(x for place, x in enumerate(given) if place not in constants))


@pytest.mark.parametrize("constants", [[], [1, 2, 3, 4], [3, 4]], ids=str)
@pytest.mark.parametrize("free", [False, True])
def test_compiled_expressions(free: bool, constants: list[int]) -> None:
    xs = operands("a cp layer", torch.bfloat16)
    value = compiled(xs, free, constants)(xs)
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), exact("a cp layer", xs), rtol=0.004, atol=1e-6)


def test_the_printed_program_runs_alone() -> None:
    xs = operands("a long chain", torch.bfloat16)
    namespace: dict[str, Any] = {}
    exec(convein.compile(CHAIN, *xs, accumulate=torch.float32).source, namespace)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(namespace["program"](*xs), call("a long chain", xs, accumulate=torch.float32))


def test_a_compiled_expression_keeps_its_dtype() -> None:
    expression = convein.compile("ij,jk->ik", (2, 3), (3, 4), dtype=torch.bfloat16, accumulate=torch.float32)
    with pytest.raises(convein.OperandError, match=r"compiled for torch.bfloat16, and the operands have dtype"):
        expression(torch.ones(2, 3), torch.ones(3, 4))


@pytest.mark.parametrize("mixed", [False, True])
def test_autocast_changes_nothing_inside(mixed: bool) -> None:
    xs = operands("a long chain", torch.bfloat16)
    given = [xs[0].float(), *xs[1:]] if mixed else xs
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = call("a long chain", given, accumulate=torch.float32)
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.double(), exact("a long chain", xs), rtol=0.004, atol=0.0)
    wide = [x.float() for x in xs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call("a long chain", wide, accumulate=torch.float32)
    torch.testing.assert_close(value.double(), exact("a long chain", xs), rtol=1e-5, atol=0.0)


def test_the_cache_keeps_them_apart() -> None:
    xs = operands("a long chain", torch.bfloat16)
    narrow, wide = call("a long chain", xs), call("a long chain", xs, accumulate=torch.float32)
    assert not torch.equal(narrow, wide)
    assert torch.equal(call("a long chain", xs), narrow)
    assert torch.equal(call("a long chain", xs, accumulate=torch.float32), wide)


@pytest.mark.parametrize("more", [{"checkpoint": True}, {"checkpoint": 2000}, {"optimize": "measure"}], ids=str)
def test_with_other_options(more: dict[str, Any]) -> None:
    xs = [x.requires_grad_() for x in operands("a cp layer", torch.bfloat16)]
    value = call("a cp layer", xs, accumulate=torch.float32, **more)
    value.sum().backward()
    torch.testing.assert_close(value.double(), exact("a cp layer", xs), rtol=0.004, atol=1e-6)
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in xs)


@pytest.mark.parametrize("budget", [0, 10_000, 24_576, 40_000])
def test_a_budget_with_constants(budget: int) -> None:
    """What is made of constants is wide, and what meets it is not."""
    xs = [torch.randn(64, 64, dtype=torch.bfloat16) for _ in range(5)]
    options: dict[str, Any] = {"constants": [4], "accumulate": torch.float32, "grad": [0, 1, 2, 3]}
    compiled = convein.compile("ab,bc,cd,de,ef->af", *xs, **options, checkpoint=budget)
    given = [x.requires_grad_() for x in xs[:4]]
    wide = compiled._folded
    with SavedMemory([*given, *wide]) as saved:
        compiled(*given)
    assert saved.bytes == compiled.saved_bytes <= budget
    assert footprint(compiled, given).peak == compiled.peak_bytes


def test_within_a_memory_limit() -> None:
    xs = [x.requires_grad_() for x in operands("a cp layer", torch.bfloat16)]
    options: dict[str, Any] = {**CALLS["a cp layer"][2], "accumulate": torch.float32}
    limit = convein.compile(CP, *xs, **options).peak_bytes * 4 // 5
    limited = convein.compile(CP, *xs, **options, memory_limit=limit)
    assert limited.peak_bytes <= limit
    assert "torch.float32" in limited.source
    torch.testing.assert_close(limited(*xs).double(), exact("a cp layer", xs), rtol=0.004, atol=1e-6)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("modes", ["j", "ij", "ji", "jb", "bij"])
def test_sums_over_chunks_are_rounded_once(modes: str, grad: bool) -> None:
    xs = [torch.rand(shape).bfloat16().requires_grad_(grad) for shape in ((3, 4, 640), (3, 640, 5))]
    program = convein.compile("bij,bjk->ik", *xs).program
    samples = [Sample.of(x) for x in xs]
    target = Target(torch.float32, "cpu", dict(program.plan.network.sizes), narrow=torch.bfloat16)
    sketch = drafting.sketch(program, target, samples, frozenset(), ())
    loops = {loop.mode: replace(loop, chunk=16 if loop.mode == "j" else 2) for loop in sketch.loops}
    value = load(sketch.sliced(tuple(loops[mode] for mode in modes)).rest)(*xs)
    assert value.dtype == torch.bfloat16
    wanted = torch.einsum("bij,bjk->ik", *(x.detach().double() for x in xs))
    torch.testing.assert_close(value.double(), wanted, rtol=torch.finfo(torch.bfloat16).eps * 0.51, atol=1e-6)
    if grad:
        value.sum().backward()
        assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in xs)


def test_in_graphs_and_transforms() -> None:
    xs = operands("a long chain", torch.bfloat16)
    wanted = call("a long chain", xs, accumulate=torch.float32)

    class Module(torch.nn.Module):
        def forward(self, *xs: torch.Tensor) -> torch.Tensor:
            return call("a long chain", list(xs), accumulate=torch.float32)

    module = Module()
    graph = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(graph(*xs), wanted)
    batches = ({0: torch.export.Dim("batch")}, *[{}] * 4)
    program = torch.export.export(module, tuple(xs), dynamic_shapes={"xs": batches}).module()
    assert torch.equal(program(xs[0][:5], *xs[1:]), wanted[:5])
    assert torch.equal(torch.func.vmap(module, in_dims=(0, *[None] * 4))(xs[0][:, None], *xs[1:])[:, 0], wanted)


def test_on_meta_tensors_where_there_is_no_autocast() -> None:
    x, w = (torch.ones(shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 3), (3, 4)))
    given = {"accumulate": torch.float32}
    made = convein.compile("ij,jk->ik", x, w, **given)
    for result in (convein.conv_einsum("ij,jk->ik", x, w, **given), made(x, w)):
        assert (result.shape, result.dtype, result.device.type) == ((2, 4), torch.bfloat16, "meta")
    with pytest.raises(convein.OperandError, match="was compiled for"):
        made(x.float(), w.float())
