"""A model -> its sites: every layer of torch's with a weight to factorise, and why one of them may have to stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# What a subclass may define and still be the same layer under another name.
_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters", "__annotate__", "__annotate_func__"}
# Where a module keeps hooks of its own calls, gradients and state.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True, slots=True)
class Site:
    """One layer of a model.

    Attributes:
        names: the qualified names under which it is reached; several where it is shared.
        layer: it.
        reason: why it cannot be replaced; None where it can.
    """

    names: tuple[str, ...]
    layer: nn.Module = field(repr=False)
    reason: str | None = None

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """All convolutions and linear layers of a model, in the order of `named_modules`."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    owners: dict[Tensor, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in names:
            for key, tensor in module._parameters.items():
                if tensor is not None:
                    owners[tensor].append(f"{name}.{key}".lstrip("."))
        names[module].append(name)
    users = {child for module in names if isinstance(module, nn.MultiheadAttention) for child in module.children()}
    sites = []
    for layer, places in names.items():
        if isinstance(layer, LAYERS):
            reason = _obstacle(layer) or _shared(layer, owners)
            if reason is None and layer in users:
                reason = "nn.MultiheadAttention uses its weight itself"
            sites.append(Site(tuple(places), layer, reason))
    return tuple(sites)


def what_is_added(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """What another layer in this one's place would not have: all that its class, one of `kinds`, does not have."""
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if added := sorted(_defined(type(layer), kinds)):
        return f"its class {type(layer).__name__} defines {', '.join(added[:3])}{', ...' if len(added) > 3 else ''}"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        return "hooks are registered on it"
    return None


def _obstacle(layer: nn.Module) -> str | None:
    if any(is_lazy(tensor) for tensor in layer._parameters.values() if tensor is not None):
        return "its weight has no shape before the first call"
    if added := what_is_added(layer, LAYERS):
        return added
    more = [*({*layer._parameters, *layer._buffers} - {"weight", "bias"}), *layer._modules]
    if more or not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return (
            f"it has more than a weight and a bias: {', '.join(sorted(more))}" if more else "its weight is no parameter"
        )
    return None


def _defined(kind: type, kinds: tuple[type[nn.Module], ...]) -> Iterator[str]:
    """What a class adds to the layer that it is made from."""
    base = next(one for one in kind.__mro__ if one in kinds)
    for one in kind.__mro__:
        if one not in base.__mro__:
            for name, value in vars(one).items():
                if name not in _HARMLESS and (
                    callable(value) or isinstance(value, (property, classmethod, staticmethod))
                ):
                    yield name


def _shared(layer: nn.Module, owners: dict[Tensor, list[str]]) -> str | None:
    """Whether a parameter of it is another layer's, too."""
    for key, tensor in layer._parameters.items():
        if tensor is not None and len(owners[tensor]) > 1:
            return f"its {key} is one tensor with another: {', '.join(owners[tensor])}"
    return None
