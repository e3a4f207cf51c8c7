"""Network + order -> Plan: the pairwise steps, and what each of them costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from convein.network import Network
from convein.planner.kinds import kind_of
from convein.planner.partial import Partial, is_passed, join, multiplications, partial

Path = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One pairwise step. Values are numbered: operands 0..n-1, then step k makes value n+k.

    Attributes:
        left, right: the values it joins; `left` holds the signal if one is met, else the lower position.
        left_set, right_set: the operands they are made of, as bit sets.
        kind: what it is, one of `kinds`.
        macs: multiplications forward.
        backward_macs: multiplications of the gradients that are needed.
        elements: size of the result.
        saved: elements of partial results that the step keeps for the backward pass; operands are not counted.
        folded: whether it joins constants only, and is computed once.
    """

    left: int
    right: int
    left_set: int
    right_set: int
    kind: str
    macs: int
    backward_macs: int
    elements: int
    saved: int
    folded: bool

    @property
    def result_set(self) -> int:
        """The operands that the result is made of."""
        return self.left_set | self.right_set


@dataclass(frozen=True, slots=True)
class Plan:
    """An order for a network, one pairwise step at a time; a network of one operand has no step.

    Attributes:
        network: what is planned.
        steps: in order.
        optimizer: the name of the search that found the order.
        cost: the name of what it minimised; `total` is how much of that the order costs.
        needs_grad: the operands whose gradients are needed, as a bit set.
        constants: the operands that never change, as a bit set.
        slices: modes that are looped over.
        given: the linear path that was asked for, if it has steps of one operand: these do nothing here, because modes
            that only one operand has are summed whenever it is read.
        rates: the name of the table of rates, where the cost is a time.
    """

    network: Network
    steps: tuple[Step, ...]
    optimizer: str
    cost: str
    total: float
    needs_grad: int = 0
    constants: int = 0
    slices: tuple[str, ...] = ()
    given: Path = ()
    rates: str = ""

    @property
    def ssa_path(self) -> Path:
        """The values that each step joins, numbered as in `Step`."""
        return tuple((step.left, step.right) for step in self.steps)

    @property
    def path(self) -> Path:
        """opt_einsum's linear path: positions in the list of values that are left; a result goes to its end."""
        if self.given:
            return self.given
        if not self.steps:
            return ((0,),)
        return linear_path(self.ssa_path, len(self.network.operands))

    @property
    def macs(self) -> int:
        """Multiplications of one forward pass; constants that are folded are not part of it."""
        return sum(step.macs for step in self.steps if not step.folded)

    @property
    def training_macs(self) -> int:
        """Multiplications of one forward and backward pass."""
        return sum(step.macs + step.backward_macs for step in self.steps if not step.folded)

    @property
    def largest(self) -> int:
        """Elements of the largest result of a step (of the only operand, if there is no step)."""
        if not self.steps:
            return partial(self.network, self.network.everything).elements
        return max(step.elements for step in self.steps)

    @property
    def saved(self) -> int:
        """Elements of partial results that are kept for the backward pass."""
        return sum(step.saved for step in self.steps)

    def saved_bytes(self, itemsize: int) -> int:
        """Bytes of partial results that are kept for the backward pass, operands excluded."""
        return self.saved * itemsize

    def __str__(self) -> str:
        from convein.planner.table import path_info

        return str(path_info(self))


def steps_of(
    network: Network, ssa_path: Iterable[tuple[int, int]], needs_grad: int = 0, constants: int = 0
) -> tuple[Step, ...]:
    """The steps that join values in the order of an ssa path."""
    values = [partial(network, 1 << position) for position in range(len(network.operands))]
    steps = []
    for first, second in ssa_path:
        swap = _comes_first(network, values[second].operands, values[first].operands)
        left, right = (second, first) if swap else (first, second)
        values.append(join(network, values[left], values[right]))
        steps.append(_step(network, (left, right), (values[left], values[right], values[-1]), needs_grad, constants))
    return tuple(steps)


def linear_path(ssa_path: Iterable[tuple[int, ...]], operands: int) -> Path:
    """An ssa path in opt_einsum's numbering."""
    alive = list(range(operands))
    path = []
    for number, step in enumerate(ssa_path):
        places = sorted(alive.index(value) for value in step)
        for place in reversed(places):
            del alive[place]
        alive.append(operands + number)
        path.append(tuple(places))
    return tuple(path)


def _comes_first(network: Network, a: int, b: int) -> bool:
    """Whether set a is the left side of the step that joins a and b."""
    signals = [c.signal for c in network.convolutions.values() if c.carriers & a and c.carriers & b]
    in_a = any(a >> signal & 1 for signal in signals)
    in_b = any(b >> signal & 1 for signal in signals)
    if in_a != in_b:
        return in_a
    return a & -a < b & -b


def _step(
    network: Network,
    numbers: tuple[int, int],
    values: tuple[Partial, Partial, Partial],
    needs_grad: int,
    constants: int,
) -> Step:
    left, right, result = values
    macs = multiplications(network, left, right)
    left_grad, right_grad = bool(left.operands & needs_grad), bool(right.operands & needs_grad)
    saved = 0
    for value, other_grad in ((left, right_grad), (right, left_grad)):
        if other_grad and not is_passed(network, value):
            saved += value.elements
    return Step(
        *numbers,
        left.operands,
        right.operands,
        kind=kind_of(network, left, right),
        macs=macs,
        backward_macs=macs * (left_grad + right_grad),
        elements=result.elements,
        saved=saved,
        folded=result.operands & ~constants == 0,
    )
