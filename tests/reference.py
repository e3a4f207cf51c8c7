"""What an expression means: every sum written out, on top of plain einsum. Nothing of convein is used here.

`conv_einsum` takes the arguments of `convein.conv_einsum` that bear on the value (the expression, the operands, the
options of a convolved mode, `sizes`) and is slow, clear, exact for integers and differentiable: each convolved mode
becomes one more operand, the table of zeros and ones T[o, i, h1, h2, ...] that says which signal entry i and filter
entries h each output entry o reads, and `torch.einsum` does the rest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

DEFAULTS: dict[str, Any] = {
    "stride": 1,
    "dilation": 1,
    "padding": "same",
    "flip": False,
    "signal": "first",
    "padding_mode": "zeros",
    "transposed": False,
    "output_padding": 0,
}

Dimension = tuple[str, ...]
Term = tuple[Dimension, ...]


@dataclass(frozen=True)
class Parsed:
    """`output` is None where the expression leaves it to the rule of einsum."""

    inputs: tuple[Term, ...]
    output: Term | None
    convolved: dict[str, dict[str, Any]]


def conv_einsum(
    expression: str, *operands: torch.Tensor, sizes: Mapping[str, int] | None = None, **keywords: Any
) -> torch.Tensor:
    dtype = operands[0].dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        operands = tuple(x.long() for x in operands)
    parsed = parse(expression)
    options = _merge(parsed.convolved, keywords)
    known = _solve_sizes(parsed, options, [tuple(x.shape) for x in operands], dict(sizes or {}))

    arguments: list[Any] = []
    for place, (term, operand) in enumerate(zip(parsed.inputs, operands, strict=True)):
        names = [_local(n, place, options) for group in _groups(term, operand.dim()) for n in group]
        arguments += [_take_apart(term, operand, place, options, known).expand([known[n] for n in names]), names]
    for mode, given in options.items():
        signal, filters = _roles(mode, given, parsed.inputs, known)
        table = relation(known[mode, signal], [known[mode, place] for place in filters], given)
        known[mode] = table.shape[0]
        names = [mode, (mode, signal), *((mode, place) for place in filters)]
        arguments += [table.to(operands[0]), names]

    output = _implicit_output(parsed.inputs) if parsed.output is None else parsed.output
    depth = sum(isinstance(name, tuple) and name[0] == "..." for name in known)
    groups = _groups(output, len(output) - 1 + depth)
    result = _einsum(arguments, [name for group in groups for name in group])
    return result.reshape([math.prod(known[name] for name in group) for group in groups]).to(dtype)


def relation(size: int, filters: Sequence[int], options: Mapping[str, Any]) -> torch.Tensor:
    """T[o, i, h1, h2, ...]: how often output entry o reads signal entry i through the filter entries h."""
    stride, dilation = options["stride"], options["dilation"]
    reach = dilation * sum(k - 1 for k in filters)
    low, high = _padding(size, reach, options)
    if options["transposed"]:
        length = (size - 1) * stride + reach + 1 - low - high + options["output_padding"]
    else:
        length = (size + low + high - reach - 1) // stride + 1
    if length < 1:
        raise ValueError(f"empty output: {size=} {filters=} {options=}")

    table = torch.zeros(length, size, *filters, dtype=torch.int64)
    for entries in itertools.product(*map(range, filters)):
        read = tuple(k - 1 - h for k, h in zip(filters, entries, strict=True)) if options["flip"] else entries
        shift = dilation * sum(entries) - low
        if options["transposed"]:
            for i in range(size):
                o = stride * i + shift
                if options["padding_mode"] == "circular":
                    o %= length
                if 0 <= o < length:
                    table[(o, i, *read)] += 1
        else:
            for o in range(length):
                i = _place(stride * o + shift, size, options["padding_mode"])
                if i is not None:
                    table[(o, i, *read)] += 1
    return table


def _padding(size: int, reach: int, options: Mapping[str, Any]) -> tuple[int, int]:
    padding = options["padding"]
    if padding == "same":
        low = reach - reach // 2 if options["flip"] else reach // 2
        return low, (reach + 1 - options["stride"] - low if options["transposed"] else reach - low)
    if padding == "valid":
        return 0, 0
    if padding == "full":
        return reach, reach
    low, high = (padding, padding) if isinstance(padding, int) else padding
    if options["padding_mode"] == "reflect" and max(low, high) >= size:
        raise ValueError(f"cannot reflect {padding} into {size}")
    return low, high


def _place(i: int, size: int, padding_mode: str) -> int | None:
    """The signal entry that stands at index i of the padded signal; None is a zero."""
    if 0 <= i < size:
        return i
    if padding_mode == "zeros":
        return None
    if padding_mode == "circular":
        return i % size
    if padding_mode == "replicate":
        return 0 if i < 0 else size - 1
    assert padding_mode == "reflect"
    mirrored = -i if i < 0 else 2 * (size - 1) - i
    if not 0 <= mirrored < size:
        raise ValueError(f"cannot reflect {i} into {size}")
    return mirrored


def parse(expression: str) -> Parsed:
    head, _, bar = expression.partition("|")
    left, arrow, right = head.partition("->")
    inputs = tuple(_term(text) for text in left.split(","))
    output = _term(right) if arrow else None
    convolved = {}
    for name, options in re.findall(r"(\([^)]*\)|[^\W\d_])(?:\s*\[([^\]]*)\])?", bar):
        convolved[name.strip("() ")] = {
            option: _value(value) for option, value in re.findall(r"(\w+)(?:\s*=\s*(\([^)]*\)|-?\w+))?", options)
        }
    return Parsed(inputs, output, convolved)


def _term(text: str) -> Term:
    dimensions = re.findall(r"\.\.\.|\([^)]*\)|\S", text)
    return tuple(tuple(d.strip("()").split()) if d != "..." else ("...",) for d in dimensions)


def _value(text: str) -> Any:
    if text.startswith("("):
        low, high = text.strip("()").split(",")
        return int(low), int(high)
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return {"": True, "true": True, "false": False}.get(text, text)


def _merge(convolved: Mapping[str, Mapping[str, Any]], keywords: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each mode: the string first, then the keyword (for this mode, or for all), then the default."""
    merged = {}
    for mode, given in convolved.items():
        merged[mode] = DEFAULTS.copy()
        for name, value in keywords.items():
            assert name in DEFAULTS, name
            if isinstance(value, Mapping):
                value = value.get(mode, DEFAULTS[name])
            merged[mode][name] = value
        merged[mode].update(given)
    return merged


def _implicit_output(inputs: Sequence[Term]) -> Term:
    seen = Counter(mode for term in inputs for dimension in term for mode in dimension)
    once = tuple((mode,) for mode in sorted(seen) if seen[mode] == 1 and mode != "...")
    return ((("...",),) if "..." in seen else ()) + once


def _roles(
    mode: str, options: Mapping[str, Any], inputs: Sequence[Term], known: Mapping[Hashable, int]
) -> tuple[int, list[int]]:
    """The operand that is the signal of this mode, and those that are filters."""
    carriers = _carriers(mode, inputs)
    signal = options["signal"]
    if signal == "first":
        signal = carriers[0]
    elif signal == "largest":
        signal = max(carriers, key=lambda place: known[mode, place])
    return signal, [place for place in carriers if place != signal]


def _carriers(mode: str, inputs: Sequence[Term]) -> list[int]:
    return [place for place, term in enumerate(inputs) if any(mode in dimension for dimension in term)]


def _solve_sizes(
    parsed: Parsed,
    options: Mapping[str, Mapping[str, Any]],
    shapes: Sequence[tuple[int, ...]],
    sizes: Mapping[str, int],
) -> dict[Hashable, int]:
    """Sizes by mode, of a convolved mode by (mode, operand), of the dots by ("...", n) counted from the right."""
    known: dict[Hashable, int] = {}
    products: list[tuple[list[Hashable], int]] = []
    for mode, size in sizes.items():
        if mode not in options:
            known[mode] = size
        elif options[mode]["signal"] != "largest":
            known[mode, _roles(mode, options[mode], parsed.inputs, {})[0]] = size
    for place, (term, shape) in enumerate(zip(parsed.inputs, shapes, strict=True)):
        for group, length in zip(_groups(term, len(shape)), shape, strict=True):
            names = [_local(name, place, options) for name in group]
            if len(names) == 1:
                known[names[0]] = _broadcast(known.get(names[0], 1), length)
            else:
                products.append((names, length))
    while any(name not in known for names, _ in products for name in names):
        before = len(known)
        for names, length in products:
            unknown = [name for name in names if name not in known]
            if len(unknown) == 1:
                known[unknown[0]] = length // math.prod(known[name] for name in names if name in known)
        assert len(known) > before, "sizes= is needed"
    assert all(math.prod(known[name] for name in names) == length for names, length in products)
    return known


def _broadcast(one: int, other: int) -> int:
    assert one == other or 1 in (one, other), (one, other)
    return other if one == 1 else one


def _local(name: Hashable, place: int, options: Mapping[str, Any]) -> Hashable:
    """A convolved mode has a size (and an index) of its own in each operand."""
    return (name, place) if name in options else name


def _groups(term: Term, rank: int) -> list[list[Hashable]]:
    """The names that make up each dimension of a tensor; the dots are as many as the rank leaves for them."""
    groups: list[list[Hashable]] = []
    for dimension in term:
        if dimension == ("...",):
            groups += [[("...", n)] for n in reversed(range(rank - len(term) + 1))]
        else:
            groups.append(list(dimension))
    return groups


def _take_apart(
    term: Term, operand: torch.Tensor, place: int, options: Mapping[str, Any], known: Mapping[Hashable, int]
) -> torch.Tensor:
    """The operand with one dimension a mode."""
    split: list[int] = []
    for group, length in zip(_groups(term, operand.dim()), operand.shape, strict=True):
        split += [known[_local(name, place, options)] for name in group] if len(group) > 1 else [length]
    return operand.reshape(split)


def _einsum(arguments: list[Any], kept: list[Hashable]) -> torch.Tensor:
    numbers: dict[Hashable, int] = {}
    for names in [*arguments[1::2], kept]:
        for name in names:
            numbers.setdefault(name, len(numbers))
    lists = [[numbers[name] for name in names] for names in [*arguments[1::2], kept]]
    interleaved = [thing for pair in zip(arguments[::2], lists[:-1], strict=True) for thing in pair]
    return torch.einsum(*interleaved, lists[-1])
