"""What a training step of a factorised layer takes on a GPU, by torch's allocator, beside what was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

import convein
from cases.forms import Operands
from cases.memory import SAVED, Amount, Count
from cases.peers import Way
from convein.metering import SavedMemory, footprint
from gpu import clock
from gpu.clock import Setting
from gpu.layers import BACKENDS, LAYERS, TRAINING, Layer, makers, operands_of

PEAK = "bytes at the peak"
PREDICTED = ", predicted"


def counts(setting: Setting, layers: Sequence[Layer] = LAYERS) -> Iterator[Count]:
    """What every layer keeps for its backward pass, and the most that is alive; operands do not count."""
    for layer in layers:
        for unit in (SAVED, PEAK):
            ways: dict[str, Callable[[], int | str]] = {}
            for backend in BACKENDS:
                ways[f"convein {backend}"] = partial(_counted, setting, layer, f"convein {backend}", unit)
                ways[f"convein {backend}{PREDICTED}"] = partial(_predicted, setting, layer, backend, unit)
            others = (name for name in makers(layer.form, setting.compiler) if name not in ways)
            ways |= {name: partial(_counted, setting, layer, name, unit) for name in others}
            yield Count(f"{layer} {TRAINING}", unit, ways)


def summary(amounts: Sequence[Amount]) -> str:
    """Measured over predicted, and the least of the others over ours."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for amount in amounts:
        found.setdefault((amount.group, amount.unit), {})[amount.variant] = amount.value
    lines = ["", f"{'':58} {'unit':18} {'measured':>14} {'over predicted':>14}  least of the others over it"]
    for (group, unit), values in found.items():
        for backend in BACKENDS:
            name = f"convein {backend}"
            mine, expected = values.get(name), values.get(name + PREDICTED)
            others = [value for other, value in values.items() if not other.startswith("convein")]
            if mine is not None and expected is not None and others:
                numbers = f"{mine:14} {_ratio(mine, expected):14.3f}  {_ratio(min(others), mine):.2f}"
                lines.append(f"{group + ', ' + backend:58} {unit:18} {numbers}")
    return "\n".join([*lines, ""])


def _ratio(one: int, other: int) -> float:
    return one / other if other else float("nan" if not one else "inf")


def _counted(setting: Setting, layer: Layer, name: str, unit: str) -> int | str:
    clock.start_afresh()
    given = operands_of(setting, layer, TRAINING)
    try:
        way = makers(layer.form, setting.compiler)[name](given)
        if isinstance(way, str):
            return way
        _step(way)  # the first call may plan, compile and build
        return _saved(way) if unit == SAVED else _peak(way, given)
    except Exception as error:  # noqa: BLE001 - what a way cannot do is reported, whatever it raises
        return clock.reason(error)


def _predicted(setting: Setting, layer: Layer, backend: str, unit: str) -> int | str:
    given = operands_of(setting, layer, TRAINING)
    try:
        expression = convein.compile(given.form.expression, *given.leaves, backend=backend)
    except convein.ConveinError as error:
        return clock.reason(error)
    return expression.saved_bytes if unit == SAVED else expression.peak_bytes


def _saved(way: Way) -> int:
    with SavedMemory(way.leaves) as saved:
        way.call()
    return saved.bytes


def _peak(way: Way, given: Operands) -> int:
    """By torch's allocator; on a CPU the tensors that torch makes are counted."""
    if given.x.device.type != "cuda":
        return footprint(lambda *_: way.call(), way.leaves).peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _step(way)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _step(way: Way) -> None:
    result = way.call()
    torch.autograd.grad(result, way.leaves, torch.empty_like(result), allow_unused=True)
