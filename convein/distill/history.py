"""What a distillation has to tell: the loss of every epoch of every block, printed as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class History:
    """The losses of a distillation, by block and epoch.

    Attributes:
        blocks: names of the blocks in the order of training; `("student",)` of an end-to-end distillation.
        losses: for each block the mean squared error of every epoch, over all entries of all its batches, as it was
            while the block was being trained; empty for a block that has nothing to train.
    """

    blocks: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        width = max(len("block"), *map(len, self.blocks))
        lines = [f"{'block':{width}}  {'epochs':>6}  {'first loss':>10}  {'last loss':>10}  {'least loss':>10}"]
        for block, losses in zip(self.blocks, self.losses):
            if losses:
                numbers = "  ".join(f"{loss:10.3e}" for loss in (losses[0], losses[-1], min(losses)))
                lines.append(f"{block:{width}}  {len(losses):6}  {numbers}")
            else:
                lines.append(f"{block:{width}}  {0:6}  nothing to train")
        return "\n".join(lines)
