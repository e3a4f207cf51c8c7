"""The layers as modules, biases included: beside tensorly-torch's of the same factors, and a whole model tensorised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

import convein
from backbones import resnet34
from cases.layers import BATCHES, DIRECTIONS, LAYERS, LAYOUTS, PERCENTS
from convein.layers import Conv2d
from measure import Group

FORMS = ("cp", "tucker", "tt")
IMPLEMENTATIONS = ("factorized", "reconstructed", "mobilenet")
PICTURES = (32, 3, 224, 224)
TOLERANCE = 1e-4


def groups() -> Iterator[Group]:
    """Every form that both have, layer, number of parameters, batch, direction and layout; then ResNet-34."""
    for form, (channels, size), percent, batch, direction, layout in product(
        FORMS, LAYERS, PERCENTS, BATCHES, DIRECTIONS, LAYOUTS
    ):
        name = f"{form} {channels} channels {size}x{size} {percent}% batch {batch} {direction} {layout}"
        shape = (batch, channels, size, size)
        yield Group(name, partial(_layer, name, form, shape, percent, direction != "forward", layout))
    for percent, direction in product((5, 10, 50), DIRECTIONS):
        name = f"ResNet-34 batch 32 {percent}% auto {direction}"
        yield Group(name, partial(_model, percent, direction != "forward"))


def _layer(
    name: str, form: str, shape: tuple[int, ...], percent: int, trains: bool, layout: str
) -> dict[str, Callable[[], object]]:
    numbers = torch.Generator().manual_seed(0)
    channels = shape[1]
    memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    x = torch.randn(shape, generator=numbers).contiguous(memory_format=memory_format).requires_grad_(trains)
    ours = Conv2d(channels, channels, 3, padding=1, form=form, rank=percent / 100)
    modules: dict[str, nn.Module] = {"convein.layers": ours}
    for implementation in IMPLEMENTATIONS:
        try:
            modules[f"tensorly-torch {implementation}"] = _tensorly(ours, implementation)
        except ImportError:
            tqdm.write(f"{name}: without tensorly-torch: pip install '.[bench]'")
            break
    wanted = ours(x).detach()
    calls = {}
    for label, module in modules.items():
        try:
            value = module(x).detach()
        except Exception as error:  # noqa: BLE001 - what a peer cannot do is reported, whatever it raises
            tqdm.write(f"{name}: without {label}: {error}")
            continue
        off = float((value - wanted).abs().max() / wanted.abs().max())
        if not off < TOLERANCE:
            raise ValueError(f"{name}, {label} is off by {off:.1e}")
        gradient = torch.randn(value.shape, generator=numbers)
        calls[label] = _call(module, x, torch.empty_like(value).copy_(gradient), trains)
    return calls


def _tensorly(ours: Conv2d, implementation: str) -> nn.Module:
    """Tensorly-torch's layer with the same factors and bias."""
    from tltorch import CPTensor, FactorizedConv, TTTensor, TuckerTensor

    def parameter(x: Tensor) -> nn.Parameter:
        return nn.Parameter(x.detach().clone(memory_format=torch.contiguous_format))

    first, *rest = ours.weights
    if ours.form == "cp":
        factors = [parameter(factor.t()) for factor in (first, *rest)]
        weight = CPTensor(torch.ones(first.shape[0]), factors)
    elif ours.form == "tucker":
        core = parameter(rest[1])
        shape = (ours.out_channels, ours.in_channels, *ours.kernel_size)
        weight = TuckerTensor(core, [parameter(first), parameter(rest[0])], shape=shape, rank=tuple(core.shape))
    else:
        weight = TTTensor([parameter(first.unsqueeze(0)), *map(parameter, rest[:-1]), parameter(rest[-1].unsqueeze(2))])
    layer: Any = FactorizedConv.from_factorization(weight, implementation=implementation, padding=1)
    layer.bias = nn.Parameter(ours.bias.detach().clone()) if ours.bias is not None else None
    return cast("nn.Module", layer)


def _call(module: nn.Module, x: Tensor, gradient: Tensor, trains: bool) -> Callable[[], object]:
    module.train(trains)
    leaves = [x, *module.parameters()]

    def step() -> object:
        return torch.autograd.grad(module(x), leaves, gradient)

    def forward() -> object:
        with torch.no_grad():
            return module(x)

    return step if trains else forward


def _model(percent: int, trains: bool) -> dict[str, Callable[[], object]]:
    """ResNet-34 as it is, and where the time model says that a layer would be faster, tensorised."""
    torch.manual_seed(0)
    model = cast("Any", resnet34().train(trains)).to(memory_format=torch.channels_last)
    x = torch.randn(PICTURES).contiguous(memory_format=torch.channels_last)
    ours, report = convein.tensorize(model, form="auto", rank=percent / 100, example_inputs=x, decompose=False)
    tqdm.write(str(report))
    calls: dict[str, Callable[[], object]] = {}
    for label, module in (("tensorised", ours), ("as it was", model)):
        parameters = list(module.parameters())

        def step(module: nn.Module = module, parameters: list[nn.Parameter] = parameters) -> object:
            return torch.autograd.grad(module(x).sum(), parameters)

        def forward(module: nn.Module = module) -> object:
            with torch.no_grad():
                return module(x)

        calls[label] = step if trains else forward
    return calls
