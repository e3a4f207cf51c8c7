"""The recurrent layers of pictures beside the same steps written by hand as calls of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from convein.layers import ConvLSTM, ConvTTLSTM
from measure import Group

STEPS = 6


@dataclass(frozen=True, slots=True)
class Job:
    """A sequence and its layer: batch, channels of x and h, rank, order, stored states, kernel, size of a picture."""

    batch: int
    inputs: int
    hidden: int
    rank: int
    order: int
    steps: int
    kernel: int
    size: int

    def __str__(self) -> str:
        train = f"order {self.order} steps {self.steps} rank {self.rank}"
        return f"{self.inputs} to {self.hidden} channels {train} kernel {self.kernel} at {self.size} batch {self.batch}"


JOBS = (
    Job(4, 32, 32, 8, 3, 3, 5, 32),
    Job(8, 1, 16, 4, 3, 3, 3, 16),
    Job(8, 16, 16, 4, 3, 5, 3, 32),
    Job(1, 32, 48, 8, 3, 3, 5, 64),
)


def gates(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h and c, from the gates i, f, o, g."""
    i, f, o, g = z.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def conv_tt_lstm(layer: ConvTTLSTM, frames: Tensor) -> Tensor:
    """Every P(i), every G(i) and the gates are a convolution each, as the formulas have it."""
    cell, pad = layer.cell, layer.cell.kernel_size[0] // 2
    p = dict(cell.named_parameters())
    reading = [p[f"P{i}"].flatten(1, 2) for i in range(1, cell.order + 1)]
    joined = torch.cat((p["W"], p["G1"]), 1)
    c = frames.new_zeros((frames.shape[1], cell.hidden_channels, *frames.shape[3:]))
    past, outputs = [c] * cell.steps, []
    for x in frames:
        v = None
        for i in range(cell.order, 0, -1):
            newest = cell.steps - i + 1
            states = torch.cat(past[newest - cell.stored : newest], 1)
            read = F.conv2d(states, reading[i - 1], p[f"P{i}_bias"], padding=pad)
            v = read if v is None else read + F.conv2d(v, p[f"G{i + 1}"], p[f"G{i + 1}_bias"], padding=pad)
        assert v is not None
        h, c = gates(F.conv2d(torch.cat((x, v), 1), joined, p["bias"], padding=pad), c)
        past = [*past[1:], h]
        outputs.append(h)
    return torch.stack(outputs)


def conv_lstm(layer: ConvLSTM, frames: Tensor) -> Tensor:
    """One convolution a step."""
    cell, pad = layer.cell, layer.cell.kernel_size[0] // 2
    joined = torch.cat((cell.W, cell.K), 1)
    h = c = frames.new_zeros((frames.shape[1], cell.hidden_channels, *frames.shape[3:]))
    outputs = []
    for x in frames:
        h, c = gates(F.conv2d(torch.cat((x, h), 1), joined, cell.bias, padding=pad), c)
        outputs.append(h)
    return torch.stack(outputs)


def forward(call: Callable[[Tensor], Tensor], frames: Tensor) -> None:
    """Without gradients."""
    with torch.no_grad():
        call(frames)


def backward(call: Callable[[Tensor], Tensor], frames: Tensor) -> None:
    """With those of everything."""
    call(frames).sum().backward()  # type: ignore[no-untyped-call]


def groups() -> Iterator[Group]:
    """Each job with either layer, forward and with the backward pass; by hand is first."""
    for job in JOBS:
        tensor_train = ConvTTLSTM(
            job.inputs, job.hidden, job.kernel, order=job.order, steps=job.steps, ranks=job.rank
        )  # fmt: skip
        plain = ConvLSTM(job.inputs, job.hidden, job.kernel)
        frames = torch.randn(STEPS, job.batch, job.inputs, job.size, job.size, requires_grad=True)
        pairs: dict[str, tuple[Callable[[Tensor], Tensor], ConvTTLSTM | ConvLSTM]] = {
            "ConvTTLSTM": (partial(conv_tt_lstm, tensor_train), tensor_train),
            "ConvLSTM": (partial(conv_lstm, plain), plain),
        }
        for name, (by_hand, layer) in pairs.items():
            with torch.no_grad():
                torch.testing.assert_close(layer(frames)[0], by_hand(frames), rtol=1e-3, atol=1e-4)
            for kind, run in (("forward", forward), ("forward and backward", backward)):
                variants = {
                    "by hand": partial(run, by_hand, frames),
                    "convein": partial(run, partial(_outputs, layer), frames),
                }
                yield Group(f"{name} {job} {kind}", variants)


def _outputs(layer: ConvTTLSTM | ConvLSTM, frames: Tensor) -> Tensor:
    outputs: Tensor = layer(frames)[0]
    return outputs
