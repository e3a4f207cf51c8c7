"""tensorize and densify: a model with factorised layers in place of torch's, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy

from convein.errors import OptionError
from convein.layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    to_torch,
)
from convein.layers.factorised import Factorised, Rank
from convein.layers.pretrained import check_decomposable
from convein.metering import Sample
from convein.tensorizing.calls import Calls, observe
from convein.tensorizing.fastest import fastest
from convein.tensorizing.figures import Figures, Forecast
from convein.tensorizing.report import Report, Row
from convein.tensorizing.settings import AUTO, Choice, Setting, choose, from_spec
from convein.tensorizing.sites import Site, find_sites, what_is_added
from convein.tensorizing.subject import check_copies, check_model, example_of

T = TypeVar("T")
_DENSE = Setting("dense", 1.0)
_FACTORISED = (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear)


def tensorize(
    model: nn.Module,
    form: str = "cp",
    rank: Rank = 0.1,
    *,
    example_inputs: Any = None,
    skip: Sequence[str] | str | None = ("first", "last"),
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    factors: int = 3,
    multiple: int | None = None,
    seed: int = 0,
    decompose: bool = True,
    inplace: bool = False,
    dry_run: bool = False,
    spec: Mapping[str, Any] | None = None,
    **planning: Any,
) -> tuple[nn.Module, Report]:
    """Replaces every nn.Conv1d to 3d, nn.ConvTranspose1d to 3d and nn.Linear of a model by a factorised layer.

    A layer that stands at several places stays one layer. What a factorised layer could not stand in for is left alone,
    and the report says why: a class with a forward of its own, hooks, parametrizations, a weight that something else
    reads (that of an nn.MultiheadAttention; others are seen when `example_inputs` are given), a layer that the forward
    pass never calls.

    Args:
        model: its layers give the weights; whether it is training decides which times are predicted.
        form: as for `convein.layers.from_conv`; "auto" takes for each layer the form that the time model expects to be
            fastest with at most `rank` of the parameters, and leaves a layer alone that would not get 10 % faster.
        rank: as for `convein.layers.Conv2d`; a fraction keeps this part of each layer's weight.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones. One forward pass in evaluation mode, on
            tensors without data where the model allows it, tells multiplications, times and saved memory.
        skip: layers that are left alone: names, patterns of fnmatch, and "first" and "last" of those that could be
            replaced, in the order of the forward pass with `example_inputs`, else of `named_modules`. What is given
            takes the place of the default; None and () skip nothing.
        overrides: other values for the layers of a pattern, `{"layer4.*": {"form": "tt", "rank": 0.05}, "head": None}`;
            later ones refine earlier ones, and None leaves alone. "first" and "last" do not skip a layer that has an
            override under its own name.
        factors: as for `convein.layers.from_conv`.
        multiple: likewise.
        seed: likewise.
        **planning: options of the calls, likewise: optimize, cost, memory_limit, checkpoint, accumulate.
        decompose: False draws the weights instead.
        inplace: changes the model itself; otherwise it is copied, without the weights that are replaced.
        dry_run: only predicts: the model comes back as it is.
        spec: `report.spec` of another call: the same layers for the same architecture, ready for its state_dict.

    Returns:
        The model and a report: `print(report)`, `report.spec`.

    Raises:
        OptionError: what does not fit, with the name of the layer.
    """
    check_model(model, "tensorize")
    base = Setting(form, rank, factors, multiple, seed).changed(planning)
    sites = find_sites(model)
    if inplace and not dry_run and any(site.layer is model for site in sites):
        raise OptionError("inplace=True: the model is itself the layer", hint="take the model that is returned")
    calls = None if example_inputs is None else observe(model, example_inputs, sites)
    if calls is not None:
        sites = _in_order(sites, calls)
    if spec is None:
        choices = choose(sites, base, skip, overrides)
    elif (base, tuple(skip or ()), overrides) != (Setting(), ("first", "last"), None):
        raise OptionError("spec= was given with form, rank, skip, overrides or options", hint="the spec says it all")
    else:
        choices = from_spec(sites, spec)
    if calls is None:
        _check_inputs_are_not_needed(model, choices)
    forecast = Forecast(model.training)
    rows = [_planned(site, choices[site], calls, forecast) for site in _bar(sites, "convein plans layers")]
    if dry_run:
        return model, Report(tuple(rows), model.training)
    if not inplace:
        check_copies(model, {site.layer for site, row in zip(sites, rows, strict=True) if row.setting})
    if decompose:
        for name in dict.fromkeys(row.form for row in rows if row.form):
            check_decomposable(name)
    made: dict[nn.Module, nn.Module] = {}
    for place, (site, row) in enumerate(_bar(list(zip(sites, rows, strict=True)), "convein makes layers")):
        if row.setting is not None:
            exact = replace(row.setting, rank=tuple(row.ranks.values()))
            layer = made[site.layer] = exact.made(site, decompose=decompose)
            rows[place] = replace(row, error=layer.error)
    return _replaced(model, made, inplace=inplace), Report(tuple(rows), model.training)


def densify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Puts torch's layers back: each with `dense_weight()` and every argument of the factorised layer.

    Args:
        model: from `tensorize`, or with layers of `convein.layers` anywhere.
        inplace: changes the model itself; otherwise it is copied.

    Raises:
        OptionError: the model itself is the layer, and inplace is True; or a layer does more than torch's would.
    """
    check_model(model, "densify")
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, Factorised):
            layers.append(module)
            if added := what_is_added(module, _FACTORISED):
                raise OptionError(f"layer {name}: {added}", hint="torch's layer in its place would not have that")
    if inplace and any(layer is model for layer in layers):
        raise OptionError("inplace=True: the model is itself the layer", hint="take the model that is returned")
    if not inplace:
        check_copies(model, set(layers))
    return _replaced(model, {layer: to_torch(layer) for layer in layers}, inplace=inplace)


def _in_order(sites: Sequence[Site], calls: Calls) -> tuple[Site, ...]:
    """As they are called, those that are not at the end; with what the forward pass has shown."""
    order = {layer: place for place, layer in enumerate(calls.inputs)}
    seen = [
        replace(site, reason=site.reason or _seen(site, calls))
        for site in sorted(sites, key=lambda site: order.get(site.layer, len(order)))
    ]
    return tuple(seen)


def _seen(site: Site, calls: Calls) -> str | None:
    if site.layer in calls.elsewhere:
        return "its weight is used outside of its forward"
    return None if site.layer in calls.inputs else "the forward pass does not call it"


def _planned(site: Site, choice: Choice, calls: Calls | None, forecast: Forecast) -> Row:
    """What becomes of a layer, with all that can be said before its weights are decomposed."""
    inputs = calls.inputs.get(site.layer) if calls else None
    before = _before(site, inputs, forecast)
    row = Row(site.name, site.names[1:], type(site.layer).__name__, before, before)
    if isinstance(choice, Setting) and choice.form == AUTO:
        choice = fastest(site, choice, inputs or (), before.time or 0.0, forecast)
    if isinstance(choice, str):
        return replace(row, reason=choice)
    if reason := choice.obstacle(site):
        return replace(row, reason=reason)
    layer = choice.made(site, decompose=False, draw=False)
    if isinstance(choice.rank, float) and layer.rate > max(choice.rank, 1.0):
        return replace(row, reason=f"even rank 1 has more parameters: {layer.rate:.3f} times as many")
    after = forecast.figures(layer, inputs)
    return replace(row, after=after, setting=choice, ranks=dict(layer.ranks))


def _before(site: Site, inputs: Sequence[Sample] | None, forecast: Forecast) -> Figures:
    if site.reason is None:
        return forecast.figures(_DENSE.made(site, decompose=False, draw=False), inputs)
    return Figures(sum(0 if is_lazy(parameter) else parameter.numel() for parameter in site.layer.parameters()))


def _check_inputs_are_not_needed(model: nn.Module, choices: Mapping[Site, Choice]) -> None:
    for site, choice in choices.items():
        if isinstance(choice, Setting) and choice.form == AUTO:
            raise OptionError(
                f"layer {site.name or 'itself'}: form='auto' without example_inputs",
                hint=f"which form is fastest depends on the sizes of the inputs: {example_of(model)}",
            )


def _replaced(model: nn.Module, made: Mapping[nn.Module, nn.Module], *, inplace: bool) -> nn.Module:
    if inplace:
        changed = model
        for module in list(model.modules()):
            for name, child in module._modules.items():
                if child is not None and child in made:
                    module._modules[name] = made[child]
    else:
        # What stands in the memo is taken as it is: the weights that go are not copied.
        changed = copy.deepcopy(model, {id(layer): new for layer, new in made.items()})
    _set_fast_paths(changed, set(made.values()))
    return changed


def _set_fast_paths(model: nn.Module, new: AbstractSet[nn.Module]) -> None:
    """In evaluation torch's encoders hand all weights to one call: not those of a factorised layer."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not new.isdisjoint(module.children()):
            dense = isinstance(module.linear1, nn.Linear) and isinstance(module.linear2, nn.Linear)
            module.activation_relu_or_gelu = _fast_activation(module.activation) if dense else 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            layers = [layer for layer in module.layers if isinstance(layer, nn.TransformerEncoderLayer)]
            if any(isinstance(child, Factorised) for layer in layers for child in layer.children()):
                module.use_nested_tensor = False


def _fast_activation(activation: object) -> int:
    """The number that nn.TransformerEncoderLayer knows an activation by."""
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return 1
    return 2 if activation is F.gelu or isinstance(activation, nn.GELU) else 0


def _bar(items: Sequence[T], what: str) -> Iterable[T]:
    """Shown on a terminal, from the second second."""
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=what, leave=False, delay=1, disable=None)
    return bar
