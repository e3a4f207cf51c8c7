"""Rows of results/*.csv -> a table of what was to be reached, and what is; rows that are not there give dashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cases import memory, regret, roofline
from cases.forms import Case
from rows import Row, last_rows, medians
from summary import FOLDED, MEAN_FORMS, NOISE, Result, mean, results_of, shown

CP_LIKE = ("CP", "Tucker-2", "TT")
LEAST_WORK = 20  # microseconds
FORWARD, TRAINING = "forward", "forward+backward"


def targets(folder: Path) -> Iterator[str]:
    """The table, in Markdown."""
    yield "| what | at least | measured |"
    yield "|---|---|---|"
    layers = results_of(medians(last_rows(folder / "layers.csv"), "ratio"))
    lines = [
        *_layers(layers),
        *_dense(layers),
        *_roofline(last_rows(folder / "roofline.csv")),
        *_regret(last_rows(folder / "regret.csv")),
        *_memory(last_rows(folder / "memory.csv")),
        *_contractions(last_rows(folder / "contractions.csv")),
        *_calls(last_rows(folder / "overhead.csv")),
    ]
    for what, wanted, measured in lines:
        yield f"| {what} | {wanted} | {measured} |"


def _times(
    results: Iterable[Result],
    peer: str,
    forms: Sequence[str],
    wanted: Callable[[Case], bool],
) -> str:
    """The geometric mean of how many times longer a peer takes."""
    chosen = [result for result in results if result.case.form in forms and wanted(result.case)]
    return shown(mean(result.over(peer) for result in chosen))


def _layers(results: Sequence[Result]) -> Iterator[tuple[str, str, str]]:
    def plain(case: Case) -> bool:
        return (case.batch, case.direction, case.layout) == (32, FORWARD, "NCHW")

    def last(case: Case, percent: int, direction: str) -> bool:
        return (case.batch, case.percent, case.direction, case.layout) == (32, percent, direction, "channels-last")

    for peer, least in (("tensorly-torch", 1.4), ("left to right", 2.0), ("FLOP-optimal", 2.0)):
        yield f"forward, NCHW, over {peer}", f"{least:g}", _times(results, peer, MEAN_FORMS, plain)
    for direction, forms, wanted in (
        (FORWARD, CP_LIKE, {1: 2.0, 10: 1.6, 50: 1.45}),
        (TRAINING, CP_LIKE[:2], {1: 1.8, 10: 1.5, 50: 1.4}),
    ):
        for percent, least in wanted.items():
            found = _times(results, "tensorly-torch", forms, lambda c, p=percent, d=direction: last(c, p, d))  # type: ignore[misc]
            yield f"{direction}, channels-last, {percent} %, over tensorly-torch", f"{least:g}", found
    rivals = [rival[1] for result in results if (rival := result.fastest())]
    slower = f"{sum(ratio * NOISE < 1 for ratio in rivals)} of {len(rivals)}" if rivals else "-"
    yield "cases more than 5 % slower than the fastest peer", "0 (at most)", slower


def _dense(results: Sequence[Result]) -> Iterator[tuple[str, str, str]]:
    for percent, least in {1: 20, 10: 6.5, 50: 1.6}.items():
        chosen = [
            result.over("dense")
            for result in results
            if result.case.form in CP_LIKE
            and (result.case.batch, result.case.percent) == (32, percent)
            and (result.case.direction, result.case.layout) == (FORWARD, "channels-last")
        ]
        yield f"forward, channels-last, {percent} %, over the dense layer", f"{least:g}", shown(mean(chosen))
    folded = [
        dense / result.ratios[FOLDED]
        for result in results
        if FOLDED in result.ratios and (dense := result.over("dense")) is not None
    ]
    yield "constants folded, the worst against the dense layer", "0.95", shown(min(folded, default=None))


def _roofline(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    found = roofline.fractions((group, variant, us * 1e-6) for group, variant, us in medians(rows, "median_us"))
    for direction, average, least in ((FORWARD, 0.75, 0.6), (TRAINING, 0.6, 0.45)):
        mine = [value for case, value in found.items() if case.direction == direction]
        measured = f"{shown(mean(mine))}, {shown(min(mine, default=None))}"
        yield f"{direction}, of the roofline: mean, least", f"{average:g}, {least:g}", measured


def _regret(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    found = regret.regrets((row["group"], row["variant"], float(row["ratio"])) for row in rows)
    average = sum(found.values()) / len(found) if found else None
    measured = f"{shown(average)}, {shown(max(found.values(), default=None))}"
    yield "chosen plan over the best of ten: mean, worst", "1.03, 1.5 (at most)", measured


def _memory(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    amounts = [
        memory.Amount(row["group"], row["variant"], row["unit"], int(row["value"]), float(row["ratio"])) for row in rows
    ]
    gains = list(memory.gains(amounts))
    for words, unit, peer, least in (
        ("CP", memory.SAVED, "tensorly-torch factorized", 2.0),
        ("speech, depthwise,", memory.LARGEST, memory.RECOMPUTED, 2.3),
        ("speech, full,", memory.LARGEST, memory.RECOMPUTED, 2.3),
        ("video", memory.LARGEST, memory.RECOMPUTED, 10.0),
    ):
        mine = [times for found, group, other, times in gains if (found, other) == (unit, peer) and words in group]
        measured = f"{shown(mean(mine))}, {shown(min(mine, default=None))}"
        yield f"{unit}, {words.rstrip(',')}, over {peer}: mean, least", f"{least:g}", measured


def _contractions(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Calls by the text beside calls by the text, compiled ones beside compiled ones, from so much work upward."""
    times: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for group, variant, spent in medians(rows, "median_us"):
        times[group][variant] = spent
    for what, ours, peers in (
        ("contractions by the text", "convein.conv_einsum", ("torch.einsum", "opt_einsum.contract")),
        ("contractions, compiled", "convein.compile", ("torch.einsum", "opt_einsum.contract_expression")),
    ):
        found = [
            min(spent[peer] for peer in peers) / spent[ours]
            for spent in times.values()
            if min(spent.values()) >= LEAST_WORK
        ]
        measured = f"{shown(mean(found))}, {shown(min(found, default=None))}"
        yield f"{what}, over torch.einsum and opt_einsum: mean, least", "1, 0.95", measured


def _calls(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    times = {(group.split()[0], variant): spent for group, variant, spent in medians(rows, "median_us")}
    for what, group, variant, most in (
        ("a compiled call", "chain", "convein.compile", 3),
        ("a call by the text", "chain", "convein.conv_einsum", 8),
        ("a first call", "first", "convein.conv_einsum", 2000),
    ):
        more = times[group, variant] - times[group, "raw torch calls"] if (group, variant) in times else None
        yield f"{what} of four operands, microseconds more than torch's calls", f"{most} (at most)", shown(more)
