"""memory_limit=: what is alive at a time stays within it, by computing again and by slicing, and no value changes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import convein
import reference
from convein import drafting
from convein.execution import load
from convein.execution.chunks import chunks
from convein.lowering import Target
from convein.lowering.looping import Loop
from convein.memory import amount
from convein.metering import LiveMemory, Sample, footprint
from strategies import Case, cases

pytestmark = [
    pytest.mark.filterwarnings("ignore::convein.ConveinWarning"),
    # torch's own derivatives of some operations are still torchscript.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

CP = "bshw,rt,rs,rh,rw->bthw|hw", ((8, 16, 12, 12), (5, 24), (5, 16), (5, 3), (5, 3))
EXPRESSIONS: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "chain": ("ai,ij,jk,kb->ab", ((30, 5), (5, 400), (400, 5), (5, 30)), {"optimize": "left-to-right"}),
    "outer": ("a,b,b->a", ((50,), (60,), (60,)), {"optimize": [(0, 1), (0, 1)]}),
    "large kernel": ("bshw,sahw,atk,uk->btu|hw", ((6, 4, 9, 9), (4, 40, 3, 3), (40, 5, 30), (3, 30)), {}),
    "composed": ("b(i s)h,(t i)sh->(t b)h|h", ((4, 12, 20), (10, 6, 3)), {"sizes": {"s": 6}}),
    "layer": (*CP, {}),
    "summed": ("bij,bjk->", ((20, 10, 12), (20, 12, 14)), {}),
}


def leaves(shapes: Any, grad: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad) for shape in shapes]


def results(call: Any, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    value = call(*operands)
    wanted = [x for x in operands if x.requires_grad]
    if not wanted:
        return [value]
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value, *torch.autograd.grad(value, wanted, weights)]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [False, True])
@given(case=cases(operands=(1, 4)), data=st.data())
def test_slices_of_every_mode_give_the_oracles_values(grad: bool, case: Case, data: st.DataObject) -> None:
    operands = leaves(case.shapes, grad)
    program = convein.compile(case.expression, *case.shapes, **case.options, dtype=torch.float64, grad=grad).program
    samples = [Sample(x.shape, x.dtype, "cpu", (), grad) for x in operands]
    target = Target(torch.float64, "cpu", dict(program.plan.network.sizes))
    sketch = drafting.sketch(program, target, samples, frozenset(), ())
    assume(sketch.loops)
    chosen = data.draw(
        st.lists(st.sampled_from(sketch.loops), min_size=1, max_size=3, unique_by=lambda loop: loop.mode)
    )
    chosen = [replace(loop, chunk=data.draw(st.integers(1, loop.size))) for loop in chosen]
    call = load(sketch.sliced(tuple(chosen)).rest)
    expected = results(lambda *xs: reference.conv_einsum(case.expression, *xs, **case.options), operands)
    before = [x.clone() for x in operands]
    assert_same(results(call, operands), expected)
    assert all(map(torch.equal, operands, before))


def smallest_limit(expression: str, operands: list[torch.Tensor], options: dict[str, Any]) -> int:
    with pytest.raises(convein.PlanError, match=r"memory_limit=0 is too small") as caught:
        convein.compile(expression, *operands, **options, memory_limit=0)
    found = re.search(r"memory_limit=(\d+) works", str(caught.value))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_alive_stays_within_the_limit(name: str, grad: bool) -> None:
    expression, shapes, options = EXPRESSIONS[name]
    operands = leaves(shapes, grad)
    free = convein.compile(expression, *operands, **options)
    least = smallest_limit(expression, operands, options)
    expected = results(free, operands)
    for limit in (free.peak_bytes, (free.peak_bytes + least) // 2, least):
        compiled = convein.compile(expression, *operands, **options, memory_limit=limit)
        measured = footprint(compiled, operands)
        assert measured.peak == compiled.peak_bytes <= limit
        assert measured.saved == compiled.saved_bytes
        assert_same(results(compiled, operands), expected)
        namespace: dict[str, Any] = {}
        exec(compiled.source, namespace)
        assert_same(results(namespace["program"], operands), expected)
    with pytest.raises(convein.PlanError, match=f"memory_limit={least} works"):
        convein.compile(expression, *operands, **options, memory_limit=least - 1)
    if not grad and name != "summed":
        assert least < free.peak_bytes
        assert compiled.plan.slices


def test_a_training_step_is_sliced_too() -> None:
    """The gradient of what is sliced is alive once, and not once more in chunks."""
    expression, shapes = CP
    operands = leaves(shapes, grad=True)
    free = convein.compile(expression, *operands)
    sliced = convein.compile(expression, *operands, memory_limit=smallest_limit(expression, operands, {}))
    assert "for x0_1 in chunks(x0, " in sliced.source
    ends = 8 * (2 * 8 * 24 * 12 * 12 + sum(x.numel() for x in operands))  # the result and all gradients
    assert ends < sliced.peak_bytes < ends + (free.peak_bytes - ends) / 2


def test_chunks_are_a_split() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 3, dtype=torch.float64)

    def total(x: torch.Tensor, cut: Any) -> torch.Tensor:
        return sum((part * part * w).sum() for part, w in zip(cut(x), weights.split(3, 0), strict=True))

    (expected,) = torch.autograd.grad(total(x, lambda x: x.split(3, 0)), x)
    value = total(x, lambda x: chunks(x, 3, 0))
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0], expected)
    assert torch.autograd.gradgradcheck(lambda x: total(x, lambda x: chunks(x, 3, 0)), [x])
    assert torch.equal(torch.func.grad(lambda x: total(x, lambda x: chunks(x, 3, 0)))(x), expected)
    _, tangent = torch.func.jvp(lambda x: total(x, lambda x: chunks(x, 3, 0)), (x,), (weights,))
    torch.testing.assert_close(tangent, (expected * weights).sum())


def test_a_call_within_a_limit() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    operands = leaves(shapes, grad=False)
    expected = convein.conv_einsum(expression, *operands)
    convein.cache_clear()
    for _ in range(2):
        with LiveMemory() as live:
            value = convein.conv_einsum(expression, *operands, memory_limit="10kB")
        assert live.peak <= 10_000
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    assert convein.cache_info().hits == 1
    arrays = [x.numpy() for x in operands]
    assert convein.conv_einsum(expression, *arrays, memory_limit="10kB") == pytest.approx(expected.numpy())


def test_a_path_within_a_limit() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    _, free = convein.contract_path(expression, *shapes)
    assert free.slices == ()
    assert "Sliced" not in str(free)
    _, info = convein.contract_path(expression, *shapes, memory_limit=5_000)
    assert info.slices == info.plan.slices != ()
    assert f"Sliced, looped:  {', '.join(info.slices)}\n" in str(info)


def test_a_generous_limit_changes_nothing() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    plain = convein.compile(expression, *shapes, grad=True)
    for limit in (plain.peak_bytes, "1TiB"):
        assert convein.compile(expression, *shapes, grad=True, memory_limit=limit).source == plain.source


def test_free_sizes_and_constants() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    operands = leaves(shapes, grad=False)
    expected = convein.conv_einsum(expression, *operands)
    free = (None, *shapes[0][1:])
    compiled = convein.compile(expression, free, *operands[1:3], constants={3: operands[3]}, memory_limit=50_000)
    assert "b" in compiled.plan.slices
    torch.testing.assert_close(compiled(*operands[:3]), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled(operands[0][:1], *operands[1:3]), expected[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("grad", "limit"), [(False, 50_000), (True, 300_000)])
def test_a_batch_of_nothing_is_one_chunk(grad: bool, limit: int) -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    first, *weights = leaves(shapes, grad)
    compiled = convein.compile(
        expression, (None, *shapes[0][1:]), *shapes[1:], dtype=torch.float64, grad=grad, memory_limit=limit
    )
    assert compiled.plan.slices == ("b",)
    free = convein.compile(expression, (None, *shapes[0][1:]), *shapes[1:], dtype=torch.float64, grad=grad)
    nothing = [first.detach()[:0].requires_grad_(grad), *weights]
    assert_same(results(compiled, nothing), results(free, nothing))


def test_values_computed_again_need_torchs_own_gradients() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    compiled = convein.compile(
        expression, (None, *shapes[0][1:]), *shapes[1:], dtype=torch.float64, grad=True, memory_limit=300_000
    )
    assert compiled.program.recomputes
    assert not compiled.program.parts
    x, *weights = leaves(shapes, grad=False)
    with pytest.raises(convein.OptionError, match=r"checkpoint= and memory_limit= cannot compute values again under"):
        torch.func.grad(lambda x: compiled(x, *weights).sum())(x)


def test_both_limits_at_once() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    compiled = convein.compile(expression, *shapes, checkpoint=True, memory_limit="1MB")
    assert compiled.saved_bytes == 0
    assert compiled.peak_bytes <= 10**6


def test_slices_in_graphs_and_under_vmap() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    operands = leaves(shapes, grad=False)

    def call(*xs: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum(expression, *xs, memory_limit=10_000)

    expected = call(*operands)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*operands), expected, rtol=1e-9, atol=1e-9)
    mapped = torch.func.vmap(call, in_dims=(0, None, None, None))(torch.stack([operands[0]] * 2), *operands[1:])
    torch.testing.assert_close(mapped[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
def test_graphs_for_many_sizes_have_no_loops_over_them() -> None:
    expression, shapes, _ = EXPRESSIONS["large kernel"]
    operands = leaves(shapes, grad=False)
    others = [torch.cat([operands[0]] * 3)[:16], *operands[1:]]

    class Module(torch.nn.Module):
        def forward(self, *xs: torch.Tensor) -> torch.Tensor:
            return convein.conv_einsum(expression, *xs, memory_limit=limit)

    batches = ({0: torch.export.Dim("batch")}, {}, {}, {})
    limit = 25_000
    assert "b" in convein.compile(expression, *operands, memory_limit=limit).plan.slices
    exported = torch.export.export(Module(), tuple(operands), dynamic_shapes={"xs": batches}).module()
    assert_same([exported(*others)], [convein.conv_einsum(expression, *others)])
    with pytest.raises(convein.PlanError, match=r"memory_limit=25000 is too small"):
        torch.jit.trace(Module(), operands, check_trace=False)
    limit = 100_000
    traced = torch.jit.trace(Module(), operands, check_trace=False)
    assert_same([traced(*others)], [convein.conv_einsum(expression, *others)])


def test_second_derivatives_of_slices() -> None:
    shapes = ((3, 2, 3), (2, 2, 2))
    samples = [Sample(shape, torch.float64, "cpu", (), grad=True) for shape in shapes]
    program = convein.compile("bsh,tsh->bt|h", *shapes, dtype=torch.float64, grad=True).program
    target = Target(torch.float64, "cpu", dict(program.plan.network.sizes))
    sketch = drafting.sketch(program, target, samples, frozenset(), ())
    by_mode: dict[str, Loop] = {loop.mode: loop for loop in sketch.loops}
    assert set(by_mode) == {"b", "t", "s"}
    chosen = (replace(by_mode["b"], chunk=2), replace(by_mode["s"], chunk=1))
    assert torch.autograd.gradgradcheck(load(sketch.sliced(chosen).rest), leaves(shapes, grad=True))


def test_amounts() -> None:
    here = torch.device("cpu")
    amounts = {"12B": 12, "1.5kB": 1500, "2 KiB": 2048, "500MB": 5 * 10**8, "2GiB": 2**31, "1tb": 10**12}
    for text, expected in {1234: 1234, **amounts}.items():
        limit = amount.read_limit(text)
        assert limit is not None
        assert limit.on(here) == expected
    assert amount.read_limit(None) is None


def test_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemFree:  10 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(amount, "_MEMINFO", meminfo)
    limit = amount.read_limit("80%")
    assert limit is not None
    assert limit.on(torch.device("cpu")) == 819_200
    with pytest.raises(convein.PlanError, match=r'memory_limit="0.001%" \(10 bytes\) is too small: 2400 bytes'):
        convein.conv_einsum("a,b->ab", torch.ones(20), torch.ones(30), memory_limit="0.001%")
    meminfo.unlink()
    assert amount.free_bytes(torch.device("cpu")) > 2**20
