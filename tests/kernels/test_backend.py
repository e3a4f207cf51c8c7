"""Expressions by kernels against the same by calls of torch: values, gradients, and what the program says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import convein
from convein.lowering import fused


@dataclass(frozen=True, slots=True)
class Case:
    """An expression, the kernels that it goes through, and options."""

    text: str
    shapes: tuple[tuple[int, ...], ...]
    kernels: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


FUSED, PROLOGUE, REDUCED, PAIR = "pointwise_depthwise", "depthwise_pointwise", "product_reduce", "pair"
IMAGE = (2, 5, 7, 6)
CASES = {
    "CP": Case("bshw,rs,rh,rw,tr->bthw|hw", (IMAGE, (4, 5), (4, 3), (4, 3), (6, 4)), (FUSED,)),
    "CP, other names and order": Case(
        "(Pic)uv(In),(R)(In),(Out)(R),(R)v,(R)u->(Pic)uv(Out)|u,v",
        ((2, 7, 6, 5), (4, 5), (6, 4), (4, 3), (4, 2)), (FUSED,),
    ),
    "separable": Case("bshw,shw,ts->bthw|hw", (IMAGE, (5, 3, 3), (4, 5)), (PROLOGUE,)),
    "separable, strides": Case(
        "bshw,shw,ts->bthw|hw", (IMAGE, (5, 3, 3), (4, 5)), (PROLOGUE,),
        {"stride": {"h": 2, "w": 3}, "padding": "valid"},
    ),
    "Tucker-2": Case("bshw,rs,qrhw,tq->bthw|hw", (IMAGE, (4, 5), (3, 4, 3, 3), (6, 3)), (FUSED,)),
    "tensor train": Case("bshw,ps,pqh,qrw,rt->bthw|hw", (IMAGE, (4, 5), (4, 2, 3), (2, 4, 3), (4, 6)), (FUSED,)),
    "pointwise, depthwise": Case("bshw,rs,rhw->brhw|hw", (IMAGE, (4, 5), (4, 3, 3)), (FUSED,)),
    "one dimension": Case("bsh,rs,rh,tr->bth|h", ((2, 5, 9), (4, 5), (4, 3), (6, 4)), (FUSED,)),
    "one of two": Case("bshw,rs,rh,tr->bthw|h", (IMAGE, (4, 5), (4, 3), (6, 4)), (FUSED,)),
    "the other of two": Case("bhws,rs,rw,tr->bthw|w", ((2, 7, 6, 5), (4, 5), (4, 3), (6, 4)), (FUSED,)),
    "dilation, flip, no padding": Case(
        "bshw,rs,rhw,tr->bthw|hw", (IMAGE, (4, 5), (4, 3, 2), (6, 4)), (FUSED,),
        {"dilation": {"h": 2, "w": 1}, "flip": True, "padding": "valid"},
    ),
    "circular": Case(
        "bshw,rs,rhw,tr->bthw|hw", (IMAGE, (4, 5), (4, 3, 3), (6, 4)), (FUSED,), {"padding_mode": "circular"}
    ),
    "uneven padding": Case(
        "bshw,rs,rhw,tr->bthw|hw", (IMAGE, (4, 5), (4, 3, 3), (6, 4)), (FUSED,), {"padding": {"h": (0, 3), "w": (2, 0)}}
    ),
    "summed over rows": Case("bshw,rs,rhw,tr->btw|hw", (IMAGE, (4, 5), (4, 3, 3), (6, 4)), (FUSED,)),
    "composed channels": Case(
        "b(x y)hw,rxy,rhw,uvr->b(u v)hw|hw", ((2, 6, 5, 4), (4, 2, 3), (4, 3, 3), (2, 3, 4)), (FUSED,)
    ),
    "pointwise": Case("bshw,ts->bthw", (IMAGE, (4, 5)), (PAIR,)),
    "batch of matrices": Case("agbk,gkn->bgna", ((3, 2, 4, 5), (2, 5, 6)), (PAIR,)),
    "dense": Case(
        "bshw,tshw->bhwt|hw", (IMAGE, (4, 5, 3, 2)), (PAIR,), {"stride": {"h": 2, "w": 1}, "dilation": 2, "flip": True}
    ),
    "groups": Case("bgshw,gtshw->bgthw|hw", ((2, 3, 4, 6, 5), (3, 5, 4, 3, 3)), (PAIR,)),
    "three dimensions, circular": Case(
        "bsdhw,tsdhw->btdhw|dhw", ((2, 3, 4, 5, 4), (2, 3, 2, 3, 2)), (PAIR,), {"padding_mode": "circular"}
    ),
    "channel multiplier": Case("bsh,msh->bsmh|h", ((2, 3, 7), (2, 3, 3)), (PAIR,)),
    "reduction": Case("ab,ab,ab->a", ((4, 9), (4, 9), (4, 9)), (REDUCED,)),
    "broadcast reduction": Case("abc,b,ac->bc", ((4, 5, 6), (5,), (4, 6)), (REDUCED,)),
}  # fmt: skip


def operands(case: Case, device: torch.device, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(len(case.text))
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in case.shapes]


@pytest.mark.interpreted
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_value_and_all_gradients(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setattr(fused, "RULES", [rule for rule in fused.RULES if rule.kernel in case.kernels])
    tensors = operands(case, device)
    compiled = convein.compile(case.text, *tensors, backend="triton", **case.options)
    assert {*compiled.program.kernels} == {*case.kernels}, compiled.program.notes
    results = [compiled(*tensors), convein.conv_einsum(case.text, *tensors, backend="torch", **case.options)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(result, tensors, weight) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def cp(device: torch.device, dtype: torch.dtype = torch.float64, *, grad: bool = True) -> list[Tensor]:
    return [x.requires_grad_(grad) for x in operands(CASES["CP"], device, dtype)]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_half_precision_is_as_near_to_the_truth_as_calls_of_torch(
    dtype: torch.dtype, rounding: float, device: torch.device
) -> None:
    tensors = cp(device, dtype, grad=False)
    text = CASES["CP"].text
    truth = convein.conv_einsum(text, *[x.double() for x in tensors], backend="torch")
    result = convein.conv_einsum(text, *tensors, backend="triton")
    assert result.dtype is dtype
    error = (result.double() - truth).norm() / truth.norm()
    assert error < rounding


@pytest.mark.interpreted
def test_what_is_predicted_to_be_saved_is_saved(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "RULES", [rule for rule in fused.RULES if rule.kernel == FUSED])
    tensors = operands(CASES["circular"], device)
    tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    text = CASES["circular"].text
    compiled = convein.compile(text, *tensors, backend="triton")
    own = {x.untyped_storage().data_ptr() for x in tensors}
    kept = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = compiled(*tensors)
    assert sum(kept.values()) == compiled.saved_bytes
    assert result.requires_grad
    assert compiled.saved_bytes == 0 < convein.compile(text, *tensors, backend="torch").saved_bytes


@pytest.mark.interpreted
@pytest.mark.parametrize("options", [{"checkpoint": True}, {"memory_limit": 20000}])
def test_kernels_within_a_budget(options: dict[str, Any], device: torch.device) -> None:
    text = CASES["CP"].text
    tensors = cp(device)
    results = [convein.conv_einsum(text, *tensors, backend=b, **o) for b, o in (("triton", options), ("torch", {}))]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), tensors) for result in results]
    torch.testing.assert_close(*gradients)


@pytest.mark.interpreted
def test_kernels_that_are_called_again_in_the_backward_pass_are_named(device: torch.device) -> None:
    compiled = convein.compile(CASES["CP"].text, *cp(device), backend="triton", checkpoint=True)
    assert "checkpoint(" in compiled.source
    assert all(f'kernel("{name}"' in compiled.source for name in compiled.program.kernels)
    assert len(compiled.program.kernels) == compiled.source.count('kernel("') > 0
    assert f"{compiled.program.kernels[0]}: called" in compiled.explain()


@pytest.mark.interpreted
def test_constants_are_folded_before_a_kernel(device: torch.device) -> None:
    x, *factors = cp(device, grad=False)
    text = CASES["CP"].text
    compiled = convein.compile(text, x, *factors, constants=[1, 2, 3, 4], backend="triton")
    assert compiled.program.kernels
    torch.testing.assert_close(compiled(x), convein.conv_einsum(text, x, *factors, backend="torch"))


@pytest.mark.interpreted
def test_a_free_batch(device: torch.device) -> None:
    x, *factors = cp(device, grad=False)
    text = CASES["CP"].text
    compiled = convein.compile(text, (None, *x.shape[1:]), *factors, backend="triton", dtype=x.dtype, device=device)
    assert compiled.program.kernels
    for batch in (1, 3):
        images = torch.randn(batch, *x.shape[1:], dtype=x.dtype, device=device)
        expected = convein.conv_einsum(text, images, *factors, backend="torch")
        torch.testing.assert_close(compiled(images, *factors), expected)


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_see_plain_calls(device: torch.device) -> None:
    tensors = cp(device, grad=False)
    text = CASES["CP"].text

    def value(x: Tensor, *factors: Tensor) -> Tensor:
        result: Tensor = convein.conv_einsum(text, x, *factors, backend="triton").square().sum()
        return result

    def plain(x: Tensor, *factors: Tensor) -> Tensor:
        result: Tensor = convein.conv_einsum(text, x, *factors, backend="torch").square().sum()
        return result

    torch.testing.assert_close(torch.func.grad(value)(*tensors), torch.func.grad(plain)(*tensors))
    many = [torch.stack([x, 2 * x]) for x in tensors]
    torch.testing.assert_close(torch.func.vmap(value)(*many), torch.func.vmap(plain)(*many))
    tangents = [torch.randn_like(x) for x in tensors]
    torch.testing.assert_close(
        torch.func.jvp(value, tuple(tensors), tuple(tangents)), torch.func.jvp(plain, tuple(tensors), tuple(tangents))
    )


@pytest.mark.interpreted
def test_second_derivatives(device: torch.device) -> None:
    tensors = cp(device)
    text = CASES["CP"].text
    found = []
    for backend in ("triton", "torch"):
        result = convein.conv_einsum(text, *tensors, backend=backend).square().sum()
        first = torch.autograd.grad(result, tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    torch.testing.assert_close(*found)


@pytest.mark.interpreted
def test_the_printed_program_is_python(device: torch.device) -> None:
    tensors = cp(device, grad=False)
    compiled = convein.compile(CASES["CP"].text, *tensors, backend="triton")
    namespace: dict[str, Any] = {}
    exec(compiled.source, namespace)
    torch.testing.assert_close(namespace["program"](*tensors), compiled(*tensors))


@pytest.mark.interpreted
def test_a_kernel_that_cannot_be_built_is_replaced_once_and_for_all(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    from convein.execution import kernels

    def fail(*_: Any) -> Tensor:
        raise OutOfResources(300_000, 232_448, "shared memory")

    tensors = cp(device, grad=False)
    text = CASES["CP"].text
    compiled = convein.compile(text, *tensors, backend="triton")
    expected = convein.conv_einsum(text, *tensors, backend="torch")
    monkeypatch.setattr(kernels, "_failed", set())
    for name in {*compiled.program.kernels}:
        monkeypatch.setattr(torch.ops.convein, name, fail)
    with pytest.warns(UserWarning, match="could not be built, plain calls stand in for it"):
        torch.testing.assert_close(compiled(*tensors), expected)
    torch.testing.assert_close(compiled(*tensors), expected)
    again = convein.compile(text, *tensors)
    assert again.program.kernels == ()


@pytest.mark.interpreted
def test_a_graph_holds_kernels_where_they_are_asked_for_by_name(device: torch.device) -> None:
    tensors = cp(device)
    text = CASES["CP"].text

    def layer(x: Tensor, *factors: Tensor) -> Tensor:
        result: Tensor = convein.conv_einsum(text, x, *factors, backend="triton")
        return result

    expression = convein.compile(text, *tensors, backend="triton")
    expected = convein.conv_einsum(text, *tensors, backend="torch")
    ready = torch.compile(expression.__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(ready(*tensors), expected)
    with torch.autocast(device.type, torch.bfloat16):
        single = [x.detach().float() for x in tensors]
        mixed = convein.compile(text, *single, backend="triton")
        assert torch.compile(mixed.__call__, fullgraph=True, backend="aot_eager")(*single).dtype is torch.bfloat16
        assert mixed(*single).dtype is torch.bfloat16
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad(one, tensors, weight) for one in (compiled(*tensors), expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["CP", "dense", "reduction"])
def test_a_graph_with_a_free_batch_holds_kernels(name: str, device: torch.device) -> None:
    case = CASES[name]
    x, *others = [x.detach() for x in operands(case, device)]
    others = [x[:1] for x in others] if name == "reduction" else others

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = convein.conv_einsum(case.text, x, *others, backend="triton", **case.options)
            return result

    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("b", min=2)},))
    assert any(str(node.target).startswith("convein.") for node in exported.graph.nodes)
    images = torch.cat([x, x + 1, x - 1])
    expected = convein.conv_einsum(case.text, images, *others, backend="torch", **case.options)
    torch.testing.assert_close(exported.module()(images), expected)


@pytest.mark.interpreted
def test_a_layer_passes_the_back_end_on(device: torch.device) -> None:
    layer = convein.layers.Conv2d(5, 6, 3, form="cp", rank=4, padding=1, backend="triton", dtype=torch.float64)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, device=device)
    plain = torch.nn.functional.conv2d(x, layer.dense_weight(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain)
