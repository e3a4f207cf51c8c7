"""Programs become functions, with their text where tracebacks look for it, and nothing stays behind."""

from __future__ import annotations

import gc
import linecache
import traceback

import pytest
import torch

import convein
from convein.execution import load, run
from convein.lowering import Program


def program(*shapes: tuple[int, ...]) -> Program:
    return convein.compile("bsh,rs,rh,rt->bth|h", *shapes).program


SHAPES = ((2, 3, 6), (4, 3), (4, 3), (4, 5))


def test_a_program_runs() -> None:
    operands = [torch.randn(shape) for shape in SHAPES]
    expected = convein.conv_einsum("bsh,rs,rh,rt->bth|h", *operands)
    torch.testing.assert_close(run(program(*SHAPES), operands), expected)


def test_a_traceback_shows_the_line_of_the_program() -> None:
    made = program(*SHAPES)
    with pytest.raises(RuntimeError) as caught:
        load(made)(*(torch.randn(2, 2) for _ in SHAPES))
    shown = "".join(traceback.format_exception(caught.value))
    assert any(f"\n    {statement}\n" in shown for statement in made.statements)


def test_a_forgotten_program_leaves_no_text_behind() -> None:
    x = torch.eye(2)
    gc.collect()
    before = len(linecache.cache)
    for _ in range(20):
        convein.cache_clear()
        convein.conv_einsum("ij,jk->ik", x, x)
    convein.cache_clear()
    gc.collect()
    assert len(linecache.cache) <= before
