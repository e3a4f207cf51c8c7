"""Factorised convolutions of a residual network, beside everything else that evaluates the same factors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cases.forms import FORMS, KERNEL, Case, Operands, compose, operands_of
from cases.peers import Way, makers
from measure import Group

LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4))
PERCENTS = (1, 10, 50, 100)
BATCHES = (32, 1)
DIRECTIONS = ("forward", "forward+backward")
LAYOUTS = ("NCHW", "channels-last")
# A variant is left out if its forward pass takes longer than this, and so many times as long as the whole of another.
LONG_SECONDS = 0.3
HOPELESS = 5
TOLERANCE = 1e-4


def groups() -> Iterator[Group]:
    """Every form, layer, number of parameters, batch, direction and layout."""
    for form, (channels, size), percent, batch, direction, layout in product(
        FORMS, LAYERS, PERCENTS, BATCHES, DIRECTIONS, LAYOUTS
    ):
        case = Case(form.name, channels, size, percent, batch, direction, layout)
        yield Group(str(case), partial(variants, case))


def variants(case: Case) -> dict[str, Callable[[], object]]:
    """Every way that is possible, checked against the dense convolution."""
    given = operands_of(case)
    wanted = _wanted(given)
    patience = float("inf")
    calls: dict[str, Callable[[], object]] = {}
    for name, make in makers(case).items():
        way = make(given)
        if isinstance(way, str):
            tqdm.write(f"{case}: without {name}: {way}")
            continue
        forward, values = _timed(partial(_forward, way))
        # As it comes from a function entry by entry: laid out as the result is.
        call = partial(_train, way, torch.empty_like(values[0].detach()).copy_(given.gradient))
        if forward > patience:
            tqdm.write(f"{case}: without {name}: {forward:.1f} seconds for the forward pass")
            continue
        spent, values = _timed(call) if case.trains else (forward, values)
        _compare(f"{case}, {name}", values, wanted)
        patience = min(patience, max(LONG_SECONDS, HOPELESS * spent))
        calls[name] = call if case.trains else way.call
    return calls


def _forward(way: Way) -> list[Tensor]:
    return [way.call()]


def _train(way: Way, gradient: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    result = way.call()
    return [result.detach(), *torch.autograd.grad(result, way.leaves, gradient)]


def _wanted(given: Operands) -> list[Tensor]:
    """The result and the gradients of x and of the factors, by way of the dense weight."""
    result = F.conv2d(given.x, compose(given.form, given.factors), padding=KERNEL // 2)
    slopes = torch.autograd.grad(result, given.leaves, given.gradient) if given.case.trains else ()
    return [result.detach(), *slopes]


def _timed(call: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    start = time.perf_counter()
    values = call()
    return time.perf_counter() - start, values


def _compare(name: str, values: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Results and gradients of x are equal, gradients of factors are as long: some ways have them transposed."""
    pairs = list(zip(values, wanted, strict=False))
    if len(values) < len(wanted):  # the dense layer has a weight and no factors
        pairs = pairs[:2]
    for number, (mine, other) in enumerate(pairs):
        a, b = (mine, other) if number < 2 else (mine.norm(), other.norm())
        error = float((a - b).abs().max() / b.abs().max())
        if not error < TOLERANCE:
            raise ValueError(f"{name}: value {number} is off by {error:.1e}")
