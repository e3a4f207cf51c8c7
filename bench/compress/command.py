"""The command: teachers, then all jobs in two processes, then what a training step costs; tables, rows, a picture."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from compress.costs import costs
from compress.experiment import Experiment, Job, attempt, teach
from compress.filling import PAIRS
from compress.picture import picture
from compress.tables import Results, claims, first_table, label, rows, second_table
from convein.drawing.svg import document
from convein.layers import FORMS
from datasets import READERS
from run import environment, prepare, save

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

HERE = Path(__file__).parents[1] / "results"
COLUMNS = ("date", "commit", "device", "threads", "python", "torch")
ALL_FORMS = ("svd", "spatial-svd", "cp", "tucker", "block-term", "tt", "tr", "rcp", "rtk", "rtt", "rtr")
PROCESSES = 2
ROUNDS = 15
# The forms of which a job takes longest: they begin first, so that both processes end together.
SLOWEST = ("rcp", "rtr", "rtt", "tr", "block-term", "cp")


def jobs(forms: Sequence[str], seeds: int, rank: float, equal_rank: float) -> list[Job]:
    """Every form at `rank`, and the pairs of `forms` at `equal_rank` with equal parameters; for every seed."""
    wanted = [name for pair in PAIRS.items() if set(pair) <= set(forms) for name in reversed(pair)]
    return [
        *(Job(form, rank, seed) for form in forms for seed in range(seeds)),
        *(Job(form, equal_rank, seed, fill=True) for form in wanted for seed in range(seeds)),
    ]


def run(experiment: Experiment, todo: Sequence[Job], seeds: int) -> Results:
    """Do all of it, with a progress bar.

    Args:
        experiment: what the jobs share.
        todo: the jobs.
        seeds: number of teachers.
    """
    networks = {label(job): job for job in todo}
    order = sorted(todo, key=lambda job: SLOWEST.index(job.form) if job.form in SLOWEST else len(SLOWEST))
    with TemporaryDirectory() as folder, tqdm(total=seeds + len(todo) + ROUNDS, desc="compress", unit="job") as bar:
        weights = [Path(folder) / f"{seed}.pt" for seed in range(seeds)]
        with ProcessPoolExecutor(PROCESSES, get_context("spawn"), initializer=_alone) as pool:
            dense = _done(
                pool, {seed: partial(teach, experiment, seed, path) for seed, path in enumerate(weights)}, bar
            )
            outcomes = _done(pool, {job: partial(attempt, experiment, job, weights[job.seed]) for job in order}, bar)
        # The processes have ended: nothing of ours disturbs the clock.
        bar.set_description("training steps")
        found = costs(experiment, networks, ROUNDS, bar.update)
    return Results(dense, tuple(outcomes[job] for job in todo), found)


def _done(pool: ProcessPoolExecutor, calls: Mapping[K, Callable[[], T]], bar: Any) -> dict[K, T]:
    """What the calls return, by name; the first that fails ends the others."""
    futures = {name: pool.submit(call) for name, call in calls.items()}
    try:
        for future in as_completed(futures.values()):
            future.result()
            bar.update()
    finally:
        for future in futures.values():
            future.cancel()
    return {name: future.result() for name, future in futures.items()}


def _alone() -> None:
    """A process has one thread, and leaves the progress bar to who started it."""
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)


def show(results: Results, arguments: argparse.Namespace) -> None:
    """Print the tables and the claims."""
    seeds = f"{len(results.dense)} seed{'s' if len(results.dense) > 1 else ''}"
    print(f"\nAll layers but the first and the last at {100 * arguments.rank:g} % of their parameters; accuracy in %,")
    print(f"mean of {seeds}; s / epoch of training steps on one thread; MB of parameters and of what is")
    print("saved for the backward pass of a batch\n")
    print("\n".join(first_table(results)))
    print(f"\nForms and their reshaped ones at equal parameters, at most {100 * arguments.equal_rank:g} %\n")
    print("\n".join(second_table(results)))
    print()
    print("\n".join(claims(results)))


def keep(results: Results, experiment: Experiment, shared: Mapping[str, str]) -> None:
    """Append the rows, and draw the picture anew."""
    settings = {"data": experiment.data, "depth": experiment.depth, "width": experiment.width}
    epochs = (experiment.teacher_epochs, experiment.epochs, experiment.block_epochs)
    found = list(rows(results, {**settings, "epochs": "/".join(map(str, epochs))}))
    file = HERE / "compress.csv"
    prepare(file, [*shared, *found[0]])
    save(file, shared, found)
    title = f"ResNet-{experiment.depth} on {experiment.data}, compressed and distilled"
    file.with_suffix(".svg").write_text(document(picture(results), title), encoding="utf-8")
    shown = file.relative_to(HERE.parents[1])
    print(f"\nrows appended to {shown}, picture in {shown.with_suffix('.svg')}")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    usual = Experiment()
    parser = argparse.ArgumentParser(prog="bench/compress", description=__doc__)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--data", choices=("digits", *READERS), default=usual.data, help="pictures (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the files of cifar10 or mnist are")
    add("--depth", default=usual.depth, help="layers of the residual network, 6n + 2 (%(default)s)")
    add("--width", default=usual.width, help="channels of its first stage (%(default)s)")
    add("--teacher-epochs", default=usual.teacher_epochs, help="for the dense network (%(default)s)")
    add("--epochs", default=usual.epochs, help="end to end and from scratch (%(default)s)")
    add("--block-epochs", default=usual.block_epochs, help="sequentially, for each block (%(default)s)")
    add("--seeds", default=2, help="teachers, over which accuracies are averaged (%(default)s)")
    parser.add_argument("--forms", default=",".join(ALL_FORMS), help="names with commas (all: %(default)s)")
    parser.add_argument("--rank", type=float, default=0.1, help="part of the parameters (%(default)s)")
    parser.add_argument("--equal-rank", type=float, default=0.05, help="where pairs are compared (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only: no rows, no picture")
    arguments = parser.parse_args(words)
    arguments.forms = arguments.forms.split(",")
    unknown = [form for form in arguments.forms if form not in FORMS]
    if unknown:
        parser.error(f"no form is called {', '.join(unknown)}: there are {', '.join(FORMS)}")
    if min(arguments.seeds, arguments.epochs, arguments.block_epochs, arguments.teacher_epochs) < 1:
        parser.error("seeds and epochs are numbers from 1")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run it all; 0."""
    start = time.perf_counter()
    arguments = parse(words)
    torch.set_num_threads(1)
    experiment = Experiment(
        arguments.data, arguments.folder, arguments.depth, arguments.width, arguments.teacher_epochs, arguments.epochs,
        arguments.block_epochs,
    )  # fmt: skip
    try:
        experiment.split()
        experiment.dense(0)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"bench/compress: {error}") from error
    setting = environment(heap="")  # now: the commit that is measured
    todo = jobs(arguments.forms, arguments.seeds, arguments.rank, arguments.equal_rank)
    results = run(experiment, todo, arguments.seeds)
    show(results, arguments)
    if not arguments.dry:
        keep(results, experiment, {name: setting[name] for name in COLUMNS})
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
