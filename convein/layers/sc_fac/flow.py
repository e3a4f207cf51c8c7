"""Residual flows: invertible maps x + g(x), their inverse, and their log-determinant without bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.conv import Size, positive
from convein.layers.sc_fac.activations import LipSwish
from convein.layers.sc_fac.base import OrthogonalLayer, orthogonal_weights
from convein.layers.sc_fac.convolution import OrthogonalConv2d


class ResidualFlow(nn.Module):
    """y = x + scale * branch(x), invertible where the branch is 1-Lipschitz and the scale below one.

    The log-determinant of its Jacobian I + J is sum_k (-1)^(k+1) tr(J^k) / k. A few terms are always taken, as many
    more as a geometric draw says, each over the chance that it is reached (Russian roulette), and every trace is
    v^T J^k v of one normal v (M. Hutchinson): J. Su, 2022, section 7.7.3; R. T. Q. Chen et al., "Residual flows for
    invertible generative modeling", 2019. The mean of the estimate is the log-determinant, and that of its gradient the
    gradient, which comes from the series of the inverse, sum_k (-1)^k v^T J^k dJ v: one product's graph is kept.

    Args:
        branch: a 1-Lipschitz map of tensors to tensors of the same shape, (batch, ...); samples stay apart.
        scale: above 0 and below 1.
        terms: that are always taken.
        stop: the chance to stop after each further term; 0.5 draws one on average.

    Raises:
        OptionError: what does not fit.
    """

    def __init__(self, branch: nn.Module, scale: float = 0.9, *, terms: int = 10, stop: float = 0.5) -> None:
        super().__init__()
        if not 0 < scale < 1:
            raise OptionError(f"scale={scale!r} of a residual flow", hint="above 0 and below 1: else it has no inverse")
        if not 0 < stop < 1:
            raise OptionError(f"stop={stop!r} is no chance to stop", hint="above 0 and below 1: 0.5")
        self.branch = branch
        self.scale = scale
        self.terms = positive("terms", terms)
        self.stop = stop

    def residual(self, input: Tensor) -> Tensor:
        """What is added to the input."""
        value: Tensor = self.scale * self.branch(input)
        return value

    def forward(self, input: Tensor) -> Tensor:
        """The transformed input, of the same shape."""
        return input + self.residual(input)

    def transform(self, input: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The transformed input and an unbiased estimate of the log-determinant of its Jacobian.

        Args:
            input: (batch, ...).
            generator: of the draws.

        Returns:
            The value, and (batch,): differentiable with respect to parameters and input, once.
        """
        noise = torch.randn(input.shape, dtype=input.dtype, device=input.device, generator=generator)
        draw = torch.rand((), generator=generator, device=input.device).item()
        more = math.floor(math.log(max(1 - draw, 1e-300)) / math.log1p(-self.stop))
        weights = [1.0] * self.terms + [(1 - self.stop) ** -(number + 1) for number in range(more)]
        return self.series(input, noise, weights)

    def series(self, input: Tensor, noise: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
        """The transformed input, and sum_k weights[k-1] (-1)^(k+1) / k noise^T J^k noise for each sample.

        Args:
            input: (batch, ...).
            noise: v, of the same shape.
            weights: of the terms: one over the chance that a term is reached.
        """
        learns = torch.is_grad_enabled()
        with torch.inference_mode(mode=False), torch.enable_grad():
            # What inference mode made is copied: no gradient can pass through it.
            x = input.clone() if input.is_inference() else input
            noise = noise.clone() if noise.is_inference() else noise
            x = x if x.requires_grad else x.detach().requires_grad_()
            added = self.residual(x)
            value, row, found = x.new_zeros(len(x)), noise, noise
            for number, weight in enumerate(weights, 1):
                (row,) = torch.autograd.grad(added, x, row, retain_graph=True)
                value = value + _dot(row, noise) * (weight * (-1) ** (number + 1) / number)
                # The series of the inverse: the same terms with one factor J less, that of the derivative.
                if number < len(weights):
                    found = found + row * (weights[number] * (-1) ** number)
            if not learns:
                return (x + added).detach(), value
            # d log det = tr((I + J)^-1 dJ), which is the gradient of found^T J noise where found is held.
            (product,) = torch.autograd.grad(added, x, found, create_graph=True)
            slope = _dot(product, noise)
        return x + added, value.detach() + slope - slope.detach()

    @torch.no_grad()
    def inverse(self, output: Tensor, *, tolerance: float = 1e-6, steps: int = 1000) -> Tensor:
        """The input of an output, by the iteration x <- y - residual(x): each step divides the error by 1 / scale.

        Args:
            output: (batch, ...).
            tolerance: the change of any entry in the last step, at most; the error is at most scale / (1 - scale) times
                the norm of that change.
            steps: at most.

        Raises:
            OptionError: it took more steps, as where the branch is not 1-Lipschitz.
        """
        x, change = output, 0.0
        with self._weights_once():
            for _ in range(steps):
                following = output - self.residual(x)
                change = float((following - x).abs().max()) if x.numel() else 0.0
                x = following
                if change <= tolerance:
                    return x
        raise OptionError(
            f"steps={steps}: after them an entry still changes by {change:.1e}",
            hint=f"nine digits take about {math.log(1e-9) / math.log(self.scale):.0f} with scale={self.scale} and a "
            "1-Lipschitz branch",
        )

    def _weights_once(self) -> AbstractContextManager[None]:
        """Within it, the branch makes its weights once."""
        holds = any(isinstance(module, OrthogonalLayer) for module in self.branch.modules())
        return orthogonal_weights(self.branch) if holds else nullcontext()

    def extra_repr(self) -> str:
        """Scale, terms and chance to stop."""
        return f"scale={self.scale}, terms={self.terms}, stop={self.stop}"


def flow_block(
    channels: int,
    hidden: int,
    kernel_size: Size = 3,
    *,
    depth: int = 2,
    scale: float = 0.9,
    activation: Callable[[], nn.Module] = LipSwish,
    **given: Any,
) -> ResidualFlow:
    """A residual flow whose branch is orthogonal convolutions, with an activation before each of them.

    Args:
        channels: of the input (batch, channels, h, w).
        hidden: channels inside the branch.
        kernel_size: of all convolutions.
        depth: how many convolutions, from 2 on.
        scale: of the branch.
        activation: makes a 1-Lipschitz module: smooth, since the log-determinant differentiates it twice.
        **given: of the convolutions.
    """
    if positive("depth", depth) < 2:
        raise OptionError(f"depth={depth} of a branch", hint="2 or more convolutions")
    sizes = [channels, *[hidden] * (depth - 1), channels]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [activation(), OrthogonalConv2d(inputs, outputs, kernel_size, **given)]
    return ResidualFlow(nn.Sequential(*layers), scale)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of every sample."""
    return (one * other).flatten(1).sum(1)
