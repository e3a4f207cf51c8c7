"""The README is true: its Python runs from top to bottom, its commands run, and both print what it says they print.

A block that starts with three backticks and `python` or `console` is run; a `text` block right after it is its output.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import convein
from convein import contract_path
from convein.planner.costs import StepSizes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    output: str
    line: int


def examples() -> list[Example]:
    found = []
    blocks = list(BLOCK.finditer(README))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] in {"python", "console"}:
            follows = after is not None and after[1] == "text" and not README[block.end() : after.start()].strip()
            line = README.count("\n", 0, block.start()) + 1
            found.append(Example(block[1], block[2], after[2] if follows else "", line))
    return found


def lines(text: str) -> list[str]:
    """What a reader sees: no blanks at the ends of lines."""
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_python_of_the_readme_runs_and_prints_what_it_says() -> None:
    namespace: dict[str, object] = {"__name__": "readme"}
    ran = 0
    for example in examples():
        if example.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                # The lines before it are kept empty, so that an error names the line of the README.
                exec(compile("\n" * example.line + example.code, "README.md", "exec"), namespace)
            shown = printed.getvalue()
            assert lines(shown) == lines(example.output), f"line {example.line} prints\n{shown}"
            ran += 1
    assert ran >= 5


@pytest.mark.parametrize("example", [e for e in examples() if e.language == "console"], ids=lambda e: f"line {e.line}")
def test_the_commands_of_the_readme_print_what_it_says(example: Example) -> None:
    command = shlex.split(example.code.removeprefix("$ "))
    assert command[0] == "python"
    run = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert lines(run.stdout) == lines(example.output), run.stdout


def test_every_file_that_the_readme_links_to_exists() -> None:
    linked = [path for path in re.findall(r"\]\(([^()]+)\)", README) if "://" not in path]
    assert "bench/demo/cp-layer.svg" in linked
    assert all((Path(__file__).parents[1] / path).is_file() for path in linked)


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "fuzz", "bench"} <= named
    assert named <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


def published(step: StepSizes) -> float:
    """The published convention: a step costs the sizes of its modes, a convolved one the square of its largest size."""
    convolved = {correlation.mode for correlation in step.correlations}
    return math.prod(max(step.given_sizes(mode)) ** (1 + (mode in convolved)) for mode in step.modes)


def test_the_multiplications_of_the_readme() -> None:
    expression, shapes = "ijk,jl,lmq,njpq->ijknp|j", [(4, 7, 9), (10, 5), (5, 4, 2), (6, 8, 9, 2)]
    rows: list[list[float]] = []
    for options in ({"cost": published}, {}, {"signal": "largest", "flip": True}):
        options = {"signal": "first", "cost": "flops", **options}
        orders = ("left-to-right", "optimal")
        rows.append([contract_path(expression, *shapes, optimize=o, **options)[1].plan.total for o in orders])
    assert rows[0] == [421_200, 205_600]
    for left, best in rows:
        assert f"| {left:.3e} | {best:.3e} |" in README


def test_all_public_names_and_no_others_are_listed() -> None:
    paragraph = re.search(r"^\*\*Public names\*\* of (.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert paragraph
    assert {*re.findall(r"`(\w+)`", paragraph[1])} == {"convein", *convein.__all__}


def test_every_folder_of_the_package_is_described() -> None:
    table = README.partition("| files | do |")[2].partition("\n\n")[0]
    folders = [path.parent.name for path in Path(convein.__file__).parent.glob("*/__init__.py")]
    assert [name for name in folders if f"{name}/`" not in table] == []
