"""What is passed as a model: whether it is one that can be copied, and what it may be called with."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import nn

from convein.errors import OptionError
from convein.layers.pretrained import weight_of
from convein.options import shown
from convein.tensorizing.sites import LAYERS

# Sizes of an input as they are usual, by the number of dimensions behind the channels.
_USUAL = {0: "", 1: ", 1000", 2: ", 224, 224", 3: ", 16, 112, 112"}


def check_model(model: object, taker: str) -> None:
    """Whether something is a model.

    Args:
        model: anything.
        taker: the function that it was passed to.

    Raises:
        OptionError: it is no nn.Module.
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        what, hint = f"the class {model.__name__}", f"call the class first: {taker}({model.__name__}(...))"
    elif isinstance(model, Mapping):
        what, hint = type(model).__name__, "a state_dict has weights and no layers: load it into its model first"
    elif callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        what, hint = f"the function {name}", f"call the function first, if it returns a model: {taker}(function())"
    else:
        what, hint = shown(model), "a model is a module that has layers"
    raise OptionError(f"{taker} takes an nn.Module, not {what}", hint=hint)


def check_copies(model: nn.Module, replaced: Container[nn.Module]) -> None:
    """Whether a model can be copied.

    Args:
        model: it.
        replaced: what is not copied.

    Raises:
        OptionError: it holds a tensor that was computed from others, as the hook of the old weight_norm leaves one.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items() if module not in replaced else ():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                place = f"{path}.{name}".lstrip(".")
                raise OptionError(
                    f"{place} of the model is computed from other tensors, and torch cannot copy it",
                    hint="inplace=True changes the model itself; of a weight_norm, take the one of "
                    "torch.nn.utils.parametrizations, which can be copied",
                )


def example_of(model: nn.Module) -> str:
    """`example_inputs=` as it may be written for a model, by its first layer."""
    first = next(
        (module for module in model.modules() if isinstance(module, (*LAYERS, nn.Embedding, nn.RNNBase))), None
    )
    if isinstance(first, nn.Embedding):
        return f"example_inputs=torch.randint({first.num_embeddings}, (1, 128))"
    if isinstance(first, nn.RNNBase):
        return f"example_inputs=torch.randn(1, 128, {first.input_size})"
    shape = None if first is None else weight_of(first)
    if shape is None or not shape.inputs:  # a lazy layer does not know yet
        return "example_inputs=torch.randn(...)"
    return f"example_inputs=torch.randn(1, {shape.inputs}{_USUAL[len(shape.kernel)]})"
