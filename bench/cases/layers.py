"""Factorised convolutions of a residual network, beside everything else that evaluates the same factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from tqdm import tqdm

from cases.forms import FORMS, KERNEL, Case, Operands, compose, operands_of
from cases.peers import Way, check, makers
from measure import Group

LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4))
PERCENTS = (1, 10, 50, 100)
BATCHES = (32, 1)
DIRECTIONS = ("forward", "forward+backward")
LAYOUTS = ("NCHW", "channels-last")
# A variant is left out if one call takes longer than this, and so many times as long as the first variant's.
LONG_SECONDS = 1.0
HOPELESS = 5


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
    longest = 0.0
    calls: dict[str, Callable[[], object]] = {}
    for name, make in makers(case).items():
        way = make(given)
        if isinstance(way, str):
            tqdm.write(f"{case}: without {name}: {way}")
            continue
        gradient = given.gradient.contiguous(memory_format=way.memory_format)
        spent = check(case, name, way, wanted, gradient)
        longest = longest or max(LONG_SECONDS, HOPELESS * spent)
        if spent > longest:
            tqdm.write(f"{case}: without {name}: {spent:.1f} seconds for one call")
            continue
        calls[name] = partial(_train, way, gradient) if case.trains else way.call
    return calls


def _train(way: Way, gradient: torch.Tensor) -> object:
    return torch.autograd.grad(way.call(), way.leaves, gradient)


def _wanted(given: Operands) -> tuple[torch.Tensor, ...]:
    """The result and the gradients of x and of the factors, by way of the dense weight."""
    result = F.conv2d(given.x, compose(given.form, given.factors), padding=KERNEL // 2)
    if not given.case.trains:
        return (result,)
    return result.detach(), *torch.autograd.grad(result, given.leaves, given.gradient)
