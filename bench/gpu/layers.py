"""Factorised layers on a GPU: both of convein's back ends beside everything else that evaluates the same factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import convein
from cases.forms import FORMS, KERNEL, Case, Form, Operands, compose
from cases.peers import IMPLEMENTATIONS, Way, dense, tensorly
from cases.plain import chain, left_to_right
from gpu import clock
from gpu.clock import Call, Setting
from measure import Group, Timing

BATCH = 128
FORWARD, TRAINING = "forward", "forward+backward"
# Of the name of a way that is launched as a captured graph.
GRAPH = ", graph"
BACKENDS = ("auto", "triton", "torch")
OURS = "convein auto"
PREDICTED = f"{OURS}, predicted"
# What a user gets, and what is part of it.
OWN = (OURS, "convein triton", PREDICTED)
# Of the largest entry, after a chain of products that are rounded to so few digits.
TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 2e-2, torch.float32: 5e-3, torch.float64: 1e-9}


@dataclass(frozen=True, slots=True)
class Layer:
    """One factorised 3x3 convolution.

    Attributes:
        form: its name.
        channels, rank, size: of the full size, and pictures of size x size.
        best: microseconds that the best plan without kernels of our own needs at least, in bf16 with 128 pictures on an
            H200, by arithmetic: bytes and operations over what the card does per second.
        fused: the same with one kernel that keeps what lies between on the chip.
    """

    form: str
    channels: int
    rank: int
    size: int
    best: float
    fused: float

    def __str__(self) -> str:
        return f"{self.form} {self.channels} channels rank {self.rank} {self.size}x{self.size}"

    @property
    def promise(self) -> float:
        """How many times faster than the best other way it is to be: 1.4 where arithmetic says so, else 1."""
        return 1.4 if self.best / self.fused >= 1.4 else 1.0


LAYERS = (
    Layer("CP", 64, 16, 56, 30, 24),
    Layer("CP", 64, 64, 56, 37, 24),
    Layer("CP", 64, 275, 56, 37, 48),
    Layer("CP", 128, 64, 28, 18, 12),
    Layer("CP", 128, 128, 28, 25, 12),
    Layer("CP", 256, 256, 14, 24, 11),
    Layer("CP", 512, 512, 7, 14, 11),
    Layer("Tucker-2", 64, 32, 56, 37, 24),
    Layer("Tucker-2", 256, 64, 14, 10, 6),
    Layer("TT", 64, 32, 56, 36, 24),
)


def name_of(layer: Layer, direction: str) -> str:
    """The name of a group."""
    return f"{layer} {direction}"


def groups(setting: Setting, layers: Sequence[Layer] = LAYERS) -> Iterator[Group]:
    """Every layer and direction; predicted times become rows, too."""
    for layer, direction in product(layers, (FORWARD, TRAINING)):
        name = name_of(layer, direction)
        make = partial(variants, setting, layer, direction)
        kept = partial(_with_prediction, setting, layer, direction)
        yield Group(name, make, kept=kept, sampler=clock.sample)


def operands_of(setting: Setting, layer: Layer, direction: str) -> Operands:
    """Random operands, channels last, scaled so that the result is about as large as x."""
    form = _form(layer)
    n, channels, rank, size = (setting.size(full) for full in (BATCH, layer.channels, layer.rank, layer.size))
    case = Case(form.name, channels, size, 0, n, direction, "channels-last")
    pictures = (setting.random(n, channels, size, size, seed=seed) for seed in (0, 1))
    x, gradient = (picture.contiguous(memory_format=torch.channels_last) for picture in pictures)
    factors = [setting.random(*shape, seed=2 + place) for place, shape in enumerate(form.shapes(channels, rank))]
    factors[-1] /= (rank ** len(form.ranks) * channels * KERNEL**2) ** 0.5
    weight = compose(form, factors)
    for leaf in (x, *factors):
        leaf.requires_grad_(case.trains)
    return Operands(case, form, x, tuple(factors), weight, gradient)


def variants(setting: Setting, layer: Layer, direction: str) -> dict[str, Call]:
    """Every way that is possible, as calls and as a graph, checked against the dense convolution in float32."""
    clock.start_afresh()
    given = operands_of(setting, layer, direction)
    wanted = _values(_exact(given), given)
    calls: dict[str, Call] = {}
    for name, make in makers(layer.form, setting.compiler).items():
        try:
            way = make(given)
            if isinstance(way, str):
                raise RuntimeError(way)
            compare(_values(way, given), wanted, TOLERANCE[setting.dtype])
            calls[name] = _job(way, given)
            calls[name + GRAPH] = clock.captured(calls[name])
        except Exception as error:  # noqa: BLE001 - what a way cannot do is reported, whatever it raises
            missing = name + GRAPH * (name in calls)
            tqdm.write(f"{layer} {direction}: without {missing}: {clock.reason(error)}")
    return calls


def makers(form: str, compiler: str) -> dict[str, Callable[[Operands], Way | str]]:
    """The ways by name, ours first."""
    return {
        **{f"convein {backend}": partial(_ours, backend) for backend in BACKENDS},
        "dense channels-last": partial(dense, "channels-last"),
        **{f"tensorly-torch {name}": partial(tensorly, name) for name in IMPLEMENTATIONS[form]},
        "left to right, torch.compile": partial(_compiled_by_torch, compiler),
    }


def predicted(setting: Setting, layer: Layer, direction: str) -> float:
    """Seconds that the time model expects of what the default back end does."""
    given = operands_of(setting, layer, direction)
    return convein.compile(given.form.expression, *given.leaves).price / 1e6


def verdicts(timings: Sequence[Timing]) -> str:
    """For every layer how many times longer than what convein does by default the best other way takes."""
    by_group: dict[str, dict[str, float]] = {}
    for timing in timings:
        by_group.setdefault(timing.group, {})[timing.variant] = timing.median * 1e6
    lines = [f"{'layers: us of ' + OURS:60} {'us':>8}  predicted  gain  promised  over the best other way"]
    for layer, direction, graph in product(LAYERS, (FORWARD, TRAINING), (False, True)):
        every = by_group.get(name := name_of(layer, direction), {})
        found = {key.removesuffix(GRAPH): spent for key, spent in every.items() if key.endswith(GRAPH) == graph}
        others = {key: spent for key, spent in found.items() if key not in OWN}
        if OURS in found and others:
            best = min(others, key=others.__getitem__)
            gain = others[best] / found[OURS]
            kept = "kept  " if gain >= layer.promise else "MISSED"
            numbers = f"{found[OURS]:8.1f}  {every[PREDICTED]:9.1f}  {gain:4.2f}  {layer.promise} {kept}"
            lines.append(f"  {name + GRAPH * graph:58} {numbers}  {best}")
    return "\n".join(lines) if len(lines) > 1 else ""


def _form(layer: Layer) -> Form:
    return next(form for form in FORMS if form.name == layer.form)


def _ours(backend: str, given: Operands) -> Way:
    expression = convein.compile(given.form.expression, *given.leaves, backend=backend)
    return Way(lambda: expression(*given.leaves), given.leaves, torch.channels_last)


def _compiled_by_torch(compiler: str, given: Operands) -> Way:
    form, case = given.form, given.case
    sizes = {**dict(zip("bhw", given.x.shape[:1] + given.x.shape[2:], strict=True)), **_letters(given)}
    steps = chain(form.inputs, form.output, sizes, case.size, left_to_right(len(given.leaves), form.order))
    axes = tuple(steps.modes.index(mode) for mode in form.output)
    compiled: Any = torch.compile(lambda *operands: steps(*operands).permute(axes), backend=compiler)
    return Way(lambda: compiled(*given.leaves), given.leaves, torch.channels_last)


def _letters(given: Operands) -> dict[str, int]:
    """The sizes of the modes of the factors."""
    return {
        mode: size
        for term, factor in zip(given.form.inputs[1:], given.factors, strict=True)
        for mode, size in zip(term, factor.shape, strict=True)
        if mode not in "hw"
    }


def _exact(given: Operands) -> Way:
    """By way of the dense weight, in float32 or wider."""
    wide = torch.promote_types(given.x.dtype, torch.float32)

    def call() -> Tensor:
        weight = compose(given.form, [factor.to(wide) for factor in given.factors])
        return torch.nn.functional.conv2d(given.x.to(wide), weight, padding=KERNEL // 2)

    return Way(call, given.leaves, torch.channels_last)


def _job(way: Way, given: Operands) -> Call:
    if not given.case.trains:

        def forward() -> object:
            with torch.no_grad():
                return way.call()

        return forward
    return lambda: torch.autograd.grad(way.call(), way.leaves, given.gradient)


def _values(way: Way, given: Operands) -> list[Tensor]:
    """The result and, in training, the gradients."""
    result = way.call()
    if not given.case.trains:
        return [result.detach()]
    return [result.detach(), *torch.autograd.grad(result, way.leaves, given.gradient.to(result.dtype))]


def compare(values: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    """Results and gradients of x are equal, gradients of factors are as long: some ways have them transposed.

    Raises:
        ValueError: they are not.
    """
    pairs = list(zip(values, wanted, strict=False))
    if len(values) < len(wanted):  # the dense layer has a weight and no factors
        pairs = pairs[:2]
    for number, (mine, other) in enumerate(pairs):
        a, b = (mine, other) if number < 2 else (mine.float().norm(), other.norm())
        error = float((a.detach().to(b.dtype) - b).abs().max() / b.abs().max())
        if not error < tolerance:
            raise ValueError(f"IT IS WRONG, value {number} is off by {error:.1e}")


def _with_prediction(setting: Setting, layer: Layer, direction: str, timings: list[Timing]) -> list[Timing]:
    if not timings:
        return timings
    seconds = predicted(setting, layer, direction)
    first = timings[0]
    row = Timing(first.group, PREDICTED, seconds, seconds, seconds / first.median, seconds - first.median, 0)
    return [*timings, row]
