"""Plan -> Program: every step becomes torch calls, with as few moves of data between them as the layouts allow."""

from __future__ import annotations

from convein.lowering import axis, convnd, fft
from convein.lowering.product import contract
from convein.lowering.program import Program, Statement
from convein.lowering.simplify import inline
from convein.lowering.target import Target
from convein.lowering.writer import Size, Value, Writer, product, tuple_text
from convein.network import Network
from convein.planner.plan import Plan
from convein.windows import Correlation

__all__ = ["Program", "Statement", "Target", "lower"]


def lower(plan: Plan, target: Target) -> Program:
    """Writes the program of a plan.

    Args:
        plan: the order of the steps.
        target: dtype and device it will run on.
    """
    network = plan.network
    writer = Writer(None if target.is_inexact else target.dtype)
    parameters = tuple(f"x{position}" for position, o in enumerate(network.operands) if o.constant is None)
    sizes = _symbolic_sizes(network, writer)
    if network.is_zero:
        result = _zeros(writer, network, parameters, sizes)
        return Program(plan, parameters, tuple(writer.statements), (result.name,))
    values = [_load(writer, network, position, sizes) for position in range(len(network.operands))]
    for step in plan.steps:
        joined = step.left_set | step.right_set
        kept = frozenset(network.modes(joined))
        values.append(
            _join(
                writer, values[step.left], values[step.right], network.join(step.left_set, step.right_set), kept, target
            )
        )
    result = writer.arrange(values[-1], network.output_axes)
    return inline(Program(plan, parameters, tuple(writer.statements), (result.name,)))


def _symbolic_sizes(network: Network, writer: Writer) -> dict[str, Size]:
    """All sizes of modes that are not convolved; those that are free at run time are read from the operands first."""
    sizes: dict[str, Size] = dict(network.sizes)
    for place, symbolic in enumerate(network.symbolic):
        name = f"n{place}"
        expression = f"x{symbolic.operand}.shape[{symbolic.axis}]"
        if symbolic.divisors:
            divisor = product(sizes[mode] for mode in symbolic.divisors)
            expression += f" // {divisor}" if isinstance(divisor, int) else f" // ({divisor})"
        writer.statements.append(Statement(name, expression, (f"x{symbolic.operand}",)))
        sizes[symbolic.mode] = name
    return sizes


def _zeros(writer: Writer, network: Network, parameters: tuple[str, ...], sizes: dict[str, Size]) -> Value:
    """A zero result that every operand still has a (zero) gradient through: sums over nothing."""
    full = {mode: sizes[mode] if mode in sizes else network.final_size(mode) for mode in network.output}
    shape = tuple_text(product(full[mode] for mode in axes) for axes in network.output_axes)
    nothing = " + ".join(f"{name}.flatten()[:0].sum({writer.sum_option[2:]})" for name in parameters)
    operands = [Value(name, (), {}) for name in parameters]
    total = writer.emit(nothing, operands, (), {})
    return writer.emit(f"{total.name}.expand({shape})", [total], network.output_axes, full)


def _load(writer: Writer, network: Network, position: int, sizes: dict[str, Size]) -> Value:
    """One operand with distinct modes: constants made, diagonals taken, modes of its own summed or strided."""
    operand = network.operands[position]
    own: dict[str, Size] = {
        mode: network.convolutions[mode].operand_size(position) if mode in network.convolutions else sizes[mode]
        for mode in operand.modes
    }
    axes = tuple(
        tuple(m for m in axis_modes if m in own) if len(axis_modes) == 1 else axis_modes for axis_modes in operand.axes
    )
    if operand.constant is not None:
        like = next(f"x{j}" for j, o in enumerate(network.operands) if o.constant is None)
        call = f"{like}.new_full({operand.constant.shape}, {operand.constant.value!r})"
        value = writer.emit(call, [Value(like, (), {})], axes, own)
    else:
        value = Value(f"x{position}", axes, own)
    value = _diagonals(writer, value)
    for mode in operand.modes:
        convolution = network.convolutions.get(mode)
        if convolution is not None and not convolution.filters and not convolution.is_trivial:
            value = axis.alone(writer, value, convolution.alone())
    alive = network.modes(1 << position)
    return writer.sum_out(value, [mode for mode in operand.modes if mode not in alive])


def _diagonals(writer: Writer, value: Value) -> Value:
    repeated = [mode for mode in dict.fromkeys(value.modes) if value.modes.count(mode) > 1]
    if repeated and any(len(a) > 1 for a in value.axes):
        names = value.modes
        shape = ", ".join(str(value.sizes[mode]) for mode in names)
        value = writer.emit(f"{value.name}.reshape({shape})", [value], [(mode,) for mode in names], value.sizes)
    for mode in repeated:
        while value.modes.count(mode) > 1:
            first, second = [place for place, a in enumerate(value.axes) if a == (mode,)][:2]
            kept = [a for place, a in enumerate(value.axes) if place not in (first, second)]
            value = writer.emit(f"{value.name}.diagonal(0, {first}, {second})", [value], [*kept, (mode,)], value.sizes)
    return value


def _join(
    writer: Writer,
    left: Value,
    right: Value,
    correlations: tuple[Correlation, ...],
    kept: frozenset[str],
    target: Target,
) -> Value:
    """One step: the pair's convolved modes are brought to one direction, then the fastest call that fits does it."""
    original = correlations
    for c in correlations:
        if c.signal_left:
            left = axis.extend(writer, left, c)
        else:
            right = axis.extend(writer, right, c)
    correlations = tuple(axis.extended(c) for c in correlations)
    x, w, correlations = _orient(writer, left, right, correlations)
    needed = kept | {c.mode for c in correlations}
    if correlations and fft.pays(x, w, correlations, kept, target):
        y = fft.convolve(writer, x, w, correlations, needed, target)
    else:
        x, w, correlations = _direct(writer, x, w, correlations, target)
        if correlations:
            y = convnd.convolve(writer, x, w, correlations, needed)
        else:
            y = contract(writer, x, w, needed, target)
    for c in original:
        y = axis.fold(writer, y, c)
    return writer.sum_out(y, [mode for mode in y.modes if mode not in kept])


def _orient(
    writer: Writer, left: Value, right: Value, correlations: tuple[Correlation, ...]
) -> tuple[Value, Value, tuple[Correlation, ...]]:
    """One value as the signal side of every convolved mode: modes that disagree exchange roles, or are unfolded."""
    sides = {c.signal_left for c in correlations}
    if len(sides) == 1:
        return (left, right, correlations) if sides == {True} else (right, left, correlations)
    if not sides:
        return left, right, ()
    votes = {side: max(c.n for c in correlations if c.signal_left is side) for side in sides}
    main = votes[True] >= votes[False]
    x, w = (left, right) if main else (right, left)
    same_way = []
    for c in correlations:
        if c.signal_left is main:
            same_way.append(c)
        elif axis.can_swap(c):
            w, x, c = axis.swap(writer, w, x, c)
            same_way.append(c)
        else:
            w, x = axis.unfold(writer, w, x, c)
    return x, w, tuple(same_way)


def _direct(
    writer: Writer, x: Value, w: Value, correlations: tuple[Correlation, ...], target: Target
) -> tuple[Value, Value, tuple[Correlation, ...]]:
    """What torch's convolutions cannot take is unfolded: integers, more than three modes, stride with upsampling."""
    if target.has_convolution:
        by_cost = sorted(correlations, key=lambda c: c.kernel)
        excess = by_cost[: max(0, len(correlations) - convnd.MAX_SPATIAL)]
    else:
        excess = list(correlations)
    for c in excess:
        x, w = axis.unfold(writer, x, w, c)
    rest = tuple(c for c in correlations if c not in excess)
    if any(c.upsample > 1 for c in rest) and any(c.stride > 1 for c in rest):
        ready = []
        for c in rest:
            x, c = axis.upsample(writer, x, c)
            ready.append(c)
        rest = tuple(ready)
    return x, w, rest
