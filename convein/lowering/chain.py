"""Plan -> runs of steps that an activation flows through, each step a letter: what fused kernels are matched with.

P, pointwise, sums modes of the activation and brings new ones; D, depthwise, convolves and keeps the other modes that
both sides have; C, dense, convolves and sums; B and G are P and C with a batch, modes that are kept besides; H, a
Hadamard product, has nothing that the activation has not. Names, order and number of modes do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from convein.planner.plan import Plan, Step
from convein.windows import Correlation

# No kernel does more steps.
LONGEST = 3


@dataclass(frozen=True, slots=True)
class Factor:
    """What the activation meets in one step.

    Attributes:
        letter: what the step is; "-" if it has none.
        number: of the factor, as in `Plan.ssa_path`.
        correlations: of the modes that are convolved; their signal is the activation.
        summed, shared, own: the factor's other modes: those that the step sums, those that both sides have and that
            stay, and those that only the factor has.
    """

    letter: str
    number: int
    correlations: tuple[Correlation, ...]
    summed: frozenset[str]
    shared: frozenset[str]
    own: frozenset[str]


@dataclass(frozen=True, slots=True)
class Run:
    """Steps that follow each other.

    Attributes:
        start: the number of the activation before them.
        factors: what it meets, in order.
        kept: the modes that are needed afterwards.
    """

    start: int
    factors: tuple[Factor, ...]
    kept: frozenset[str]

    @property
    def letters(self) -> str:
        """Of all factors."""
        return "".join(factor.letter for factor in self.factors)


def runs(plan: Plan, place: int, modes: Callable[[int], tuple[str, ...]]) -> Iterator[Run]:
    """The runs that end with a step, the shortest first.

    Args:
        plan: the order.
        place: of the step.
        modes: those that a value has where it is computed, by its number.
    """
    kept = frozenset(plan.network.modes(plan.steps[place].result_set))
    factors: tuple[Factor, ...] = ()
    while place >= 0 and len(factors) < LONGEST:
        found = _factor(plan, plan.steps[place], modes)
        if found is None:
            return
        start, factor = found
        factors = (factor, *factors)
        yield Run(start, factors, kept)
        place = start - len(plan.network.operands)


def _factor(plan: Plan, step: Step, modes: Callable[[int], tuple[str, ...]]) -> tuple[int, Factor] | None:
    """The activation's number before a step, and the factor; None where each side is a signal of the other."""
    network = plan.network
    correlations = network.join(step.left_set, step.right_set)
    sides = {c.signal_left for c in correlations}
    if len(sides) > 1:
        return None
    left = sides == {True} if sides else _is_activation(plan, step)
    start, number = (step.left, step.right) if left else (step.right, step.left)
    convolved = {c.mode for c in correlations}
    x, w, kept = {*modes(start)}, {*modes(number)}, {*network.modes(step.result_set)}
    both = (x & w) - convolved
    summed, shared, own = frozenset(both - kept), frozenset(both & kept), frozenset(w - x)
    letter = _letter(bool(convolved), bool(summed), bool(shared), bool(own))
    return start, Factor(letter, number, correlations, summed, shared, own)


def _is_activation(plan: Plan, step: Step) -> bool:
    """Whether the left side of a step without convolved modes is the one that flows: from a signal, or the larger."""
    network = plan.network
    signals = {convolution.signal for convolution in network.convolutions.values()}
    left, right = (any(side >> signal & 1 for signal in signals) for side in (step.left_set, step.right_set))
    if left != right:
        return left
    return prod(network.shape(step.left_set)) >= prod(network.shape(step.right_set))


def _letter(convolved: bool, summed: bool, shared: bool, own: bool) -> str:
    kinds = {
        (True, False, True, False): "D",
        (True, True, False, True): "C",
        (False, True, False, True): "P",
        (True, True, True, True): "G",
        (True, True, True, False): "G",
        (True, False, True, True): "G",
        (False, True, True, True): "B",
        (False, True, True, False): "H",
        (False, True, False, False): "H",
        (False, False, True, False): "H",
    }
    return kinds.get((convolved, summed, shared, own), "-")
