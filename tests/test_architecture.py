"""The shape of the house: which room may import which, what a file may be called, what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The road, from left to right: a module or folder of convein imports only from those to its left.
LANGUAGE = (
    "equation",
    "misplaced",
    "mistakes",
    "handlers",
    "dialect",
    "keywords",
    "syntax",
    "dialects",
    "interleaved",
)
NETWORK = ("windows", "resolve", "network", "sizes", "binding")
STAGES = ("planner", "lowering", "execution", "metering", "memory")
CALLS = (
    "operands",
    "arguments",
    "request",
    "expression",
    "tracing",
    "distributed",
    "cache",
    "probes",
    "calibration",
    "tuning",
    "measuring",
    "aiming",
    "drafting",
    "pipeline",
)
ROOMS = (
    "errors",
    "options",
    *LANGUAGE,
    *NETWORK,
    *STAGES,
    "drawing",
    *CALLS,
    "layers",
    "tensorizing",
    "distill",
    "__main__",
)
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
LONGEST_FILE = 350


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources("convein")}


def statements(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Everything in a syntax tree; without `types`, what stands under `if TYPE_CHECKING:` is left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if types or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child, types=types)


def imported(path: Path, *, types: bool = True) -> Iterator[str]:
    """Every module that the file imports anywhere, also inside functions and, with `types`, for annotations only."""
    package = path.relative_to(ROOT).parent.parts
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                member = f"{module}.{alias.name}"
                yield member if member in MODULES else module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_to_its_left(module: str) -> None:
    if module == "convein":
        return
    assert room(module) in ROOMS, f"{module} is in no room: give {room(module)} a place in ROOMS"
    for name in imported(MODULES[module]):
        if name == "convein":
            assert module == "convein.__main__", f"{module} imports the whole package: name the room instead"
        elif name.startswith("convein.") and room(name) not in {"grammar", "kernels", room(module)}:
            left = ROOMS[: ROOMS.index(room(module))]
            assert room(name) in left, f"{module} imports {name}, which is not to its left"


def test_only_the_language_reads_the_grammar_and_only_execution_reads_the_kernels() -> None:
    for module, path in MODULES.items():
        names = set(imported(path))
        if any(name.startswith("convein.grammar") for name in names):
            assert room(module) in LANGUAGE, module
        if any(name.startswith("convein.kernels") for name in names):
            assert room(module) == "execution", module


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(imported(path, types=False)) & set(MODULES) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", sources("kernels"), ids=module_name)
def test_kernels_know_torch_and_triton_only(path: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path)} - {"convein"} <= allowed
    assert all(name.startswith("convein.kernels") for name in imported(path) if name.startswith("convein"))


@pytest.mark.parametrize("path", sources("convein", "grammar", "kernels", "bench", "tests"), ids=module_name)
def test_the_mapped_folders_are_imported_under_one_name(path: Path) -> None:
    """From the repository's root `import kernels` works too, and gives a second copy of every kernel."""
    assert not {name.split(".")[0] for name in imported(path)} & {"kernels", "grammar"}


@pytest.mark.parametrize("path", sources("convein", "grammar", "kernels", "bench"), ids=module_name)
def test_a_file_has_one_job(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines: which of its jobs can have a file of its own?"


@pytest.mark.parametrize("path", sources("convein", "grammar", "kernels", "bench", "tests"), ids=module_name)
def test_a_name_says_what_is_inside(path: Path) -> None:
    assert not NAMES_THAT_SAY_NOTHING & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("module", MODULES)
def test_values_never_change(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text.split("(")[0].endswith("dataclass"):
                    assert "frozen=True" in text, f"{node.name} can be changed after it is made"
                    assert "slots=True" in text, f"{node.name} takes attributes that nobody declared"


def test_every_room_of_the_road_is_there() -> None:
    assert {room(module) for module in MODULES} >= {"errors", "syntax", "network", *STAGES, "pipeline", "__main__"}


IMPORT_PROBE = """
import sys
import torch
before = set(sys.modules)
import convein
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_convein_brings_no_optional_library() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_PROBE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    libraries = set(run.stdout.split())
    assert "convein" in libraries
    optional = {"triton", "matplotlib", "PIL", "scipy", "sklearn", "pandas", "cotengra", "tqdm"}
    assert not libraries & {*optional, "lark", "networkx"}
