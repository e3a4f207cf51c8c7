"""The command: every network with every seed in two processes, then what a step costs; a table, rows, a picture."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from run import environment, prepare, save
from video.costs import Cost, costs
from video.experiment import CONV_LSTM, CONV_TT_LSTM, KINDS, Experiment, Outcome, attempt, repeated
from video.picture import draw

HERE = Path(__file__).parents[1] / "results"
COLUMNS = ("date", "commit", "device", "threads", "python", "torch")
PROCESSES = 2
ROUNDS = 9

Outcomes = Mapping[str, Sequence[Outcome]]
_ticks: Any = None


def run(experiment: Experiment, seeds: int) -> tuple[dict[str, list[Outcome]], dict[str, Cost]]:
    """Train all, then measure a step of each, with a progress bar."""
    context = get_context("spawn")
    ticks = context.Queue()
    jobs = [(kind, seed) for seed in range(seeds) for kind in KINDS]
    with tqdm(total=len(jobs) * experiment.epochs + ROUNDS, desc="video", unit="epoch") as bar:
        with ProcessPoolExecutor(PROCESSES, context, initializer=_alone, initargs=(ticks,)) as pool:
            futures = {job: pool.submit(_work, experiment, *job) for job in jobs}
            while wait(futures.values(), timeout=0).not_done:
                try:
                    ticks.get(timeout=0.2)
                    bar.update()
                except Empty:
                    failed = [one for one in futures.values() if one.done() and one.exception()]
                    if failed:
                        pool.shutdown(cancel_futures=True)
                        failed[0].result()
            found = {kind: [futures[kind, seed].result() for seed in range(seeds)] for kind in KINDS}
        # The processes have ended: nothing of ours disturbs the clock.
        bar.n = len(jobs) * experiment.epochs
        bar.set_description("training steps")
        return found, costs(experiment, ROUNDS, bar.update)


def _alone(ticks: Any) -> None:
    """A process has one thread, and says when an epoch has ended."""
    global _ticks  # noqa: PLW0603 - a process of the pool has no other memory
    _ticks = ticks
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)


def _work(experiment: Experiment, kind: str, seed: int) -> Outcome:
    return attempt(experiment, kind, seed, partial(_ticks.put, None))


def table(experiment: Experiment, outcomes: Outcomes, spent: Mapping[str, Cost]) -> list[str]:
    """The results, a line each; errors of a pixel in thousandths."""
    heads = ("network", "parameters", "next MSE", "MSE", "PSNR", "SSIM", "s / epoch", "kept MB", "checkpointed")
    lines = [f"{heads[0]:20}" + "".join(f"{head:>13}" for head in heads[1:])]
    for kind in KINDS:
        of, cost = outcomes[kind], spent[kind]
        lines.append(
            f"{kind:20}{cost.parameters:13,}{1e3 * mean(one.next.mse for one in of):13.2f}"
            f"{1e3 * mean(one.all.mse for one in of):13.2f}{mean(one.all.psnr for one in of):13.2f}"
            f"{mean(one.all.ssim for one in of):13.3f}{cost.epoch:13.2f}{cost.kept / 1e6:13.1f}"
            f"{cost.checkpointed / 1e6:13.1f}"
        )
    still = repeated(experiment)  # some frames are the same: their PSNR is infinite
    lines.append(
        f"{'last frame repeated':20}{'':13}{1e3 * still['next'].mse:13.2f}{1e3 * still['all'].mse:13.2f}{'':13}"
        f"{still['all'].ssim:13.3f}"
    )
    return lines


def claim(outcomes: Outcomes, spent: Mapping[str, Cost]) -> str:
    """Whether the tensor-train has the lower error with fewer parameters."""
    ours, theirs = (
        1e3 * mean(one.all.mse for one in outcomes[kind]) for kind in (CONV_TT_LSTM, CONV_LSTM)
    )  # fmt: skip
    wins = sum(
        one.all.mse < other.all.mse for one, other in zip(outcomes[CONV_TT_LSTM], outcomes[CONV_LSTM], strict=True)
    )
    share = spent[CONV_TT_LSTM].parameters / spent[CONV_LSTM].parameters
    verdict = "below" if ours < theirs else "NOT below"
    return (
        f"Conv-TT-LSTM with {share:.0%} of ConvLSTM's parameters: an MSE of {ours:.2f}e-3, {verdict} ConvLSTM's "
        f"{theirs:.2f}e-3; lower with {wins} of {len(outcomes[CONV_LSTM])} seeds"
    )


def rows(experiment: Experiment, outcomes: Outcomes, spent: Mapping[str, Cost]) -> Iterator[dict[str, object]]:
    """What the file keeps: one row for each network and seed."""
    settings = {
        field.name: getattr(experiment, field.name)
        for field in fields(experiment)
        if field.name not in ("folder", "hidden")
    }
    data = "digits" if experiment.folder is None else "mnist"
    for kind in KINDS:
        cost = spent[kind]
        for seed, one in enumerate(outcomes[kind]):
            yield {
                "data": data,
                **settings,
                "hidden": "/".join(map(str, experiment.hidden)),
                "network": kind,
                "seed": seed,
                "parameters": cost.parameters,
                "next_mse": f"{one.next.mse:.6f}",
                "mse": f"{one.all.mse:.6f}",
                "psnr": f"{one.all.psnr:.3f}",
                "ssim": f"{one.all.ssim:.4f}",
                "epoch_s": f"{cost.epoch:.3f}",
                "kept_bytes": cost.kept,
                "checkpointed_bytes": cost.checkpointed,
            }


def keep(
    experiment: Experiment, outcomes: Outcomes, spent: Mapping[str, Cost], shared: Mapping[str, str], folder: Path
) -> None:
    """Append the rows, and draw the picture anew."""
    found = list(rows(experiment, outcomes, spent))
    file = folder / "video.csv"
    prepare(file, [*shared, *found[0]])
    save(file, shared, found)
    draw(experiment, {kind: outcomes[kind][0].strip for kind in KINDS}, file.with_suffix(".png"))
    print(f"\nrows appended to {file}, frames in {file.with_suffix('.png')}")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    usual = Experiment()
    parser = argparse.ArgumentParser(prog="bench/video", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where MNIST's files are; without it, scikit-learn's digits")
    helps = {
        "size": "pixels of a frame", "digit": "pixels of a digit", "digits": "in a video", "inputs": "frames given",
        "future": "frames predicted", "videos": "to train on", "held_back": "videos to test on",
        "batch": "videos of a step of training", "epochs": "of training", "kernel": "size of all kernels",
        "order": "of the tensor-train", "steps": "hidden states stored", "rank": "of the tensor-train",
    }  # fmt: skip
    for name, words_of_help in helps.items():
        option = f"--{name.replace('_', '-')}"
        default = getattr(usual, name)
        parser.add_argument(option, metavar="N", type=int, default=default, help=f"{words_of_help} (%(default)s)")
    parser.add_argument("--speed", metavar="X", type=float, default=usual.speed, help="of the digits (%(default)s)")
    parser.add_argument("--rate", metavar="X", type=float, default=usual.rate, help="of learning (%(default)s)")
    parser.add_argument("--hidden", default=",".join(map(str, usual.hidden)), help="channels by block (%(default)s)")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="over which is averaged (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE, help="folder for rows and frames (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only: no rows, no picture")
    arguments = parser.parse_args(words)
    arguments.hidden = tuple(int(one) for one in arguments.hidden.split(","))
    if min(arguments.seeds, arguments.epochs) < 1 or not 0 < arguments.batch <= arguments.videos:
        parser.error("seeds and epochs are numbers from 1, and a batch has at most as many videos as there are")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run it all; 0."""
    start = time.perf_counter()
    arguments = parse(words)
    torch.set_num_threads(1)
    experiment = Experiment(**{field.name: getattr(arguments, field.name) for field in fields(Experiment)})
    try:
        experiment.split()
        for kind in KINDS:
            experiment.network(kind, 0)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"bench/video: {error}") from error
    setting = environment(heap="")  # now: the commit that is measured
    outcomes, spent = run(experiment, arguments.seeds)
    print(f"\n{experiment.digits} moving digit(s) in frames of {experiment.size} x {experiment.size}:", end=" ")
    print(f"{experiment.inputs} frames are given, {experiment.future} predicted.")
    print(
        "Errors in thousandths of a squared pixel, of the next frame and of all; s / epoch of forward and backward on"
    )
    print("one thread; MB alive between them for a batch, with and without checkpoints\n")
    print("\n".join([*table(experiment, outcomes, spent), "", claim(outcomes, spent)]))
    if not arguments.dry:
        keep(experiment, outcomes, spent, {name: setting[name] for name in COLUMNS}, arguments.results)
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
