"""Candidate steps -> what they cost, as the searches minimise it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial as partial_function
from typing import Any

from convein.errors import PlanError
from convein.network import Network
from convein.options import shown
from convein.planner.partial import multiplications, partial
from convein.planner.rates import Rates
from convein.planner.timing import step_time
from convein.windows import Correlation


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the named costs know of candidate steps; each field is an array with one entry a step, or one number.

    Attributes:
        macs: multiplications forward.
        elements: size of the result.
        left_held, right_held: sizes of the two sides, 0 for an operand that is used as it is passed.
        left_grad, right_grad: whether the side holds an operand that needs its gradient.
        left, right, taps: for `timed` objectives, sizes of the two sides, and entries of the filters that meet a signal
            or another filter (0 where nothing is convolved).
    """

    macs: Any
    elements: Any
    left_held: Any
    right_held: Any
    left_grad: Any
    right_grad: Any
    left: Any = None
    right: Any = None
    taps: Any = None


@dataclass(frozen=True, slots=True)
class StepSizes:
    """One candidate step, as a callable cost sees it.

    Attributes:
        network: what is planned.
        left_set, right_set: the operands each side is made of, as bit sets.
        left_grad, right_grad: whether the side holds an operand that needs its gradient.
    """

    network: Network
    left_set: int
    right_set: int
    left_grad: bool
    right_grad: bool

    @property
    def left(self) -> Mapping[str, int]:
        """The modes of the left side and their sizes; modes that one operand alone sums are gone already."""
        return partial(self.network, self.left_set).sizes

    @property
    def right(self) -> Mapping[str, int]:
        """The modes of the right side and their sizes."""
        return partial(self.network, self.right_set).sizes

    @property
    def result(self) -> Mapping[str, int]:
        """The modes of the result and their sizes."""
        return partial(self.network, self.left_set | self.right_set).sizes

    @property
    def correlations(self) -> tuple[Correlation, ...]:
        """The modes that this step convolves, and how."""
        return self.network.join(self.left_set, self.right_set)

    @property
    def macs(self) -> int:
        """Multiplications forward."""
        left, right = partial(self.network, self.left_set), partial(self.network, self.right_set)
        return multiplications(self.network, left, right)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of both sides; of a side that is an operand also those that it alone carries and sums."""
        found: set[str] = set()
        for side in (self.left_set, self.right_set):
            alone = side & (side - 1) == 0
            found.update(self.network.operands[side.bit_length() - 1].modes if alone else self.network.modes(side))
        return tuple(mode for mode in self.network.carriers if mode in found)

    def given_sizes(self, mode: str) -> tuple[int, ...]:
        """The sizes of a mode in those operands, of either side, that carry it."""
        convolution = self.network.convolutions.get(mode)
        carriers = self.network.carriers[mode] & (self.left_set | self.right_set)
        found = [j for j in range(carriers.bit_length()) if carriers >> j & 1]
        if convolution is None:
            return tuple(self.network.sizes[mode] for _ in found)
        return tuple(convolution.operand_size(j) for j in found)


CostFunction = Callable[[StepSizes], float]


@dataclass(frozen=True, slots=True)
class Objective:
    """What one pass of a search minimises.

    Attributes:
        of: the value of a step, not negative: a function of `Pairs`, or with `each` of one `StepSizes`.
        largest: the value of a plan is the largest step's, and not the sum of all.
        each: whether `of` is a user's callable.
        at_least_elements: whether a step that reads or writes e elements is known to cost at least e.
        timed: whether `of` looks at the sides' sizes and taps.
    """

    of: Callable[[Any], Any]
    largest: bool = False
    each: bool = False
    at_least_elements: bool = False
    timed: bool = False


def flops(pairs: Pairs) -> Any:
    """Multiplications forward."""
    return pairs.macs


def training(pairs: Pairs) -> Any:
    """Multiplications forward and backward: a side's gradient is needed if one of its operands requires it."""
    return pairs.macs * (1 + pairs.left_grad + pairs.right_grad)


def size(pairs: Pairs) -> Any:
    """Elements of the result."""
    return pairs.elements


def saved(pairs: Pairs) -> Any:
    """Elements of partial results that the step keeps for the backward pass."""
    return pairs.left_held * pairs.right_grad + pairs.right_held * pairs.left_grad


FLOPS = Objective(flops, at_least_elements=True)
TRAINING = Objective(training, at_least_elements=True)

# Each cost is a list of objectives: the first is minimised, then the next one among all orders that reach its minimum.
# `memory` is the largest result, or where gradients are needed the sum of the results that are kept for them.
COSTS: Mapping[str, Callable[[int, Rates | None], tuple[Objective, ...]]] = {
    "time": lambda _needs_grad, rates: _time(rates),
    "flops": lambda _needs_grad, _rates: (FLOPS,),
    "training": lambda _needs_grad, _rates: (TRAINING,),
    "memory": lambda needs_grad, _rates: (
        (Objective(saved), TRAINING) if needs_grad else (Objective(size, largest=True), FLOPS)
    ),
}


def _time(rates: Rates | None) -> tuple[Objective, ...]:
    if rates is None:
        raise PlanError(
            'cost="time" needs the rates of the machine, and this version knows those of CPUs only',
            hint='cost="flops" and cost="training" count multiplications',
        )
    return (Objective(partial_function(step_time, rates), timed=True),)


def choose_cost(cost: object, needs_grad: int, rates: Rates | None) -> tuple[str, tuple[Objective, ...]]:
    """The name and the objectives of what `cost` asks for; `rates` are the machine's.

    Raises:
        PlanError: no cost has this name, or it is nothing that can be called.
    """
    if isinstance(cost, str):
        name = cost
        if cost == "auto":
            name = "time" if rates is not None else "training" if needs_grad else "flops"
        if name in COSTS:
            return name, COSTS[name](needs_grad, rates)
        known = ("auto", *COSTS)
        close = get_close_matches(cost.lower(), known, n=1)
        guess = f"; did you mean {shown(close[0])}?" if close else ""
        raise PlanError(f"cost={shown(cost)} is not known{guess}", hint=f"it is one of {_listed(known)}, or a callable")
    if callable(cost):
        return getattr(cost, "__name__", type(cost).__name__), (Objective(_checked(cost), each=True),)
    raise PlanError(
        f"cost={shown(cost)} is neither a name nor a callable",
        hint=f"it is one of {_listed(('auto', *COSTS))}, or a callable cost(step) -> float",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))


def _checked(cost: Callable[[StepSizes], Any]) -> CostFunction:
    def checked(step: StepSizes) -> float:
        try:
            found = cost(step)
        except Exception as failure:
            raise PlanError(
                f"the callable cost failed: {type(failure).__name__}: {failure}",
                hint="a cost is called as cost(step), and gives a number, 0 or more",
            ) from failure
        try:
            value = float(found)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not 0 <= value < math.inf:
            sides = ", ".join(_described(sizes) for sizes in (step.left, step.right))
            raise PlanError(
                f"the callable cost gave {shown(found)} for the step that joins {sides}",
                hint="a cost is a finite number, 0 or more",
            )
        return value

    return checked


def _described(sizes: Mapping[str, int]) -> str:
    return "[" + " ".join(f"{mode}={size}" for mode, size in sizes.items()) + "]"
