"""ConvEinsum: a layer of any expression equals the oracle, and says in a sentence what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import convein
import reference
from convein.dialects import POOLING, REPEATED
from convein.errors import ConveinError, OptionError, ShapeError
from convein.layers import Conv2d, ConvEinsum, ConvTranspose2d

# expression, sizes, shape of the input, what else the layer takes
LAYERS: list[tuple[str, dict[str, int], tuple[int, ...], dict[str, Any]]] = [
    ("bfshw,fghw,sthw->bgthw|hw", {"f": 2, "s": 3, "g": 4, "t": 5, "h": 3, "w": 2}, (2, 2, 3, 6, 7), {"bias": "gt"}),
    ("bsh,srh,rth,h->bth|h[dilation=2]", {"s": 3, "r": 2, "t": 4, "h": 3}, (2, 3, 9), {"bias": "t"}),
    ("bsx,srh,rth->btxh|h", {"s": 3, "r": 2, "t": 4, "h": 3}, (2, 3, 9), {}),
    ("bsx,srh,rth->btxh|h[padding=full, flip]", {"s": 3, "r": 2, "t": 4, "h": 3}, (2, 3, 9), {"bias": "t"}),
    ("bsx,srh,rth->btx|h[padding=full, flip]", {"s": 3, "r": 2, "t": 4, "h": 3}, (2, 3, 9), {}),
    ("tsh,bsh->bth|h[signal=1]", {"s": 3, "t": 4, "h": 3}, (2, 3, 9), {"input": 1, "bias": "t"}),
    ("tsh,bsh->bth|h[padding=valid, signal=1]", {"s": 3, "t": 4, "h": 5}, (2, 3, 5), {"input": -1}),
    ("bsh,tsh->bth|h", {"s": 3, "t": 4, "h": 5}, (2, 3, 3), {}),
    (
        "rt,b(s1 s2)h,(s1)(s2)rh->bth|h[stride=2]",
        {"r": 2, "t": 3, "s1": 2, "s2": 3, "h": 3},
        (2, 6, 9),
        {"input": 1, "bias": "t"},
    ),
    ("b(g s)h,(g t)sh->b(g t)h|h", {"g": 2, "s": 3, "t": 4, "h": 3}, (2, 6, 9), {"bias": "(g t)"}),
    ("b(s h),(t h)s->b(t h)|h", {"s": 3, "t": 4, "h": 3}, (2, 27), {}),
    ("bsh,(t h)s->bth|h", {"s": 3, "t": 4, "h": 3}, (2, 3, 9), {"bias": "t"}),
    ("bsh,sthw->bthw|h", {"s": 3, "t": 4, "h": 3, "w": 5}, (2, 3, 9), {"bias": "tw"}),
    ("bsh,sth->tbh|h", {"s": 3, "t": 4, "h": 3}, (2, 3, 9), {"bias": "t"}),
    ("bss,sst->bt", {"s": 3, "t": 4}, (2, 3, 3), {}),
    ("bs,rs,rs,rt->bt", {"r": 2, "s": 3, "t": 4}, (2, 3), {"bias": "t"}),
    ("bs,s->bs", {"s": 3}, (2, 3), {"bias": "s"}),
    ("bs,->bs", {}, (2, 3), {}),
    ("bs,s->", {"s": 3}, (2, 3), {}),
    ("b,t->bt", {"t": 3}, (2,), {"bias": "t"}),
    ("bs,st", {"s": 3, "t": 4}, (2, 3), {}),
    ("bsh,st->bth|h[stride=2]", {"s": 3, "t": 4}, (2, 3, 9), {"bias": "t"}),
    ("bsh,t->bth|h[stride=3, padding=2]", {"t": 4}, (2, 3, 1), {"bias": "t"}),
    (
        "bsh,srh,rth->bth|h[stride=2, padding=1, transposed, output_padding=1]",
        {"s": 3, "r": 2, "t": 4, "h": 3},
        (2, 3, 5),
        {"bias": "t"},
    ),
    ("...s,st->...t", {"s": 3, "t": 4}, (2, 5, 3), {"bias": "t"}),
    ("s...,st->t...", {"s": 3, "t": 4}, (3, 5, 2), {}),
    ("...s,st->t", {"s": 3, "t": 4}, (5, 2, 3), {"bias": "t"}),
    ("bs,st->bt", {"s": 3, "t": 4, "b": 2}, (0, 3), {"bias": "t"}),
]


def made(expression: str, sizes: Mapping[str, int], **given: Any) -> ConvEinsum:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvEinsum(expression, sizes, dtype=torch.float64, **given)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def with_bias(layer: ConvEinsum, value: torch.Tensor, expression: str, bias: str | None) -> torch.Tensor:
    """The value and the bias, which is put where it belongs by the letters of the output."""
    if bias is None:
        return value
    assert layer.bias is not None
    letters = expression.partition("|")[0].partition("->")[2].replace("(g t)", "G").replace("...", "." * value.dim())
    places = zip(value.shape, letters[-value.dim() :], strict=True)
    return value + layer.bias.reshape([size if letter in bias.replace("(g t)", "G") else 1 for size, letter in places])


@pytest.mark.parametrize(("expression", "sizes", "shape", "given"), LAYERS, ids=[one[0] for one in LAYERS])
def test_any_expression(expression: str, sizes: dict[str, int], shape: tuple[int, ...], given: dict[str, Any]) -> None:
    layer, x = made(expression, sizes, **given), noise(*shape)
    assert layer.expression == expression or "->" not in expression
    operands = list(layer.weights)
    operands.insert(given.get("input", 0) % (len(operands) + 1), x)
    open_sizes = {mode: size for mode, size in sizes.items() if mode not in expression.partition("|")[2] + "b"}
    wanted = with_bias(
        layer, reference.conv_einsum(expression, *operands, sizes=open_sizes), expression, given.get("bias")
    )
    value, leaves = layer(x), [x, *layer.parameters()]
    torch.testing.assert_close(value, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(value.square().sum(), leaves),
        torch.autograd.grad(wanted.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(("expression", "sizes", "shape", "given"), LAYERS, ids=[one[0] for one in LAYERS])
def test_the_string_makes_the_layer_again(
    expression: str, sizes: dict[str, int], shape: tuple[int, ...], given: dict[str, Any]
) -> None:
    layer, x = made(expression, sizes, **given), noise(*shape)
    again = ConvEinsum(layer.expression, sizes, **given, init=None, dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    assert again.expression == layer.expression
    assert torch.equal(again(x), layer(x))


def test_options_stand_in_the_string_or_beside_it() -> None:
    sizes, x = {"s": 3, "t": 4, "h": 3, "w": 2}, noise(2, 3, 9, 8)
    layer = made("bshw,tshw->bthw|hw", sizes, stride={"h": 2}, padding={"h": (0, 1), "w": 1}, padding_mode="circular")
    text = "bshw,tshw->bthw|h[stride=2, padding=(0,1), padding_mode=circular], w[padding=1, padding_mode=circular]"
    assert layer.expression == text
    assert f"'{text}', s=3, t=4, h=3, w=2, bias=False" in repr(layer)
    torch.testing.assert_close(layer(x), reference.conv_einsum(text, x, *layer.weights))


def test_the_dense_weight_of_filters_that_meet() -> None:
    """Two filters along h one after the other are one that reaches as far: index addition."""
    layer = made("bsh,srh,rth->bth|h", {"s": 3, "r": 2, "t": 4, "h": 3})
    x = noise(2, 3, 9)
    dense = layer.dense_weight()
    assert dense.shape == (4, 3, 5)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv1d(x, dense, padding=2))


def test_pooling() -> None:
    layer = made("bshw,st->bthw|h[avg=2], w[avg=2]", {"s": 3, "t": 4}, bias="t", dialect=POOLING)
    x = noise(2, 3, 8, 6)
    assert layer.bias is not None
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    wanted = torch.einsum("bshw,st->bthw", pooled, *layer.weights) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), wanted)
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), wanted)
    convolved = made("st,bsh->bth|h[avg=2, stride=1]", {"s": 3, "t": 4}, input=-1, dialect=POOLING)
    torch.testing.assert_close(
        convolved(x[..., 0]),
        torch.einsum("bsh,st->bth", torch.nn.functional.avg_pool1d(x[..., 0], 2, 1), *convolved.weights),
    )


def test_repeated_operands() -> None:
    sizes = {"r": 2, "s1": 2, "s2": 2, "s3": 1, "t1": 2, "t2": 3, "t3": 2}
    layer = made("b(s#*3),[r(t#)(s#)]*3->b(t#*3)", sizes, names=["a", "b", "c"], bias="(t1 t2 t3)", dialect=REPEATED)
    assert [name for name, _ in layer.named_parameters()] == ["a", "b", "c", "bias"]
    x = noise(2, 4)
    assert layer.bias is not None
    wanted = torch.einsum("bijk,rxi,ryj,rzk->bxyz", x.reshape(2, 2, 2, 1), *layer.weights).reshape(2, 12) + layer.bias
    torch.testing.assert_close(layer(x), wanted)


PLANNING: list[dict[str, Any]] = [
    {"cost": "flops"}, {"cost": "memory"}, {"cost": "training"}, {"optimize": "greedy"}, {"optimize": "optimal"},
    {"optimize": "left-to-right"}, {"optimize": [(0, 1), (0, 1), (0, 1), (0, 1)]}, {"checkpoint": True},
    {"checkpoint": 5000}, {"memory_limit": "1GiB"}, {"accumulate": torch.float64}, {"optimize": "measure"},
]  # fmt: skip


@pytest.mark.parametrize("options", PLANNING, ids=str)
def test_options_of_planning(options: dict[str, Any]) -> None:
    dtype = torch.float32 if "accumulate" in options else torch.float64
    layer = Conv2d(4, 6, 3, form="cp", rank=3, padding=1, dtype=dtype, **options)
    x = noise(2, 4, 6, 5).to(dtype)
    wanted = torch.nn.functional.conv2d(x, layer.dense_weight(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), wanted)
    for ours, theirs in zip(
        torch.autograd.grad(layer(x).square().sum(), layer.weights),
        torch.autograd.grad(wanted.square().sum(), layer.weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), wanted)


def test_checkpointed_layers_save_their_operands_only() -> None:
    saved: dict[bool, set[int]] = {}
    for checkpoint in (True, False):
        layer = Conv2d(4, 6, 3, form="tt", rank=0.9, padding=1, bias=False, checkpoint=checkpoint)
        x = torch.randn(8, 4, 12, 12)
        own = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.weights)}
        held: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t) or t, lambda t: t):
            layer(x)
        saved[checkpoint] = {tensor.untyped_storage().data_ptr() for tensor in held} - own
    assert not saved[True]
    assert saved[False]


@pytest.mark.parametrize("names", [
    ("a",), ("a", "a"), "ab", ("a", None), ("a", "1b"), ("a", "b c"), ("bias", "a"),
    ("training", "a"), ("a", "forward"),
    ("expression", "a"), ("weights", "a"), ("init", "a"), ("_parts", "a"), ("_parameters", "a"), ("a", "b", "c"), (),
])  # fmt: skip
def test_names_that_cannot_be(names: Any) -> None:
    with pytest.raises(OptionError) as caught:
        ConvEinsum("bs,rs,rt->bt", {"r": 2, "s": 3, "t": 4}, names=names, bias="t")
    assert repr(names) in caught.value.message


def test_names() -> None:
    layer = ConvEinsum("bs,rs,rt->bt", {"r": 2, "s": 3, "t": 4}, names=("left", "right"), bias="t")
    assert list(layer.state_dict()) == ["left", "right", "bias"]
    assert layer.weights == (layer.left, layer.right)
    assert list(ConvEinsum("bs,rs,rt->bt", {"r": 2, "s": 3, "t": 4}).state_dict()) == ["w1", "w2"]


@pytest.mark.parametrize("bias", ["x", "b", "bt", "ht", "h", "th", "", "t,t", "->", "...", "(t h)", 3, True, "t t"])
def test_a_bias_that_the_output_does_not_have(bias: Any) -> None:
    with pytest.raises(OptionError) as caught:
        ConvEinsum("bsh,sth->bth|h", {"s": 3, "t": 4, "h": 3}, bias=bias)
    assert f"bias={bias!r}" in caught.value.message
    assert "the output is bth" in str(caught.value.hint)


@pytest.mark.parametrize("options", [
    {"strid": 2}, {"groups": 2}, {"memory_limit": "foo"}, {"checkpoint": "x"}, {"backend": "x"}, {"grad": True},
    {"constants": [1]}, {"convolved": [1]}, {"dialect": 3}, {"accumulate": 1}, {"stride": {"s": 2}},
    {"padding": (1, 1)},
    {"signal": 1}, {"out": None}, {"dtype": torch.int64}, {"dtype": "float32"}, {"input": 2}, {"input": True},
    {"input": "x"}, {"init": "he"},
], ids=str)  # fmt: skip
def test_options_are_checked_before_there_is_a_layer(options: dict[str, Any]) -> None:
    with pytest.raises(ConveinError) as caught:
        ConvEinsum("bsh,tsh->bth|h", {"s": 3, "t": 4, "h": 3, "b": 2}, **options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize("options", [
    {"flip": True}, {"signal": 0}, {"transposed": True}, {"input": 1}, {"dialect": POOLING}, {"convolved": []},
    {"strid": 2}, {"output_padding": 1},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_a_convolution_stays_torchs(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Conv2d(4, 4, 3, **options)


SIZES: list[Any] = [
    {}, {"r": 2, "s": 3}, {"r": 0, "s": 3, "t": 4}, {"r": 2.0, "s": 3, "t": 4}, {"r": True, "s": 3, "t": 4},
    {"r": 2, "s": 3, "t": 4, "q": 5}, {1: 2}, None, [("r", 2)],
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_that_do_not_fit(sizes: Any) -> None:
    with pytest.raises((OptionError, ShapeError), match="size"):
        ConvEinsum("bs,rs,rt->bt", sizes)


@pytest.mark.parametrize("expression", ["bs->b", "", 3, None, ["bs"], "bs,rs,rt->btq", "bs,...r,st->bt"])
def test_expressions_that_make_no_layer(expression: Any) -> None:
    with pytest.raises(ConveinError):
        ConvEinsum(expression, {"r": 2, "s": 3, "t": 4})


def test_inputs_that_do_not_fit() -> None:
    layer = Conv2d(4, 6, 3, form="rcp")
    cases: list[tuple[Any, str]] = [
        (torch.randn(2, 5, 8, 8), "5"),
        (torch.randn(2, 4, 8, 2), "2"),
        (torch.randn(8, 8), r"is \(8, 8\)"),
        (torch.randn(2, 4, 8, 8, dtype=torch.float64), "float64"),
        ("x", "str"),
        (torch.randn(2, 4, 8, 8).to_sparse(), "sparse"),
        (torch.randn(2, 4, 8, 8, device="meta"), "meta"),
    ]
    for training in (True, False):
        layer.train(training)
        for x, fact in cases:
            for _ in range(3):
                with pytest.raises(ConveinError, match=fact), torch.no_grad():
                    layer(x)


@pytest.mark.parametrize(
    ("padding", "heights", "widths"),
    [(0, {11, 12}, {9, 10}), (1, {9, 10}, {7, 8}), ("same", {10}, {8}), ("valid", {11, 12}, {9, 10})],
)
def test_output_sizes(padding: Any, heights: set[int], widths: set[int]) -> None:
    layer = ConvTranspose2d(4, 6, 3, stride=2, padding=padding, form="tt", dtype=torch.float64)
    x = noise(2, 4, 5, 4)
    for height in range(8, 14):
        for width in range(6, 12):
            if height in heights and width in widths:
                for given in ((height, width), [height, width], torch.Size([2, 6, height, width])):
                    assert layer(x, output_size=given).shape == (2, 6, height, width)
            else:
                with pytest.raises(ShapeError, match="output_size"):
                    layer(x, output_size=(height, width))
    for wrong in (7, (7,), (), "ab", (7.0, 8.0), (10, 8, None)):
        with pytest.raises(ShapeError, match="output_size"):
            layer(x, output_size=wrong)


def test_an_output_size_is_an_output_padding() -> None:
    """Smaller than the stride or the dilation, whichever is larger, as for F.conv_transpose2d."""
    layer, x = ConvTranspose2d(4, 6, 3, stride=2, dilation=4, form="tt", dtype=torch.float64), noise(2, 4, 5, 4)
    for extra in [(0, 0), (3, 0), (1, 2), (3, 3)]:
        theirs = torch.nn.functional.conv_transpose2d(
            x, layer.dense_weight(), layer.bias, stride=2, dilation=4, output_padding=extra
        )
        torch.testing.assert_close(layer(x, output_size=theirs.shape), theirs)
    with pytest.raises(ShapeError, match="output_size"):
        layer(x, output_size=(theirs.shape[2] + 1, theirs.shape[3]))


def test_an_error_has_the_layers_text() -> None:
    layer = ConvEinsum("...shw,rt,rs,rh,rw->...thw|hw", {"r": 2, "t": 6, "s": 4, "h": 3, "w": 3}, padding=1)
    with pytest.raises(convein.ShapeError) as caught:
        layer(torch.randn(2, 5, 8, 8))
    assert "...shw,rt,rs,rh,rw->...thw|h[" in str(caught.value)
    assert "^" in str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_explains_how_it_is_evaluated(training: bool) -> None:
    """In training with the products of the backward pass, unless it is told otherwise."""
    conv = Conv2d(16, 24, 3, form="cp", rank=4).train(training)
    plain = ConvEinsum("bsh,tsh->bth|h", {"s": 3, "t": 4, "h": 3}).train(training)
    for layer, shape in ((conv, (2, 16, 8, 8)), (plain, (2, 3, 9))):
        text = layer.explain(shape)
        assert text == layer.compiled(shape, grad=training).explain()
        assert (", backward " in text) == training
        assert layer.explain(shape, grad=not training) != text
    assert "Kernels\n  the operands are on cpu" in conv.explain((2, 16, 8, 8))
    with pytest.raises(ShapeError):
        conv.explain((2, 15, 8, 8))
