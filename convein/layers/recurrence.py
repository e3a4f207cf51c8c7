"""Recurrent layers of pictures: a cell that runs over a sequence in one call, and how much is kept for gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import ceil, isqrt
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from convein.errors import OperandError, OptionError, ShapeError
from convein.execution import kernels
from convein.execution.ops import is_untraced, transposed
from convein.layers.bias import biased
from convein.layers.conv import each, positive
from convein.layers.ctt import INITS, STAGE
from convein.layers.misfits import input_of_another_kind
from convein.options import as_bool, as_integer, one_of, shown
from convein.pipeline import conv_einsum

# What a cell knows after a step: the hidden states it will read again, oldest first, the cell state, and more.
State = tuple[Tensor, ...]
S = TypeVar("S")


class Cell(nn.Module, ABC):
    """What all cells have in common: one step of a recurrence over pictures, with the gates of an LSTM.

    Attributes:
        in_channels, hidden_channels: of x and of h.
        kernel_size: of all convolutions, (kh, kw).
        padding_mode: "zeros" or "circular".
        init: "xavier", with biases of zero, or "torch".
        W: the kernel of x.
    """

    W: nn.Parameter

    def __init__(
        self, in_channels: int, hidden_channels: int, kernel_size: int | tuple[int, int], padding_mode: str, init: str
    ) -> None:
        super().__init__()
        self.in_channels = positive("in_channels", in_channels)
        self.hidden_channels = positive("hidden_channels", hidden_channels)
        self.kernel_size = each("kernel_size", kernel_size, 2)
        self.padding_mode = one_of("padding_mode", padding_mode, tuple(STAGE))
        self.init = one_of("init", init, INITS)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws all parameters anew."""

    @abstractmethod
    def prepare(self) -> tuple[Any, ...]:
        """The parameters as the steps take them: once for a whole sequence."""

    @property
    @abstractmethod
    def state_channels(self) -> tuple[int, ...]:
        """The channels of each tensor of the state, all of them (batch, channels, h, w)."""

    @abstractmethod
    def start(self, x: Tensor, weights: tuple[Any, ...]) -> State:
        """The state before the first step: all hidden states so far were zero.

        Args:
            x: some input; its batch, sizes, dtype and device count.
            weights: what `prepare` returns.
        """

    @abstractmethod
    def advance(self, weights: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, with prepared weights: h and the next state."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step.

        Args:
            x: (batch, in_channels, h, w).
            state: what the step before returned; None before the first.

        Returns:
            The hidden state (batch, hidden_channels, h, w), and the state for the next step.

        Raises:
            ShapeError: x is of another shape, or the state is not one of this cell for such an x.
            OperandError: x or the state is of another dtype or on another device than the weights.
        """
        self.check(x, state)
        weights = self.prepare()
        return self.advance(weights, x, self.start(x, weights) if state is None else state)

    def check(self, x: Tensor, state: State | None, *, leading: str = "batch") -> None:
        """Raises ShapeError or OperandError if the input does not fit the cell or the state."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"the input of {type(self).__name__} is {tuple(x.shape)}",
                hint=f"({leading}, {self.in_channels}, h, w)" if leading == "batch" else leading,
            )
        if not self._takes(x) and (error := input_of_another_kind(x, [self.W])) is not None:
            raise error
        if state is not None:
            self._check_state(x, state)

    def _check_state(self, x: Tensor, state: object) -> None:
        wanted = [(x.shape[0], channels, *x.shape[2:]) for channels in self.state_channels]
        name = type(self).__name__
        if not isinstance(state, (tuple, list)) or not all(isinstance(one, Tensor) for one in state):
            what = f"a tensor {tuple(state.shape)}" if isinstance(state, Tensor) else shown(state)
            raise ShapeError(f"the state of {name} is {what}", hint=f"a tuple of tensors {_listed(wanted)}")
        came = [tuple(one.shape) for one in state]
        if came != wanted:
            raise ShapeError(
                f"the state of {name} is {len(came)} tensors {_listed(came)}, and the input of a step {tuple(x.shape)}",
                hint=f"it goes with {len(wanted)} tensors {_listed(wanted)}: what the same layer returned for the "
                "steps before; None starts a new sequence",
            )
        for one in state:
            if not self._takes(one):
                raise OperandError(
                    f"the state of {name} is {one.dtype} on {one.device}, "
                    f"and the weights are {self.W.dtype} on {self.W.device}",
                    hint=f"convert its tensors with .to({str(self.W.device)!r}, {self.W.dtype})",
                )

    def _takes(self, value: Tensor) -> bool:
        """Whether a value is of the dtype and on the device of the weights, or autocast makes it so."""
        if value.device != self.W.device or value.dtype == self.W.dtype:
            return value.device == self.W.device
        # Autocast leaves integers and float64 as they are.
        cast = all(one.is_floating_point() and one.dtype != torch.float64 for one in (value, self.W))
        return cast and torch.is_autocast_enabled(value.device.type)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A convolution that keeps the picture's size."""
        value: Tensor = conv_einsum(STAGE[self.padding_mode], x, weight)
        return value if bias is None else biased(value, bias)

    def explain(self) -> str:
        """What computes the gates: a kernel, or plain calls, and why.

        For states of the dtype and on the device of the weights, outside of graphs and of torch.func.
        """
        z, cell = (self.W.new_empty(1, count * self.hidden_channels, 1, 1) for count in (4, 1))
        reason = kernels.hindrance(z, cell) or kernels.refusal("lstm_gates", z, cell)
        if reason is not None:
            return f"The gates are plain calls: {reason}."
        return "The gates are one kernel, lstm_gates, and another one in the backward pass, which computes them again."

    def extra_repr(self) -> str:
        """Arguments, those that are usual left out."""
        more = {"padding_mode": "zeros", "init": "xavier"}
        parts = [f"{name}={getattr(self, name)!r}" for name, value in more.items() if getattr(self, name) != value]
        return ", ".join([f"{self.in_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}", *parts])


def gated(z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The gates of an LSTM: h and the cell state, from the gates i, f, o, g side by side along the channels."""
    if kernels.hindrance(z, cell) is None and kernels.refusal("lstm_gates", z, cell) is None:
        found: tuple[Tensor, Tensor] = kernels.call("lstm_gates", z, cell)
        return found
    i, f, o, g = _by_channels(z).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _by_channels(z: Tensor) -> Tensor:
    """The same pictures, those of one channel together: in any other order a gate is scattered, and slow to read."""
    if not is_untraced():
        return z.contiguous()
    if z.is_contiguous():
        return z
    batch, channels, high, wide = z.shape
    return transposed(z.permute(0, 2, 3, 1).reshape(batch, high * wide, channels)).reshape(z.shape)


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "()"


def zeros(x: Tensor, channels: int) -> Tensor:
    """Zeros (batch, channels, h, w) beside x."""
    return x.new_zeros((x.shape[0], channels, *x.shape[2:]))


C = TypeVar("C", bound=Cell)


class Recurrent(nn.Module, Generic[C]):
    """A cell that runs over sequences, as nn.LSTM does.

    Args:
        cell: makes the steps.
        batch_first: sequences are (batch, time, ...) and not (time, batch, ...).
        checkpoint: see `segments`.
    """

    def __init__(self, cell: C, *, batch_first: bool, checkpoint: bool | int) -> None:
        super().__init__()
        self.cell = cell
        self.batch_first = batch_first
        self.checkpoint = checked_segment(checkpoint)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        self.cell.reset_parameters()

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """All hidden states of a sequence.

        Args:
            input: (time, batch, in_channels, h, w), or (batch, time, ...) with `batch_first`.
            state: what another call returned, to go on from there.

        Returns:
            The hidden states (time, batch, hidden_channels, h, w), or (batch, time, ...), and the state after them.

        Raises:
            ShapeError: the input is of another shape, has no step, or the state is not one of this layer for it.
            OperandError: the input or the state is of another dtype or on another device than the weights.
        """
        axes = "batch, time" if self.batch_first else "time, batch"
        wanted = f"({axes}, {self.cell.in_channels}, h, w), with one step at least"
        if input.ndim != 5 or input.shape[1 if self.batch_first else 0] == 0:
            raise ShapeError(f"the sequence is {tuple(input.shape)}", hint=wanted)
        frames = input.unbind(1 if self.batch_first else 0)
        self.cell.check(frames[0], state, leading=wanted)
        weights = self.cell.prepare()
        start = self.cell.start(frames[0], weights) if state is None else state

        def run(state: State, *frames: Tensor) -> tuple[list[Tensor], State]:
            outputs = []
            for frame in frames:
                h, state = self.cell.advance(weights, frame, state)
                outputs.append(h)
            return outputs, state

        outputs, last = segments(run, start, frames, self.checkpoint)
        return torch.stack(outputs, 1 if self.batch_first else 0), last

    def extra_repr(self) -> str:
        """What it adds to the cell."""
        usual = {"batch_first": False, "checkpoint": False}
        return ", ".join(f"{name}={getattr(self, name)}" for name, one in usual.items() if getattr(self, name) != one)


def segments(
    run: Callable[..., tuple[list[Tensor], S]], state: S, steps: Sequence[Any], checkpoint: bool | int
) -> tuple[list[Tensor], S]:
    """Runs over all steps, segment by segment.

    Args:
        run: takes a state and the inputs of some steps, and returns their outputs and the state after them.
        state: before the first step.
        steps: the inputs.
        checkpoint: False keeps all that the backward pass reads. A number of steps: only the states between segments of
            this many steps are kept, and each segment is computed again when its gradients are needed. True takes
            segments as long as there are many: what is kept then grows with the square root of the sequence's length,
            besides the inputs and the outputs (T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

    Returns:
        The outputs of all steps, and the last state.

    Raises:
        OptionError: segments are to be computed again, and torch.func takes the gradients.
    """
    if checkpoint is False or not torch.is_grad_enabled():
        return run(state, *steps)
    recomputes = torch.compiler.is_compiling() or torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    if not recomputes:
        raise OptionError(
            f"checkpoint={checkpoint!r}: gradients of torch.func keep what they need, and nothing is computed again",
            hint="checkpoint=False, or torch.autograd.grad",
        )
    length = ceil(len(steps) / isqrt(len(steps))) if checkpoint is True else checkpoint
    outputs = []
    for first in range(0, len(steps), length):
        part, state = recomputed(
            run, state, *steps[first : first + length], use_reentrant=False, preserve_rng_state=False
        )
        outputs += part
    return outputs, state


def checked_segment(value: Any) -> bool | int:
    """The option `checkpoint` of a recurrent layer.

    Raises:
        OptionError: it is neither a truth value nor a number of steps.
    """
    if (truth := as_bool(value)) is not None:
        return truth
    number = as_integer(value)
    if number is None or number < 1:
        raise OptionError(
            f"checkpoint={shown(value)} of a sequence", hint="True, False, or how many steps a segment has"
        )
    return number
