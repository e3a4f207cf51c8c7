"""Every convolution layer is torch's convolution with its dense weight: values and all gradients, drawn at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convein.layers import FORMS, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

# Torch says where it copies the input to pad it on one side more.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

FORWARD = {1: (Conv1d, nn.Conv1d), 2: (Conv2d, nn.Conv2d), 3: (Conv3d, nn.Conv3d)}
TRANSPOSED = {
    1: (ConvTranspose1d, nn.ConvTranspose1d),
    2: (ConvTranspose2d, nn.ConvTranspose2d),
    3: (ConvTranspose3d, nn.ConvTranspose3d),
}
PER_GROUP = [1, 2, 3, 4, 5, 6, 7, 8, 12]


@st.composite
def arguments(draw: st.DrawFn, form: str, dimensions: int, transposed: bool) -> dict[str, Any]:
    """What torch's layer takes, by name."""

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(dimensions))

    groups = 1 if form == "interleaved" else draw(st.sampled_from([1, 1, 2, 3]))
    drawn: dict[str, Any] = {
        "in_channels": groups * draw(st.sampled_from(PER_GROUP)),
        "out_channels": groups * draw(st.sampled_from(PER_GROUP)),
        "kernel_size": each([1, 3, 5] if form == "interleaved" else [1, 2, 3, 4]),
        "stride": each([1, 1, 2, 3]),
        "dilation": each([1, 1, 2]),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        # Torch crops no more than there is.
        drawn["padding"] = tuple(draw(st.integers(0, k - 1)) for k in drawn["kernel_size"])
        drawn["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(drawn["stride"], drawn["dilation"], strict=True)
        )
        return drawn
    drawn["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    drawn["padding"] = draw(st.sampled_from(["numbers", "numbers", "same", "valid"]))
    if drawn["padding"] == "numbers":
        drawn["padding"] = each([0, 1, 2, 3])
    if drawn["padding"] == "same":  # as torch has it
        drawn["stride"] = (1,) * dimensions
    return drawn


@st.composite
def inputs(draw: st.DrawFn, given: dict[str, Any]) -> Tensor:
    """An input large enough, with any batch dimensions, laid out in some way."""
    reach = [d * (k - 1) + 1 for k, d in zip(given["kernel_size"], given["dilation"], strict=True)]
    space = [draw(st.integers(max(4, r), max(4, r) + 3)) for r in reach]
    batch = draw(st.sampled_from([(), (2,), (3,), (1,), (0,), (2, 3), (1, 2, 2)]))
    shape = (*batch, given["in_channels"], *space)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))), dtype=torch.float64)
    layout = draw(st.sampled_from(["contiguous", "channels last", "strided", "expanded"]))
    if layout == "channels last":
        return x.movedim(len(batch), -1).contiguous().movedim(-1, len(batch))
    if layout == "strided":
        return x.new_zeros(*shape[:-1], 2 * shape[-1])[..., ::2].copy_(x)
    if layout == "expanded":
        return x[..., :1].expand(shape)
    return x


def gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weighting = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    return torch.autograd.grad((value * weighting).sum(), leaves, retain_graph=True, materialize_grads=True)


def twin(layer: Any, torchs: type[nn.Module], given: dict[str, Any]) -> nn.Module:
    """Torch's layer, with the dense weight and the bias of ours as parts of the graph."""
    other = torchs(**given, dtype=torch.float64)
    del other.weight, other.bias
    # Torch's own backward pass refuses some other layouts.
    other.weight, other.bias = layer.dense_weight().contiguous(), layer.bias
    return other


def called(module: nn.Module, x: Tensor, dimensions: int, *more: Any) -> Tensor:
    """Torch's layers take one batch dimension."""
    value = module(x.reshape(-1, *x.shape[-1 - dimensions :]), *more)
    return value.reshape(*x.shape[: -1 - dimensions], *value.shape[1:])


def agree(layer: Any, other: nn.Module, x: Tensor, dimensions: int, *more: Any) -> None:
    """Values and gradients in training, then in evaluation with what can be folded folded."""
    x = x.detach().requires_grad_()
    leaves = [x, *layer.parameters()]
    value, wanted = layer(x, *more), called(other, x, dimensions, *more)
    torch.testing.assert_close(value, wanted)
    for ours, theirs in zip(gradients(value, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, *more), wanted)
        torch.testing.assert_close(layer(x, *more), wanted)
    layer.requires_grad_(False)
    value = layer(x, *more)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradients(value, [x]), gradients(wanted, [x]))


FEW = settings(max_examples=12)


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(data=st.data())
def test_convolutions(form: str, data: st.DataObject) -> None:
    dimensions = data.draw(st.sampled_from([1, 2, 2, 3]))
    given = data.draw(arguments(form, dimensions, transposed=False))
    ours, torchs = FORWARD[dimensions]
    rank = data.draw(st.sampled_from([0.1, 0.5, "same", 1, 3]))
    layer = ours(
        **given, form=form, rank=rank, factors=data.draw(st.sampled_from([2, 3, 3, 1, 4])), dtype=torch.float64
    )
    agree(layer, twin(layer, torchs, given), data.draw(inputs(given)), dimensions)


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(data=st.data())
def test_transposed_convolutions(form: str, data: st.DataObject) -> None:
    dimensions = data.draw(st.sampled_from([1, 2, 2, 3]))
    given = data.draw(arguments(form, dimensions, transposed=True))
    ours, torchs = TRANSPOSED[dimensions]
    rank = data.draw(st.sampled_from([0.1, 0.5, "same", 1, 3]))
    layer = ours(
        **given, form=form, rank=rank, factors=data.draw(st.sampled_from([2, 3, 3, 1, 4])), dtype=torch.float64
    )
    agree(layer, twin(layer, torchs, given), data.draw(inputs(given)), dimensions)
