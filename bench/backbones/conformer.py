"""The convolution module of a conformer, and a stack of them.

Gulati et al., "Conformer: convolution-augmented transformer for speech recognition" (Interspeech 2020), section 2.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone


class ConvolutionModule(nn.Module):
    """Figure 2: layer norm, pointwise, gate, along the frames, batch norm, SiLU, pointwise, dropout; added to x.

    (b, channels, frames) keeps its shape.

    Args:
        channels: of x; the first pointwise convolution makes twice as many, of which the gate leaves half.
        kernel: frames that the convolution along them reads, an odd number.
        dropout: probability with which a value of the residual is zero in training.
        depthwise: whether the convolution along the frames reads one channel for each, as the paper's, or joins all.

    Raises:
        ValueError: the kernel is not odd, so that no padding on both sides keeps the number of frames.
    """

    def __init__(self, channels: int, kernel: int = 31, *, dropout: float = 0.1, depthwise: bool = True) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"the kernel of a convolution module is an odd number of frames, such as 31, and not {kernel}"
            )
        groups = channels if depthwise else 1
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Conv1d(channels, 2 * channels, 1)
        self.along = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=groups)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.mix = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        normalised = self.norm(x.mT).mT  # a layer norm reads the last dimension
        gated = F.glu(self.widen(normalised), dim=1)
        active = F.silu(self.batch_norm(self.along(gated)))
        residual: Tensor = self.dropout(self.mix(active))
        return x + residual


def convolution_stack(
    depth: int,
    channels: int,
    *,
    features: int = 80,
    classes: int = 35,
    kernel: int = 31,
    dropout: float = 0.1,
    depthwise: bool = True,
) -> Backbone:
    """A recogniser of spoken words: `depth` convolution modules between a pointwise map and an average over the frames.

    The input is (b, features, frames), the scores are (b, classes).

    Args:
        depth: convolution modules.
        channels: of every module.
        features: of one frame; 80 filter banks in the paper.
        classes: scores of one recording.
        kernel: frames that each module reads, an odd number.
        dropout: of every module.
        depthwise: as for one `ConvolutionModule`.

    Raises:
        ValueError: the kernel is not odd.
    """
    blocks = [ConvolutionModule(channels, kernel, dropout=dropout, depthwise=depthwise) for _ in range(depth)]
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, classes))
    return Backbone(nn.Conv1d(features, channels, 1), blocks, head)
