"""A network that predicts the next frame of a video, and the next, from its own predictions.

J. Su, W. Byeon et al., "Convolutional Tensor-Train LSTM for Spatio-Temporal Learning", NeurIPS 2020: twelve recurrent
layers in four blocks, with connections that skip blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bias import biased
from convein.layers.conv import positive
from convein.layers.conv_tt_lstm import ConvTTLSTMCell
from convein.layers.ctt import draw
from convein.layers.recurrence import Cell, State, checked_segment, segments
from convein.options import shown
from convein.pipeline import conv_einsum

# A frame that is known, if it is, and in which samples of the batch it is the input; None: in all.
_Step = tuple[Tensor | None, Tensor | None]
# The states of all layers, and the last prediction.
_State = tuple[list[State], Tensor]


class FramePredictor(nn.Module):
    """Predicts frame t + 1 from the frames up to t: blocks of recurrent layers, and a 1 x 1 convolution at the end.

    With its defaults it has 2,687,281 parameters, and 3,973,201 with `ConvLSTMCell`.

    Args:
        channels: of a frame.
        hidden_channels: of the layers of each block.
        layers: how many each block has; one number for all.
        skip: the output of block b goes beside that of block b + skip into what follows it, so that it is less than
            the number of blocks; None: it does not.
        sigmoid: predictions are between 0 and 1.
        cell: the class of the layers: `ConvTTLSTMCell`, `ConvLSTMCell`, or a function of the channels of x and h.
        checkpoint: as for `ConvTTLSTM`: only the states between segments of time steps are kept for the backward pass.
        device, dtype: of the parameters.
        **options: of the cell: kernel_size, order, steps, ranks, ...

    Attributes:
        blocks: the cells, by block.
        head, head_bias: of the last convolution, (channels, inputs) and (channels,).

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        channels: int = 1,
        hidden_channels: Sequence[int] = (32, 48, 48, 32),
        layers: int | Sequence[int] = 3,
        *,
        skip: int | None = 2,
        sigmoid: bool = False,
        cell: Callable[..., Cell] = ConvTTLSTMCell,
        checkpoint: bool | int = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.channels = positive("channels", channels)
        if isinstance(hidden_channels, str) or not isinstance(hidden_channels, Sequence):
            raise OptionError(
                f"hidden_channels={shown(hidden_channels)} of the blocks",
                hint="one number for each block, such as (32, 48, 48, 32)",
            )
        self.hidden_channels = tuple(positive("hidden_channels", one) for one in hidden_channels)
        counts = [layers] * len(self.hidden_channels) if isinstance(layers, int) else list(layers)
        if not self.hidden_channels or len(counts) != len(self.hidden_channels):
            raise OptionError(
                f"layers={shown(layers)} for {len(self.hidden_channels)} blocks",
                hint="a number for all, or one for each",
            )
        self.skip = None if skip is None else positive("skip", skip)
        if self.skip is not None and self.skip >= len(self.hidden_channels):
            raise OptionError(
                f"skip={self.skip} of {len(self.hidden_channels)} blocks: none is so many after another",
                hint="fewer than there are blocks, or skip=None",
            )
        self.sigmoid = sigmoid
        self.checkpoint = checked_segment(checkpoint)
        placed = {"device": device, "dtype": dtype}
        blocks, inputs = [], self.channels
        for b, (hidden, count) in enumerate(zip(self.hidden_channels, counts, strict=True)):
            sizes = [inputs, *[hidden] * (positive("layers", count) - 1)]
            blocks.append(nn.ModuleList(_cell(cell(size, hidden, **options, **placed)) for size in sizes))
            inputs = hidden + sum(self.hidden_channels[other] for other in self._beside(b))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Parameter(torch.empty(self.channels, inputs, device=device, dtype=dtype))
        self.head_bias = nn.Parameter(torch.zeros(self.channels, device=device, dtype=dtype))
        draw(self.head, "xavier")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All recurrent layers, from the input to the output."""
        return tuple(cell for block in self.blocks for cell in cast("nn.ModuleList", block))  # type: ignore[misc]

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for cell in self.cells:
            cell.reset_parameters()
        draw(self.head, "xavier")
        nn.init.zeros_(self.head_bias)

    def forward(
        self, frames: Tensor, future: int = 1, *, truth: Tensor | None = None, forced: Tensor | None = None
    ) -> Tensor:
        """Predictions of the frames 2, 3, ..., to `future` frames after the given ones.

        Args:
            frames: (batch, time, channels, h, w).
            future: how many frames after the last one are predicted. Each of them but the last is the input for the
                next, unless it is known.
            truth: for training with scheduled sampling, what really follows the frames: (batch, future - 1, channels,
                h, w), or more.
            forced: (batch, future - 1), in which samples and steps the input is the true frame and not the predicted
                one, see `draw_forced`; by default everywhere where there is truth.

        Returns:
            (batch, time + future - 1, channels, h, w).

        Raises:
            ShapeError: frames, truth or forced are of another shape.
            OptionError: there is no future.
        """
        steps = self._steps(frames, positive("future", future) - 1, truth, forced)
        cells = self.cells
        weights = [cell.prepare() for cell in cells]
        states = [cell.start(frames[:, 0], prepared) for cell, prepared in zip(cells, weights, strict=True)]

        def run(state: _State, *steps: _Step) -> tuple[list[Tensor], _State]:
            states, x = state
            outputs = []
            for known, wanted in steps:
                if known is not None:
                    x = known if wanted is None else torch.where(wanted, known, x)
                x, states = self._advance(weights, x, states)
                outputs.append(x)
            return outputs, (states, x)

        outputs, _ = segments(run, (states, frames[:, 0]), steps, self.checkpoint)
        return torch.stack(outputs, 1)

    def _steps(self, frames: Tensor, more: int, truth: Tensor | None, forced: Tensor | None) -> list[_Step]:
        """What is known of the input of every step."""
        if frames.ndim != 5 or frames.shape[1] == 0 or frames.shape[2] != self.channels:
            raise ShapeError(
                f"the frames are {tuple(frames.shape)}",
                hint=f"(batch, time, {self.channels}, h, w), with one frame at least",
            )
        self.cells[0].check(frames[:, 0], None)
        steps: list[_Step] = [(frame, None) for frame in frames.unbind(1)]
        if truth is None:
            if forced is not None:
                raise OptionError("forced= says where the true frames are the input", hint="give them: truth=")
            return [*steps, *[(None, None)] * more]
        wanted = frames.shape[0], more, *frames.shape[2:]
        if truth.ndim != 5 or truth.shape[1] < more or (truth.shape[0], more, *truth.shape[2:]) != wanted:
            raise ShapeError(f"the true frames are {tuple(truth.shape)}", hint=f"{wanted}: future - 1 of them, or more")
        if forced is None:
            return [*steps, *((truth[:, t], None) for t in range(more))]
        if tuple(forced.shape) != wanted[:2] or forced.dtype != torch.bool:
            raise ShapeError(
                f"forced is {tuple(forced.shape)} of {forced.dtype}",
                hint=f"{wanted[:2]} of torch.bool: batch, future - 1",
            )
        return [*steps, *((truth[:, t], forced[:, t].view(-1, 1, 1, 1)) for t in range(more))]

    def _advance(self, weights: Sequence[Any], x: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """One step of all layers: the predicted frame, and their states."""
        after: list[State] = []
        outputs: list[Tensor] = []
        steps = iter(zip(self.cells, weights, states, strict=True))
        for b, block in enumerate(self.blocks):
            for cell, prepared, state in islice(steps, len(cast("nn.ModuleList", block))):
                x, new = cell.advance(prepared, x, state)
                after.append(new)
            outputs.append(x)
            if beside := self._beside(b):
                x = torch.cat([x, *(outputs[other] for other in beside)], 1)
        x = biased(conv_einsum("bshw,ts->bthw", x, self.head), self.head_bias.view(-1, 1, 1))
        return x.sigmoid() if self.sigmoid else x, after

    def _beside(self, b: int) -> tuple[int, ...]:
        """The earlier block whose output goes beside that of block b, if there is one."""
        return () if self.skip is None or b < self.skip else (b - self.skip,)

    def extra_repr(self) -> str:
        """Arguments that no cell shows."""
        parts = [f"{self.channels}, {self.hidden_channels}, skip={self.skip}"]
        parts += [f"{name}={getattr(self, name)}" for name in ("sigmoid", "checkpoint") if getattr(self, name)]
        return ", ".join(parts)


def _cell(made: object) -> Cell:
    if not isinstance(made, Cell):
        raise OptionError(
            f"cell= makes {type(made).__name__}, which is no cell",
            hint="ConvTTLSTMCell, ConvLSTMCell, or a function of the channels of x and h that returns one of them",
        )
    return made
