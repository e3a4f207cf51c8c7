"""One command for every measurement: `python bench/run.py overhead planner`, or no name for all of them.

Variants of one job run in interleaved rounds on one thread; medians are printed, and appended to results/*.csv together
with the device, the versions and the commit. Where malloc is glibc's, it is told once to keep what it has (see
`allocator.py`): it would give large blocks back between calls, and fault them in again.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from allocator import keep_heap
from cases import memory
from measure import Group, Timing, measure
from registry import ABSENCES, CASES, COUNT_SUMMARIES, COUNTS, ENVIRONMENTS, EXPORTS, SUMMARIES, TOGETHER

HERE = Path(__file__).parent
PEERS = ("opt_einsum", "cotengra", "tensorly-torch", "einconv")
MEASURED = ("group", "variant", "median_us", "min_us", "ratio", "rounds")
COUNTED = ("group", "variant", "unit", "value", "ratio")


def device_name() -> str:
    """The processor as the machine calls itself."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is measured, with a plus if files other than results differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HERE.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    name = git("describe", "--always")
    return name + ("+" if git("diff", "--name-only", "HEAD", "--", ":!bench/results") else "") if name else "unknown"


def version(package: str) -> str:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def environment(heap: str) -> dict[str, str]:
    """The columns that every row of a run shares; `heap` is what malloc was told."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "device": device_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "peers": "; ".join(f"{package} {version(package)}" for package in PEERS),
        "heap": heap,
    }


def prepare(path: Path, columns: list[str]) -> None:
    """A case's file with its header, or the file that is there if it has the same one."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(",".join(columns) + "\n", encoding="utf-8")
    with path.open(newline="", encoding="utf-8") as file:
        if next(csv.reader(file), None) != columns:
            raise SystemExit(f"{path} has other columns than this version writes: move it away")


def save(path: Path, shared: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a case's file."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow([*shared.values(), *row.values()])


def row_of(timing: Timing) -> dict[str, object]:
    """A timing as its row has it, in the order of `MEASURED`."""
    return {
        "group": timing.group,
        "variant": timing.variant,
        "median_us": f"{timing.median * 1e6:.2f}",
        "min_us": f"{timing.least * 1e6:.2f}",
        "ratio": f"{timing.ratio:.3f}",
        "rounds": timing.rounds,
    }


def verdict(group: Group, timings: list[Timing]) -> str:
    """How a group stands to its limit, in a sentence."""
    limit = group.limit
    if limit is None:
        return ""
    timing = next(timing for timing in timings if timing.variant == limit.variant)
    spent = timing.excess if limit.more_than_first else timing.median
    kept = "within" if spent <= limit.seconds else "OVER"
    more = f" more than {timings[0].variant}" if limit.more_than_first else ""
    return f"  {limit.variant}: {spent * 1e6:.1f} us{more}, {kept} the limit of {limit.seconds * 1e6:.0f} us\n"


def is_wanted(name: str, only: str) -> bool:
    """Whether the name of a group has each of the phrases between the commas of `only`."""
    phrases = [f" {phrase.strip()} " for phrase in only.split(",") if phrase.strip()]
    return all(phrase in f" {name} " for phrase in phrases)


def report(group: Group, timings: list[Timing]) -> str:
    """A group's times, a line each."""
    width = max(len(timing.variant) for timing in timings)
    lines = [
        f"  {timing.variant:{width}}  median {timing.median * 1e6:11.1f} us"
        f"  least {timing.least * 1e6:11.1f} us  ratio {timing.ratio:7.2f}"
        for timing in timings
    ]
    return "\n".join([group.name, *lines, verdict(group, timings)])


def run(case: str, arguments: argparse.Namespace, shared: Mapping[str, str]) -> None:
    """Measure one case, print it, and append it to its file."""
    path = HERE / "results" / f"{case}.csv"
    if not arguments.dry:
        prepare(path, [*shared, *MEASURED])
    results: list[Timing] = []
    for group in CASES[case]():
        if not (group.always or is_wanted(group.name, arguments.only)):
            continue
        timings: list[Timing] = []
        with tqdm(total=arguments.rounds, desc=f"{case}: {group.name}", leave=False) as bar:
            for timing in measure(group, arguments.rounds, arguments.seconds):
                if timing is None:
                    bar.update()
                else:
                    timings.append(timing)
        print(f"{case}: {report(group, timings)}", flush=True)
        if not arguments.dry:
            save(path, shared, map(row_of, group.kept(timings)))
        results += group.kept(timings)
    if not results:
        print(f"{case}: no group has {arguments.only!r}\n")
        return
    if case in SUMMARIES:
        print(SUMMARIES[case](results))
    if not arguments.dry:
        print(f"rows appended to {path.relative_to(HERE.parent)}\n")
        if case in EXPORTS and (file := EXPORTS[case](results, path.parent)):
            print(f"{file.relative_to(HERE.parent)} is written\n")


def count(case: str, arguments: argparse.Namespace, shared: Mapping[str, str]) -> None:
    """As `run`, for what is counted: one row for each variant."""
    path = HERE / "results" / f"{case}.csv"
    if not arguments.dry:
        prepare(path, [*shared, *COUNTED])
    results: list[memory.Amount] = []
    for group in COUNTS[case]():
        if not is_wanted(group.name, arguments.only):
            continue
        amounts: list[memory.Amount] = []
        with tqdm(total=len(group.variants), desc=f"{case}: {group.name}", leave=False) as bar:
            for found in memory.measure(group):
                bar.update()
                if isinstance(found, str):
                    tqdm.write(found)
                else:
                    amounts.append(found)
        lines = [f"  {found.value:14} {found.unit}  ratio {found.ratio:7.3f}  {found.variant}" for found in amounts]
        print("\n".join([f"{case}: {group.name}", *lines, ""]), flush=True)
        if not arguments.dry:
            save(path, shared, map(asdict, amounts))
        results += amounts
    print(COUNT_SUMMARIES[case](results) if results else f"{case}: no group has {arguments.only!r}\n")


def main() -> None:
    """Read the command line and run the cases it names."""
    known = (*CASES, *COUNTS)
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(known)} (default: all)")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help='groups whose names have them: "CP 64, batch 32"')
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="at most for one variant of a group (default: %(default)s)"
    )
    parser.add_argument("--dry", action="store_true", help="print only, append no rows")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no case called {', '.join(unknown)}: there are {', '.join(known)}")
    absent = {name: reason for name, ask in ABSENCES.items() if (reason := ask()) is not None}
    for name in arguments.names:
        if name in absent:
            raise SystemExit(f"{name}: {absent[name]}")
    torch.set_num_threads(1)
    shared = environment(heap=keep_heap())
    wanted = [each for name in arguments.names for each in TOGETHER.get(name, (name,))]
    for name in wanted or known:
        if name in absent:
            print(f"{name} is left out: {absent[name]}\n")
            continue
        columns = {**shared, **ENVIRONMENTS[name]()} if name in ENVIRONMENTS else shared
        (count if name in COUNTS else run)(name, arguments, columns)


if __name__ == "__main__":
    main()
