"""Hypothesis strategies that draw valid calls of conv_einsum over all of the language, all sizes tiny."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

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
NAMES = {
    "latin": ("abcdefgs", "hwuv"),
    "greek": ("αβγδεζην", "λμνψ"),
    "mixed": ("aBcDéжßZ", "hHωw"),
    "long": (("b", "s1", "s2", "rank", "t_1", "t2", "g", "k"), ("h", "w1", "time", "d_3")),
}


@dataclass(frozen=True)
class Case:
    """One call. `keywords` are pairs, so that a case is a value; `features` are what the drawing put into it."""

    expression: str
    shapes: tuple[tuple[int, ...], ...]
    keywords: tuple[tuple[str, Any], ...]
    features: frozenset[str]

    def __repr__(self) -> str:
        keywords = "".join(f", {name}={value!r}" for name, value in self.keywords)
        return f"conv_einsum({self.expression!r}, {', '.join(map(str, self.shapes))}{keywords})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.keywords)

    def operands(self, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator, dtype=dtype) for shape in self.shapes]


@dataclass
class _Mode:
    """A mode while a case is drawn: `sizes` by operand (all the same unless convolved or broadcast)."""

    name: str
    sizes: dict[int, int]
    kept: bool
    options: dict[str, Any] | None = None

    @property
    def signal(self) -> int | None:
        """The operand whose size `sizes=` means, if it can mean one."""
        if self.options is None:
            return min(self.sizes)
        return {"first": min(self.sizes), "largest": None}.get(self.options["signal"], self.options["signal"])

    @property
    def text(self) -> str:
        return self.name if len(self.name) == 1 else f"({self.name})"


Dimensions = list[list[str]]


@st.composite
def cases(draw: st.DrawFn, operands: tuple[int, int] = (1, 5), convolved: int = 4, transposed: bool = True) -> Case:
    """A valid call of between `operands` operands with at most `convolved` convolved modes."""
    count = draw(st.integers(*operands))
    bars = draw(st.sampled_from([n for n in (1, 2, 1, 2, 0, 1, 3, 4) if n <= convolved]))
    style = draw(st.sampled_from(["latin", "latin", "greek", "mixed", "long"]))
    modes = {}
    for name in NAMES[style][1][:bars]:
        modes[name] = draw(_convolved_mode(name, count, bars, transposed))
    for name in NAMES[style][0][: draw(st.integers(0, 4 if count < 5 else 6))]:
        modes[name] = draw(_plain_mode(name, count))
    dots = draw(st.sampled_from([0, 0, 0, 1, 2]))

    inputs = [draw(_term(place, modes)) for place in range(count)]
    implicit = bars == 0 and draw(st.booleans())
    output = [[name] for name in draw(st.permutations([name for name, mode in modes.items() if mode.kept]))]
    output = draw(_composed(output, modes, None))
    sizes = draw(_sizes(inputs, modes))
    features = {f"operands={count}", f"convolved={bars}", f"names={style}"}
    _broadcast(draw, [*inputs, output], modes, features)

    shapes = [[math.prod(modes[n].sizes[place] for n in names) for names in term] for place, term in enumerate(inputs)]
    texts = [[_text(names, modes) for names in term] for term in inputs]
    out = [_text(names, modes) for names in output]
    if dots:
        features.add("dots")
        _dots(draw, dots, shapes, texts, out)
    expression, keywords = _write(draw, texts, None if implicit else out, modes)
    if sizes:
        keywords["sizes"] = sizes
    features |= _features(modes, inputs, output, expression, keywords, shapes)
    return Case(expression, tuple(map(tuple, shapes)), tuple(keywords.items()), frozenset(features))


@st.composite
def _plain_mode(draw: st.DrawFn, name: str, count: int) -> _Mode:
    carriers = draw(st.sets(st.integers(0, count - 1), min_size=1))
    size = draw(st.sampled_from([2, 3, 2, 3, 1, 4] * 5 + [0]))
    return _Mode(name, dict.fromkeys(sorted(carriers), size), draw(st.booleans()))


@st.composite
def _convolved_mode(draw: st.DrawFn, name: str, count: int, bars: int, transposed: bool) -> _Mode:
    everyone = range(count)
    carriers = draw(st.sampled_from([everyone, everyone, None]))
    if carriers is None:
        carriers = sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))
    few = bars > 2 or len(carriers) > 3
    sizes = {place: draw(st.integers(1, 2 if few else 3)) for place in carriers}
    signal = draw(st.sampled_from(["first", "first", "largest", draw(st.sampled_from(list(carriers)))]))
    place = carriers[0] if isinstance(signal, str) else signal
    if draw(st.integers(0, 3)):
        sizes[place] = draw(st.integers(2, 4 if few else 6))
    if signal == "largest":
        place = max(sizes, key=sizes.__getitem__)
    filters = [size for other, size in sizes.items() if other != place]
    options = draw(_options(sizes[place], filters, transposed)) | {"signal": signal}
    return _Mode(name, sizes, draw(st.sampled_from([True, True, True, False])), options)


@st.composite
def _options(draw: st.DrawFn, size: int, filters: Sequence[int], transposed: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([1, 1, 2, 3])),
        "dilation": draw(st.sampled_from([1, 1, 2, 3] if len(filters) < 3 else [1, 1, 2])),
        "flip": draw(st.booleans()),
        "transposed": transposed and draw(st.sampled_from([False, False, True])),
        "output_padding": 0,
    }
    reach = options["dilation"] * sum(k - 1 for k in filters)
    if options["transposed"]:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular"]))
        options["output_padding"] = draw(st.integers(0, max(options["stride"], options["dilation"]) - 1))
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate", "reflect"]))
    kinds = [kind for kind in _paddings(size, reach, options) if kind]
    if not kinds:
        options["padding_mode"] = "zeros"
        kinds = [kind for kind in _paddings(size, reach, options) if kind]
    options["padding"] = draw(st.sampled_from(draw(st.sampled_from(kinds))))
    if options["padding"] == "same":
        options["output_padding"] = 0
    return options


def _paddings(size: int, reach: int, options: Mapping[str, Any]) -> list[list[Any]]:
    """The words, the numbers and the pairs that are legal here."""
    words, numbers = ["same", "valid", "full"], range(max(4, reach))
    return [[p for p in kind if _legal(p, size, reach, options)] for kind in (words, numbers, [*_pairs(4)])]


def _pairs(below: int) -> Iterator[tuple[int, int]]:
    return itertools.product(range(below), repeat=2)


def _legal(padding: Any, size: int, reach: int, options: Mapping[str, Any]) -> bool:
    half = reach - reach // 2 if options["flip"] else reach // 2
    named = {"same": (half, reach - half), "valid": (0, 0), "full": (reach, reach)}
    low, high = padding if isinstance(padding, tuple) else named.get(padding, (padding, padding))
    if options["padding_mode"] == "reflect" and max(low, high) >= size:
        return False
    if options["transposed"]:
        spread = (size - 1) * options["stride"] + reach + options["output_padding"]
        return padding == "same" or spread >= low + high
    return size + low + high > reach


@st.composite
def _term(draw: st.DrawFn, place: int, modes: Mapping[str, _Mode]) -> Dimensions:
    """The dimensions of one operand: its modes in any order, at times one twice, at times some of them as one."""
    term = [[name] for name in draw(st.permutations([n for n, mode in modes.items() if place in mode.sizes]))]
    if term and draw(st.integers(0, 9)) == 9:
        term.insert(draw(st.integers(0, len(term))), draw(st.sampled_from(term)))
    return draw(_composed(term, modes, place))


@st.composite
def _composed(draw: st.DrawFn, term: Dimensions, modes: Mapping[str, _Mode], place: int | None) -> Dimensions:
    """Neighbours joined, so that an input's dimension can be taken apart: at most one size in it is out of reach."""
    if draw(st.integers(0, 3)) != 3:
        return term
    joined: Dimensions = []
    for names in term:
        before = joined[-1] if joined else []
        sound = place is None or (
            not set(names) & set(before)
            and sum(modes[name].options is not None for name in before + names) < 2
            and all(modes[name].sizes[place] > 0 for name in before + names)
        )
        if before and sound and draw(st.booleans()):
            joined[-1] = before + names
        else:
            joined.append(names)
    return joined


@st.composite
def _sizes(draw: st.DrawFn, inputs: Sequence[Dimensions], modes: Mapping[str, _Mode]) -> dict[str, int]:
    """What `sizes=` has to say for every dimension to be solved, and at times more."""
    given: dict[str, int] = {}
    for name, mode in modes.items():
        if mode.signal is not None and draw(st.integers(0, 5)) == 5:
            given[name] = mode.sizes[mode.signal]
    while True:
        stuck = _unsolved(inputs, modes, given)
        if not stuck:
            return given
        name = draw(st.sampled_from([name for name in stuck[0] if modes[name].options is None]))
        given[name] = modes[name].sizes[min(modes[name].sizes)]


def _unsolved(inputs: Sequence[Dimensions], modes: Mapping[str, _Mode], given: Mapping[str, int]) -> Dimensions:
    """The unknown modes of the dimensions that exact division does not take apart."""

    def size_of(name: str, place: int) -> tuple[str, int | None]:
        return (name, None if modes[name].options is None else place)

    terms = [(place, names) for place, term in enumerate(inputs) for names in term]
    known = {size_of(names[0], place) for place, names in terms if len(names) == 1}
    known |= {size_of(name, modes[name].signal or 0) for name in given}
    solved = True
    while solved:
        unknown = [(place, [name for name in names if size_of(name, place) not in known]) for place, names in terms]
        solved = {size_of(names[0], place) for place, names in unknown if len(names) == 1}
        known |= solved
    return [names for _, names in unknown if names]


def _broadcast(draw: st.DrawFn, terms: Sequence[Dimensions], modes: Mapping[str, _Mode], features: set[str]) -> None:
    """Some operands carry size 1 where others carry more; parts of composed dimensions and convolved modes do not."""
    parts = {name for term in terms for names in term if len(names) > 1 for name in names}
    for name, mode in modes.items():
        if mode.options is None and name not in parts and len(mode.sizes) > 1 and draw(st.integers(0, 7)) == 7:
            features.add("broadcast")
            for place in draw(st.sets(st.sampled_from(sorted(mode.sizes)), max_size=len(mode.sizes) - 1)):
                mode.sizes[place] = 1


def _dots(draw: st.DrawFn, depth: int, shapes: list[list[int]], texts: list[list[str]], out: list[str]) -> None:
    """Batch dimensions under `...`, aligned from the right, at any place of a term, of size 1 at times."""
    lengths = [draw(st.sampled_from([2, 1, 3])) for _ in range(depth)]
    users = draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))
    for user in sorted(users):
        own = [draw(st.sampled_from([n, n, 1])) for n in lengths[depth - draw(st.integers(0, depth)) :]]
        at = draw(st.integers(0, len(texts[user])))
        texts[user].insert(at, "...")
        shapes[user][at:at] = own
    if draw(st.integers(0, 5)):
        out.insert(draw(st.integers(0, len(out))), "...")


def _text(names: Sequence[str], modes: Mapping[str, _Mode]) -> str:
    return modes[names[0]].text if len(names) == 1 else f"({' '.join(names)})"


def _write(
    draw: st.DrawFn, texts: list[list[str]], out: list[str] | None, modes: Mapping[str, _Mode]
) -> tuple[str, dict[str, Any]]:
    """The expression, and the keywords that complete it: each option stands in the string, in a dict or for all."""
    space = draw(st.sampled_from(["", "", " "]))
    expression = f"{space},{space}".join(space.join(term) for term in texts)
    if out is not None:
        expression += f"{space}->{space}" + space.join(out)
    convolved = [mode for mode in modes.values() if mode.options is not None]
    if not convolved:
        return expression, {}
    inside: dict[str, dict[str, Any]] = {mode.name: {} for mode in convolved}
    keywords: dict[str, Any] = {}
    for option, default in DEFAULTS.items():
        values = {mode.name: mode.options[option] for mode in convolved if mode.options is not None}
        _place(draw, option, values, default, inside, keywords)
    written = [mode.text + _brackets(draw, inside[mode.name]) for mode in draw(st.permutations(convolved))]
    return expression + space + "|" + space + draw(st.sampled_from(["", ",", ", "])).join(written), keywords


def _place(
    draw: st.DrawFn,
    option: str,
    values: dict[str, Any],
    default: Any,
    inside: dict[str, dict[str, Any]],
    keywords: dict[str, Any],
) -> None:
    common = draw(st.sampled_from([default, *values.values()]))
    if isinstance(common, tuple):
        common = default
    for_all = common != default and draw(st.booleans())
    if for_all:
        keywords[option] = common
    elsewhere = {}
    for name, value in values.items():
        if value == (common if for_all else default) and draw(st.integers(0, 9)) != 9:
            continue
        if for_all or draw(st.booleans()):
            inside[name][option] = value
        else:
            elsewhere[name] = value
    if elsewhere:
        keywords[option] = elsewhere


def _brackets(draw: st.DrawFn, options: Mapping[str, Any]) -> str:
    def one(name: str, value: Any) -> str:
        if value is True and draw(st.booleans()):
            return name
        if isinstance(value, tuple):
            return f"{name}=({value[0]},{value[1]})"
        return f"{name}={str(value).lower() if isinstance(value, bool) else value}"

    return f"[{', '.join(one(*pair) for pair in options.items())}]" if options else ""


def _features(
    modes: Mapping[str, _Mode],
    inputs: Sequence[Dimensions],
    output: Dimensions,
    expression: str,
    keywords: Mapping[str, Any],
    shapes: Sequence[Sequence[int]],
) -> set[str]:
    features = {f"keyword {name}" for name in keywords}
    for mode in modes.values():
        if mode.options is None:
            features |= {"hyperedge"} if len(mode.sizes) > 2 else set()
            continue
        features |= {f"{len(mode.sizes)} on a convolved mode", *([] if mode.kept else ["convolved mode summed"])}
        for option, value in mode.options.items():
            word = "pair" if isinstance(value, tuple) else "number" if type(value) is int else value
            features |= set() if value == DEFAULTS[option] else {f"{option}={word}"}
        if mode.options["transposed"]:
            features.add(f"transposed {mode.options['padding_mode']}")
    flat = [[name for names in term for name in names] for term in inputs]
    facts = {
        "diagonal": any(len(set(names)) < len(names) for names in flat),
        "composed input": any(len(names) > 1 for term in inputs for names in term),
        "composed output": any(len(names) > 1 for names in output),
        "size 0": any(0 in shape for shape in shapes),
        "scalar operand": any(not shape for shape in shapes),
        "implicit output": "->" not in expression,
        "brackets": "[" in expression,
    }
    return features | {fact for fact, holds in facts.items() if holds}


def orders(count: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every sequence of pairwise contractions, as linear paths."""
    if count == 1:
        yield ((0,),)
        return
    yield from itertools.product(*(itertools.combinations(range(n), 2) for n in range(count, 1, -1)))


@st.composite
def paths(draw: st.DrawFn, count: int) -> tuple[tuple[int, ...], ...]:
    """One order, drawn."""
    if count == 1:
        return ((0,),)
    return tuple(draw(st.sampled_from([*itertools.combinations(range(n), 2)])) for n in range(count, 1, -1))
