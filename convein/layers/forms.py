"""Name of a form -> Factorisation: the factors of a weight as terms of an expression.

A form is one of five kinds of network over nodes. A node is a group of the dense weight's modes that one factor
carries: `[s] [h] [w] [t]` for the plain forms, `[t1 s1] [t2 s2] [h w]` for the reshaped ones (J. Su, "Spectral Methods
for Neural Network Designs", 2022, sections 2.4 and 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from math import prod
from typing import Literal

from convein.equation import composed
from convein.errors import OptionError
from convein.layers.ranks import even_factors

Kind = Literal["dense", "cp", "chain", "ring", "tucker", "blocks", "interleaved"]
# A dimension of a factor: one mode, or several that are one dimension of it.
Axis = tuple[str, ...]
Node = tuple[Axis, ...]

SPATIAL = {0: (), 1: ("h",), 2: ("h", "w"), 3: ("d", "h", "w")}
# Free of b, g, s, t and the spatial modes; the closing bond of a ring is u, so it is not among them either.
_BONDS = "acefijklmnopqrvxyz"


@dataclass(frozen=True, slots=True)
class Weight:
    """The dense weight that is factorised.

    Attributes:
        inputs, outputs: channels of the layer.
        kernel: sizes of the spatial modes; empty for a linear layer.
        groups: groups of channels, as torch's convolutions have them.
        transposed: whether the groups part the inputs, as they do in a transposed convolution's weight.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def parameters(self) -> int:
        """Entries of the dense weight."""
        return self.inputs * self.outputs * prod(self.kernel) // self.groups

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that torch's layer has: (out, in / groups, ...), (in, out / groups, ...) if transposed."""
        sides = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return sides[0], sides[1] // self.groups, *self.kernel


@dataclass(frozen=True, slots=True)
class Factorisation:
    """A form of one weight: its factors and the expressions made of them.

    Attributes:
        form: its name.
        kind: how the nodes are joined.
        terms: the dimensions of every factor.
        nodes: the dimensions that each factor has of the dense weight; for "tucker" and "blocks" the last is the core.
        bonds: the modes that are summed between factors, in the order of a tuple of ranks.
        kept: bonds as large as the mode they stand for, unless a tuple of ranks says otherwise: spatial ones.
        sizes: of every mode but the bonds.
        source, target: the channels of the input and of the output, as one dimension.
        spatial: the convolved modes.
    """

    form: str
    kind: Kind
    terms: tuple[Node, ...]
    nodes: tuple[Node, ...]
    bonds: tuple[str, ...]
    kept: Mapping[str, int]
    sizes: Mapping[str, int]
    source: Axis
    target: Axis
    spatial: tuple[str, ...]

    @property
    def layer(self) -> str:
        """The layer's expression: any number of batch dimensions, channels, then the spatial modes if there are any."""
        space = "".join(self.spatial)
        factors = ",".join(map(_term, self.terms))
        bar = f"|{space}" if space else ""
        if not space:
            return f"...{composed(self.source)},{factors}->...{composed(self.target)}"
        return f"...{composed(self.source)}{space},{factors}->...{composed(self.target)}{space}{bar}"

    def count(self, ranks: Mapping[str, int]) -> int:
        """Entries of all factors."""
        sizes = {**self.sizes, **ranks}
        return sum(prod(sizes[mode] for axis in term for mode in axis) for term in self.terms)


def factorise(form: str, weight: Weight, factors: int) -> Factorisation:
    """The named form of a weight.

    Args:
        form: a key of `FORMS`.
        weight: the dense weight.
        factors: into how many factors the reshaped forms take the channels apart, and how many Tucker terms
            "block-term" adds.

    Raises:
        OptionError: no form has this name, or it cannot have these sizes.
    """
    if form not in FORMS:
        near = get_close_matches(str(form).lower(), FORMS, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise OptionError(f"form={form!r}: there is no such form", hint=f"{meant}a form is one of {', '.join(FORMS)}")
    if isinstance(factors, bool) or not isinstance(factors, int) or not 1 <= factors <= 8:
        blocks = form == "block-term"
        what = "'block-term' is a sum of 1 to 8 terms" if blocks else "channels are taken apart into 1 to 8 factors"
        raise OptionError(f"factors={factors!r} is no number of {'terms' if blocks else 'factors'}", hint=what)
    if error := misfit(form, weight):
        raise error
    return FORMS[form](form, weight, factors)


def misfit(form: str, weight: Weight) -> OptionError | None:
    """Why a weight cannot have a form; None where it can, as it can every form but one."""
    if form != "interleaved":
        return None
    if weight.groups > 1:
        return OptionError(
            f"form={form!r} cannot have groups={weight.groups}", hint="its own groups are the factors of the channels"
        )
    if any(size % 2 == 0 for size in weight.kernel):
        return OptionError(
            f"form={form!r} cannot have kernel_size={weight.kernel}", hint="two equal filters make one of an odd size"
        )
    return None


def _term(term: Node) -> str:
    return "".join(map(composed, term))


@dataclass(frozen=True, slots=True)
class _Modes:
    """The modes of a weight: its channels as lists of one mode, or of several where they are taken apart."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spatial: tuple[str, ...]
    group: Axis
    sizes: Mapping[str, int]
    transposed: bool

    @property
    def source(self) -> Axis:
        return self.group + self.inputs

    @property
    def target(self) -> Axis:
        return self.group + self.outputs

    def sides(self) -> tuple[Axis, Axis]:
        """Inputs and outputs as one dimension each of the dense weight, which has the groups in one of them."""
        return (self.source, self.outputs) if self.transposed else (self.inputs, self.target)


def _modes(weight: Weight, factors: int = 1) -> _Modes:
    spatial = SPATIAL[len(weight.kernel)]
    sizes = dict(zip(spatial, weight.kernel, strict=True))
    lists = []
    for letter, channels in (("s", weight.inputs), ("t", weight.outputs)):
        parts = even_factors(channels // weight.groups, factors)
        names = tuple(f"{letter}{i}" for i in range(1, factors + 1)) if factors > 1 else (letter,)
        sizes.update(zip(names, parts, strict=True))
        lists.append(names)
    group: Axis = ()
    if weight.groups > 1:
        group = ("g",)
        sizes["g"] = weight.groups
    return _Modes(lists[0], lists[1], spatial, group, sizes, weight.transposed)


def _made(
    form: str, kind: Kind, modes: _Modes, terms: Sequence[Node], nodes: Sequence[Node], bonds: Sequence[str],
    kept: Mapping[str, int] | None = None,
) -> Factorisation:  # fmt: skip
    return Factorisation(
        form, kind, tuple(terms), tuple(nodes), tuple(bonds), kept or {}, modes.sizes, modes.source, modes.target,
        modes.spatial,
    )  # fmt: skip


def _singles(names: Sequence[str]) -> Node:
    return tuple((name,) for name in names)


def _plain(modes: _Modes) -> tuple[list[Node], list[Node], list[Node]]:
    """The nodes of a form that takes nothing apart: inputs, spatial modes, outputs."""
    source, target = modes.sides()
    return [(source,)], [((mode,),) for mode in modes.spatial], [(target,)]


def _reshaped(modes: _Modes) -> list[Node]:
    """The nodes of a form whose factors carry one part of the outputs and one of the inputs each."""
    pairs: list[Node] = [((t,), (s,)) for t, s in zip(modes.outputs, modes.inputs, strict=True)]
    rest = _singles((*modes.group, *modes.spatial))
    return [*pairs, rest] if rest else pairs


def _letters(number: int) -> tuple[str, ...]:
    if number <= len(_BONDS):
        return tuple(_BONDS[:number])
    return tuple(f"a{i}" for i in range(1, number + 1))


def _cp(form: str, modes: _Modes, nodes: Sequence[Node]) -> Factorisation:
    return _made(form, "cp", modes, [(("r",), *node) for node in nodes], nodes, ["r"])


def _chain(form: str, modes: _Modes, nodes: Sequence[Node]) -> Factorisation:
    bonds = ("r",) if len(nodes) == 2 else _letters(len(nodes) - 1)
    terms = [(*_singles(bonds[max(i - 1, 0) : i]), *node, *_singles(bonds[i : i + 1])) for i, node in enumerate(nodes)]
    return _made(form, "chain", modes, terms, nodes, bonds)


def _ring(form: str, modes: _Modes, nodes: Sequence[Node]) -> Factorisation:
    bonds = (*_letters(len(nodes) - 1), "u")
    terms = [((bonds[i - 1],), *node, (bonds[i],)) for i, node in enumerate(nodes)]
    return _made(form, "ring", modes, terms, nodes, bonds)


def _tucker(form: str, modes: _Modes, leaves: Sequence[Node], core: Node, blocks: int = 0) -> Factorisation:
    """Leaves with a bond each, and a core that has the other modes itself; with `blocks`, a sum of such terms."""
    names = ("q", "r") if len(leaves) == 2 else _letters(len(leaves))
    spatial = {((mode,),): modes.sizes[mode] for mode in modes.spatial}
    kept = {name: spatial[leaf] for name, leaf in zip(names, leaves, strict=True) if leaf in spatial}
    count: Node = (("n",),) if blocks else ()
    terms = [(*count, *leaf, (name,)) for name, leaf in zip(names, leaves, strict=True)]
    middle = (*count, *_singles(names), *core)
    if blocks:
        kept = {**kept, "n": blocks}
    bonds = (*names, "n") if blocks else names
    return _made(form, "blocks" if blocks else "tucker", modes, [*terms, middle], [*leaves, core], bonds, kept)


def _dense_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    modes = _modes(weight)
    source, target = modes.sides()
    sides = (source, target) if weight.transposed else (target, source)
    node: Node = (*sides, *_singles(modes.spatial))
    return _made(form, "dense", modes, [node], [node], [])


def _svd_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _chain(form, modes, [tuple(chain(*inputs, *space)), *outputs])


def _spatial_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    half = (len(space) + 1) // 2
    return _chain(form, modes, [tuple(chain(*inputs, *space[:half])), tuple(chain(*outputs, *space[half:]))])


def _cp_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _cp(form, modes, [*outputs, *inputs, *space])


def _tucker_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _tucker(form, modes, [*outputs, *inputs], tuple(chain(*space)))


def _full_tucker_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _tucker(form, modes, [*outputs, *inputs, *space], ())


def _block_form(form: str, weight: Weight, factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _tucker(form, modes, [*outputs, *inputs], tuple(chain(*space)), blocks=factors)


def _tt_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _chain(form, modes, [*inputs, *space, *outputs])


def _tr_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    inputs, space, outputs = _plain(modes := _modes(weight))
    return _ring(form, modes, [*inputs, *space, *outputs])


def _rcp_form(form: str, weight: Weight, factors: int) -> Factorisation:
    nodes = _reshaped(modes := _modes(weight, factors))
    # Without spatial modes the last factor is a vector of scales, one for each term of the sum.
    return _cp(form, modes, nodes if weight.kernel or weight.groups > 1 else [*nodes, ()])


def _rtk_form(form: str, weight: Weight, factors: int) -> Factorisation:
    modes = _modes(weight, factors)
    leaves: list[Node] = [((mode,),) for mode in (*modes.inputs, *modes.outputs)]
    return _tucker(form, modes, leaves, _singles((*modes.group, *modes.spatial)))


def _rtt_form(form: str, weight: Weight, factors: int) -> Factorisation:
    modes = _modes(weight, factors)
    return _chain(form, modes, _reshaped(modes))


def _rtr_form(form: str, weight: Weight, factors: int) -> Factorisation:
    modes = _modes(weight, factors)
    return _ring(form, modes, _reshaped(modes))


def _interleaved_form(form: str, weight: Weight, _factors: int) -> Factorisation:
    """Two grouped convolutions, the groups of the second across those of the first (eq. 3.3)."""
    # The two filters together reach as far as the kernel does.
    halves = tuple((size + 1) // 2 for size in weight.kernel)
    modes = _modes(replace(weight, kernel=halves), 2)
    space = _singles(modes.spatial)
    terms = [((s,), (t,), *space) for s, t in zip(modes.inputs, modes.outputs, strict=True)]
    return _made(form, "interleaved", modes, terms, terms, [])


FORMS: Mapping[str, Callable[[str, Weight, int], Factorisation]] = {
    "dense": _dense_form,
    "svd": _svd_form,
    "spatial-svd": _spatial_form,
    "cp": _cp_form,
    "tucker": _tucker_form,
    "bottleneck": _tucker_form,
    "full-tucker": _full_tucker_form,
    "block-term": _block_form,
    "tt": _tt_form,
    "tr": _tr_form,
    "rcp": _rcp_form,
    "rtk": _rtk_form,
    "rtt": _rtt_form,
    "rtr": _rtr_form,
    "interleaved": _interleaved_form,
}
