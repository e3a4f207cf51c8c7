"""Equation + shapes -> Network: operands with plain modes, every size known.

A Network answers the one question that all later rooms ask: what does the partial result made of a set of operands look
like? Sets are bit masks over operand positions. The answer depends on the set only, never on the order it was made in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from convein.syntax import Constant, Equation
from convein.windows import Convolution, Correlation

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand as the network sees it.

    Attributes:
        axes: its dimensions as passed, each the modes it is composed of (one, usually), `...` already expanded.
        shape: their sizes.
        modes: the distinct modes left once composed dimensions are split, diagonals taken, and broadcast ones dropped.
        constant: the recipe of an operand that nobody passes.
    """

    axes: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    modes: tuple[str, ...]
    constant: Constant | None = None


@dataclass(frozen=True, slots=True)
class SymbolicSize:
    """Where to read a size that is free at run time: `operands[operand].shape[axis] // product of divisors`."""

    mode: str
    operand: int
    axis: int
    divisors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """An expression bound to sizes.

    Attributes:
        equation: where it comes from, all options merged.
        operands: in order; constants that the language supplies come last.
        output: the distinct modes of the result, in order; `output_axes` says how dimensions are composed of them.
        sizes: every mode that is not convolved to its size.
        convolutions: every convolved mode, by name.
        symbolic: modes whose size in `sizes` is only a hint, and where to read the real one.
        carriers: every mode to the set of operands that carry it.
        singles: modes whose size is 1 and always will be, convolved ones aside.
    """

    equation: Equation
    operands: tuple[Operand, ...]
    output: tuple[str, ...]
    output_axes: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int] = field(hash=False)
    convolutions: Mapping[str, Convolution] = field(hash=False)
    symbolic: tuple[SymbolicSize, ...] = ()
    carriers: Mapping[str, int] = field(init=False, hash=False, compare=False, repr=False)
    singles: frozenset[str] = field(init=False, hash=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        carriers: dict[str, int] = {}
        for position, operand in enumerate(self.operands):
            for mode in operand.modes:
                carriers[mode] = carriers.get(mode, 0) | 1 << position
        object.__setattr__(self, "carriers", MappingProxyType(carriers))
        free = {size.mode for size in self.symbolic}
        singles = frozenset(mode for mode, size in self.sizes.items() if size == 1 and mode not in free)
        object.__setattr__(self, "singles", singles)
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "convolutions", MappingProxyType(dict(self.convolutions)))

    def __reduce__(self) -> tuple[type[Network], tuple[object, ...]]:
        """For copies and pickles: read-only views of dicts have neither."""
        sizes, convolutions = dict(self.sizes), dict(self.convolutions)
        return Network, (
            self.equation, self.operands, self.output, self.output_axes, sizes, convolutions, self.symbolic,
        )  # fmt: skip

    @property
    def everything(self) -> int:
        """The set of all operands."""
        return (1 << len(self.operands)) - 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Sizes of the result's dimensions (hints where symbolic)."""
        shape = []
        for axis in self.output_axes:
            size = 1
            for mode in axis:
                size *= self.final_size(mode)
            shape.append(size)
        return tuple(shape)

    @property
    def is_zero(self) -> bool:
        """Whether the result is zero whatever the operands hold: nothing is summed, or only padding is read."""
        free = {size.mode for size in self.symbolic}
        if any(size == 0 for mode, size in self.sizes.items() if mode not in free):
            return True
        return any(convolution.is_empty for convolution in self.convolutions.values())

    def final_size(self, mode: str) -> int:
        """Size of a mode of the output."""
        convolution = self.convolutions.get(mode)
        return self.sizes[mode] if convolution is None else convolution.length

    def modes(self, subset: int) -> tuple[str, ...]:
        """Modes that the partial result of a set of operands still has, in order of first appearance."""
        kept = []
        for mode, carriers in self.carriers.items():
            if carriers & subset and (carriers & ~subset or mode in self.output):
                kept.append(mode)
        return tuple(kept)

    def extent(self, mode: str, subset: int) -> int:
        """Size of a mode in the partial result of a set of operands, one of which carries it."""
        convolution = self.convolutions.get(mode)
        return self.sizes[mode] if convolution is None else convolution.extent(subset)

    def shape(self, subset: int) -> tuple[int, ...]:
        """Sizes of `modes(subset)`."""
        return tuple(self.extent(mode, subset) for mode in self.modes(subset))

    def join(self, left: int, right: int) -> tuple[Correlation, ...]:
        """The correlations of the step that joins two disjoint sets: one for each convolved mode both carry."""
        return tuple(
            convolution.join(left, right)
            for convolution in self.convolutions.values()
            if convolution.carriers & left and convolution.carriers & right
        )

    def graph(self) -> networkx.Graph:
        """The hypergraph as a bipartite networkx graph: operands (ints), modes (strings), an edge for each axis.

        Nodes have `kind` ("operand" or "mode"); modes have `size`, `convolved` and `kept`; edges have `size`.
        """
        import networkx

        graph = networkx.Graph()
        for position, operand in enumerate(self.operands):
            graph.add_node(position, kind="operand", modes=operand.modes, shape=operand.shape)
        for mode, carriers in self.carriers.items():
            convolution = self.convolutions.get(mode)
            size = self.sizes[mode] if convolution is None else convolution.length
            graph.add_node(mode, kind="mode", size=size, convolved=convolution is not None, kept=mode in self.output)
            for position in range(len(self.operands)):
                if carriers >> position & 1:
                    graph.add_edge(position, mode, size=self._operand_size(mode, position))
        return graph

    def __str__(self) -> str:
        free = {size.mode for size in self.symbolic}
        lines = [f"Network  {self.equation}"]
        for position, operand in enumerate(self.operands):
            source = "constant" if operand.constant is not None else "operand"
            described = " ".join(
                f"{mode}={'?' if mode in free else ''}{self._operand_size(mode, position)}" for mode in operand.modes
            )
            lines.append(f"  x{position}  {source} [{described}]")
        described = " ".join(f"{mode}={'?' if mode in free else ''}{self.final_size(mode)}" for mode in self.output)
        lines.append(f"  out [{described}]")
        lines.extend(f"  {convolution}" for convolution in self.convolutions.values())
        return "\n".join(lines)

    def _operand_size(self, mode: str, position: int) -> int:
        convolution = self.convolutions.get(mode)
        return self.sizes[mode] if convolution is None else convolution.operand_size(position)
