"""One command for every measurement: `python bench/run.py overhead planner`, or no name for all of them.

Variants of one job run in interleaved rounds on one thread; medians are printed, and appended to results/*.csv together
with the device, the versions and the commit.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from measure import Group, Timing, measure
from registry import CASES

HERE = Path(__file__).parent


def device_name() -> str:
    """The processor as the machine calls itself."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is measured, with a plus if files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def version(package: str) -> str:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def environment() -> dict[str, str]:
    """The columns that every row of a run shares."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "device": device_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
    }


def save(case: str, timings: Iterable[Timing]) -> Path:
    """Append one row for each timing to the case's file."""
    path = HERE / "results" / f"{case}.csv"
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    shared = environment()
    with path.open("a", newline="", encoding="utf-8") as file:
        columns = [*shared, "group", "variant", "median_us", "min_us", "ratio", "rounds"]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        for timing in timings:
            writer.writerow(
                {
                    **shared,
                    "group": timing.group,
                    "variant": timing.variant,
                    "median_us": f"{timing.median * 1e6:.2f}",
                    "min_us": f"{timing.least * 1e6:.2f}",
                    "ratio": f"{timing.ratio:.3f}",
                    "rounds": timing.rounds,
                }
            )
    return path


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


def run(case: str, rounds: int, keep: bool) -> None:
    """Measure one case, print it, and append it to its file."""
    results: list[Timing] = []
    for group in CASES[case]():
        timings: list[Timing] = []
        with tqdm(total=rounds, desc=f"{case}: {group.name}", leave=False) as bar:
            for timing in measure(group, rounds):
                if timing is None:
                    bar.update()
                else:
                    timings.append(timing)
        print(f"{case}: {group.name}")
        width = max(len(timing.variant) for timing in timings)
        for timing in timings:
            print(
                f"  {timing.variant:{width}}  median {timing.median * 1e6:11.1f} us"
                f"  least {timing.least * 1e6:11.1f} us  ratio {timing.ratio:7.2f}"
            )
        print(verdict(group, timings))
        results += timings
    if keep:
        print(f"rows appended to {save(case, results).relative_to(HERE.parent)}\n")


def main() -> None:
    """Read the command line and run the cases it names."""
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(CASES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, append no rows")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CASES]
    if unknown:
        parser.error(f"no case called {', '.join(unknown)}: there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    for name in arguments.names or CASES:
        run(name, arguments.rounds, keep=not arguments.dry)


if __name__ == "__main__":
    main()
