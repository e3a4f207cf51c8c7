"""Stacks of linear ARMA layers: what one output sees, measured by gradients and by theorem 6.3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convein.layers import ARMA1d, ARMA2d, ARMAStage, field_radius, receptive_field, theoretical_radius

# Convolutions alone are those of coefficient 0.
COEFFICIENTS = (0.0, 0.5, 0.8, 0.9)
DEPTHS = (1, 3, 5, 7)
# One-sided stacks as theorem 6.3 has them: depth and layer.
CAUSAL = (
    (1, ARMAStage(3)),
    (1, ARMAStage(3, 0.6)),
    (3, ARMAStage(3, 0.6)),
    (3, ARMAStage(3, 0.8, dilation=2)),
    (5, ARMAStage(5, 0.8)),
    (2, ARMAStage(4, 0.9, dilation=3)),
)
SIDE = 129
LINE = 512


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """What the stack of so many equal layers sees, and how far, in points along each dimension."""

    depth: int
    stage: ARMAStage
    values: Tensor
    radius: float

    @property
    def theory(self) -> float:
        """The radius by theorem 6.3."""
        return theoretical_radius([self.stage] * self.depth)


def layer(stage: ARMAStage, dimensions: int) -> nn.Module:
    """One channel of the layer along each of one or two dimensions, in float64."""
    a, K = stage.coefficient, stage.kernel_size
    padding: int | str = "same" if stage.two_sided else stage.dilation * (K - 1)
    kind = {1: ARMA1d, 2: ARMA2d}[dimensions]
    made = kind(1, 1, K, padding=padding, dilation=stage.dilation, bias=False, dtype=torch.float64)
    (weight,) = made.moving_average.weights
    with torch.no_grad():
        weight.fill_(((1 - a) / K) ** dimensions)
        # f(-1) - f(1) and f(-1) + f(1): one-sided, f(1) = -a and f(-1) = 0.
        made.alpha.copy_(torch.tensor([0.0 if stage.two_sided else a, -a], dtype=torch.float64).atanh())
    return made


def measure(depth: int, stage: ARMAStage, dimensions: int, size: int) -> Field:
    """What the middle output of a stack sees of a grid; of a one-sided stack, the last one."""
    stack = nn.Sequential(*(layer(stage, dimensions) for _ in range(depth)))
    blank = torch.zeros(1, 1, *(size,) * dimensions, dtype=torch.float64)
    place = (size // 2 if stage.two_sided else size - 1,) * dimensions
    values = receptive_field(stack, blank, place)
    return Field(depth, stage, values, field_radius(values, None if stage.two_sided else place)[0])


def fields() -> Iterator[Field]:
    """One-sided lines, then all pairs of `COEFFICIENTS` and `DEPTHS` as two-sided pictures."""
    for depth, stage in CAUSAL:
        yield measure(depth, stage, 1, LINE)
    for coefficient in COEFFICIENTS:
        for depth in DEPTHS:
            yield measure(depth, ARMAStage(3, coefficient, two_sided=True), 2, SIDE)


def table(found: list[Field]) -> Iterator[str]:
    """Every field: its layers, and both radii."""
    yield "| layers | kernel | dilation | a | sides | measured | theorem 6.3 |"
    yield "|---:" * 7 + "|"
    for each in found:
        stage = each.stage
        sides = "two" if stage.two_sided else "one"
        yield (
            f"| {each.depth} | {stage.kernel_size} | {stage.dilation} | {stage.coefficient:g} | {sides} | "
            f"{each.radius:.6f} | {each.theory:.6f} |"
        )


def rows(found: list[Field]) -> Iterator[dict[str, object]]:
    """A row for every field."""
    for each in found:
        stage = each.stage
        yield {
            "dimensions": each.values.dim(), "layers": each.depth, "kernel_size": stage.kernel_size,
            "dilation": stage.dilation, "coefficient": stage.coefficient, "two_sided": stage.two_sided,
            "measured": f"{each.radius:.9f}", "theory": f"{each.theory:.9f}",
        }  # fmt: skip
