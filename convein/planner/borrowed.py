"""Frame -> path, by a search of opt_einsum or cotengra, through the protocol they share.

They are asked with one size for each mode. A convolved mode has several; they are told the geometric mean of those in its
carriers, between the long signal and the short filters. What the order really costs is worked out by us afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

from opt_einsum import get_symbol, paths

from convein.errors import PlanError
from convein.planner.frame import Frame

# (inputs, output, size of each mode, memory limit) -> linear path.
Optimizer = Callable[[list[frozenset[str]], frozenset[str], dict[str, int], int | None], Any]


def names() -> tuple[str, ...]:
    """The names of their searches; a package that registers more with opt_einsum adds to them."""
    return tuple(sorted(paths._PATH_OPTIONS))


def named(name: str) -> Optimizer:
    """Their search of this name."""
    found: Optimizer = paths.get_path_fn(name)
    return found


def ask(problem: Frame, optimizer: Optimizer, name: str) -> Any:
    """The linear path that an optimiser finds.

    Raises:
        PlanError: the optimiser fails.
    """
    letters: dict[str, str] = {}
    sizes: dict[str, list[int]] = {}
    for value in problem.values:
        for mode, size in value.sizes.items():
            letters.setdefault(mode, get_symbol(len(letters)))
            sizes.setdefault(mode, []).append(max(size, 1))
    told = {letters[mode]: round(exp(sum(map(log, found)) / len(found))) for mode, found in sizes.items()}
    inputs = [frozenset(letters[mode] for mode in value.sizes) for value in problem.values]
    inside = problem.operands((1 << len(problem.values)) - 1)
    output = problem.network.output
    kept = (mode for mode in letters if mode in output or problem.network.carriers[mode] & ~inside)
    try:
        return optimizer(inputs, frozenset(letters[mode] for mode in kept), told, None)
    except Exception as failure:
        raise PlanError(f"the optimiser {name} failed: {type(failure).__name__}: {failure}") from failure
