"""Messages are product: `errors/*.txt` holds calls that are mistakes, each with the exact text of its error.

A file is a call in Python, where `torch`, `np` and `convein` are at hand, with lines before it that make its tensors; a
line `---`; and the kind of the error with its whole text. The texts are approved by hand: they are what a user reads.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import convein
import convein.dialects
import convein.layers

FILES = sorted((Path(__file__).parent / "errors").glob("*.txt"))


def split(path: Path) -> tuple[str, str]:
    call, separator, text = path.read_text(encoding="utf-8").partition("\n---\n")
    assert separator, f"{path.name} has no line ---"
    return call, text.rstrip("\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_text_of_a_mistake(path: Path) -> None:
    call, expected = split(path)
    with pytest.raises(convein.ConveinError) as caught:
        exec(compile(call, path.name, "exec"), {"torch": torch, "np": np, "convein": convein})
    text = f"{type(caught.value).__name__}: {caught.value}"
    difference = "\n".join(
        difflib.unified_diff(expected.splitlines(), text.splitlines(), path.name, "raised", lineterm="")
    )
    assert not difference, "\n" + difference


def test_there_are_many_and_no_two_are_alike() -> None:
    assert len(FILES) >= 40
    assert len({split(path)[1] for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_text_points_at_the_place_or_names_the_value(path: Path) -> None:
    call, text = split(path)
    message = text.split("\n\n")[0].partition(": ")[2]
    values = {word for word in re.findall(r"\w+", call) if len(word) > 1 or word.isdecimal()} | {"Tensor"}
    assert "^" in text or values & set(re.findall(r"\w+", message))


def test_every_error_is_a_value_error() -> None:
    for name in ("ExpressionError", "ShapeError", "OptionError", "OperandError", "PlanError"):
        assert issubclass(getattr(convein, name), convein.ConveinError)
    assert issubclass(convein.ConveinError, ValueError)
