"""What a layer says of what does not fit it, where the text alone (see `errors/`) does not show it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import convein
from convein.layers import Conv1d, Conv2d, Conv3d, ConvEinsum, ConvTranspose2d, Embedding, Linear


@pytest.mark.parametrize("make", [lambda: Conv2d(4, 6, 3), lambda: Linear(4, 6, form="rcp", bias=False)])
def test_a_factorised_layer_has_no_weight_and_says_where_it_is(make: Callable[[], nn.Module]) -> None:
    layer = make()
    assert not hasattr(layer, "weight")
    assert getattr(layer, "weight", None) is None
    with pytest.raises(AttributeError, match=r"dense_weight\(\) computes it, and its factors are weights \(w1, w2"):
        _ = layer.weight
    with pytest.raises(AttributeError, match="no attribute 'wieght'"):
        _ = layer.wieght
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not hasattr(other, "weight")
        assert torch.equal(other(torch.ones(4, 8, 8, 4)[:, :4]), layer(torch.ones(4, 8, 8, 4)[:, :4]))


def test_a_factor_may_be_called_weight() -> None:
    layer = Linear(4, 6, form="dense", names=("weight",))
    assert layer.weight is layer.weights[0]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_bias_that_is_parametrized_is_added() -> None:
    layer, x = Conv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    assert layer.bias is not None
    wanted = layer(x) + layer.bias.view(-1, 1, 1)
    parametrize.register_parametrization(layer, "bias", Doubled())
    torch.testing.assert_close(layer(x), wanted)
    parametrize.remove_parametrizations(layer, "bias")
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: Conv1d(4, 6, 3, form="tt"), (5, 8), r"Conv1d is \(5, 8\)\n\nit takes \(\.\.\., 4, h\): 4 channels"),
        (lambda: Conv1d(4, 6, 3, groups=2), (2, 8), r"4 channels in dimension -2, not 2"),
        (lambda: Conv3d(4, 6, 3), (4, 5, 5), r"it takes \(\.\.\., 4, d, h, w\)$"),
        (lambda: ConvTranspose2d(4, 6, 3, form="rtk"), (1, 6, 5, 5), "4 channels in dimension -3, not 6$"),
        (lambda: Conv2d(4, 6, 3, form="interleaved"), (1, 4, 2, 3), r"too small for kernel_size=\(3, 3\)"),
        (lambda: Conv2d(4, 6, (3, 5), padding=(0, 1)), (1, 4, 3, 2), r"at least \(3, 3\)$"),
        (lambda: Conv2d(4, 6, 3, padding="same"), (1, 4, 0, 3), "mode h is empty"),
        (lambda: ConvTranspose2d(4, 6, 3, padding=3), (1, 4, 2, 2), "a smaller padding or a larger output_padding"),
    ],
)
def test_the_shape_of_an_input(make: Callable[[], nn.Module], shape: tuple[int, ...], words: str, train: bool) -> None:
    layer = make().train(train).requires_grad_(train)
    for _ in range(2):
        with pytest.raises(convein.ShapeError, match=words):
            layer(torch.ones(shape))


def test_the_smallest_input_that_is_named_is_enough() -> None:
    layer = Conv2d(4, 6, (3, 5), padding=(0, 1), dilation=(2, 1))
    with pytest.raises(convein.ShapeError, match=r"at least \(5, 3\)$"):
        layer(torch.ones(1, 4, 4, 3))
    assert layer(torch.ones(1, 4, 5, 3)).shape == (1, 6, 1, 1)


def test_an_input_of_another_dtype_is_what_is_converted() -> None:
    layer = ConvEinsum("bs,st->bt", {"s": 3, "t": 4})
    hint = r"^the input has dtype torch\.int32.*\n\nconvert the input with \.to\(torch\.float32\)$"
    with pytest.raises(convein.OperandError, match=hint):
        layer(torch.ones(2, 3, dtype=torch.int32))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 3, dtype=torch.float16)).dtype == torch.bfloat16
        with pytest.raises(convein.OperandError, match=r"float64.*\n\nconvert the input with .* the layer with [^,]*$"):
            layer(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(convein.OperandError, match=r"or call under torch\.autocast$"):
        layer(torch.ones(2, 3, dtype=torch.float16))
    with torch.no_grad():
        layer.w1.data = layer.w1.data.double()
    assert layer(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("first", "second", "converted"),
    [
        (torch.bool, torch.uint8, "operand 0 with .to(torch.uint8)"),
        (torch.float16, torch.int64, "operand 1 with .to(torch.float16)"),
        (torch.int64, torch.complex64, "operand 0 with .to(torch.complex64)"),
        (torch.complex128, torch.float32, "operand 1 with .to(torch.complex128)"),
        (torch.bfloat16, torch.float16, "operand 1 with .to(torch.bfloat16), or call under torch.autocast"),
    ],
)
def test_no_operand_is_to_lose_its_fractions(first: torch.dtype, second: torch.dtype, converted: str) -> None:
    with pytest.raises(convein.OperandError) as raised:
        convein.conv_einsum("i,i->i", torch.ones(3, dtype=first), torch.ones(3, dtype=second))
    assert raised.value.hint == f"convert one of them, for example {converted}"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_ranks_may_be_fractions_of_numpy(kind: type[np.floating]) -> None:
    assert Conv2d(40, 40, 3, rank=kind(0.1)).ranks == Conv2d(40, 40, 3, rank=0.1).ranks
    assert Embedding(1000, 8, rank=kind(0.1)).rank == Embedding(1000, 8, rank=0.1).rank  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(40, 40))
    _, report = convein.tensorize(model, "svd", kind(0.1), skip=None, dry_run=True)
    assert report.rows[0].ranks == Linear(40, 40, form="svd", rank=0.1).ranks


LAYERS_OF_THREE = {
    "conv": (lambda form: convein.layers.Conv2d(3, 4, 3, form=form), (2, 1, 8, 8), (2, 3, 8, 8)),
    "transposed": (lambda form: convein.layers.ConvTranspose2d(3, 4, 3, form=form), (2, 1, 8, 8), (2, 3, 8, 8)),
    "linear": (lambda form: convein.layers.Linear(3, 4, form=form), (2, 1), (2, 3)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["dense", "svd", "tucker", "tt"])
@pytest.mark.parametrize("kind", LAYERS_OF_THREE)
def test_a_single_channel_does_not_stand_for_all(kind: str, form: str, training: bool) -> None:
    make, single, fitting = LAYERS_OF_THREE[kind]
    layer = make(form).train(training)
    for _ in range(3):
        layer(torch.ones(fitting))
        with pytest.raises(convein.ShapeError, match="it takes"):
            layer(torch.ones(single))
    with pytest.raises((convein.ShapeError, torch._dynamo.exc.TorchRuntimeError, torch._dynamo.exc.Unsupported)):
        torch.compile(layer, backend="eager", fullgraph=True)(torch.ones(single))
