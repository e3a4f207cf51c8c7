"""Orthogonal convolutions: the weights of a WideResNet-22-10, inference, and how orthogonal other methods are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convein.layers.sc_fac import LipschitzWideResNet, OrthogonalConv2d, Subspace, orthogonal_matrices
from convein.layers.sc_fac.exponential import skew
from convein.layers.sc_fac.factors import Factor
from measure import Group

# Standard deviations of the free parameters: at the start, after some steps of an optimizer, and after many without a
# new base.
TURNS = (0.0, 0.01, 0.05)
NETWORK = (22, 10)  # depth and width
# Channels of input and output, kernel and stride; then size and batch.
INFERENCE = (
    (64, 64, 3, 1, 32, 32),
    (256, 256, 3, 1, 8, 32),
    (64, 64, 3, 1, 32, 1),
    (256, 256, 3, 1, 8, 1),
    (64, 256, 4, 2, 32, 32),
    (64, 256, 4, 2, 32, 1),
)
PICTURES = (256, 64, 16, 16)
LAYER = 64
TOLERANCE = 1e-4


def groups() -> Iterator[Group]:
    """Weights forward and with their backward pass; inference; other methods."""
    for turn in TURNS:
        for trains in (False, True):
            direction = "forward+backward" if trains else "forward"
            yield Group(f"WideResNet-22-10 weights turns of {turn:g} {direction}", partial(_weights, turn, trains))
    for inputs, outputs, kernel, stride, size, batch in INFERENCE:
        layer = f"{inputs} to {outputs} channels {kernel}x{kernel} stride {stride}"
        name = f"inference {layer} of {size}x{size} batch {batch}"
        yield Group(name, partial(_inference, (inputs, outputs, kernel, stride), size, batch))
    yield Group("weight of 64 channels 3x3", _methods)


def _weights(turn: float, trains: bool) -> dict[str, Callable[[], object]]:
    """All convolutions of a network: our exponentials, all at once or layer by layer, and torch's of every factor."""
    torch.manual_seed(0)
    model = LipschitzWideResNet(*NETWORK, size=8, pool=2)
    layers = [module for module in model.modules() if isinstance(module, OrthogonalConv2d)]
    parameters = [factor.free for layer in layers for factor in layer.factors()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=turn)

    def together() -> list[Tensor]:
        matrices = iter(orthogonal_matrices([factor for layer in layers for factor in layer.factors()]))
        return [layer.assembled([next(matrices) for _ in layer.factors()]) for layer in layers]

    def alone() -> list[Tensor]:
        return [layer.assembled(orthogonal_matrices(layer.factors())) for layer in layers]

    def torchs() -> list[Tensor]:
        return [layer.assembled([_matrix_exp(factor) for factor in layer.factors()]) for layer in layers]

    def step(build: Callable[[], list[Tensor]], gradients: list[Tensor]) -> object:
        return torch.autograd.grad(build(), parameters, gradients)

    def forward(build: Callable[[], list[Tensor]]) -> object:
        with torch.no_grad():
            return build()

    with torch.no_grad():
        wanted = together()
        for one, other in zip(wanted, torchs(), strict=True):
            if not (off := float((one - other).abs().max())) < TOLERANCE:
                raise ValueError(f"weights differ by {off:.1e}")
    gradients = [torch.randn_like(weight) for weight in wanted]
    builds = {
        "convein, together": together,
        "convein, layer by layer": alone,
        "torch.linalg.matrix_exp a factor": torchs,
    }
    return {
        name: partial(step, build, gradients) if trains else partial(forward, build) for name, build in builds.items()
    }


def _matrix_exp(factor: Factor) -> Tensor:
    """The matrices of a factor as a parametrization by torch's exponential has them: one call for each."""
    free: Tensor = factor.free
    if isinstance(factor, Subspace):
        free = nn.functional.pad(free, (0, factor.size - factor.rank, factor.rank, 0))
    whole: Tensor = factor.base @ torch.linalg.matrix_exp(skew(free))
    return whole[..., : factor.rank].contiguous() if isinstance(factor, Subspace) else whole


def _inference(layer: tuple[int, int, int, int], size: int, batch: int) -> dict[str, Callable[[], object]]:
    """A layer in evaluation beside torch's convolution of the same weight, padding and stride."""
    torch.manual_seed(0)
    inputs, _, kernel, stride = layer
    padding = (kernel - stride) // 2
    ours = OrthogonalConv2d(*layer).eval()
    plain = nn.Conv2d(*layer, padding=padding, padding_mode="circular").eval()
    zeros = nn.Conv2d(*layer, padding=padding).eval()
    x = torch.randn(batch, inputs, size, size)
    with torch.no_grad():
        plain.weight.copy_(ours.dense_weight())
        plain.bias.zero_()  # type: ignore[union-attr]
        if not float((ours(x) - plain(x)).abs().max()) < TOLERANCE:
            raise ValueError("the convolutions differ")

    def call(module: nn.Module) -> object:
        with torch.no_grad():
            return module(x)

    modules = {"nn.Conv2d, circular": plain, "convein": ours, "nn.Conv2d, zeros": zeros}
    return {name: partial(call, module) for name, module in modules.items()}


def _methods() -> Mapping[str, Callable[[], object]]:
    """Time for one weight, or for a call less a convolution's where there is no weight; the norms in the name."""
    torch.manual_seed(0)
    ours = {
        "SC-Fac": OrthogonalConv2d(LAYER, LAYER, 3, bias=False, init="uniform"),
        "SC-Fac, cayley": OrthogonalConv2d(LAYER, LAYER, 3, bias=False, init="uniform", map="cayley"),
    }
    calls: dict[str, Callable[[], object]] = {}
    x = torch.randn(PICTURES)
    for name, layer in ours.items():
        with torch.no_grad():
            for factor in layer.factors():
                factor.free.normal_(std=0.05)
            label = f"{name}: {_norms(layer, x)}"
        calls[label] = partial(_without_graph, layer.dense_weight)
    try:
        peers = _peers()
    except ImportError:
        tqdm.write("without other methods: pip install '.[bench]'")
        return calls
    for name, (peer, build) in peers.items():
        calls[f"{name}: {_norms(peer, x)}"] = partial(_without_graph, build)
    return calls


def _peers() -> dict[str, tuple[nn.Module, Callable[[], object]]]:
    """Orthogonium's layers in training, and what makes their weights: of Cayley's, a call with one small picture."""
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
    from orthogonium.layers.conv.AOC.rko_conv import RKOConv2d
    from orthogonium.legacy.block_ortho_conv import BCOP
    from orthogonium.legacy.cayley_ortho_conv import Cayley

    small = torch.zeros(1, LAYER, *PICTURES[2:])
    made: dict[str, Any] = {
        "AOC": AdaptiveOrthoConv2d(LAYER, LAYER, 3, padding=1, bias=False),
        "BCOP": BCOP(LAYER, LAYER, 3, bias=False),
        "RKO": RKOConv2d(LAYER, LAYER, 3, bias=False),
        "Cayley, a call": Cayley(LAYER, LAYER, 3, bias=False),
    }
    found: dict[str, tuple[nn.Module, Callable[[], object]]] = {}
    for name, layer in made.items():
        module = cast("nn.Module", layer.train())
        makes = name in ("AOC", "RKO")
        found[name] = module, partial(getattr, module, "weight") if makes else partial(module, small)
    return found


def _norms(layer: nn.Module, x: Tensor) -> str:
    """The ratio of the norms of outputs and inputs: mean and standard deviation."""
    with torch.no_grad():
        ratios = layer(x).flatten(1).double().norm(dim=1) / x.flatten(1).double().norm(dim=1)
    return f"norm {float(ratios.mean()):.7f} +- {float(ratios.std()):.1e}"


def _without_graph(build: Callable[[], object]) -> object:
    with torch.no_grad():
        return build()
