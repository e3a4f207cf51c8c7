"""Residual networks: of depth 6n + 2 for pictures of CIFAR's size, and ResNet-34 for ImageNet's.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone, average_and_classify, initialise

Shortcut = Callable[[int, int], nn.Module]  # of the channels before and after, where a stage begins


class Subsample(nn.Module):
    """The shortcut without parameters (section 3.3, option A): every `stride`-th pixel, and zeros in `extra` channels.

    (b, c, h, w) becomes (b, c + extra, ceil(h / stride), ceil(w / stride)).
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, and append the zeros."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """The two sizes."""
        return f"extra={self.extra}, stride={self.stride}"


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), where F is two 3x3 convolutions (figures 2 and 5, left).

    (b, inputs, h, w) becomes (b, outputs, ceil(h / stride), ceil(w / stride)).

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        stride: of the first convolution.
        shortcut: gives x the shape of the result.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


def resnet_cifar(depth: int, *, classes: int = 10, width: int = 16, channels: int = 3) -> Backbone:
    """The residual network of section 4.2: three stages of n blocks, `width`, 2 `width` and 4 `width` channels wide.

    No shortcut has parameters. The input is (b, channels, h, w); 32 x 32 pixels are 8 x 8 in the last stage.

    Args:
        depth: 6n + 2, the number of convolutions and linear maps: 8, 14, 20, 32, 44, 56, ...
        classes: scores of one picture.
        width: channels of the first stage, 16 in the paper.
        channels: of the input.

    Raises:
        ValueError: the depth is not 6n + 2 with n of at least 1.
    """
    repeats, rest = divmod(depth - 2, 6)
    if rest or repeats < 1:
        raise ValueError(f"a ResNet for CIFAR has 6n + 2 layers, and {depth} is not 8, 14, 20, 26, 32, ...")
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )
    return _assembled(stem, width, (repeats,) * 3, classes, _subsampling)


def resnet34(*, classes: int = 1000, width: int = 64, channels: int = 3) -> Backbone:
    """The ResNet-34 of table 1, where a shortcut that changes the shape is a 1x1 convolution (option B).

    The input is (b, channels, h, w); 224 x 224 pixels are 7 x 7 in the last stage.

    Args:
        classes: scores of one picture.
        width: channels of the first stage, 64 in the paper; the stages are 1, 2, 4 and 8 times as wide.
        channels: of the input.
    """
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    return _assembled(stem, width, (3, 4, 6, 3), classes, _projection)


def _subsampling(inputs: int, outputs: int) -> nn.Module:
    return Subsample(outputs - inputs, 2)


def _projection(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


def _assembled(stem: nn.Module, width: int, repeats: Sequence[int], classes: int, shortcut: Shortcut) -> Backbone:
    """Stages of `repeats` blocks; each after the first doubles the channels and halves the picture as it begins."""
    blocks, inputs = [], width
    for stage, blocks_of_stage in enumerate(repeats):
        outputs = width * 2**stage
        for position in range(blocks_of_stage):
            first = stage > 0 and position == 0
            across = shortcut(inputs, outputs) if first else nn.Identity()
            blocks.append(BasicBlock(inputs, outputs, 2 if first else 1, across))
            inputs = outputs
    model = Backbone(stem, blocks, average_and_classify(inputs, classes))
    initialise(model)
    return model
