"""One network with three kinds of layers: orthogonal, normalised by torch's spectral_norm, or free.

Torch's spectral_norm divides a convolution's kernel by the largest singular value of the kernel as a matrix
(out, in * height * width). That is not the convolution's own largest singular value, which is up to
sqrt(height * width) times larger; so the normalised network's bound is far above one.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from convein.layers.sc_fac import LipschitzWideResNet, OrthogonalConv2d, OrthogonalLinear, ResidualSkip, singular_values

ORTHOGONAL, NORMALISED, FREE = KINDS = ("SC-Fac", "spectral norm", "free")
# All frequencies of inputs of 8 x 8, 4 x 4 and 2 x 2 are among those of one so large.
FREQUENCIES = 16


def network(kind: str, width: int, seed: int) -> nn.Module:
    """A wide residual network of ten layers for pictures of 8 x 8.

    Args:
        kind: of its layers, one of `KINDS`; where they are not orthogonal they are torch's, of the same sizes.
        width: of the three stages, in 16, 32 and 64 channels.
        seed: of the numbers it starts with.
    """
    torch.manual_seed(seed)
    model = LipschitzWideResNet(10, width, channels=1, size=8, pool=1)
    if kind == ORTHOGONAL:
        return model
    _replace(model, normalise=kind == NORMALISED)
    return Scores(model)


class Scores(nn.Module):
    """The layers of a wide residual network that has no orthogonal ones left."""

    def __init__(self, model: LipschitzWideResNet) -> None:
        super().__init__()
        self.blocks, self.pool, self.head = model.blocks, model.pool, model.head

    def forward(self, input: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10)."""
        scores: Tensor = self.head(self.pool(self.blocks(input)).flatten(1))
        return scores


def _replace(model: nn.Module, *, normalise: bool) -> None:
    """Put torch's layers in the places of orthogonal ones."""
    for name, child in model.named_children():
        made: nn.Module | None = None
        if isinstance(child, OrthogonalConv2d):
            shape, size = child.geometry, child.geometry.kernel[0]
            made = nn.Conv2d(shape.inputs, shape.outputs, size, padding=size // 2, padding_mode="circular")
        elif isinstance(child, OrthogonalLinear):
            made = nn.Linear(child.in_features, child.out_features)
        if made is None:
            _replace(child, normalise=normalise)
        else:
            setattr(model, name, spectral_norm(made) if normalise else made)


@torch.no_grad()
def spectrum(layer: nn.Module) -> Tensor:
    """All singular values of a layer, a convolution's at every frequency."""
    if isinstance(layer, OrthogonalConv2d):
        return singular_values(layer, (FREQUENCIES, FREQUENCIES)).flatten()
    if isinstance(layer, OrthogonalLinear):
        return singular_values(layer).flatten()
    weight = cast("Tensor", layer.weight).double()
    if weight.dim() > 2:
        weight = torch.fft.fft2(weight, (FREQUENCIES, FREQUENCIES)).permute(2, 3, 0, 1)
    values: Tensor = torch.linalg.svdvals(weight)
    return values.flatten()


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Its convolutions and linear layers, in order."""
    kinds = (OrthogonalConv2d, OrthogonalLinear, nn.Conv2d, nn.Linear)
    return [module for module in model.modules() if isinstance(module, kinds)]


def lipschitz_bound(module: nn.Module) -> float:
    """The product of the largest singular values, and their mean where ways meet: a bound for the whole network."""
    if isinstance(module, ResidualSkip):
        part = float(torch.sigmoid(module.alpha.detach()))
        return part * lipschitz_bound(module.branch) + (1 - part) * lipschitz_bound(module.shortcut)
    if any(True for _ in linear_layers(module)) and module is linear_layers(module)[0]:
        return float(spectrum(module).max())
    children: Any = module.children()
    return math.prod(lipschitz_bound(child) for child in children)
