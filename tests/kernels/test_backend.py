"""Expressions by kernels against the same by calls of torch: values, gradients, and what the program says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import convein


@dataclass(frozen=True, slots=True)
class Case:
    """An expression, the kernels that it goes through, and options."""

    text: str
    shapes: tuple[tuple[int, ...], ...]
    kernels: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


FUSED, PROLOGUE, REDUCED = "pointwise_depthwise", "depthwise_pointwise", "product_reduce"
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
    "reduction": Case("ab,ab,ab->a", ((4, 9), (4, 9), (4, 9)), (REDUCED,)),
    "broadcast reduction": Case("abc,b,ac->bc", ((4, 5, 6), (5,), (4, 6)), (REDUCED,)),
}  # fmt: skip


def operands(case: Case, device: torch.device, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(len(case.text))
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in case.shapes]


@pytest.mark.interpreted
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_value_and_all_gradients(name: str, device: torch.device) -> None:
    case = CASES[name]
    tensors = operands(case, device)
    compiled = convein.compile(case.text, *tensors, backend="triton", **case.options)
    assert {*compiled.program.kernels} & {*case.kernels}, compiled.program.notes
    results = [
        convein.conv_einsum(case.text, *tensors, backend=backend, **case.options) for backend in ("triton", "torch")
    ]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(result, tensors, weight) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
