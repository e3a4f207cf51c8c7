"""Text and sizes -> Parts: what a layer knows of its expression before it has a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from convein.dialect import Dialect
from convein.equation import ELLIPSIS, Convolved, Equation, Term, composed, written
from convein.errors import ExpressionError, OptionError, ShapeError
from convein.keywords import places
from convein.options import OPTION_NAMES, as_integer, shown
from convein.pipeline import contract_path
from convein.request import make_request
from convein.syntax import parse


@dataclass(frozen=True, slots=True)
class Parts:
    """An expression as the parts of a layer.

    Attributes:
        shown: the canonical expression.
        text, called: what is called: there the input is said to be the signal, however short it is.
        equation: the canonical expression, parsed.
        input: the position of the input.
        names, shapes: of the weights.
        sizes: of the modes that the weights have.
        given: the keywords of every call.
        dense: the expression of the dense weight.
        norm: the expression of its squared norm, or None where only the dense weight itself tells.
        fan_in: how many entries of the input every entry of the output is a sum over.
        summed: the product of the sizes of the modes that are summed between the weights.
        entries: of the dense weight.
    """

    shown: str
    text: str
    called: Equation = field(repr=False)
    equation: Equation = field(repr=False)
    input: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: Mapping[str, int] = field(hash=False)
    given: Mapping[str, Any] = field(hash=False)
    dense: str
    norm: str | None
    fan_in: int
    summed: int
    entries: int
    dialect: Dialect | None


def take_apart(
    expression: str,
    sizes: Mapping[str, int],
    names: Sequence[str] | None,
    input: int,
    options: Mapping[str, Any],
    dialect: Dialect | None,
) -> Parts:
    """The parts of a layer.

    Raises:
        ConveinError: whatever does not fit, with the place in the expression.
    """
    if not isinstance(expression, str):
        raise ExpressionError(f"a layer is made of a string, not {type(expression).__name__}: {shown(expression)}")
    # Names that nobody knows are found now, and not at the first call.
    words = {name: options[name] for name in ("optimize", "cost") if isinstance(options.get(name), str)}
    if words:
        contract_path("a,a->", (1,), (1,), **words)
    place = as_integer(input)
    equation = make_request(expression, (), {**options, "dialect": dialect})[0].equation
    terms = [term for term in equation.inputs if term.constant is None]
    if place is None or not -len(terms) <= place < len(terms):
        raise OptionError(
            f"input={input!r} is no operand", hint=f"the expression has {len(terms)} operands: 0 to {len(terms) - 1}"
        )
    place %= len(terms)
    source = terms.pop(place)
    if not terms:
        raise OptionError(f"{equation} has no weights", hint="every operand but the input is a weight of the layer")
    given = {name: value for name, value in options.items() if name not in OPTION_NAMES}
    if dialect is not None:
        given["dialect"] = dialect
    _check_filters(equation, terms)
    known = _known(equation, terms, sizes)
    if open_ := _open(equation, terms, known):
        given["sizes"] = open_
    called = _with_signal(equation, source, place)
    # The signal is shown where it is not the first operand anyway.
    pieces = zip(called.convolved, equation.convolved, strict=True)
    shown_pieces = tuple(replace(piece, given=before.given) for piece, before in pieces)
    return Parts(
        shown=str(replace(called, convolved=shown_pieces)),
        text=str(called),
        called=called,
        equation=equation,
        input=place,
        names=_names(names, len(terms)),
        shapes=tuple(tuple(prod(known[m] for m in d.modes) for d in term.dimensions) for term in terms),
        sizes=known,
        given=given,
        **_dense(equation, source, terms, known),
        dialect=dialect,
    )


def bias_parts(parts: Parts, bias: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a bias, and the shape in which it is added to the output.

    Raises:
        OptionError: the output has no such dimensions.
    """
    convolved = {piece.mode for piece in parts.equation.convolved}
    hint = (
        f"the output is {parts.equation.output}: a bias names dimensions of it, in this order, that weights have and "
        'that are not convolved, as bias="t"; `...` may stand before them'
    )
    output = list(parts.equation.output.dimensions)
    try:
        wanted = [dimension.modes for dimension in parse(f"{bias}->{bias}").inputs[0].dimensions]
    except ExpressionError as error:
        raise OptionError(f"bias={bias!r} does not fit the output", hint=hint) from error
    modes = [dimension.modes for dimension in output]
    at = [modes.index(one) if one in modes else -1 for one in wanted]
    known = all(mode in parts.sizes and mode not in convolved for one in wanted for mode in one)
    if not at or at != sorted(set(at)) or at[0] < 0 or not known or (ELLIPSIS,) in modes[at[0] :]:
        raise OptionError(f"bias={bias!r} does not fit the output", hint=hint)
    shape = {one: prod(parts.sizes[mode] for mode in one) for one in wanted}
    return tuple(shape.values()), tuple(shape.get(one, 1) for one in modes[at[0] :])


def without_output_padding(parts: Parts) -> str:
    """The called text, that leaves the output padding of every convolved mode to the call."""
    pieces = [
        replace(one, options=replace(one.options, output_padding=0), given=one.given - {"output_padding"})
        for one in parts.called.convolved
    ]
    return str(replace(parts.called, convolved=tuple(pieces)))


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"w{number}" for number in range(1, count + 1))
    good = not isinstance(names, str) and all(isinstance(name, str) and name.isidentifier() for name in names)
    if not good or len(set(names)) != count or len(names) != count:
        raise OptionError(f"names={names!r} of {count} weights", hint="different names, one for each weight in order")
    return tuple(names)


def _check_filters(equation: Equation, weights: Sequence[Term]) -> None:
    """Every convolved mode of a weight has a dimension of which no other convolved mode is a part."""
    convolved = {piece.mode for piece in equation.convolved}
    for dimension in (dimension for term in weights for dimension in term.dimensions):
        both = [mode for mode in dimension.modes if mode in convolved]
        if len(both) > 1:
            raise ShapeError(
                f"how long the filters along {' and '.join(both)} are cannot be told from one dimension",
                text=equation.text,
                spans=places(weights, both[0]),
                hint="give each convolved mode of a weight a dimension of its own",
            )


def _known(equation: Equation, weights: Sequence[Term], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are given, checked: every mode of a weight has one."""
    modes = dict.fromkeys(mode for term in equation.inputs for d in term.dimensions for mode in d.modes)
    known: dict[str, int] = {}
    if not isinstance(sizes, Mapping):
        raise OptionError(f"sizes={shown(sizes)} is no dict", hint='sizes is a dict from mode to size: sizes={"s": 64}')
    for mode, size in sizes.items():
        number = as_integer(size)
        if mode not in modes or mode == ELLIPSIS:
            raise OptionError(f"sizes names {mode!r}, which is no mode of {equation}", hint=_spelling(mode, modes))
        if number is None or number < 1:
            raise OptionError(f"sizes: mode {mode} has {size!r}", hint="a size is a number from 1")
        known[mode] = number
    missing = [m for term in weights for d in term.dimensions for m in d.modes if m not in known]
    if missing:
        what = "a weight has no `...`" if missing[0] == ELLIPSIS else f"the size of mode {missing[0]} is not given"
        raise ShapeError(
            what,
            text=equation.text,
            spans=places(weights, missing[0]),
            hint='every mode of a weight has a size: sizes={"s": 64, ...}; of a convolved mode it is the filter\'s',
        )
    return known


def _spelling(name: object, modes: Iterable[str]) -> str:
    """How a mode of this name is written, or those that there are."""
    if isinstance(name, str) and name[:1] == "(" and name[1:-1] in modes:
        return f'a name stands without parentheses there: "{name[1:-1]}"'
    if isinstance(name, str) and len(name) > 1 and set(name) <= set(modes):
        return f"one letter is one mode, and a longer name stands in parentheses: ({name})"
    return f"the modes are {', '.join(mode for mode in modes if mode != ELLIPSIS)}"


def _open(equation: Equation, weights: Sequence[Term], known: Mapping[str, int]) -> dict[str, int]:
    """Sizes that a call cannot read from the weights: of modes that stand in composed dimensions only.

    Of a convolved mode a call is told the signal's size: a filter's is what its dimension leaves.
    """
    convolved = {piece.mode for piece in equation.convolved}
    alone = {d.modes[0] for term in weights for d in term.dimensions if len(d.modes) == 1}
    composed = [mode for term in weights for d in term.dimensions if len(d.modes) > 1 for mode in d.modes]
    return {mode: known[mode] for mode in dict.fromkeys(composed) if mode not in alone | convolved}


def _with_signal(equation: Equation, source: Term, place: int) -> Equation:
    """The equation that says that the input is the signal of the modes it has."""
    carried = {mode for dimension in source.dimensions for mode in dimension.modes}
    pieces = []
    for piece in equation.convolved:
        if piece.mode not in carried:
            pieces.append(piece)
            continue
        first = next(j for j, term in enumerate(equation.inputs) if places([term], piece.mode))
        stated = piece.options.signal
        if "signal" in piece.given and stated not in ((place, "first") if first == place else (place,)):
            raise OptionError(
                f"signal={stated!r} for mode {piece.mode}", hint=f"the signal is the layer's input, operand {place}"
            ).at(equation.text, [piece.span])
        options = replace(piece.options, signal="first" if first == place else place)
        pieces.append(replace(piece, options=options, given=piece.given | {"signal"}))
    return replace(equation, convolved=tuple(pieces))


def _dense(equation: Equation, source: Term, weights: Sequence[Term], known: Mapping[str, int]) -> dict[str, Any]:
    """What is known of the dense weight before there are weights."""
    inner = dict.fromkeys(mode for dimension in source.dimensions for mode in dimension.modes)
    outer = [dimension.modes for dimension in equation.output.dimensions]
    held = Counter(mode for term in weights for mode in {m for d in term.dimensions for m in d.modes})
    convolved = {piece.mode: piece for piece in equation.convolved}
    merged = {mode: held[mode] for mode in convolved if held[mode]}
    kept = {mode for one in outer for mode in one}
    groups = [tuple(mode for mode in one if mode in held and mode not in convolved) for one in outer]
    shared = [(mode,) for mode in inner if mode in held and mode not in kept and mode not in convolved]
    dimensions = [one for one in (*groups, *shared, *((mode,) for mode in merged)) if one]
    lengths = {mode: count * (known[mode] - 1) + 1 for mode, count in merged.items()}
    dense = "".join(map(composed, dimensions))
    # Filters along one mode that meet the same signal make one filter by index addition.
    bar = [
        f"{written(mode)}[padding=full, flip]" if mode in inner else _alone(convolved[mode])
        for mode, count in merged.items()
        if count > 1
    ]
    left = ",".join(map(str, weights))
    bonds = [mode for mode in held if mode not in kept and mode not in inner and mode not in convolved]
    return {
        "dense": f"{left}->{dense}" + (f"|{','.join(bar)}" if bar else ""),
        "norm": None if bar else _norm(weights, bonds),
        "fan_in": prod(
            lengths.get(mode, known.get(mode, 1)) for mode in inner if mode in convolved or mode not in kept
        ),
        "summed": prod(known[mode] for mode in bonds),
        "entries": prod(lengths.get(mode, known[mode]) for one in dimensions for mode in one),
    }


def _norm(weights: Sequence[Term], bonds: Sequence[str]) -> str:
    """The weights contracted with themselves, the modes between them once for each copy (layers of one number)."""
    taken = {mode for term in weights for dimension in term.dimensions for mode in dimension.modes}
    other = {}
    for bond in bonds:
        name = f"{bond}_"
        while name in taken:
            name += "_"
        taken.add(name)
        other[bond] = name
    copies = [
        "".join(composed(tuple(other.get(mode, mode) for mode in dimension.modes)) for dimension in term.dimensions)
        for term in weights
    ]
    return f"{','.join([*map(str, weights), *copies])}->"


def _alone(piece: Convolved) -> str:
    """A convolved mode that the input does not have, with its options: the weights are convolved with each other."""
    return str(Equation("", (), Term((), piece.span), (piece,))).split("|")[1]
