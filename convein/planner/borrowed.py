"""Frame -> path, by a search of opt_einsum or cotengra, through the protocol they share.

They are asked with one size for each mode. A convolved mode has several: they are told the geometric mean of those in
its carriers, between the long signal and the short filters. What the order really costs is worked out by us afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from math import exp, log
from typing import Any

from opt_einsum import get_symbol, paths

from convein.errors import PlanError
from convein.planner.frame import Frame

# (inputs, output, size of each mode, memory limit) -> linear path.
Optimizer = Callable[[list[frozenset[str]], frozenset[str], dict[str, int], int | None], Any]


NAMES = (
    "auto-hq",
    "branch-1",
    "branch-2",
    "branch-all",
    "dp",
    "dynamic-programming",
    "eager",
    "opportunistic",
    "random-greedy",
    "random-greedy-128",
)


def named(name: str) -> Optimizer | None:
    """opt_einsum's search of this name, one of `NAMES` or what another package has registered there."""
    try:
        found: Optimizer = paths.get_path_fn(name)
    except KeyError:
        return None
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
    question = (inputs, frozenset(letters[mode] for mode in kept), told, None)
    try:
        return optimizer(*(question if _takes(optimizer, question) else question[:3]))
    except Exception as failure:
        raise PlanError(f"the optimiser {name} failed: {type(failure).__name__}: {failure}") from failure


def _takes(optimizer: Optimizer, question: tuple[Any, ...]) -> bool:
    """Whether an optimiser takes a memory limit; some of cotengra's do not."""
    try:
        signature(optimizer).bind(*question)
    except TypeError:
        return False
    except ValueError:  # it is not written in Python and does not say
        return True
    return True
