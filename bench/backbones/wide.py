"""Wide residual networks: Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone, average_and_classify, initialise

STEM = 16  # channels of the first convolution, whatever the width (table 1)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after its batch norm and ReLU, added to the input (figure 1c and 1d).

    Where the shape changes, the shortcut is a 1x1 convolution of the normalised input instead.
    (b, inputs, h, w) becomes (b, outputs, ceil(h / stride), ceil(w / stride)).

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        stride: of the first convolution.
        dropout: probability with which a feature between the convolutions is zero in training.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs or stride > 1
        self.projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        active = F.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(active)
        between = self.dropout(F.relu(self.norm2(self.conv1(active))))
        y: Tensor = self.conv2(between) + shortcut
        return y


def wide_resnet(depth: int, width: int, *, classes: int = 10, channels: int = 3, dropout: float = 0.0) -> Backbone:
    """WRN-`depth`-`width`: three stages of n blocks, 16, 32 and 64 times `width` channels wide (table 1).

    The input is (b, channels, h, w); 32 x 32 pixels are 8 x 8 in the last stage.

    Args:
        depth: 6n + 4: 10, 16, 22, 28, 40, ...
        width: the paper's k.
        classes: scores of one picture.
        channels: of the input.
        dropout: of every block; 0.3 in section 3.3.

    Raises:
        ValueError: the depth is not 6n + 4 with n of at least 1.
    """
    repeats, rest = divmod(depth - 4, 6)
    if rest or repeats < 1:
        raise ValueError(f"a Wide-ResNet has 6n + 4 layers, and {depth} is not 10, 16, 22, 28, 34, 40, ...")
    blocks, inputs = [], STEM
    for stage in range(3):
        outputs = 16 * width * 2**stage
        for position in range(repeats):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(WideBlock(inputs, outputs, stride=stride, dropout=dropout))
            inputs = outputs
    stem = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
    head = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), *average_and_classify(inputs, classes))
    model = Backbone(stem, blocks, head)
    initialise(model)
    return model
