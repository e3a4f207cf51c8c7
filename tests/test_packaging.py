"""What a user installs: every folder with code, the grammars, the types' marker; nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = PROJECT["tool"]["setuptools"]["package-dir"]
SOURCES = ("convein", *MAPPED.values())


def installed_name(path: Path) -> str:
    """Where a source file lies inside the wheel."""
    parts = path.relative_to(ROOT).as_posix()
    for package, folder in MAPPED.items():
        if parts.startswith(f"{folder}/"):
            return package.replace(".", "/") + parts.removeprefix(folder)
    return parts


def test_every_folder_with_code_is_listed() -> None:
    folders = {path.parent for source in SOURCES for path in (ROOT / source).rglob("*.py")}
    packages = {installed_name(folder / "x").removesuffix("/x").replace("/", ".") for folder in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without an index from a copy of the sources."""
    work = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, work / "tree" / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "tree" / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", "dist", "./tree"]
    run = subprocess.run(command, cwd=work, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return next((work / "dist").glob("convein-*.whl"))


def test_the_wheel_holds_the_sources_and_nothing_else(wheel: Path) -> None:
    expected = {
        installed_name(path)
        for source in SOURCES
        for path in (ROOT / source).rglob("*")
        if path.suffix in {".py", ".lark", ".json"} or path.name == "py.typed"
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert any(name.endswith(".lark") for name in names)


PROBE = """
import convein, convein.kernels, convein.syntax
print(convein.__file__)
print(convein.syntax.parse("b(s1 s2)h,(s1)(s2)h->bh|h[stride=2]"))
"""


def test_an_installed_wheel_reads_its_grammar(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", PROBE]
    run = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    where, equation = run.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert equation == "b(s1 s2)h,(s1)(s2)h->bh|h[stride=2]"
