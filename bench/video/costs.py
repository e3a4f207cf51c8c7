"""What a training step costs: its time, measured in turns, and the memory that it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from convein.layers import FramePredictor
from convein.layers.sampling import frame_loss
from convein.metering import LiveMemory
from measure import Group, measure
from video.experiment import KINDS, Experiment


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: how many.
        epoch: seconds for forward and backward of one epoch, on one thread.
        kept: bytes that are alive between the forward and the backward pass of a batch, inputs and parameters excluded.
        checkpointed: likewise, with checkpoints.
    """

    parameters: int
    epoch: float
    kept: int
    checkpointed: int


def loss(model: FramePredictor, videos: Tensor, inputs: int) -> Tensor:
    """Of a batch, all of whose inputs are true."""
    future = videos.shape[1] - inputs
    return frame_loss(model(videos[:, :inputs], future, truth=videos[:, inputs:]), videos)


def step(model: FramePredictor, videos: Tensor, inputs: int) -> None:
    """Forward and backward of one batch."""
    model.zero_grad()
    loss(model, videos, inputs).backward()  # type: ignore[no-untyped-call]


def kept_bytes(model: FramePredictor, videos: Tensor, inputs: int) -> int:
    """What is alive when the forward pass of a batch has ended."""
    with LiveMemory() as memory:
        held = loss(model, videos, inputs)
        found: int = memory.live
    del held
    return found


def costs(experiment: Experiment, rounds: int, progress: Callable[[], object]) -> dict[str, Cost]:
    """What the networks cost, by kind; `progress` is called after every round."""
    videos = experiment.split()[0][: experiment.batch]
    made = {kind: experiment.network(kind, 0) for kind in KINDS}
    calls = {kind: partial(step, model, videos, experiment.inputs) for kind, model in made.items()}
    found = {}
    for timing in measure(Group("training step", calls), rounds, seconds=6.0):
        if timing is None:
            progress()
            continue
        kind = timing.variant
        found[kind] = Cost(
            sum(parameter.numel() for parameter in made[kind].parameters()),
            timing.median * experiment.batches,
            kept_bytes(made[kind], videos, experiment.inputs),
            kept_bytes(experiment.network(kind, 0, checkpoint=True), videos, experiment.inputs),
        )
    return found
