"""The text of loops over chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loop:
    """Chunks of one mode, computed one after the other.

    Attributes:
        mode: what is cut into chunks.
        size: its size, as planned.
        chunk: its size in a chunk; the last one may be smaller.
        splits: for each operand that has the mode: its position, the axis, and how many entries of that axis make one
            of the mode.
        axis: where the chunks stand side by side in the result; None if they are added.
    """

    mode: str
    size: int
    chunk: int
    splits: tuple[tuple[int, int, int], ...]
    axis: int | None

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return -(-self.size // self.chunk)


def checkpoint_call(name: str, arguments: Iterable[str]) -> str:
    """The call that keeps a function's arguments only; nothing in a program is random."""
    return f"checkpoint({name}, {', '.join(arguments)}, use_reentrant=False, preserve_rng_state=False)"


def looped(parameters: Sequence[str], loops: Sequence[Loop], *, recomputes: bool, narrow: str = "") -> str:
    """The function `program`, which calls `piece` for every chunk and puts the results together.

    With a backward pass nothing is written in place: torch would copy a whole gradient for each chunk. A sum over
    chunks is converted to the dtype `narrow`, if there is one, when it is complete.
    """
    lines = [f"def program({', '.join(parameters)}):", *_loop(list(parameters), loops, 1, recomputes, narrow)]
    return "\n    ".join([*lines, "return whole1"]) + "\n"


def _loop(names: list[str], loops: Sequence[Loop], depth: int, recomputes: bool, narrow: str) -> list[str]:
    """The lines that make `whole` of this depth; `names` are the operands there.

    The outermost loop that adds chunks converts their sum to the dtype `narrow`.
    """
    loop, whole, part = loops[0], f"whole{depth}", f"made{depth}"
    inner, chunks, splits = list(names), [], []
    for position, axis, rest in loop.splits:
        place = next(place for place, name in enumerate(names) if name.split("_")[0] == f"x{position}")
        inner[place] = f"{names[place].split('_')[0]}_{depth}"
        chunks.append(inner[place])
        size = loop.chunk * rest
        splits.append(
            f"chunks({names[place]}, {size}, {axis})" if recomputes else f"{names[place]}.split({size}, {axis})"
        )
    over = splits[0] if len(splits) == 1 else f"zip({', '.join(splits)})"
    if len(loops) > 1:
        inside = _loop(inner, loops[1:], depth + 1, recomputes, "" if loop.axis is None else narrow)
        made = [*inside, f"{part} = whole{depth + 1}", f"del whole{depth + 1}"]
    else:
        call = checkpoint_call("piece", inner) if recomputes else f"piece({', '.join(inner)})"
        made = [f"{part} = {call}"]
    first, rest_of_it, last = _gathering(loop, whole, part, names, chunks[0], recomputes)
    if narrow and loop.axis is None:
        last = [*last, f"{whole} = {whole}.to({narrow})"]
    body = [*made, *rest_of_it, f"del {part}"]
    return [first, f"for {', '.join(chunks)} in {over}:", *(f"    {line}" for line in body), *last]


def _gathering(
    loop: Loop, whole: str, part: str, names: Sequence[str], chunk: str, recomputes: bool
) -> tuple[str, list[str], list[str]]:
    """The line before a loop, those in it, and those after it, that put the parts together."""
    axis = loop.axis
    if axis is None:
        add = f"{whole} + {part}" if recomputes else f"{whole}.add_({part})"
        return f"{whole} = None", [f"{whole} = {part} if {whole} is None else {add}"], []
    if recomputes:
        return f"{whole} = []", [f"{whole}.append({part})"], [f"{whole} = torch.cat({whole}, {axis})"]
    _, split, _ = loop.splits[0]
    source = next(name for name in names if f"{name}_".startswith(f"{chunk[: chunk.index('_')]}_"))
    done, shape = f"done{whole[5:]}", f"shape{whole[5:]}"
    inside = [
        f"if {whole} is None:",
        f"    {shape} = [*{part}.shape]",
        f"    {shape}[{axis}] = {shape}[{axis}] * {source}.shape[{split}] // max(1, {chunk}.shape[{split}])",
        f"    {whole}, {done} = {part}.new_empty({shape}), 0",
        f"{whole}.narrow({axis}, {done}, {part}.shape[{axis}]).copy_({part})",
        f"{done} += {part}.shape[{axis}]",
    ]
    return f"{whole} = None", inside, []
