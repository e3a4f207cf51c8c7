"""opt_einsum's own expressions, optimisers, input forms and numbers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import opt_einsum
import pytest
import torch
from opt_einsum.testing import build_shapes, build_views, rand_equation

import convein

EXPRESSIONS: list[str] = list(dict.fromkeys(importlib.import_module("opt_einsum.tests.test_contract").tests))
OPTIMIZERS = sorted({*opt_einsum.paths._PATH_OPTIONS, "random-greedy", "random-greedy-128"})
SLOW = {"optimal", "branch-all", "auto-hq", "random-greedy", "random-greedy-128"}


def greek(expression: str) -> str:
    return "".join(character if character in ",->." else chr(ord(character) + 848) for character in expression)


def views(expression: str) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) for shape in build_shapes(expression)]


def test_the_wheel_has_expressions() -> None:
    assert len(EXPRESSIONS) >= 60
    assert {"auto", "auto-hq", "optimal", "greedy", "eager", "dp", "branch-2"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_every_expression_with_every_optimizer(optimize: str) -> None:
    for number, expression in enumerate(EXPRESSIONS):
        if optimize in SLOW and number % 4 and expression.count(",") > 4:
            continue
        operands = views(expression)
        ours = convein.conv_einsum(expression, *operands, optimize=optimize)
        np.testing.assert_allclose(ours, np.einsum(expression, *operands), err_msg=expression, atol=1e-9)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_greek_letters(expression: str) -> None:
    operands = views(expression)
    ours = convein.conv_einsum(greek(expression), *operands)
    np.testing.assert_allclose(ours, np.einsum(expression, *operands), atol=1e-9)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("optimize", ["optimal", "greedy", "dp"])
def test_the_numbers_of_contract_path(expression: str, optimize: str) -> None:
    """For the same path the same numbers; ours, searched, never needs more multiplications than theirs."""
    shapes = build_shapes(expression)
    if optimize == "optimal" and len(shapes) > 6:
        optimize = "dp"
    their_path, theirs = opt_einsum.contract_path(expression, *shapes, shapes=True, optimize=optimize)
    path, ours = convein.contract_path(expression, *shapes, optimize=their_path)
    assert [tuple(sorted(step)) for step in path] == [tuple(sorted(step)) for step in their_path]
    assert ours.opt_cost == theirs.opt_cost
    assert ours.naive_cost == theirs.naive_cost
    assert ours.largest_intermediate == theirs.largest_intermediate
    assert list(ours.scale_list) == list(theirs.scale_list)
    assert [*ours.size_list] == [*theirs.size_list]
    assert ours.eq == theirs.eq
    assert ours.speedup == theirs.speedup


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_optimal_is_never_worse(expression: str) -> None:
    shapes = build_shapes(expression)
    their_path, _ = opt_einsum.contract_path(
        expression, *shapes, shapes=True, optimize="optimal" if len(shapes) <= 6 else "dp"
    )
    _, theirs = convein.contract_path(expression, *shapes, optimize=their_path)
    _, ours = convein.contract_path(expression, *shapes, optimize="optimal", cost="flops")
    assert ours.macs <= theirs.macs


def test_a_path_of_theirs_runs_here_and_ours_runs_there() -> None:
    expression = "ea,fb,abcd,gc,hd->efgh"
    operands = views(expression)
    expected = np.einsum(expression, *operands)
    their_path, _ = opt_einsum.contract_path(expression, *operands, optimize="optimal")
    np.testing.assert_allclose(convein.conv_einsum(expression, *operands, optimize=their_path), expected)
    our_path, info = convein.contract_path(expression, *operands)
    np.testing.assert_allclose(opt_einsum.contract(expression, *operands, optimize=our_path), expected)
    assert our_path == info.path
    assert opt_einsum.paths.ssa_to_linear(info.ssa_path) == [tuple(sorted(step)) for step in our_path]


def test_steps_of_more_than_two() -> None:
    expression = "ab,bc,cd,de->ae"
    operands = views(expression)
    for path in ([(0, 1, 2, 3)], [(0, 1, 2), (0, 1)], [(1, 2, 3), (0, 1)], [(0, 1), (0, 1, 2)]):
        ours = convein.conv_einsum(expression, *operands, optimize=path)
        np.testing.assert_allclose(ours, np.einsum(expression, *operands), err_msg=str(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda: opt_einsum.RandomGreedy(max_repeats=4, parallel=False),
        opt_einsum.DynamicProgramming,
        lambda: opt_einsum.BranchBound(nbranch=2),
        lambda: opt_einsum.paths.greedy,
        lambda: lambda inputs, output, sizes, memory_limit=None: [(0, 1)] * (len(inputs) - 1),
    ],
    ids=["RandomGreedy", "DynamicProgramming", "BranchBound", "function", "lambda"],
)
def test_optimizer_objects(make: Callable[[], Any]) -> None:
    for expression in ("ab,bc,cd->ad", "abc,bd,cd,de->ae", "abh,cbh,cd->adh|h"):
        shapes = build_shapes(expression.split("|")[0], dict(zip("abcdeh", (2, 3, 4, 5, 2, 3), strict=True)))
        operands = [np.random.default_rng(1).standard_normal(shape) for shape in shapes]
        plain = convein.conv_einsum(expression, *operands)
        np.testing.assert_allclose(convein.conv_einsum(expression, *operands, optimize=make()), plain, atol=1e-12)


@pytest.mark.parametrize("optimize", [True, False, None])
def test_the_plain_values_of_optimize(optimize: Any) -> None:
    operands = views("ab,bc,cd->ad")
    ours = convein.conv_einsum("ab,bc,cd->ad", *operands, optimize=optimize)
    np.testing.assert_allclose(ours, np.einsum("ab,bc,cd->ad", *operands))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_out", [0, 2, 4])
@pytest.mark.parametrize("global_dim", [False, True])
def test_random_networks(seed: int, n_out: int, global_dim: bool) -> None:
    expression, _, sizes = rand_equation(
        7, 3, n_out, d_min=2, d_max=4, seed=seed, global_dim=global_dim, return_size_dict=True
    )
    operands = build_views(expression, sizes)
    expected = opt_einsum.contract(expression, *operands, optimize="greedy")
    for optimize in ("auto", "optimal", "greedy"):
        np.testing.assert_allclose(convein.conv_einsum(expression, *operands, optimize=optimize), expected)


class TestInterleaved:
    """`x, [0, 1], y, [1, 2], [0, 2]`: labels are integers or anything hashable that sorts."""

    def test_with_and_without_output(self) -> None:
        x, y, z = views("ab,bc,cd")
        expected = x @ y @ z
        np.testing.assert_allclose(convein.conv_einsum(x, [0, 1], y, [1, 2], z, [2, 3], [0, 3]), expected)
        np.testing.assert_allclose(convein.conv_einsum(x, [0, 1], y, [1, 2], z, [2, 3]), expected)
        np.testing.assert_allclose(convein.conv_einsum(x, (1000, 1001), y, (1001, 1002), z, (1002, 1003)), expected)
        np.testing.assert_allclose(convein.conv_einsum(x, (2, 1)), x.T)
        np.testing.assert_allclose(convein.conv_einsum(x, (10, 9)), x.T)
        np.testing.assert_allclose(convein.conv_einsum(x, (2, 10)), x)

    def test_ellipsis(self) -> None:
        x = np.random.default_rng(0).standard_normal((2, 3, 4))
        np.testing.assert_allclose(convein.conv_einsum(x, [Ellipsis, 0], [Ellipsis]), x.sum(-1))
        np.testing.assert_allclose(convein.conv_einsum(x, [Ellipsis, 0], [0, Ellipsis]), x.transpose(2, 0, 1))
        np.testing.assert_allclose(convein.conv_einsum(x, [..., 0], x, [..., 0], [...]), (x * x).sum(-1))

    def test_more_labels_than_letters(self) -> None:
        chain = [torch.randn(2, 2, dtype=torch.float64) for _ in range(60)]
        arguments = [thing for n, x in enumerate(chain) for thing in (x, [n, n + 1])]
        ours = convein.conv_einsum(*arguments, [0, 60], optimize="greedy")
        torch.testing.assert_close(ours, torch.linalg.multi_dot(chain), rtol=1e-9, atol=1e-9)

    def test_convolved(self) -> None:
        x, w = torch.randn(2, 3, 8), torch.randn(4, 3, 3)
        ours = convein.conv_einsum(x, [0, 1, 2], w, [3, 1, 2], [0, 3, 2], convolved=[2], stride={2: 2}, padding=1)
        torch.testing.assert_close(ours, torch.nn.functional.conv1d(x, w, stride=2, padding=1), rtol=1e-4, atol=1e-5)

    def test_shapes_for_a_path(self) -> None:
        path, info = convein.contract_path((2, 3), [0, 1], (3, 4), [1, 2], [0, 2])
        assert path == [(0, 1)]
        assert info.opt_cost == opt_einsum.contract_path("ab,bc->ac", (2, 3), (3, 4), shapes=True)[1].opt_cost


BROADCASTS = [
    ("ijk,kl,jl", [(1, 5, 4), (4, 6), (5, 6)]),
    ("ijk,kl,jl,i->i", [(1, 5, 4), (4, 6), (5, 6), (10,)]),
    ("abjk,kl,jl,ab->ab", [(1, 1, 5, 4), (4, 6), (5, 6), (7, 7)]),
    ("ajk,kbl,jl,ab->ab", [(1, 5, 4), (4, 1, 6), (5, 6), (7, 7)]),
    ("ab,bc,bd->acd", [(5, 4), (1, 5), (4, 20)]),
    ("...ij,...jk->...ik", [(1, 5), (5, 5)]),
    ("...ij,...jk->...ik", [(3, 1, 2, 5), (4, 5, 5)]),
]


@pytest.mark.parametrize(("expression", "shapes"), BROADCASTS)
def test_size_one_broadcasts(expression: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [np.random.default_rng(2).standard_normal(shape) for shape in shapes]
    ours = convein.conv_einsum(expression, *operands)
    np.testing.assert_allclose(ours, np.einsum(expression, *operands))


@pytest.mark.parametrize("expression", ["...a->...", "a...->...", "a...a->...a", "...,...", "a,b", "...a,...b", "...a"])
def test_ellipsis(expression: str) -> None:
    terms = expression.split("->", maxsplit=1)[0].split(",")
    shapes = build_shapes(",".join(term.replace("...", "ij") for term in terms))
    operands = [np.random.default_rng(3).standard_normal(shape) for shape in shapes]
    np.testing.assert_allclose(convein.conv_einsum(expression, *operands), np.einsum(expression, *operands))


CONSTANTS = [
    ("hbc,bdef,cdkj,ji,ikeh,lfo", [1, 2, 3, 4]),
    ("bdef,cdkj,ji,ikeh,hbc,lfo", [0, 1, 2, 3]),
    ("ijab,acd,bce,df,ef->ji", [1, 2, 3, 4]),
    ("ab,cd,ad,cb", [1, 3]),
    ("ab,bc,cd", [0, 1]),
]


@pytest.mark.parametrize(("expression", "constants"), CONSTANTS)
@pytest.mark.parametrize("style", ["list", "dict"])
def test_constants(expression: str, constants: list[int], style: str) -> None:
    operands = [torch.from_numpy(view) for view in views(expression)]
    others = [x for place, x in enumerate(operands) if place not in constants]
    if style == "list":
        arguments: list[Any] = [x if place in constants else tuple(x.shape) for place, x in enumerate(operands)]
        call = convein.contract_expression(expression, *arguments, constants=constants, dtype=torch.float64)
    else:
        shapes = [tuple(x.shape) for x in others]
        held = {place: operands[place] for place in constants}
        call = convein.compile(expression, *shapes, constants=held, dtype=torch.float64)
    expected = torch.from_numpy(np.asarray(np.einsum(expression, *[x.numpy() for x in operands])))
    torch.testing.assert_close(call(*others), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("expression", EXPRESSIONS[::3])
def test_a_compiled_expression(expression: str) -> None:
    operands = [torch.from_numpy(view) for view in views(expression)]
    call = convein.compile(expression, *[tuple(x.shape) for x in operands], dtype=torch.float64)
    expected = torch.from_numpy(np.asarray(np.einsum(expression, *[x.numpy() for x in operands])))
    torch.testing.assert_close(call(*operands), expected, rtol=1e-9, atol=1e-9)


def test_what_opt_einsum_refuses_is_refused() -> None:
    square = np.arange(6).reshape(2, 3)
    refused: list[tuple[Any, ...]] = [
        ("",),
        ("->,->", np.array(0), np.array(5)),
        ("&,a->", np.array(0), np.array(5)),
        ("a,a->&", np.ones(2), np.ones(2)),
        ("i->&", np.zeros(2)),
        ("", np.array(0), np.array(0)),
        (",", np.array(0), np.zeros(1), np.zeros(1)),
        (",", np.zeros(1)),
        ("i", np.array(0)),
        ("ij", np.zeros(2)),
        ("...i", np.array(0)),
        ("i...j", np.zeros(1)),
        ("i..", np.zeros(2)),
        (".i...", np.zeros(2)),
        ("j->..j", np.zeros(2)),
        ("j->.j...", np.zeros(2)),
        ("i->ij", np.zeros(2)),
        ("ij->jij", np.zeros((2, 2))),
        ("ii", square),
        ("ii->i", square),
        ("i", square),
    ]
    for arguments in refused:
        with pytest.raises(convein.ConveinError):
            convein.conv_einsum(*arguments)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64])
def test_a_path_is_found_for_operands_that_no_call_would_take_together(kind: torch.dtype) -> None:
    """Nothing is computed: dtypes may differ, as in opt_einsum."""
    shapes = [(4, 8, 9, 9), (3, 8), (3, 3), (3, 3), (3, 8)]
    operands = [torch.ones(shape) for shape in shapes]
    mixed = [operands[0], *(x.to(kind) for x in operands[1:])]
    path, info = convein.contract_path("bshw,rs,rh,rw,rt->bthw|hw", *mixed)
    assert path == list(convein.compile("bshw,rs,rh,rw,rt->bthw|hw", *operands).plan.path)
    assert len(info.ssa_path) == 4
