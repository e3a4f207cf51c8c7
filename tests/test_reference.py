"""The oracle against torch, numpy and scipy, and what the strategies draw."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from hypothesis import find, given, settings
from hypothesis import strategies as st

import reference
from strategies import Case, cases, orders


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@st.composite
def one_mode(draw: st.DrawFn, transposed: bool) -> tuple[int, list[int], dict[str, Any]]:
    size = draw(st.integers(1, 6))
    filters = draw(st.lists(st.integers(1, 3), max_size=3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    reach = dilation * sum(k - 1 for k in filters)
    low, high = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    extra = draw(st.integers(0, max(stride, dilation) - 1)) if transposed else 0
    spare = (size - 1) * stride + reach + extra - low - high if transposed else size + low + high - reach - 1
    low += 0 if transposed else max(0, -spare)
    if transposed and spare < 0:
        low = high = 0
    options = dict(reference.DEFAULTS, stride=stride, dilation=dilation, padding=(low, high), output_padding=extra)
    return size, filters, options | {"transposed": transposed, "flip": draw(st.booleans())}


def dilated(filters: list[torch.Tensor], dilation: int, flip: bool) -> torch.Tensor:
    """All filters as one, by polynomial multiplication."""
    kernel = np.ones(1)
    for weight in filters:
        spread = np.zeros(dilation * (len(weight) - 1) + 1)
        spread[::dilation] = weight.numpy()[:: -1 if flip else 1]
        kernel = np.convolve(kernel, spread)
    return torch.from_numpy(kernel)


def by_the_table(x: torch.Tensor, weights: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    result = reference.relation(len(x), [len(w) for w in weights], options).double()
    for weight in reversed(weights):
        result = result @ weight
    return result @ x


@given(one_mode(transposed=False), st.sampled_from(["zeros", "circular", "replicate", "reflect"]))
def test_a_forward_table_is_pad_then_conv1d(drawn: tuple[int, list[int], dict[str, Any]], mode: str) -> None:
    size, filters, options = drawn
    if mode == "reflect" and max(options["padding"]) >= size:
        mode = "zeros"  # np.pad reflects more than once
    x, weights = randn(size), [randn(k) for k in filters]
    np_mode = {"zeros": "constant", "circular": "wrap", "replicate": "edge", "reflect": "reflect"}[mode]
    padded = torch.from_numpy(np.pad(x.numpy(), options["padding"], mode=np_mode))
    kernel = dilated(weights, options["dilation"], options["flip"])
    expected = F.conv1d(padded[None, None], kernel[None, None], stride=options["stride"])[0, 0]
    torch.testing.assert_close(by_the_table(x, weights, options | {"padding_mode": mode}), expected)


@given(one_mode(transposed=True))
def test_a_transposed_table_is_conv_transpose1d(drawn: tuple[int, list[int], dict[str, Any]]) -> None:
    size, filters, options = drawn
    x, weights = randn(size), [randn(k) for k in filters]
    kernel = dilated(weights, options["dilation"], options["flip"])
    full = F.conv_transpose1d(x[None, None], kernel[None, None], stride=options["stride"])[0, 0]
    low, high = options["padding"]
    expected = F.pad(full, (-low, options["output_padding"] - high))
    torch.testing.assert_close(by_the_table(x, weights, options), expected)


@given(one_mode(transposed=True), st.sampled_from(["zeros", "circular"]), st.booleans())
def test_a_transposed_table_is_the_adjoint(drawn: tuple[int, list[int], dict[str, Any]], mode: str, same: bool) -> None:
    size, filters, options = drawn
    options |= {"padding_mode": mode, "output_padding": min(options["output_padding"], options["stride"] - 1)}
    if same:
        options |= {"padding": "same", "output_padding": 0}
    elif (size - 1) * options["stride"] + options["dilation"] * sum(k - 1 for k in filters) < sum(options["padding"]):
        options["padding"] = "valid"
    table = reference.relation(size, filters, options)
    length = table.shape[0]
    assert not same or length == size * options["stride"]
    torch.testing.assert_close(
        table.transpose(0, 1), reference.relation(length, filters, options | {"transposed": False})
    )


def test_convolutions_of_torch() -> None:
    x, w = randn(2, 3, 8, 7), randn(4, 3, 3, 3)
    torch.testing.assert_close(reference.conv_einsum("bshw,tshw->bthw|hw", x, w), F.conv2d(x, w, padding="same"))
    torch.testing.assert_close(
        reference.conv_einsum("bshw,tshw->bthw|h[stride=2,padding=1],w[dilation=3,padding=(0,2)]", x, w),
        F.conv2d(F.pad(x, (0, 2, 1, 1)), w, stride=(2, 1), dilation=(1, 3)),
    )
    grouped = randn(4, 2, 3, 3)
    torch.testing.assert_close(
        reference.conv_einsum("b(g s)hw,(g t)shw->b(g t)hw|hw", randn(2, 4, 5, 6), grouped, padding=1, sizes={"g": 2}),
        F.conv2d(randn(2, 4, 5, 6), grouped, padding=1, groups=2),
    )
    up = randn(3, 4, 3, 2)
    torch.testing.assert_close(
        reference.conv_einsum(
            "bshw,sthw->bthw|hw", x, up, transposed=True, stride=2, padding={"h": 1, "w": 0}, output_padding=1
        ),
        F.conv_transpose2d(x, up, stride=2, padding=(1, 0), output_padding=1),
    )


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("n", "k"), [(7, 3), (3, 7), (4, 4), (6, 2), (1, 1)])
def test_convolutions_of_numpy_and_scipy(mode: str, n: int, k: int) -> None:
    x, w = randn(n), randn(k)
    ours = reference.conv_einsum("i,i->i|i", x, w, padding=mode, flip=True, signal="largest")
    np.testing.assert_allclose(ours, np.convolve(x, w, mode))
    if mode == "full":
        np.testing.assert_allclose(
            reference.conv_einsum("ij,ij->ij|ij", randn(n, 3), randn(k, 2), padding="full", flip=True),
            scipy.signal.convolve(randn(n, 3).numpy(), randn(k, 2).numpy(), "full", "direct"),
        )
    if mode == "valid" and n > 2:
        np.testing.assert_allclose(
            reference.conv_einsum("ij,ij->ij|ij", randn(n, 5), randn(3, 2), padding="valid"),
            scipy.signal.correlate2d(randn(n, 5), randn(3, 2), "valid"),
        )


@given(cases(convolved=0, operands=(1, 4)))
def test_without_a_bar_it_is_einsum(case: Case) -> None:
    parsed = reference.parse(case.expression)
    if "->" not in case.expression or any(len(d) > 1 for term in (*parsed.inputs, *parsed.output) for d in term):
        return
    letters: dict[str, str] = {}
    for term in parsed.inputs:
        for (name,) in term:
            letters.setdefault(name, "..." if name == "..." else chr(ord("a") + len(letters)))
    text = ",".join("".join(letters[name] for (name,) in term) for term in parsed.inputs)
    text += "->" + "".join(letters[name] for (name,) in parsed.output)
    torch.testing.assert_close(
        reference.conv_einsum(case.expression, *case.operands(), **case.options),
        torch.einsum(text, *case.operands()),
    )


def test_composed_dimensions_are_reshapes() -> None:
    x = randn(2, 6, 5)
    ours = reference.conv_einsum("b(s1 s2)h,(t1)(s1),(s1 s2)->(t1 b)h(s2)", x, randn(4, 2), randn(6))
    expected = torch.einsum("bsuh,ts,su->tbhu", x.reshape(2, 2, 3, 5), randn(4, 2), randn(6).reshape(2, 3))
    torch.testing.assert_close(ours, expected.reshape(8, 5, 3))
    mixed = reference.conv_einsum("(b h),hs->(h s)b|h", randn(10), randn(3, 2), sizes={"b": 2})
    apart = reference.conv_einsum("bh,hs->hsb|h", randn(10).reshape(2, 5), randn(3, 2))
    torch.testing.assert_close(mixed, apart.reshape(10, 2))
    torch.testing.assert_close(reference.conv_einsum("xy,zy", randn(4, 3), randn(2, 3)), randn(4, 3) @ randn(2, 3).T)


def test_it_is_differentiable_and_exact() -> None:
    x, w = randn(2, 5).requires_grad_(), randn(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *ops: reference.conv_einsum("bh,h->bh|h", *ops), (x, w))
    big = torch.tensor([2**40, 3, -(2**40), 1])
    ours = reference.conv_einsum("h,h->h|h", big, torch.tensor([2**20, 1]), padding="full", flip=True)
    assert ours.tolist() == np.convolve(big.numpy(), [2**20, 1]).tolist()


def test_an_impossible_expression_raises() -> None:
    with pytest.raises(ValueError, match="empty output"):
        reference.conv_einsum("h,h->h|h", randn(2), randn(3), padding="valid")
    with pytest.raises(ValueError, match="reflect"):
        reference.conv_einsum("h,h->h|h", randn(2), randn(3), padding=2, padding_mode="reflect")


EVERY_FEATURE = """
operands=1 / operands=2 / operands=3 / operands=4 / operands=5 / convolved=0 / convolved=1 / convolved=2 / convolved=3
convolved=4 / 1 on a convolved mode / 2 on a convolved mode / 3 on a convolved mode / 4 on a convolved mode
5 on a convolved mode / convolved mode summed / stride=number / dilation=number / flip=True / padding=full
padding=valid / padding=number / padding=pair / padding_mode=circular / padding_mode=reflect / padding_mode=replicate
transposed=True / transposed zeros / transposed circular / output_padding=number / signal=largest / signal=number
composed input / composed output / names=greek / names=mixed / names=long / dots / broadcast / diagonal / hyperedge
size 0 / scalar operand / implicit output / brackets / keyword sizes / keyword stride / keyword padding / keyword signal
keyword dilation / keyword flip / keyword padding_mode / keyword transposed / keyword output_padding
"""


def test_the_strategies_draw_every_feature() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=400)
    @given(cases())
    def draw(case: Case) -> None:
        seen.update(case.features)
        assert reference.conv_einsum(case.expression, *case.operands(), **case.options).isfinite().all()

    draw()
    expected = {feature.strip() for line in EVERY_FEATURE.split("\n") for feature in line.split("/")} - {""}
    assert {feature for feature in expected if seen[feature] < 5} == set()
    assert set(seen) <= expected | {"names=latin"}


def test_a_failure_shrinks_to_something_readable() -> None:
    case = find(cases(), lambda case: "flip=True" in case.features and "operands=2" in case.features)
    assert repr(case).startswith("conv_einsum(")
    assert len(repr(case)) < 80, case


def test_all_orders() -> None:
    assert [len([*orders(n)]) for n in (1, 2, 3, 4)] == [1, 1, 3, 18]
    assert next(orders(3)) == ((0, 1), (0, 1))
