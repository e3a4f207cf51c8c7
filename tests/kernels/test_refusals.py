"""A refusal needs shape, stride, type, device and number of dimensions of each tensor, and nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from convein.kernels import depthwise_pointwise, dual_product, lstm_gates, pair, pointwise_depthwise, product_reduce
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Meta:
    """What a planner knows of a tensor before there is one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    steps: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def stride(self) -> tuple[int, ...]:
        return self.steps


def described(x: Any) -> Any:
    return Meta(tuple(x.shape), x.dtype, x.device, x.stride()) if isinstance(x, Tensor) else x


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


X, HUGE = zeros(1, 5, 3, 3), torch.empty(1, 5, 2**15, 2**15, device="meta")
D, C = zeros(5, 3, 3), zeros(6, 5)
M, W, SHIFT, BASE = zeros(1, 2, 3, 3), zeros(4, 2, 3, 3), zeros(4), zeros(4, 1, 1)
# Stride, padding, size, dilation.
OPTIONS = ((1, 1), (0, 0), (1, 1), (1, 1))
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (depthwise_pointwise, (X, D, C, *OPTIONS)),
    (depthwise_pointwise, (X, D, C.half(), *OPTIONS)),
    (depthwise_pointwise, (HUGE, D, C, *OPTIONS)),
    (depthwise_pointwise, (X.int(), D.int(), C.int(), *OPTIONS)),
    (pointwise_depthwise, (X, None, D, C, *OPTIONS[1:])),
    (pointwise_depthwise, (X, None, D, C.t(), *OPTIONS[1:])),
    (pointwise_depthwise, (HUGE, None, D, C, *OPTIONS[1:])),
    (dual_product, (M, W, SHIFT, BASE, *OPTIONS)),
    (dual_product, (M, W, SHIFT, BASE[:, :, 0], *OPTIONS)),
    (dual_product, (torch.empty(2**30, 2, 3, 3, device="meta"), W, SHIFT, BASE, *OPTIONS)),
    (lstm_gates, (zeros(2, 8, 3), zeros(2, 2, 3))),
    (lstm_gates, (torch.empty(1, 4, 2**30, device="meta"), torch.empty(1, 1, 2**30, device="meta"))),
    (pair, (zeros(2, 3), zeros(3, 4), "ab,bc->ca", "", (), (), (), ())),
    (pair, (zeros(2, 3), zeros(3, 4), "ab,bc->abc", "b", (1,), (1,), (0,), (1,))),
    (pair, (torch.empty(2**20, 2**11, device="meta"), zeros(2**11, 4), "ab,bc->ca", "", (), (), (), ())),
    (product_reduce, (zeros(2, 3), zeros(1, 3), None, (1,))),
    (product_reduce, (zeros(2, 3), zeros(2, 4), None, (1,))),
]


@pytest.mark.parametrize(("kernel", "operands"), CALLS)
def test_what_stands_for_tensors_is_judged_as_they_are(kernel, operands, device) -> None:
    placed = [x.to(device) if isinstance(x, Tensor) and not x.is_meta else x for x in operands]
    assert kernel.refusal(*map(described, placed)) == kernel.refusal(*placed)
