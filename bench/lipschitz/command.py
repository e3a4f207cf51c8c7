"""The command: every kind of network trained, a table of what they certify, rows, a picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from lipschitz.networks import KINDS, linear_layers, network, spectrum
from lipschitz.picture import draw
from lipschitz.training import RADII, Outcome, digits, outcome, train
from run import environment, prepare, save

HERE = Path(__file__).parents[1] / "results"
COLUMNS = ("date", "commit", "device", "threads", "python", "torch")


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The means over the seeds, in Markdown."""
    radii = " | ".join(f"r = {radius:g}" for radius in RADII[1:])
    yield f"| layers | parameters | Lipschitz bound | accuracy | {radii} | s / epoch |"
    yield "|---" + "|---:" * (len(RADII) + 3) + "|"
    for kind in dict.fromkeys(found.kind for found in outcomes):
        mine = [found for found in outcomes if found.kind == kind]
        parts = [mean(found.certified[place] for found in mine) for place in range(len(RADII))]
        certified = " | ".join(f"{100 * part:.1f} %" for part in parts)
        bound, epoch = mean(found.bound for found in mine), mean(found.epoch for found in mine)
        yield f"| {kind} | {mine[0].parameters:,} | {bound:.4g} | {certified} | {epoch:.2f} |"


def rows(outcomes: Sequence[Outcome], settings: dict[str, object]) -> Iterator[dict[str, object]]:
    """One for each network."""
    for found in outcomes:
        certified = {f"certified_{radius:g}": f"{part:.4f}" for radius, part in zip(RADII, found.certified)}
        yield {
            **settings, "layers": found.kind, "seed": found.seed, "parameters": found.parameters,
            "bound": f"{found.bound:.6g}", **certified, "epoch_s": f"{found.epoch:.3f}",
        }  # fmt: skip


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="bench/lipschitz", description=__doc__)
    add = partial(parser.add_argument, metavar="N", type=int)
    add("--epochs", default=25, help="of every network (%(default)s)")
    add("--width", default=1, help="of the stages, in 16, 32 and 64 channels (%(default)s)")
    add("--seeds", default=1, help="networks of each kind (%(default)s)")
    parser.add_argument("--radius", type=float, default=0.7, help="that the margins are to certify (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only: no rows, no picture")
    arguments = parser.parse_args(words)
    if min(arguments.epochs, arguments.width, arguments.seeds) < 1 or not arguments.radius > 0:
        parser.error("epochs, width and seeds are numbers from 1, the radius is above 0")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run it all; 0."""
    start = time.perf_counter()
    arguments = parse(words)
    torch.set_num_threads(1)  # layers this small gain nothing by a second one
    setting = environment(heap="")  # now: the commit that is measured
    data, outcomes, spectra = digits(), [], {}
    jobs = [(kind, seed) for kind in KINDS for seed in range(arguments.seeds)]
    with tqdm(total=len(jobs) * arguments.epochs, unit="epoch") as bar:
        for kind, seed in jobs:
            bar.set_description(f"{kind:14}")
            model = network(kind, arguments.width, seed)
            epoch = train(model, data, kind, seed, arguments.epochs, arguments.radius, bar.update)
            outcomes.append(outcome(model, data, kind, seed, epoch))
            if seed == 0:
                spectra[kind] = [spectrum(layer) for layer in linear_layers(model)]
    print(
        f"\nDigits: {len(data[0][1])} pictures to learn from, {len(data[1][1])} to be tested on; certified accuracy\n"
    )
    print("\n".join(table(outcomes)))
    if not arguments.dry:
        settings = {"epochs": arguments.epochs, "width": arguments.width, "radius": arguments.radius}
        found = list(rows(outcomes, settings))
        file, shared = HERE / "lipschitz.csv", {name: setting[name] for name in COLUMNS}
        prepare(file, [*shared, *found[0]])
        save(file, shared, found)
        draw(spectra, [found for found in outcomes if found.seed == 0], file.with_suffix(".png"))
        print(f"\nrows appended to {file.relative_to(HERE.parents[1])}, picture in bench/results/lipschitz.png")
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
