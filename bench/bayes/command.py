"""The command: networks trained in two processes, a table, rows and the reliability diagram."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bayes.picture import draw
from bayes.training import BAYESIAN, KINDS, MEMBERS, NORMAL, Job, Settings, train
from bayes.uncertainty import Score, scores
from run import environment, prepare, save

HERE = Path(__file__).parents[1] / "results"
COLUMNS = ("date", "commit", "device", "threads", "python", "torch")
PROCESSES = 2
GOAL = 3.0  # how many times lower the negative log-likelihood is to be


def run(settings: Settings, members: int) -> dict[Job, Mapping[str, Tensor]]:
    """The trained networks, with a progress bar: the Bayesian one, the ensemble's members, and one of normal weights.

    Args:
        settings: what they share.
        members: of the ensemble.
    """
    jobs = [Job(BAYESIAN, 0), Job(NORMAL, 0), *(Job(kind, seed) for kind in MEMBERS for seed in range(members))]
    found: dict[Job, Mapping[str, Tensor]] = {}
    with (
        tqdm(total=len(jobs), desc="bayes", unit="network") as bar,
        ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool,
    ):
        futures = {pool.submit(train, job, settings): job for job in jobs}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                bar.update()
        finally:
            for future in futures:
                future.cancel()
    return {job: found[job] for job in sorted(found, key=lambda job: (KINDS.index(job.kind), job.seed))}


def table(found: Sequence[Score]) -> Iterator[str]:
    """The lines of the table."""
    yield "| network | NLL | error | ECE |"
    yield "|---|---:|---:|---:|"
    for one in found:
        yield f"| {one.name} | {one.nll:.3f} | {one.error:.1f} % | {one.ece:.1f} % |"


def claims(found: Sequence[Score], sizes: Mapping[str, int]) -> Iterator[str]:
    """What the table says about the Bayesian network and the ensemble, and what its weights take."""
    analytic, ensembles = found[0], [one for one in found if one.name.startswith("E-QNN")]
    if analytic.bound is not None:
        yield f"The bound of theorem 5.2 on the analytic network's NLL is {analytic.bound:.3f}."
    for ensemble in ensembles:
        times = ensemble.nll / analytic.nll
        verdict = f"at least {GOAL:g} times lower" if times >= GOAL else f"NOT {GOAL:g} times lower"
        numbers = f"NLL {ensemble.nll:.3f}, {times:.2f} times {analytic.name}'s {analytic.nll:.3f}"
        yield f"{ensemble.name}: {numbers}: {verdict}."
    yield (
        f"Log-probabilities take {sizes['learned']:,} bytes, MAP weights {sizes['float32']:,} as float32 and "
        f"{sizes['packed']:,} packed: 1/{sizes['learned'] / sizes['packed']:.1f}."
    )


def keep(found: Sequence[Score], settings: Settings, shared: Mapping[str, str]) -> None:
    """Append the rows, and draw the picture anew."""
    file = HERE / "bayes.csv"
    setting = {
        "width": settings.width,
        "epochs": settings.epochs,
        "rates": f"{settings.rate:g}/{settings.plain_rate:g}",
        "entropy": settings.entropy,
        "divergence": settings.divergence,
    }
    rows = [
        {
            **setting,
            "network": one.name,
            "nll": f"{one.nll:.4f}",
            "error": f"{one.error:.2f}",
            "ece": f"{one.ece:.2f}",
            "bound": "" if one.bound is None else f"{one.bound:.4f}",
        }
        for one in found
    ]
    prepare(file, [*shared, *rows[0]])
    save(file, shared, rows)
    draw(found, file.with_suffix(".png"))
    shown = file.relative_to(HERE.parents[1])
    print(f"\nrows appended to {shown}, picture in {shown.with_suffix('.png')}")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    usual = Settings()
    parser = argparse.ArgumentParser(prog="bench/bayes", description=__doc__)
    add = partial(parser.add_argument, metavar="N", type=int)
    add("--width", default=usual.width, help="of the second hidden layer (%(default)s)")
    add("--epochs", default=usual.epochs, help="for every network (%(default)s)")
    add("--members", default=10, help="of the ensemble (%(default)s)")
    add("--samples", default=10, help="draws of random weights (%(default)s)")
    parser.add_argument("--rate", type=float, default=usual.rate, help="for log-probabilities (%(default)s)")
    parser.add_argument("--plain-rate", type=float, default=usual.plain_rate, help="for real weights (%(default)s)")
    parser.add_argument("--entropy", type=float, default=usual.entropy, help="lambda (%(default)s)")
    parser.add_argument(
        "--divergence", type=float, default=usual.divergence, help="its weight for normal weights (%(default)s)"
    )
    parser.add_argument(
        "--validation", action="store_true", help="score on a quarter of the training pictures, held back: to choose by"
    )
    parser.add_argument("--dry", action="store_true", help="print only: no rows, no picture")
    arguments = parser.parse_args(words)
    if min(arguments.width, arguments.epochs, arguments.members, arguments.samples) < 1:
        parser.error("width, epochs, members and samples are numbers from 1")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run it all; 0."""
    start = time.perf_counter()
    arguments = parse(words)
    torch.set_num_threads(1)
    settings = Settings(
        width=arguments.width,
        epochs=arguments.epochs,
        rate=arguments.rate,
        plain_rate=arguments.plain_rate,
        entropy=arguments.entropy,
        divergence=arguments.divergence,
        validation=arguments.validation,
    )
    setting = environment(heap="")  # now: the commit that is measured
    found, sizes = scores(run(settings, arguments.members), settings, arguments.samples)
    held = "validation" if arguments.validation else "test"
    print(f"\nscikit-learn's digits, {held} pictures; NLL in nats, ECE over 15 intervals\n")
    print("\n".join(table(found)))
    print()
    print("\n".join(claims(found, sizes)))
    if not arguments.dry and not arguments.validation:
        keep(found, settings, {name: setting[name] for name in COLUMNS})
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
