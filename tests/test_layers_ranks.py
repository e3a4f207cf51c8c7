"""Ranks: from a fraction, a number or a tuple to the size of every bond, exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convein
from convein.layers import FORMS, Conv2d, Linear
from convein.layers.ranks import even_factors, largest

GOLDEN = np.load(Path(__file__).parent / "golden" / "tnn_rank_table.npz")
CHANNELS = st.sampled_from([1, 2, 3, 7, 8, 12, 16, 31, 48, 64, 96, 128, 256, 513])


def layer(inputs: int, outputs: int, form: str, rank: Any, factors: int = 3, **more: Any) -> Conv2d:
    return Conv2d(inputs, outputs, more.pop("kernel", 3), form=form, rank=rank, factors=factors, device="meta", **more)


def capped(made: Any, number: int, multiple: int = 1) -> dict[str, int]:
    """Every bond of this size, as far as it is useful."""
    caps = largest(made)
    rounded = number - number % multiple if number > multiple else number
    return {b: made.kept.get(b, caps[b] if number >= caps[b] else rounded) for b in made.bonds}


@settings(max_examples=300)
@given(data=st.data())
def test_a_fraction_gives_the_largest_rank_that_fits(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([form for form in FORMS if form not in ("dense", "interleaved")]))
    rate = data.draw(st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0]))
    multiple = data.draw(st.sampled_from([None, None, 1, 4, 16]))
    kernel, groups = data.draw(st.sampled_from([1, 3, 4])), data.draw(st.sampled_from([1, 1, 2]))
    inputs, outputs = groups * data.draw(CHANNELS), groups * data.draw(CHANNELS)
    made = layer(
        inputs, outputs, form, rate, data.draw(st.integers(1, 4)), kernel=kernel, groups=groups, multiple=multiple
    )
    parameters = sum(weight.numel() for weight in made.weights)
    assert made.rate == parameters / made.dense_weight().numel()
    number = max((size for bond, size in made.ranks.items() if bond not in made.factorisation.kept), default=1)
    assert number >= 1
    assert made.ranks == capped(made.factorisation, number, multiple or 1)
    if made.rate > rate:
        assert number == 1
    step = multiple or 1
    larger = capped(made.factorisation, number + 1 if number < step else number - number % step + step, step)
    if larger != made.ranks:
        assert made.factorisation.count(larger) > rate * made.dense.parameters


@pytest.mark.parametrize("column", range(3, 12), ids=GOLDEN["columns"][3:])
def test_the_published_closed_forms(column: int) -> None:
    """They solve a linear or quadratic equation and round down.

    Two kinds of entries differ. Where they round down to 0, a rank is 1. And they know no largest useful rank: where
    theirs reaches it for some bond, that bond is as large as is useful, and what it leaves goes to the others.
    """
    name = str(GOLDEN["columns"][column])
    # The published order counts the cores: one more than the factors of the channels.
    form, factors = (name[:-1].lower(), int(name[-1]) - 1) if name[-1].isdecimal() else (name.lower(), 3)
    for row in GOLDEN["rows"]:
        inputs, outputs, theirs = int(row[0]), int(row[1]), int(row[column])
        made = layer(inputs, outputs, form, float(row[2]), factors)
        caps = largest(made.factorisation)
        if theirs == 0:
            assert set(made.ranks.values()) == {1}
        elif theirs < min(caps.values()):
            assert set(made.ranks.values()) == {theirs}
        else:
            assert all(made.ranks[bond] >= min(theirs, caps[bond]) for bond in caps)
            assert made.rate <= row[2]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_tuples_and_the_same(form: str) -> None:
    made = layer(12, 20, form, 4)
    assert all(size == min(4, largest(made.factorisation)[bond]) for bond, size in made.ranks.items())
    assert layer(12, 20, form, tuple(made.ranks.values())).ranks == made.ranks
    assert layer(12, 20, form, list(made.ranks.values())).ranks == made.ranks
    assert layer(12, 20, form, "same").ranks == layer(12, 20, form, 1.0).ranks
    assert layer(12, 20, form, np.int64(4)).ranks == made.ranks


def test_a_tuple_may_change_the_spatial_ranks_and_the_blocks() -> None:
    assert layer(12, 20, "full-tucker", (4, 2, 1, 5)).ranks == {"a": 4, "c": 2, "e": 1, "f": 5}
    assert layer(12, 20, "block-term", (4, 5, 6), 3).ranks == {"q": 4, "r": 5, "n": 6}


def test_spatial_modes_never_collapse() -> None:
    made = layer(64, 64, "full-tucker", 0.1)
    sizes = {**made.factorisation.sizes, **made.ranks}
    assert [sizes[bond] for bond in made.factorisation.kept] == [3, 3]
    assert layer(64, 64, "tucker", 0.1).w3.shape[2:] == (3, 3)


def test_ranks_are_rounded_to_a_multiple() -> None:
    assert layer(256, 256, "cp", 0.1).ranks == {"r": 113}
    assert layer(256, 256, "cp", 0.1, multiple=16).ranks == {"r": 112}
    assert layer(16, 16, "cp", 0.1, multiple=16).ranks == {"r": 6}
    assert layer(24, 24, "tucker", 0.9, multiple=16).ranks["q"] == 16
    assert layer(24, 24, "tucker", 24, multiple=16).ranks == {"q": 24, "r": 24}


def test_no_rank_is_larger_than_useful() -> None:
    assert layer(16, 24, "cp", 10_000).ranks == layer(16, 24, "cp", (10_000,)).ranks == {"r": 144}
    assert layer(16, 24, "tucker", (1000, 4)).ranks == layer(16, 24, "tucker", (24, 4)).ranks


@pytest.mark.parametrize("rank", [8.0, 2.5, 1.0001, 1e9])
def test_a_fraction_is_at_most_one(rank: float) -> None:
    with pytest.raises(convein.OptionError, match=rf"at most 1.0; .* rank={int(rank)}$"):
        layer(16, 24, "cp", rank)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("dense", "interleaved")])
def test_no_smaller_sizes_hold_every_weight(form: str) -> None:
    """The largest useful ranks have at least as many parameters as the dense weight: none of it is out of reach."""
    assert layer(6, 8, form, 10**6, 2).rate >= 1


@given(st.integers(1, 3000), st.integers(1, 4))
def test_factors_are_as_equal_as_they_can_be(number: int, count: int) -> None:
    def products(rest: int, parts: int, least: int) -> list[tuple[int, ...]]:
        if parts == 1:
            return [(rest,)] if rest >= least else []
        divisors = [d for d in range(least, rest + 1) if rest % d == 0 and d**parts <= rest]
        return [(d, *more) for d in divisors for more in products(rest // d, parts - 1, d)]

    found = even_factors(number, count)
    assert math.prod(found) == number
    assert sum(found) == min(map(sum, products(number, count, 1)))
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("number", "count", "factors"),
    [
        (64, 2, (8, 8)),
        (128, 2, (8, 16)),
        (512, 2, (16, 32)),
        (3, 3, (1, 1, 3)),
        (128, 3, (4, 4, 8)),
        (2048, 3, (8, 16, 16)),
    ],
)
def test_factors_as_published(number: int, count: int, factors: tuple[int, ...]) -> None:
    assert even_factors(number, count) == factors


@pytest.mark.parametrize("form", FORMS)
def test_what_a_layer_says_of_itself(form: str) -> None:
    for made in (layer(12, 20, form, 0.2), Linear(12, 20, form=form, rank=0.2, device="meta")):
        assert f"rate={made.rate:.3g}" in repr(made)
        assert all(f"{bond}={size}" in repr(made) for bond, size in made.ranks.items())
        assert repr(made.expression) in repr(made)
