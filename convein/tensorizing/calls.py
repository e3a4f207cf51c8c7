"""A model and an example of its inputs -> Calls: which layers are called, in which order, with what."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convein.errors import ConveinError, OptionError
from convein.metering import Sample
from convein.tensorizing.sites import Site


@dataclass(frozen=True, slots=True)
class Calls:
    """What one forward pass of a model does with its layers.

    Attributes:
        inputs: what each layer is called with, call by call; the layers in the order of their first calls.
        elsewhere: the layers whose weights something else reads.
    """

    inputs: Mapping[nn.Module, tuple[Sample, ...]]
    elsewhere: frozenset[nn.Module]


def observe(model: nn.Module, example_inputs: object, sites: Sequence[Site]) -> Calls:
    """Runs the model once, as in evaluation, and leaves all as it was: flags, buffers, attributes, random states.

    The tensors are fake ones without data; only a model that asks for values is run on real ones.

    Args:
        model: anything.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones.
        sites: the layers that are watched.

    Raises:
        OptionError: the model does not take these inputs.
    """
    arguments, named = _arguments(example_inputs)
    layers = [site.layer for site in sites]
    try:
        with _restored(model), _uncompiled(), _unlogged():
            return _on_fakes(model, arguments, named, layers)
    except Exception:  # noqa: BLE001 - whatever fake tensors cannot do, real ones can, or say what is wrong
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
        with _restored(model), _uncompiled(), torch.random.fork_rng(sorted(device.index for device in devices)):
            try:
                return _watched(lambda: model(*arguments, **named), layers)
            except ConveinError:
                raise
            except Exception as error:
                raise OptionError(
                    f"the model does not run on example_inputs: {type(error).__name__}: {error}",
                    hint="a tensor, a tuple of the arguments of its forward, or a dict of named ones",
                ) from error


def _uncompiled() -> AbstractContextManager[object]:
    """Parts that are compiled run as they were written: a compiler would fail on tensors without data."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _arguments(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def _on_fakes(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], layers: Sequence[nn.Module]
) -> Calls:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes, named_fakes = tree_map_only(Tensor, mode.from_tensor, (arguments, named))
        return _watched(lambda: model(*fakes, **named_fakes), layers)


def _watched(run: Callable[[], object], layers: Sequence[nn.Module]) -> Calls:
    """Runs a model; hooks note what its layers are called with."""
    inputs: dict[nn.Module, list[Sample]] = {}
    running: set[nn.Module] = set()
    owners = {id(tensor): layer for layer in layers for tensor in layer._parameters.values() if tensor is not None}
    watch = _Watch(owners, running)

    def before(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        running.add(layer)
        inputs.setdefault(layer, []).append(Sample.of(given[0] if given else named["input"]))

    def after(layer: nn.Module, _given: object, _made: object) -> None:
        running.discard(layer)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(after, always_call=True) for layer in layers]
    try:
        with torch.no_grad(), watch:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return Calls({layer: tuple(made) for layer, made in inputs.items()}, frozenset(watch.elsewhere))


class _Watch(TorchFunctionMode):
    """Notes whose parameters meet a call of torch that is not in their layer's own forward."""

    def __init__(self, owners: Mapping[int, nn.Module], running: set[nn.Module]) -> None:
        super().__init__()
        self.owners = owners
        self.running = running
        self.elsewhere: set[nn.Module] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one call of torch."""
        for leaf in tree_leaves((args, kwargs)):
            owner = self.owners.get(id(leaf))
            if owner is not None and owner not in self.running:
                self.elsewhere.add(owner)
        return func(*args, **(kwargs or {}))


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the lines that torch logs where fake tensors fail: real ones are tried then."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with copies of the buffers; afterwards every attribute of every module is what it was."""
    parts = ("_parameters", "_buffers", "_modules")
    modules = list(model.modules())
    states = [(dict(vars(module)), {part: dict(getattr(module, part)) for part in parts}) for module in modules]
    copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
    for module in modules:
        module.training = False
        module._buffers.update({name: copies.get(id(buffer)) for name, buffer in module._buffers.items()})
    try:
        yield
    finally:
        for module, (attributes, registered) in zip(modules, states, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            for part, entries in registered.items():
                getattr(module, part).clear()
                getattr(module, part).update(entries)
