"""Plan -> Program: every step becomes torch calls, with as few moves of data between them as the layouts allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from convein.lowering import axis
from convein.lowering.draft import Draft, cheapest, draft, fused_drafts, rank
from convein.lowering.join import join, ways
from convein.lowering.note import Note
from convein.lowering.program import Program, Statement
from convein.lowering.simplify import inline, renumber
from convein.lowering.target import Target
from convein.lowering.values import Size, Value, product, tuple_text
from convein.lowering.writer import Writer
from convein.network import Network
from convein.planner.plan import Plan

__all__ = ["Program", "Statement", "Target", "lower"]


def lower(plan: Plan, target: Target, orders: Sequence[tuple[int, ...]] = ()) -> Program:
    """Writes the program of a plan.

    Every step can be done in several ways that leave their result in different layouts; drafts of all combinations are
    priced, and of those with the same layout the cheapest goes on.

    Args:
        plan: the order of the steps.
        target: what it will run on.
        orders: for each operand its axes from the slowest to the fastest in memory, where that is not their own order.
    """
    network = plan.network
    names = count(1)
    parameters = tuple(f"x{position}" for position, o in enumerate(network.operands) if o.constant is None)
    opening = Writer(target, names, network.output)
    sizes = _symbolic_sizes(network, opening)
    if network.is_zero:
        result = _zeros(opening, network, parameters, sizes)
        return Program(plan, parameters, tuple(opening.statements), (result.name,))
    drafts: list[list[Draft]] = []
    for position in range(len(network.operands)):
        writer = Writer(target, names, network.output)
        order = orders[position] if position < len(orders) else ()
        value = _load(writer, plan, position, sizes, order)
        drafts.append([draft(writer, value)])
    notes = [Note(target.absence)] if target.absence else []
    for place, step in enumerate(plan.steps):
        correlations = network.join(step.left_set, step.right_set)
        kept = frozenset(network.modes(step.left_set | step.right_set))
        found = []
        for left in drafts[step.left]:
            for right in drafts[step.right]:
                for way in ways(left.value, right.value, correlations, kept, target):
                    writer = Writer(target, names, network.output)
                    value = join(writer, left.value, right.value, correlations, kept, way)
                    found.append(draft(writer, value, left, right))
        if target.refusal is not None:
            least = min(one.price for one in found)
            fused, said = fused_drafts(plan, place, drafts, lambda: Writer(target, names, network.output), least)
            found, notes = [*found, *fused], [*notes, *said]
        drafts.append(cheapest(found, target))
    finished = []
    for last in drafts[-1]:
        writer = Writer(target, names, network.output)
        axes = tuple(tuple(mode for mode in axis if mode in last.value.sizes) for axis in network.output_axes)
        result = writer.arrange(last.value, axes)
        if result.grad and not network.convolutions:
            _copy_gradient(writer, last.value, result)
        finished.append(draft(writer, result, last))
    best = min(finished, key=lambda one: rank(one, target))
    statements = (*opening.statements, *best.statements)
    program = Program(plan, parameters, statements, (best.value.name,), fused=best.fused)
    # What is called needs no reason.
    reasons = tuple(note for note in notes if not (note.fits and note.kernel in program.kernels))
    return renumber(inline(replace(program, notes=reasons)))


def _symbolic_sizes(network: Network, writer: Writer) -> dict[str, Size]:
    """All sizes of modes that are not convolved; those that are free at run time are read from the operands first."""
    sizes: dict[str, Size] = dict(network.sizes)
    for place, symbolic in enumerate(network.symbolic):
        name = f"n{place}"
        expression = f"x{symbolic.operand}.shape[{symbolic.axis}]"
        if symbolic.divisors:
            divisor = product(sizes[mode] for mode in symbolic.divisors)
            expression += f" // ({divisor})" if "*" in str(divisor) else f" // {divisor}"
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
    # A copy, because what is only expanded cannot be written to.
    return writer.emit(f"{total.name}.expand({shape}).clone()", [total], network.output_axes, full)


def _copy_gradient(writer: Writer, made: Value, result: Value) -> None:
    """Adds what a gradient costs that has another order in memory than the result has.

    That of an image comes from its next layer, which has the image's own layout; others are mostly contiguous.
    """
    if writer.statements and made.modes != result.modes and not writer.statements[-1].price:
        price = writer.price.copy(replace(result, grad=False))
        writer.statements[-1] = replace(writer.statements[-1], price=price)


def _load(writer: Writer, plan: Plan, position: int, sizes: dict[str, Size], order: tuple[int, ...]) -> Value:
    """One operand with distinct modes: constants made, diagonals taken, modes of its own summed or strided."""
    network = plan.network
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
        grad = bool(plan.needs_grad >> position & 1)
        signal = any(convolution.signal == position for convolution in network.convolutions.values())
        value = Value(f"x{position}", axes, own, grad, signal)
        if order and list(order) != sorted(order):
            call = f"x{position}.permute({', '.join(map(str, order))})"
            value = writer.emit(call, [value], [axes[place] for place in order], own)
    value = _diagonals(writer, value)
    for mode in operand.modes:
        convolution = network.convolutions.get(mode)
        if convolution is not None and not convolution.filters and not convolution.is_trivial:
            value = axis.alone(writer, value, convolution.alone())
    alive = network.modes(1 << position)
    value = writer.sum_out(value, [mode for mode in operand.modes if mode not in alive])
    return _without_single(writer, value, network)


def _without_single(writer: Writer, value: Value, network: Network) -> Value:
    """The value without modes of size 1: they change no number, and calls that lack them are faster."""
    if network.singles.isdisjoint(value.sizes):
        return value
    axes = [tuple(mode for mode in axis if mode not in network.singles) for axis in value.axes]
    shape = ", ".join(str(value.size(axis)) for axis in axes if axis)
    call = f"{value.name}.reshape({shape or '()'})"
    return writer.emit(call, [value], [axis for axis in axes if axis], value.sizes)


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
