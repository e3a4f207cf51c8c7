"""What every backbone is: a stem, blocks in a row, a head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that can be run, or taught, block by block: the stem, then the blocks in order, then the head.

    Args:
        stem: makes the first features of the input.
        blocks: the body; each reads what the one before it wrote.
        head: makes the scores (b, classes) of the last features.
    """

    def __init__(self, stem: nn.Module, blocks: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Run the whole network."""
        scores: Tensor = self.head(self.blocks(self.stem(x)))
        return scores


def initialise(model: nn.Module) -> None:
    """Draw the weight of every Conv2d from a normal distribution of variance 2 / fan_out, in place.

    As in He et al., "Delving deep into rectifiers" (ICCV 2015), equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def average_and_classify(features: int, classes: int) -> nn.Sequential:
    """Scores (b, classes) of features (b, features, h, w): their average over the picture, and a linear map."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))
