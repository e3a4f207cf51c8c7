"""Outcomes -> the two tables, in Markdown, and a sentence on each of the two claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from compress.costs import DENSE, Cost
from compress.experiment import END_TO_END, METHODS, SCRATCH, SEQUENTIAL, Job, Outcome
from compress.filling import PAIRS

# Points of accuracy that sequential distillation may lose at a tenth of the parameters, and the forms it is said of.
ALLOWED = 3.0
CLAIMED = ("cp", "rcp")
TRAINED = (END_TO_END, SEQUENTIAL, SCRATCH)


def label(job: Job) -> str:
    """What its network is called among those whose costs are measured."""
    return f"{job.form} {job.fraction:g}{' filled' if job.fill else ''}"


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run found.

    Attributes:
        dense: accuracies of the teachers, in percent, by seed.
        outcomes: of all jobs.
        costs: of a training step, by label; the dense network's is there, too.
    """

    dense: Mapping[int, float]
    outcomes: tuple[Outcome, ...]
    costs: Mapping[str, Cost]

    @property
    def teacher(self) -> float:
        """The mean accuracy of the dense networks."""
        return mean(self.dense.values())

    def forms(self, *, fill: bool) -> dict[str, list[Outcome]]:
        """The outcomes of one of the two tables by form, in the order of the seeds."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.job.fill == fill:
                found.setdefault(outcome.job.form, []).append(outcome)
        return {form: sorted(each, key=lambda outcome: outcome.job.seed) for form, each in found.items()}


def accuracy_of(outcomes: Sequence[Outcome], method: str) -> float | None:
    """The mean over the seeds; None where the method was not tried."""
    values = [outcome.accuracies[method] for outcome in outcomes if method in outcome.accuracies]
    return mean(values) if values else None


def first_table(results: Results) -> Iterator[str]:
    """Every form: accuracy by every method, parameters, time and memory."""
    forms = results.forms(fill=False)
    cost = results.costs[DENSE]
    yield f"| form | parameters | of replaced | {' | '.join(METHODS)} | s / epoch | MB |"
    yield "|---" + "|---:" * 8 + "|"
    dense = _cells(cost.parameters // 4, 1.0, cost)
    yield f"| dense | {dense[0]} | {dense[1]} | | | | {results.teacher:.1f} | {dense[2]} | {dense[3]} |"
    for form, outcomes in forms.items():
        first = outcomes[0]
        cells = _cells(first.parameters, first.share, results.costs[label(first.job)])
        accuracies = [accuracy_of(outcomes, method) for method in METHODS]
        shown = " | ".join("" if value is None else f"{value:.1f}" for value in accuracies)
        yield f"| {form} | {cells[0]} | {cells[1]} | {shown} | {cells[2]} | {cells[3]} |"


def _cells(parameters: int, part: float, cost: Cost) -> tuple[str, str, str, str]:
    memory = (cost.saved + cost.parameters) / 1e6
    return f"{parameters:,}", f"{100 * part:.1f} %", f"{cost.epoch:.2f}", f"{memory:.2f}"


def second_table(results: Results) -> Iterator[str]:
    """Forms beside their reshaped ones at equal parameters: both accuracies, and what reshaping gains."""
    forms = results.forms(fill=True)
    yield f"| forms | of replaced | {' | '.join(TRAINED)} |"
    yield "|---" + "|---:" * (1 + len(TRAINED)) + "|"
    for reshaped, plain in _pairs(forms):
        ours, theirs = forms[reshaped], forms[plain]
        cells = [f"{100 * theirs[0].share:.2f} / {100 * ours[0].share:.2f} %"]
        for method in TRAINED:
            without, with_it = accuracy_of(theirs, method), accuracy_of(ours, method)
            if without is not None and with_it is not None:
                cells.append(f"{without:.1f} / {with_it:.1f} ({with_it - without:+.1f})")
        yield f"| {plain} / {reshaped} | {' | '.join(cells)} |"


def _pairs(forms: Mapping[str, Sequence[Outcome]]) -> list[tuple[str, str]]:
    return [(reshaped, plain) for reshaped, plain in PAIRS.items() if reshaped in forms and plain in forms]


def differences(results: Results, method: str) -> list[float]:
    """Accuracy of a reshaped form less that of the form itself, for every pair and seed."""
    forms = results.forms(fill=True)
    return [
        ours.accuracies[method] - theirs.accuracies[method]
        for reshaped, plain in _pairs(forms)
        for ours, theirs in zip(forms[reshaped], forms[plain], strict=True)
    ]


def claims(results: Results) -> Iterator[str]:
    """What the tables say of the two claims, in sentences."""
    forms = results.forms(fill=False)
    for form in CLAIMED:
        value = accuracy_of(forms.get(form, ()), SEQUENTIAL)
        if value is not None:
            lost = results.teacher - value
            verdict = "within" if lost <= ALLOWED else "NOT within"
            yield (
                f"Sequential distillation, {form}: {value:.1f} %, {lost:.1f} points below the dense network: "
                f"{verdict} {ALLOWED:g} points."
            )
    for method in TRAINED:
        found = differences(results, method)
        if len(found) > 1:
            middle, error = mean(found), stdev(found) / len(found) ** 0.5
            yield (
                f"Reshaped less un-reshaped at equal parameters, {method}: {middle:+.2f} points, standard error "
                f"{error:.2f} ({len(found)} pairs): {verdict_of(middle, error)}."
            )


def verdict_of(middle: float, error: float) -> str:
    """Whether reshaped forms beat the others, as far as two standard errors can tell."""
    if middle > 2 * error:
        return "the reshaped forms are better"
    if middle < -2 * error:
        return "the reshaped forms are worse, the claim that they are better does not hold here"
    return "no difference to be seen, the claim that reshaped forms are better does not hold here"


def rows(results: Results, shared: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """A row for every network: the dense ones, then the outcomes, with an empty cell for what was not tried."""
    cost = results.costs[DENSE]
    for seed, accuracy in results.dense.items():
        yield {
            **shared, "seed": seed, "form": DENSE, "fraction": 1, "fill": False, "share": "1.0000",
            "parameters": cost.parameters // 4, **dict.fromkeys(METHODS, ""), SCRATCH: f"{accuracy:.2f}",
            "epoch_s": f"{cost.epoch:.4f}", "saved_bytes": cost.saved,
        }  # fmt: skip
    for outcome in results.outcomes:
        job, cost = outcome.job, results.costs[label(outcome.job)]
        accuracies = {method: outcome.accuracies.get(method) for method in METHODS}
        yield {
            **shared, "seed": job.seed, "form": job.form, "fraction": job.fraction, "fill": job.fill,
            "share": f"{outcome.share:.4f}", "parameters": outcome.parameters,
            **{method: "" if value is None else f"{value:.2f}" for method, value in accuracies.items()},
            "epoch_s": f"{cost.epoch:.4f}", "saved_bytes": cost.saved,
        }  # fmt: skip
