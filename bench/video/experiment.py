"""One experiment: videos of moving digits, two networks that differ in their cells only, and one way to train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from convein.layers import ConvLSTMCell, FramePredictor
from convein.layers.sampling import train_step
from datasets.moving import digit_pictures, moving_digits

CONV_TT_LSTM, CONV_LSTM = KINDS = ("Conv-TT-LSTM", "ConvLSTM")
# The part of the epochs in which true inputs become rarer, until there are none.
FORCED = 0.6


@dataclass(frozen=True, slots=True)
class Experiment:
    """What all jobs of a run share.

    Attributes:
        folder: of MNIST's files; None: scikit-learn's digits.
        size, digit: pixels of a frame, and of a digit in it.
        digits: in a video.
        speed: of them, see `moving_digits`.
        inputs, future: frames that are given and that are predicted.
        videos, held_back: to train on, and to test on, with other digits.
        batch, epochs, rate: of training.
        hidden: channels of each block, which has one layer.
        kernel: size of all kernels.
        order, steps, rank: of the Conv-TT-LSTM.
    """

    folder: Path | None = None
    size: int = 16
    digit: int = 7
    digits: int = 1
    speed: float = 1.0
    inputs: int = 6
    future: int = 6
    videos: int = 960
    held_back: int = 256
    batch: int = 16
    epochs: int = 8
    rate: float = 5e-3
    hidden: tuple[int, ...] = (8, 8)
    kernel: int = 5
    order: int = 3
    steps: int = 3
    rank: int = 3

    @property
    def batches(self) -> int:
        """Of one epoch."""
        return self.videos // self.batch

    def split(self) -> tuple[Tensor, Tensor]:
        """Videos to train on and to test on, (n, inputs + future, 1, size, size); always the same."""
        return _split(self)

    def network(self, kind: str, seed: int, *, checkpoint: bool = False) -> FramePredictor:
        """A network that nothing has been learnt by."""
        torch.manual_seed(seed)
        usual: dict[str, Any] = {"kernel_size": self.kernel, "checkpoint": checkpoint}
        if kind == CONV_LSTM:
            return FramePredictor(1, self.hidden, 1, skip=None, cell=ConvLSTMCell, **usual)
        tensor_train: dict[str, Any] = {"order": self.order, "steps": self.steps, "ranks": self.rank}
        return FramePredictor(1, self.hidden, 1, skip=None, **tensor_train, **usual)


@cache
def _split(experiment: Experiment) -> tuple[Tensor, Tensor]:
    train, test = digit_pictures(experiment.digit, experiment.folder)
    frames = experiment.inputs + experiment.future
    looks: dict[str, Any] = {"digits": experiment.digits, "size": experiment.size, "speed": experiment.speed}
    return (
        moving_digits(train, experiment.videos, frames, seed=1, **looks),
        moving_digits(test, experiment.held_back, frames, seed=2, **looks),
    )


@dataclass(frozen=True, slots=True)
class Quality:
    """How good predicted frames are, on the average over all of them.

    Attributes:
        mse: of a pixel.
        psnr: in decibels.
        ssim: 1 is perfect.
    """

    mse: float
    psnr: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one job.

    Attributes:
        next: of the first predicted frame.
        all: of all of them, each predicted from the ones before.
        strip: some test videos as predicted, (videos, future, size, size).
    """

    next: Quality
    all: Quality
    strip: Tensor


def quality(predicted: Tensor, true: Tensor) -> Quality:
    """Of frames (videos, time, 1, size, size), whose pixels are from 0 to 1."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ours, theirs = predicted.clamp(0, 1).flatten(0, 1), true.flatten(0, 1)
    ratio = peak_signal_noise_ratio(ours, theirs, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    similarity = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return Quality((ours - theirs).square().mean().item(), float(ratio), float(similarity))  # type: ignore[arg-type]


def attempt(experiment: Experiment, kind: str, seed: int, progress: Callable[[], object]) -> Outcome:
    """Trains a network and tests it; `progress` is called after every epoch."""
    train, test = experiment.split()
    model = experiment.network(kind, seed)
    optimizer = torch.optim.Adam(model.parameters(), experiment.rate)
    rates = OneCycleLR(optimizer, experiment.rate, total_steps=experiment.epochs * experiment.batches)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(experiment.epochs):
        ratio = max(0.0, 1 - epoch / (FORCED * experiment.epochs))
        order = torch.randperm(len(train), generator=generator)[: experiment.batches * experiment.batch]
        for rows in torch.split(order, experiment.batch):
            train_step(model, optimizer, train[rows], experiment.inputs, ratio, generator=generator)
            rates.step()
        progress()
    predicted = predict(model, experiment, test)
    true = test[:, experiment.inputs :]
    return Outcome(quality(predicted[:, :1], true[:, :1]), quality(predicted, true), predicted[:4, :, 0].clone())


@torch.no_grad()
def predict(model: FramePredictor, experiment: Experiment, videos: Tensor) -> Tensor:
    """The frames after the given ones, each from the predictions before it."""
    parts = [model(part[:, : experiment.inputs], experiment.future) for part in torch.split(videos, 64)]
    return torch.cat(parts)[:, -experiment.future :]


def repeated(experiment: Experiment) -> Mapping[str, Quality]:
    """What repeating the last given frame comes to, as `next` and `all`."""
    _, test = experiment.split()
    true = test[:, experiment.inputs :]
    last = test[:, experiment.inputs - 1 : experiment.inputs]
    return {"next": quality(last, true[:, :1]), "all": quality(last.expand_as(true), true)}
