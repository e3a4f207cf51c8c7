"""The networks to compress: as large as published, the same numbers as the formulas, run block by block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones import (
    Backbone,
    BasicBlock,
    ConvolutionModule,
    Subsample,
    WideBlock,
    convolution_stack,
    resnet34,
    resnet_cifar,
    wide_resnet,
)

META = torch.device("meta")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def running_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that are not the identity, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    mean, variance, weight, bias = (
        tensor.view(shape) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


# He et al. 2016, table 6 (0.27 M to 1.7 M), exact counts of the networks without parameters in shortcuts.
@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_a_resnet_for_cifar_has_the_published_size(depth: int, count: int) -> None:
    with META:
        model = resnet_cifar(depth)
    assert parameters(model) == count
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth


def test_resnet34_has_the_published_size_and_multiplications() -> None:
    with META, FlopCounterMode(display=False) as counter:
        model = resnet34().eval()
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert parameters(model) == 21_797_672
    # He et al. 2016, table 1: 3.6e9 multiplications.
    assert counter.get_total_flops() // 2 // 10**8 == 36


# Zagoruyko and Komodakis 2016, table 4, in millions.
@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [
        (40, 1, 0.6),
        (40, 2, 2.2),
        (40, 4, 8.9),
        (40, 8, 35.7),
        (28, 10, 36.5),
        (28, 12, 52.5),
        (22, 8, 17.2),
        (22, 10, 26.8),
        (16, 8, 11.0),
        (16, 10, 17.1),
    ],
)
def test_a_wide_resnet_has_the_published_size(depth: int, width: int, millions: float) -> None:
    with META:
        assert round(parameters(wide_resnet(depth, width)) / 1e6, 1) == millions


def test_a_wide_resnet_has_the_published_size_exactly() -> None:
    with META:
        assert parameters(wide_resnet(28, 10)) == 36_479_194


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_convolution_module_has_the_size_of_its_formula(depthwise: bool) -> None:
    C, k = 24, 7
    with META:
        model = ConvolutionModule(C, k, depthwise=depthwise)
    norms, widen, along, mix = 4 * C, 2 * C * C + 2 * C, (C if depthwise else C * C) * k + C, C * C + C
    assert parameters(model) == norms + widen + along + mix


@pytest.mark.parametrize(
    ("make", "shape", "sides"),
    [
        (lambda: resnet_cifar(20), (2, 3, 32, 32), [32] * 3 + [16] * 3 + [8] * 3),
        (lambda: resnet_cifar(8, channels=1), (2, 1, 8, 8), [8, 4, 2]),
        (resnet34, (2, 3, 224, 224), [56] * 3 + [28] * 4 + [14] * 6 + [7] * 3),
        (lambda: wide_resnet(16, 2), (2, 3, 32, 32), [32] * 2 + [16] * 2 + [8] * 2),
        (lambda: convolution_stack(3, 16), (2, 80, 50), [50] * 3),
    ],
    ids=["resnet20", "resnet8", "resnet34", "wrn16", "conformer"],
)
def test_the_features_have_the_published_sizes(
    make: Callable[[], Backbone], shape: tuple[int, ...], sides: list[int]
) -> None:
    with META:
        model = make().eval()
        x, seen = model.stem(torch.empty(shape)), []
        for block in model.blocks:
            x = block(x)
            seen.append(x.shape[-1])
    assert seen == sides


SMALL = {
    "resnet8": (lambda: resnet_cifar(8, width=6, channels=1, classes=4), (3, 1, 8, 8)),
    "resnet34": (lambda: resnet34(width=4, classes=4), (2, 3, 40, 33)),
    "wrn10": (lambda: wide_resnet(10, 1, classes=4, dropout=0.3), (3, 3, 9, 8)),
    "conformer": (lambda: convolution_stack(2, 6, features=5, classes=4, kernel=3), (3, 5, 11)),
    "full conformer": (lambda: convolution_stack(2, 6, features=5, classes=4, kernel=3, depthwise=False), (3, 5, 11)),
}


@pytest.mark.parametrize("name", SMALL)
def test_stem_blocks_and_head_in_order_are_the_model(name: str) -> None:
    make, shape = SMALL[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    y = model.stem(x)
    for block in model.blocks:
        y = block(y)
    torch.testing.assert_close(model.head(y), model(x), rtol=0, atol=0)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"stem", "blocks", "head"}


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    make, shape = SMALL[name]
    torch.manual_seed(0)
    model = make().train()
    scores = model(torch.randn(shape))
    assert scores.shape == (shape[0], 4)
    F.cross_entropy(scores, torch.arange(shape[0])).backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not still


def test_a_basic_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = running_statistics(BasicBlock(4, 6, 2, Subsample(2, 2)))
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    inner = normalised(block.norm1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp(min=0)
    residual = normalised(block.norm2, F.conv2d(inner, block.conv2.weight, padding=1))
    shortcut = torch.zeros(2, 6, 4, 3, dtype=torch.float64)
    shortcut[:, :4] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), (residual + shortcut).clamp(min=0))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_wide_block_is_its_formula(stride: int) -> None:
    torch.manual_seed(0)
    block = running_statistics(WideBlock(4, 4, stride=stride, dropout=0.3))
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    active = normalised(block.norm1, x).clamp(min=0)
    inner = normalised(block.norm2, F.conv2d(active, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
    shortcut = x if stride == 1 else F.conv2d(active, block.projection.weight, stride=2)
    torch.testing.assert_close(block(x), F.conv2d(inner, block.conv2.weight, padding=1) + shortcut)


def test_a_convolution_module_is_its_formula() -> None:
    torch.manual_seed(0)
    C, k, frames = 6, 5, 9
    module = running_statistics(ConvolutionModule(C, k))
    nn.init.uniform_(module.norm.weight)
    nn.init.uniform_(module.norm.bias)
    x = torch.randn(2, C, frames, dtype=torch.float64)
    centred = x - x.mean(1, keepdim=True)
    norm = centred / (centred.square().mean(1, keepdim=True) + module.norm.eps).sqrt()
    norm = norm * module.norm.weight[:, None] + module.norm.bias[:, None]
    wide = torch.einsum("ts,bsh->bth", module.widen.weight[..., 0], norm) + module.widen.bias[:, None]
    gated = F.pad(wide[:, :C] * wide[:, C:].sigmoid(), (k // 2, k // 2))
    along = module.along.bias[:, None] + sum(
        module.along.weight[:, 0, j, None] * gated[:, :, j : j + frames] for j in range(k)
    )
    active = normalised(module.batch_norm, along)
    active = active * active.sigmoid()
    mixed = torch.einsum("ts,bsh->bth", module.mix.weight[..., 0], active) + module.mix.bias[:, None]
    torch.testing.assert_close(module(x), x + mixed)


def test_a_full_module_whose_kernel_is_diagonal_is_the_depthwise_module() -> None:
    torch.manual_seed(0)
    depthwise, full = (ConvolutionModule(6, 5, depthwise=choice).double().eval() for choice in (True, False))
    state = depthwise.state_dict()
    kernel = state["along.weight"]
    state["along.weight"] = torch.eye(6, dtype=torch.float64)[:, :, None] * kernel
    full.load_state_dict(state)
    x = torch.randn(2, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(full(x), depthwise(x))


def test_convolutions_are_drawn_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    for model in (resnet_cifar(8, width=64), resnet34(width=32), wide_resnet(10, 4)):
        for block in model.blocks:
            for convolution in (block.conv1, block.conv2):
                variance = 2 / (convolution.out_channels * 9)
                assert convolution.weight.var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("depth", [2, 9, 18, 34])
def test_a_depth_that_no_resnet_for_cifar_has(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6n \+ 2 layers, and {depth} is not 8, 14, 20"):
        resnet_cifar(depth)


@pytest.mark.parametrize("depth", [4, 18, 27])
def test_a_depth_that_no_wide_resnet_has(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6n \+ 4 layers, and {depth} is not 10, 16, 22"):
        wide_resnet(depth, 2)


@pytest.mark.parametrize("kernel", [0, 32, -3])
def test_a_kernel_that_no_padding_keeps(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"odd number of frames, such as 31, and not {kernel}"):
        ConvolutionModule(8, kernel)
