"""Times of factorised layers -> how many times longer the peers take, by form, parameters and direction."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cases.forms import Case, parse_case
from measure import Timing

OURS = "convein.compile"
FOLDED = "convein.compile, constants"
# The peers that evaluate the same factors, by how the names of their variants begin; then the dense layer.
FACTORISED = {
    "tensorly-torch": "tensorly-torch's fastest",
    "left to right": "left to right",
    "FLOP-optimal": "FLOP-optimal order, plain calls",
    "opt_einsum, einconv": "einconv and opt_einsum",
    "opt_einsum, F.unfold": "F.unfold and opt_einsum",
}
PEERS = {**FACTORISED, "dense": "dense convolution, better layout"}
MEAN_FORMS = ("CP", "Tucker-2", "TT", "TR")
NOISE = 1.05
WORST = 10


@dataclass(frozen=True, slots=True)
class Result:
    """A case, and how many times longer than ours each variant takes."""

    case: Case
    ratios: Mapping[str, float]

    def over(self, peer: str) -> float | None:
        """How many times longer than ours the fastest variant of a peer takes."""
        return min((ratio for name, ratio in self.ratios.items() if name.startswith(peer)), default=None)

    def fastest(self) -> tuple[str, float] | None:
        """The fastest of the variants that evaluate the same factors."""
        rivals = [(n, r) for n, r in self.ratios.items() if any(n.startswith(peer) for peer in FACTORISED)]
        return min(rivals, key=lambda rival: rival[1], default=None)


def results_of(ratios: Iterable[tuple[str, str, float]]) -> list[Result]:
    """The results of group, variant and ratio."""
    gathered: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for group, variant, ratio in ratios:
        gathered[group][variant] = ratio
    return [Result(parse_case(group), variants) for group, variants in gathered.items()]


def mean(values: Iterable[float | None]) -> float | None:
    """The geometric mean of the values that there are."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def shown(value: float | None, width: int = 0) -> str:
    """A ratio, or a dash."""
    text = "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"{text:>{width}}"


def of_timings(timings: Sequence[Timing]) -> str:
    """The summary that a run ends with."""
    return summary(results_of((timing.group, timing.variant, timing.ratio) for timing in timings))


def summary(results: Sequence[Result]) -> str:
    """Tables of geometric means over the layers, one for each batch, direction and layout, and the worst cases."""
    lines = ["", "Geometric means over the layers: how many times longer than convein.compile the peers take", ""]
    settings: defaultdict[tuple[int, str, str], list[Result]] = defaultdict(list)
    for result in results:
        settings[result.case.batch, result.case.direction, result.case.layout].append(result)
    for chosen in settings.values():
        lines += [*_table(chosen), ""]
    return "\n".join([*lines, *_worst(results), ""])


def _table(results: Sequence[Result]) -> Iterator[str]:
    case = results[0].case
    widths = [max(len(peer), 8) for peer in PEERS]
    yield f"batch {case.batch}, {case.direction}, {case.layout}"
    yield f"  {'':14}" + "".join(f"  {peer:>{width}}" for peer, width in zip(PEERS, widths, strict=True))
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(f"{result.case.form:9}{result.case.percent:4}%", []).append(result)
    rows["all but RCP"] = [r for r in results if r.case.form in MEAN_FORMS]
    for name, row in rows.items():
        cells = (shown(mean(r.over(peer) for r in row), width) for peer, width in zip(PEERS, widths, strict=True))
        yield f"  {name:14}" + "".join(f"  {cell}" for cell in cells)


def _worst(results: Sequence[Result]) -> Iterator[str]:
    rivals = [(rival[1], rival[0], r.case) for r in results if (rival := r.fastest())]
    rivals.sort(key=lambda rival: rival[0])
    slower = sum(ratio * NOISE < 1 for ratio, _, _ in rivals)
    yield f"{slower} of {len(rivals)} cases more than 5 % slower than the fastest that evaluates the same factors;"
    yield "the worst, with that one's time over ours:"
    yield from (f"  {ratio:6.3f}  {name:30}  {case}" for ratio, name, case in rivals[:WORST])
    folded = [
        (dense / r.ratios[FOLDED], r.case)
        for r in results
        if FOLDED in r.ratios and (dense := r.over("dense")) is not None
    ]
    if folded:
        ratio, case = min(folded, key=lambda pair: pair[0])
        yield f"constants folded, the worst against the dense layer: {ratio:.3f}  {case}"
