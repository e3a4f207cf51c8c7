"""Equation + shapes -> Network: solves every size, or says which one does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from convein.equation import ELLIPSIS, Convolved, Equation, Term
from convein.errors import OptionError, ShapeError, warn
from convein.misplaced import short
from convein.mistakes import as_names
from convein.network import Network, Operand
from convein.options import ConvOptions, as_integer, shown
from convein.resolve import resolve_convolution
from convein.sizes import Axes, OpenShape, SizeSolver

# A full convolution is the same whichever operand is the signal.
_SYMMETRIC = ConvOptions(padding="full", flip=True)


def bind(
    equation: Equation,
    shapes: Sequence[OpenShape],
    sizes: Mapping[str, int] | None = None,
    symbolic: frozenset[tuple[int, int]] = frozenset(),
    free_hint: int = 1,
) -> Network:
    """Binds an equation, its options already merged, to the operands' shapes.

    Args:
        equation: the parsed expression.
        shapes: one shape for each operand that is passed; None is a free size.
        sizes: sizes of modes that the shapes leave open (for a convolved mode, the signal's).
        symbolic: `(operand, axis)` pairs whose size in `shapes` is only a hint. Axes with a convolved mode are fixed.
        free_hint: what to plan with for a mode that only free sizes have and `sizes` does not name.

    Raises:
        ShapeError: a rank or a size does not fit, or a size cannot be inferred.
        OptionError: an option does not fit these sizes.
    """
    open_shapes = _with_constants(equation, shapes)
    symbolic |= {(j, a) for j, shape in enumerate(open_shapes) for a, size in enumerate(shape) if size is None}
    depth = _ellipsis_depth(equation, open_shapes)
    axes = tuple(_expand(term, len(shape)) for term, shape in zip(equation.inputs, open_shapes, strict=True))
    solver = SizeSolver(equation, axes, open_shapes)
    solver.solve(_checked_sizes(equation, axes, sizes), free_hint)
    operands = tuple(
        Operand(axis_modes, solver.shape(position), solver.kept_modes(position), term.constant)
        for position, (term, axis_modes) in enumerate(zip(equation.inputs, axes, strict=True))
    )
    convolutions = {}
    for convolved in equation.convolved:
        found = [(j, solver.known[convolved.mode, j]) for j, o in enumerate(operands) if convolved.mode in o.modes]
        convolutions[convolved.mode] = resolve_convolution(equation, convolved, found)
        _warn_about_signal(equation, convolved, found)
    output_axes = _expand_output(equation.output, depth)
    return Network(
        equation=equation,
        operands=operands,
        output=tuple(mode for axis in output_axes for mode in axis),
        output_axes=output_axes,
        sizes={key: size for key, size in solver.known.items() if isinstance(key, str)},
        convolutions=convolutions,
        symbolic=solver.symbolic_sizes(symbolic),
    )


def _with_constants(equation: Equation, shapes: Sequence[OpenShape]) -> tuple[OpenShape, ...]:
    """The shapes of all operands, those that the language supplies included; checks number and rank."""
    passed = [term for term in equation.inputs if term.constant is None]
    if len(passed) != len(shapes):
        raise ShapeError(
            f"the expression has {_count(len(passed), 'operand')}, and {_count(len(shapes), 'operand')} "
            f"{'was' if len(shapes) == 1 else 'were'} passed",
            text=equation.text,
            spans=[term.span for term in passed],
            hint=_spaced(equation.text, len(shapes)) if len(passed) < len(shapes) else None,
        )
    rest = iter(shapes)
    full = tuple(tuple(next(rest)) if term.constant is None else term.constant.shape for term in equation.inputs)
    for position, (term, shape) in enumerate(zip(equation.inputs, full, strict=True)):
        written = [d for d in term.dimensions if d.modes != (ELLIPSIS,)]
        if len(shape) < len(written) or (len(shape) > len(written) and len(written) == len(term.dimensions)):
            at_least = "at least " if len(written) != len(term.dimensions) else ""
            hint = as_names(equation.text)
            if hint is None and len(shape) > len(written):
                named = equation.text[term.span.start : term.span.end]
                hint = f"dimensions that are not named are written ...: ...{named}"
            raise ShapeError(
                f"operand {position} has {_count(len(shape), 'dimension')}, shape {shape}, "
                f"and its modes name {at_least}{len(written)}",
                text=equation.text,
                spans=[term.span],
                hint=hint,
            )
    return full


def _spaced(text: str, count: int) -> str | None:
    """A hint, where spaces were meant to separate operands."""
    inputs = text.partition("->")[0]
    words = re.split(r"[\s,]+(?![^()]*\))", inputs.strip())
    return f"spaces do not separate operands: write {short(','.join(words))}" if len(words) == count else None


def _ellipsis_depth(equation: Equation, shapes: Sequence[OpenShape]) -> int:
    depths = [
        len(shape) - len(term.dimensions) + 1
        for term, shape in zip(equation.inputs, shapes, strict=True)
        if any(d.modes == (ELLIPSIS,) for d in term.dimensions)
    ]
    return max(depths, default=0)


def _batch_modes(depth: int) -> Axes:
    """The modes that `...` stands for: numbered from the right, where they are aligned."""
    return tuple((f"{ELLIPSIS}{place}",) for place in reversed(range(depth)))


def _expand(term: Term, rank: int) -> Axes:
    axes: list[tuple[str, ...]] = []
    for dimension in term.dimensions:
        if dimension.modes == (ELLIPSIS,):
            axes.extend(_batch_modes(rank - len(term.dimensions) + 1))
        else:
            axes.append(dimension.modes)
    return tuple(axes)


def _expand_output(term: Term, depth: int) -> Axes:
    return _expand(term, len(term.dimensions) - 1 + depth)


def _checked_sizes(equation: Equation, axes: tuple[Axes, ...], sizes: Mapping[str, int] | None) -> dict[str, int]:
    """The `sizes` argument, its names and values checked."""
    present = dict.fromkeys(m for operand in axes for axis in operand for m in axis if not m.startswith(ELLIPSIS))
    checked = {}
    for mode, given in (sizes or {}).items():
        if mode not in present:
            raise OptionError(
                f"sizes= names {shown(mode)}, which is not a mode of the expression",
                text=equation.text,
                hint=f"its modes are {', '.join(present)}",
            )
        size = as_integer(given)
        if size is None or size < 0:
            raise OptionError(
                f"sizes= gives {shown(given)} for mode {mode}",
                text=equation.text,
                hint="a size is an integer, 0 or more",
            )
        checked[mode] = size
    return checked


def _warn_about_signal(equation: Equation, convolved: Convolved, found: list[tuple[int, int]]) -> None:
    mode, options = convolved.mode, convolved.options
    (first, size), longest = found[0], max(found, key=lambda carrier: carrier[1])
    if options == _SYMMETRIC:
        return
    if "signal" not in convolved.given and size < longest[1]:
        warn(
            f"{short(equation.text)}: the signal of mode {mode} is operand {first} (size {size}), the first that "
            f"carries it, and operand {longest[0]} is longer (size {longest[1]}); "
            'say signal="first" or signal="largest"'
        )


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
