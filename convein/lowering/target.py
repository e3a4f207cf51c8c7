"""What the lowering knows of the machine that will run the program, and of sizes that are only hints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from convein.lowering.values import Value
from convein.planner.rates import SHIPPED, Rates


@dataclass(frozen=True, slots=True)
class Target:
    """Where a program runs and on what.

    Attributes:
        dtype: of the calls; device: "cpu", "cuda", ....
        hints: for modes whose size is only known at run time, the size to plan with.
        rates: what the machine does per second.
        knows_memory: whether operands will always lie in memory as they do now, or may come in another order of axes.
        narrow: the dtype of operands and result, where the calls have a wider one.
        refusal: says of a fused kernel and its arguments why it does not take them, or None; None where there are no
            kernels, and `absence` says why.
        forced: whether kernels are taken where they can, and not where they are expected to be faster.
    """

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    hints: Mapping[str, int] = field(default_factory=dict, hash=False)
    rates: Rates = SHIPPED
    knows_memory: bool = True
    narrow: torch.dtype | None = None
    refusal: Callable[..., str | None] | None = None
    absence: str = ""
    forced: bool = False

    @property
    def chooses_layouts(self) -> bool:
        """Whether convolutions are faster where channels are neighbours in memory: oneDNN's, and matrix units'."""
        known = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
        return self.dtype in known.get(self.device, ())

    @property
    def is_inexact(self) -> bool:
        """Whether numbers are real or complex floating point."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def has_convolution(self) -> bool:
        """torch convolves floating point only."""
        return self.is_inexact

    @property
    def has_matmul(self) -> bool:
        """torch multiplies integer matrices on the CPU only, and boolean ones nowhere."""
        return self.is_inexact or (self.device == "cpu" and self.dtype is not torch.bool)

    @property
    def prefers_pointwise_conv(self) -> bool:
        """Whether a matrix applied to a middle axis is best a convolution with kernel size 1.

        On a CPU it saves the copy that a matmul makes. On a GPU it would round to TF32 where a matmul does not.
        """
        return self.device == "cpu" and self.dtype.is_floating_point

    def count(self, value: Value) -> int:
        """Number of entries of a value."""
        return prod(self.number(mode, size) for mode, size in value.sizes.items())

    def number(self, mode: str, size: int | str) -> int:
        """A size as a number."""
        return size if isinstance(size, int) else self.hints[mode]
