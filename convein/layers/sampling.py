"""Training a network on its own predictions, a little more every epoch: scheduled sampling.

S. Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks", NeurIPS 2015; the
schedule and the loss are those of J. Su, W. Byeon et al., "Convolutional Tensor-Train LSTM for Spatio-Temporal
Learning", NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.errors import OptionError, ShapeError
from convein.layers.conv import positive
from convein.layers.video import FramePredictor
from convein.options import shown


def draw_forced(
    batch: int,
    steps: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """In which samples and steps the true frame is the input: each with probability `ratio`, (batch, steps) of bool.

    Raises:
        OptionError: the ratio is no probability.
    """
    if not 0 <= ratio <= 1:
        raise OptionError(f"ratio={shown(ratio)} is no probability", hint="a number from 0 to 1")
    return torch.rand(batch, steps, generator=generator, device=device) < ratio


def frame_loss(predicted: Tensor, frames: Tensor) -> Tensor:
    """The mean absolute and the mean squared error, added.

    Args:
        predicted: (batch, time, channels, h, w).
        frames: the true frames, as many or more: the last ones count.

    Raises:
        ShapeError: they are of different shapes, or there are fewer.
    """
    if frames.ndim != 5 or predicted.ndim != 5 or frames.shape[1] < predicted.shape[1]:
        raise ShapeError(f"{tuple(frames.shape)} true frames for {tuple(predicted.shape)} predicted ones")
    last = frames[:, frames.shape[1] - predicted.shape[1] :]
    if last.shape != predicted.shape:
        raise ShapeError(f"{tuple(frames.shape)} true frames for {tuple(predicted.shape)} predicted ones")
    return F.l1_loss(predicted, last) + F.mse_loss(predicted, last)


def train_step(
    model: FramePredictor,
    optimizer: torch.optim.Optimizer,
    frames: Tensor,
    inputs: int,
    ratio: float = 1.0,
    *,
    clip: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of training with scheduled sampling.

    Args:
        model: predicts all frames but the first.
        optimizer: of its parameters.
        frames: (batch, time, channels, h, w).
        inputs: how many of them the model is given; each later one with probability `ratio`.
        ratio: 1 is teacher forcing, 0 is what the model does without the truth.
        clip: the largest norm of all gradients together; None does not clip them.
        generator: of the draw, on the device of the frames.

    Returns:
        The loss, detached.

    Raises:
        OptionError: there are not more frames than `inputs`, or the ratio is no probability.
    """
    future = frames.shape[1] - positive("inputs", inputs)
    if future < 1:
        raise OptionError(f"inputs={inputs} of {frames.shape[1]} frames", hint="fewer: the others are to be predicted")
    forced = draw_forced(frames.shape[0], future - 1, ratio, generator=generator, device=frames.device)
    optimizer.zero_grad()
    predicted = model(frames[:, :inputs], future, truth=frames[:, inputs:], forced=forced)
    loss = frame_loss(predicted, frames)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


class SamplingSchedule:
    """The probability of true inputs and the learning rate, epoch by epoch, from the loss on held-back videos.

    At first every input is true. Once the loss has not improved for `patience` epochs, the probability falls by
    `ratio_decay` every epoch, to 0; once it has not improved for as many epochs again, the learning rates are
    multiplied by `rate_decay` every `rate_epochs` epochs, too.

    Args:
        optimizer: whose learning rates are scheduled.
        patience: epochs.
        ratio_decay: per epoch.
        rate_decay: factor.
        rate_epochs: epochs between two of its multiplications.

    Attributes:
        ratio: the probability for the next epoch.
        epoch: how many have ended.
        best: the least loss so far.
        waited: epochs since then, or since the last plateau.
        plateaus: how many there have been: 0, 1 or 2.
        decays: epochs with the second plateau behind them.

    Raises:
        OptionError: an argument is out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        patience: int = 20,
        ratio_decay: float = 4e-3,
        rate_decay: float = 0.98,
        rate_epochs: int = 5,
    ) -> None:
        self.optimizer = optimizer
        self.patience = positive("patience", patience)
        self.rate_epochs = positive("rate_epochs", rate_epochs)
        for name, value in (("ratio_decay", ratio_decay), ("rate_decay", rate_decay)):
            if not 0 < value <= 1:
                raise OptionError(f"{name}={shown(value)}", hint="a number above 0, at most 1")
        self.ratio_decay, self.rate_decay = ratio_decay, rate_decay
        self.ratio, self.best = 1.0, inf
        self.epoch = self.waited = self.plateaus = self.decays = 0

    def step(self, loss: float | Tensor) -> None:
        """Ends an epoch.

        Args:
            loss: on held-back videos, predicted without true inputs.
        """
        self.epoch += 1
        self.waited += 1
        if float(loss) < self.best:
            self.best, self.waited = float(loss), 0
        if self.waited == self.patience and self.plateaus < 2:
            self.plateaus, self.waited = self.plateaus + 1, 0
        if self.plateaus:
            self.ratio = max(0.0, self.ratio - self.ratio_decay)
        if self.plateaus == 2:
            self.decays += 1
            if self.decays % self.rate_epochs == 0:
                for group in self.optimizer.param_groups:
                    group["lr"] *= self.rate_decay

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer, whose own state has the learning rates."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            OptionError: it comes from something else.
        """
        if set(state) != set(self.state_dict()):
            raise OptionError(
                f"this state has {', '.join(sorted(state)) or 'nothing'}",
                hint="what SamplingSchedule.state_dict() returns",
            )
        vars(self).update(state)
