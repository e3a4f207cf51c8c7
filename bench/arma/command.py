"""The command: receptive fields of stacks, then networks trained by every parametrisation; tables, rows, pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import torch
from tqdm import tqdm

from arma import fields
from arma.picture import draw_fields, draw_losses
from arma.training import CLIP, CONVOLUTIONS, Job, Outcome, attempt
from convein.layers.stability import STABILITIES
from datasets import Split, load
from run import environment, prepare, save

HERE = Path(__file__).parents[1] / "results"
COLUMNS = ("date", "commit", "device", "threads", "python", "torch")
PARTS = ("fields", "training")
PROCESSES = 2
RATES = (0.07, 0.1)


def measured() -> list[fields.Field]:
    """All receptive fields, with a progress bar."""
    total = len(fields.CAUSAL) + len(fields.COEFFICIENTS) * len(fields.DEPTHS)
    return list(tqdm(fields.fields(), total=total, desc="receptive fields", unit="stack"))


def trained(todo: Sequence[Job], split: Split, epochs: int, width: int, processes: int = PROCESSES) -> list[Outcome]:
    """What comes of all jobs, in their order, with a progress bar.

    Args:
        todo: the jobs.
        split: training and test pictures.
        epochs: how often the training pictures are gone through.
        width: channels of the first layers.
        processes: how many networks learn at a time; 1 is this process.
    """
    run = partial(attempt, split=split, epochs=epochs, width=width)
    bar = partial(tqdm, total=len(todo), desc="training", unit="network")
    if processes == 1:
        return list(bar(map(run, todo)))
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(bar(pool.map(run, todo)))


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Every parametrisation at every learning rate: what became of its runs, and how far they came."""
    yield "| parametrisation | learning rate | diverged | unstable | last loss, median | accuracy, mean and least |"
    yield "|---|---:|---:|---:|---:|---:|"
    places = dict.fromkeys((each.job.stability, each.job.rate) for each in outcomes)
    for stability, rate in places:
        mine = [each for each in outcomes if (each.job.stability, each.job.rate) == (stability, rate)]
        counts = [f"{sum(of)} of {len(mine)}" for of in ([e.diverged for e in mine], [e.unstable for e in mine])]
        loss = median(each.losses[-1] for each in mine)
        accuracies = [each.accuracy for each in mine]
        shown = f"{mean(accuracies):.1f} %, {min(accuracies):.1f} %"
        yield f"| {stability} | {rate:g} | {counts[0]} | {counts[1]} | {loss:.3f} | {shown} |"


def rows(outcomes: Sequence[Outcome], width: int) -> Iterator[dict[str, object]]:
    """A row for every network: its losses by epoch stand in one cell."""
    for each in outcomes:
        yield {
            "stability": each.job.stability, "rate": each.job.rate, "seed": each.job.seed, "width": width,
            "clip": CLIP, "epochs": len(each.losses), "diverged": each.diverged, "accuracy": f"{each.accuracy:.2f}",
            "largest_sum": f"{each.largest:.6g}", "losses": " ".join(f"{loss:.4g}" for loss in each.losses),
        }  # fmt: skip


def keep(name: str, found: Sequence[Mapping[str, object]], shared: Mapping[str, str]) -> Path:
    """Append rows to a file of results; where its picture belongs."""
    file = HERE / f"{name}.csv"
    prepare(file, [*shared, *found[0]])
    save(file, shared, found)
    shown = file.relative_to(HERE.parents[1])
    print(f"\nrows appended to {shown}, picture in {shown.with_suffix('.png')}\n")
    return file.with_suffix(".png")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="bench/arma", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to do: {', '.join(PARTS)} (default: both)")
    add = partial(parser.add_argument, metavar="N", type=int)
    add("--seeds", default=5, help="networks of each kind (%(default)s)")
    add("--epochs", default=8, help="of training (%(default)s)")
    add("--width", default=16, help="channels of the first layers (%(default)s)")
    add("--processes", default=PROCESSES, help="networks that learn at a time (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only: no rows, no pictures")
    arguments = parser.parse_args(words)
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}: there are {', '.join(PARTS)}")
    if min(arguments.seeds, arguments.epochs, arguments.width, arguments.processes) < 1:
        parser.error("seeds, epochs, width and processes are numbers from 1")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run it all; 0."""
    start = time.perf_counter()
    arguments = parse(words)
    torch.set_num_threads(1)
    setting = environment(heap="")  # now: the commit that is measured
    shared = {name: setting[name] for name in COLUMNS}
    parts = arguments.parts or PARTS
    if "fields" in parts:
        found = measured()
        print("\n".join(["", *fields.table(found)]))
        if not arguments.dry:
            file = keep("arma_fields", list(fields.rows(found)), shared)
            draw_fields([each for each in found if each.values.dim() == 2], file)
    if "training" in parts:
        todo = [Job(*each) for each in product((CONVOLUTIONS, *reversed(STABILITIES)), RATES, range(arguments.seeds))]
        outcomes = trained(todo, load(), arguments.epochs, arguments.width, arguments.processes)
        print("\n".join(["", *table(outcomes)]))
        if not arguments.dry:
            draw_losses(outcomes, keep("arma_training", list(rows(outcomes, arguments.width)), shared))
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
