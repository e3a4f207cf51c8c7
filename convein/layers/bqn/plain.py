"""Networks of quantised weights as networks of torch, and their weights in as few bits as they need."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OperandError, OptionError
from convein.layers.bqn.modes import MAP, SAMPLED, Layer

# A tensor of no more different numbers than this is written as a list of them, and where each stands.
_MOST_LEVELS = 256


@torch.no_grad()
def to_plain(network: nn.Module, mode: str = MAP, generator: torch.Generator | None = None) -> nn.Module:
    """The network with numbers for weights: layers of torch in the place of Bayesian ones.

    Its values are those of the network in the same mode, and it is in evaluation. A `SoftmaxHead` becomes its softmax,
    a `GaussianHead` its prediction. Other modules are copied.

    Args:
        network: holds layers of this package; it is not changed.
        mode: "map" takes the likeliest level of every weight, "sampled" draws one, by its probability.
        generator: what is drawn from, layer by layer in the order of `network.modules()`; torch's own if it is not
            given.

    Raises:
        OptionError: there is no such mode, or it gives no numbers.
    """
    if mode not in {SAMPLED, MAP}:
        raise OptionError(f"mode={mode!r} gives no numbers for weights", hint='"sampled" or "map"')
    if isinstance(network, Layer):
        return network.plain(mode, generator).eval()
    made = copy.deepcopy(network)
    # A layer that stands in several places is drawn once.
    known = {layer: layer.plain(mode, generator) for layer in made.modules() if isinstance(layer, Layer)}
    for parent in list(made.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, Layer):
                setattr(parent, name, known[child])
    return made.eval()


def pack(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """A state_dict whose quantised tensors take as many bits for an entry as their levels need.

    Every tensor of at most 256 different numbers becomes these numbers and the place of every entry among them, one bit
    for two levels, two bits for up to four: nothing is lost. A binary weight takes 1 bit, where the two float32
    log-probabilities it was learned with take 64. Write it by `torch.save`; `torch.load` reads it with
    `weights_only=True`, and `unpack` gives the state_dict.

    Args:
        state: by name, as `to_plain(...).state_dict()`.
    """
    return {name: _packed(tensor.detach()) for name, tensor in state.items()}


def unpack(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The state_dict that was packed.

    Raises:
        OperandError: this is not what `pack` gives.
    """
    try:
        return {name: _unpacked(one) for name, one in packed.items()}
    except (AttributeError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise OperandError("this is not what pack gives", hint="unpack(torch.load(file, weights_only=True))") from error


def _packed(tensor: Tensor) -> dict[str, Any]:
    levels, places = torch.unique(tensor, return_inverse=True) if tensor.numel() else (tensor, tensor)
    bits = max(1, math.ceil(math.log2(max(1, len(levels))))) if tensor.numel() else 0
    # The places and the levels must be smaller than the tensor, and as exact: -0.0 and nan have no level of their own.
    if not bits or len(levels) > _MOST_LEVELS or not _same(levels[places], tensor) or 8 * bits >= 64 * tensor.itemsize:
        return {"tensor": tensor.clone()}
    flat = places.flatten()
    planes = torch.stack([(flat >> bit) & 1 for bit in range(bits)], -1).flatten().to(torch.uint8)
    planes = torch.nn.functional.pad(planes, (0, -len(planes) % 8)).view(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=tensor.device)
    return {"levels": levels, "bits": (planes * powers).sum(-1).to(torch.uint8), "shape": list(tensor.shape)}


def _unpacked(one: Mapping[str, Any]) -> Tensor:
    if "tensor" in one:
        found: Tensor = one["tensor"]
        return found
    levels, packed, shape = one["levels"], one["bits"], one["shape"]
    bits, count = max(1, math.ceil(math.log2(len(levels)))), math.prod(shape)
    planes = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    planes = planes.flatten()[: bits * count].view(count, bits).long()
    places = (planes << torch.arange(bits, device=packed.device)).sum(-1)
    value: Tensor = levels[places].reshape(shape)
    return value


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right) and torch.equal(left.signbit(), right.signbit())
