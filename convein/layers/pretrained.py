"""Torch's layers -> layers of factors that make (nearly) the same weight, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convein.errors import OptionError
from convein.layers import decompositions
from convein.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from convein.layers.dense import checked_seed
from convein.layers.factorised import Factorised, Rank
from convein.layers.forms import Axis, Factorisation, Node, Weight
from convein.layers.linear import Linear

_OURS: Mapping[type[nn.Module], type[Factorised]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.Linear: Linear,
}
# What a layer says of itself: its constructor takes the same names.
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_LINEAR = ("in_features", "out_features")


def from_conv(
    module: nn.Module,
    form: str = "cp",
    rank: Rank = 0.1,
    *,
    factors: int = 3,
    multiple: int | None = None,
    decompose: bool = True,
    seed: int = 0,
    **options: Any,
) -> Factorised:
    """A factorised layer in place of a trained nn.Conv1d, 2d, 3d or nn.ConvTranspose1d, 2d, 3d.

    The weight is decomposed in float64: singular values ("svd", "spatial-svd", "tt"), alternating least squares ("cp",
    "rcp"), higher-order orthogonal iteration ("tucker", "rtk", and for each block of "block-term"), and for rings the
    better of several starts (J. Su, 2022, section 3.3). With large enough ranks the layer is the same function.

    Args:
        module: torch's layer; dtype, device, bias, what needs gradients and whether it is training are taken over.
        form: one of `FORMS`.
        rank: of the bonds, see `convein.layers.Conv2d`.
        factors: of the channels.
        multiple: of the ranks.
        **options: the other arguments of `convein.layers.Conv2d`.
        decompose: False draws the factors instead.
        seed: of starts that are drawn.

    Returns:
        The layer; `layer.error` is the norm of what its weight misses over the norm of the weight.

    Raises:
        OptionError: this is no such layer, or what does not fit.
    """
    if isinstance(module, nn.Linear) or not isinstance(module, tuple(_OURS)):
        raise _misplaced("from_conv takes torch's convolutions", module)
    _check_sizes(module)
    return _factorised(module, form, rank, factors, multiple, decompose, seed, options)


def from_linear(
    module: nn.Module,
    form: str = "cp",
    rank: Rank = 0.1,
    *,
    factors: int = 3,
    multiple: int | None = None,
    decompose: bool = True,
    seed: int = 0,
    **options: Any,
) -> Factorised:
    """A factorised layer in place of a trained nn.Linear; all else is as for `from_conv`.

    Raises:
        OptionError: this is no such layer, or what does not fit.
    """
    if not isinstance(module, nn.Linear):
        raise _misplaced("from_linear takes nn.Linear", module)
    _check_sizes(module)
    return _factorised(module, form, rank, factors, multiple, decompose, seed, options)


def to_torch(layer: Factorised) -> nn.Module:
    """Torch's layer with the dense weight, and everything else, of a factorised one.

    Raises:
        OptionError: this is no convolution or linear layer of `convein.layers`, or torch's has no such argument:
            padding="same" with a stride or transposed, padding_mode="circular" transposed.
    """
    theirs = next((theirs for theirs, ours in _OURS.items() if isinstance(layer, ours)), None)
    if theirs is None:
        raise OptionError(f"to_torch takes the convolutions and linear layers here, not {type(layer).__name__}")
    if isinstance(getattr(layer, "padding", 0), str) and getattr(layer, "transposed", False):
        raise OptionError(f"padding={layer.padding!r} of a transposed convolution: torch's has numbers only")
    weight = layer.dense_weight().detach()
    try:
        with torch.device("meta"):
            module = theirs(**_arguments(layer), bias=layer.bias is not None)
    except ValueError as error:
        raise OptionError(f"torch's {theirs.__name__} cannot be this layer: {error}") from error
    module.weight = nn.Parameter(weight.clone(), requires_grad=layer.weights[0].requires_grad)
    _take_over(layer, module)
    return module


def _misplaced(taken: str, module: object) -> OptionError:
    if isinstance(module, type):
        return OptionError(f"{taken}, not the class {module.__name__}", hint="make a layer of it first")
    kind = type(module).__name__
    if isinstance(module, Factorised):
        hint: str | None = f"it is factorised already, as form={module.form!r}; to_torch makes torch's layer of it"
    elif isinstance(module, nn.Linear):
        hint = "from_linear takes it"
    elif isinstance(module, tuple(_OURS)):
        hint = "from_conv takes it"
    else:
        hint = "convein.tensorize takes whole models" if isinstance(module, nn.Module) else None
    return OptionError(f"{taken}, not {kind}", hint=hint)


def _check_sizes(module: nn.Module) -> None:
    if any(is_lazy(tensor) for tensor in module._parameters.values() if tensor is not None):
        raise OptionError(
            f"{type(module).__name__} has no sizes yet", hint="run it once first: its first input tells them"
        )


def _factorised(
    module: nn.Module, form: str, rank: Rank, factors: int, multiple: int | None, decompose: bool, seed: int,
    options: Mapping[str, Any],
) -> Factorised:  # fmt: skip
    ours = next(ours for theirs, ours in _OURS.items() if isinstance(module, theirs))
    weight: Tensor = module.weight  # type: ignore[assignment]
    seed = checked_seed(seed)
    if decompose:
        check_decomposable(form)
    if decompose and "init" in options:
        raise OptionError(
            f"init={options['init']!r} of a decomposed layer", hint="only drawn factors have one: decompose=False"
        )
    given = {"init": None if decompose else "kaiming", **options}
    layer = ours(
        **_arguments(module), bias=module.bias is not None, form=form, rank=rank, factors=factors, multiple=multiple,
        device=weight.device, dtype=weight.dtype, **given,
    )  # fmt: skip
    if decompose:
        parts = decomposed(layer.factorisation, layer.ranks, layer.dense, weight.detach(), seed)
        with torch.no_grad():
            for mine, part in zip(layer.weights, parts, strict=True):
                mine.copy_(part)
            layer.error = decompositions.relative_error(weight.detach(), layer.dense_weight())
    for mine in layer.weights:
        mine.requires_grad_(weight.requires_grad)
    _take_over(module, layer)
    return layer


def check_decomposable(form: str) -> None:
    """Whether factors of this form can be found for a given weight.

    Raises:
        OptionError: they can be drawn only.
    """
    if form == "interleaved":
        raise OptionError(
            "form='interleaved' of a trained layer",
            hint="its weights cannot make every dense weight: draw them, decompose=False",
        )


def weight_of(module: nn.Module) -> Weight:
    """What the weight of one of torch's layers is."""
    given: dict[str, Any] = _arguments(module)
    if isinstance(module, nn.Linear):
        return Weight(*given.values())
    transposed = bool(getattr(module, "transposed", False))
    return Weight(given["in_channels"], given["out_channels"], given["kernel_size"], given["groups"], transposed)


def _arguments(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, (nn.Linear, Linear)):
        return {name: getattr(module, name) for name in _LINEAR}
    more = ("output_padding",) if getattr(module, "transposed", False) else ()
    return {name: getattr(module, name) for name in (*_CONVOLUTION, *more)}


def _take_over(module: nn.Module, layer: nn.Module) -> None:
    """The bias, and whether it is training."""
    if isinstance(module.bias, Tensor):
        layer.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=module.bias.requires_grad)
    layer.train(module.training)


def decomposed(made: Factorisation, ranks: Mapping[str, int], weight: Weight, dense: Tensor, seed: int) -> list[Tensor]:
    """The factors whose dense weight is nearest to a tensor, as near as the method of the form finds.

    Args:
        made: the form.
        ranks: the size of every bond.
        weight: what `dense` is.
        dense: the weight of torch's layer.
        seed: of starts that are drawn.

    Returns:
        A tensor in float64 (complex128) for each term of the form.
    """
    nodes = _by_node(made, weight, dense)
    sizes = [ranks[bond] for bond in made.bonds]
    found = _METHODS[made.kind](nodes, sizes, seed)
    shapes = [[prod({**made.sizes, **ranks}[mode] for mode in axis) for axis in term] for term in made.terms]
    return [factor.reshape(shape) for factor, shape in zip(found, shapes, strict=True)]


def _by_node(made: Factorisation, weight: Weight, dense: Tensor) -> Tensor:
    """The dense weight with one axis for each node."""
    source, target = made.source, made.target
    group = source[:1] if weight.groups > 1 else ()
    sides = (source, target[len(group) :]) if weight.transposed else (target, source[len(group) :])
    order = [mode for side in sides for mode in side] + list(made.spatial)
    # A dense weight's own node, as that of a linear layer's core, may have no modes: an axis of size 1.
    wanted = [mode for node in made.nodes for axis in node for mode in axis]
    by_mode = dense.reshape([made.sizes[mode] for mode in order]).permute([order.index(mode) for mode in wanted])
    return by_mode.reshape([_size(made, node) for node in made.nodes])


def _size(made: Factorisation, node: Node | Axis) -> int:
    return prod(made.sizes[mode] for axis in node for mode in axis)


def _tucker(dense: Tensor, ranks: list[int], _seed: int) -> list[Tensor]:
    core, factors = decompositions.tucker(dense, [*ranks, None])
    return [*factors, core]


def _blocks(dense: Tensor, ranks: list[int], _seed: int) -> list[Tensor]:
    core, factors = decompositions.blocks(dense, ranks[-1], [*ranks[:-1], None])
    return [*factors, core]


_METHODS: Mapping[str, Callable[[Tensor, list[int], int], list[Tensor]]] = {
    "dense": lambda dense, _ranks, _seed: [dense],
    "cp": lambda dense, ranks, seed: decompositions.cp(dense, ranks[0], seed=seed),
    "chain": lambda dense, ranks, _seed: decompositions.chain(dense, ranks),
    "ring": lambda dense, ranks, _seed: decompositions.ring(dense, ranks),
    "tucker": _tucker,
    "blocks": _blocks,
}
