"""The convolutional tensor-train LSTM: an LSTM of pictures that reads several past states through one tensor-train.

J. Su, "Spectral Methods for Neural Network Designs", University of Maryland 2022, chapter 4; J. Su, W. Byeon et al.,
"Convolutional Tensor-Train LSTM for Spatio-Temporal Learning", NeurIPS 2020. Every convolution keeps the picture's
size, and each may have a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.errors import OptionError
from convein.layers.conv import positive
from convein.layers.conv_lstm import ConvLSTM, ConvLSTMCell, draw_bias
from convein.layers.ctt import ConvTensorTrain, draw
from convein.layers.recurrence import Cell, Recurrent, State, gated, zeros
from convein.options import as_integer, one_of, shown

__all__ = ["ConvLSTM", "ConvLSTMCell", "ConvTTLSTM", "ConvTTLSTMCell", "ConvTensorTrain"]

WINDOWS = ("sliding", "fixed")


class _Weights(NamedTuple):
    """All kernels of a step.

    Attributes:
        reading: from the stored states to H~(1), ..., H~(N); where the step is `joint`, also from the stored V(i).
        reading_bias: of V(1), ..., V(N).
        train: G(2), ..., G(N).
        gates: from x and V(1).
        gates_bias: of the gates.
    """

    reading: Tensor
    reading_bias: Tensor | None
    train: tuple[Tensor, ...]
    gates: Tensor
    gates_bias: Tensor | None


class ConvTTLSTMCell(Cell):
    """One step of a convolutional tensor-train LSTM of order N that stores M hidden states.

    H~(i) = P(i) * [states], V(N) = H~(N), V(i) = H~(i) + G(i+1) * V(i+1), z = W * x + G(1) * V(1), with the gates i, f,
    o, g of an LSTM. In a sliding window, P(i) reads the M - N + 1 states from t - i back: V(i + 1) of a step then reads
    nothing newer than the step before did, so it is known by then, and all of P and G(2), ..., G(N) are one
    convolution. In a fixed window every P(i) reads all M states.

    The state is (history, c, trains): the stored hidden states (batch, M' hidden_channels, h, w), oldest first, with
    M' = M - N + 1 in a sliding window and M in a fixed one; the cell state; and, in a sliding window of order 2 and
    more, V(2), ..., V(N) for the next step (batch, C(2) + ... + C(N), h, w).

    Args:
        in_channels, hidden_channels: of x and of h.
        kernel_size: k, or one number for each of h and w.
        order: N.
        steps: M, from N.
        ranks: channels C(1), ..., C(N) of the train, or one number for all.
        window: "sliding" or "fixed".
        bias: whether every convolution has one.
        padding_mode: "zeros" or "circular".
        init: "xavier" (uniform, biases zero), or "torch" as nn.Conv2d draws weights and biases.
        device, dtype: of the parameters.

    Attributes:
        P1, ..., PN: kernels (C(i), M', hidden_channels, kh, kw), oldest state first.
        G1: kernel (4 hidden_channels, C(1), kh, kw); G2, ..., GN: kernels (C(i-1), C(i), kh, kw).
        W: kernel (4 hidden_channels, in_channels, kh, kw).
        P1_bias, ..., PN_bias, G2_bias, ..., GN_bias, bias: (C(i),), (C(i-1),), (4 hidden_channels,), or None.

    Raises:
        OptionError: what does not fit.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | tuple[int, int] = 5,
        *,
        order: int = 3,
        steps: int = 3,
        ranks: int | Sequence[int] = 8,
        window: str = "sliding",
        bias: bool = True,
        padding_mode: str = "zeros",
        init: str = "xavier",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, kernel_size, padding_mode, init)
        self.order = positive("order", order)
        self.steps = positive("steps", steps)
        if self.steps < self.order:
            raise OptionError(
                f"steps={steps} stored states for order={order}", hint=f"as many as the order at least: steps={order}"
            )
        self.ranks = _ranks(ranks, self.order)
        self.window = one_of("window", window, WINDOWS)
        # How many hidden states each P(i) reads.
        self.stored = self.steps - self.order + 1 if window == "sliding" else self.steps
        gates = 4 * self.hidden_channels
        shapes: dict[str, tuple[int, ...]] = {"W": (gates, self.in_channels)}
        for i, (outer, rank) in enumerate(zip((gates, *self.ranks), self.ranks), start=1):
            shapes[f"P{i}"] = rank, self.stored, self.hidden_channels
            shapes[f"G{i}"] = outer, rank
        for name, shape in shapes.items():
            weight = torch.empty(*shape, *self.kernel_size, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(weight))
            if name not in ("G1", "W"):
                given = torch.empty(shape[0], device=device, dtype=dtype)
                self.register_parameter(f"{name}_bias", nn.Parameter(given) if bias else None)
        self.bias = nn.Parameter(torch.empty(gates, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def joint(self) -> bool:
        """Whether one convolution makes all of V(1), ..., V(N): in a sliding window, unless the order is high.

        Its kernel has zeros where a V(i) does not depend on a stored one: they may not be half of it.
        """
        own, read = sum(self.ranks), self.stored * self.hidden_channels
        useful = own * read + sum(outer * inner for outer, inner in pairwise(self.ranks))
        return self.window == "sliding" and own * (read + own - self.ranks[0]) < 2 * useful

    def reset_parameters(self) -> None:
        """Draws every convolution; W and G(1) are one."""
        joined, taps = self.in_channels + self.ranks[0], self.W[0, 0].numel()
        drawn: dict[str, tuple[Tensor, int]] = {"W": (self.W, joined)}
        for i, (reading, kernel) in enumerate(zip(self._all("P"), self._all("G"), strict=True), start=1):
            drawn[f"P{i}"] = reading.flatten(1, 2), self.stored * self.hidden_channels
            drawn[f"G{i}"] = kernel, joined if i == 1 else self.ranks[i - 1]
        for name, (kernel, inputs) in drawn.items():
            draw(kernel, self.init, inputs=inputs)
            bias = getattr(self, "bias" if name == "W" else f"{name}_bias", None)
            if bias is not None:
                draw_bias(bias, self.init, inputs * taps)

    def _all(self, name: str, end: str = "") -> list[Tensor]:
        return [getattr(self, f"{name}{i}{end}") for i in range(1, self.order + 1)]

    def prepare(self) -> _Weights:
        """Kernels that read the same pictures, side by side."""
        rows = [kernel.flatten(1, 2) for kernel in self._all("P")]
        first, *train = self._all("G")
        if self.joint:
            inner, place = sum(self.ranks[1:]), 0
            for i, kernel in enumerate(train):
                size = kernel.shape[1]
                rows[i] = torch.cat((rows[i], F.pad(kernel, (0, 0, 0, 0, place, inner - place - size))), 1)
                place += size
            rows[-1] = F.pad(rows[-1], (0, 0, 0, 0, 0, inner))
        reading_bias = gates_bias = None
        if self.bias is not None:
            biases = self._all("P", "_bias")
            for i in range(2, self.order + 1):
                biases[i - 2] = biases[i - 2] + getattr(self, f"G{i}_bias")
            reading_bias, gates_bias = torch.cat(biases).view(-1, 1, 1), self.bias.view(-1, 1, 1)
        gates = torch.cat((self.W, first), 1)
        return _Weights(torch.cat(rows), reading_bias, () if self.joint else tuple(train), gates, gates_bias)

    @property
    def state_channels(self) -> tuple[int, ...]:
        """The channels of the history, of c and, where they are kept, of V(2), ..., V(N) together."""
        trains = () if self.window == "fixed" or self.order == 1 else (sum(self.ranks[1:]),)
        return self.stored * self.hidden_channels, self.hidden_channels, *trains

    def start(self, x: Tensor, weights: _Weights) -> State:  # type: ignore[override]
        """Zeros, and the V(2), ..., V(N) that biases make of hidden states that are all zero."""
        history, cell = zeros(x, self.stored * self.hidden_channels), zeros(x, self.hidden_channels)
        if self.window == "fixed" or self.order == 1:
            return history, cell
        trains = zeros(x, sum(self.ranks[1:]))
        if weights.reading_bias is not None:
            one, found = history[:1], trains[:1]
            for _ in range(self.order - 1):
                found = self._values(weights, one, found)[:, self.ranks[0] :]
            trains = trains + found
        return history, cell, trains

    def advance(self, weights: _Weights, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, with prepared weights: h and the next state."""
        history, cell, *trains = state
        values = self._values(weights, history, *trains)
        read = torch.cat((x, values[:, : self.ranks[0]]), 1)
        h, cell = gated(self.convolve(read, weights.gates, weights.gates_bias), cell)
        history = h if self.stored == 1 else torch.cat((history[:, self.hidden_channels :], h), 1)
        return h, ((history, cell, values[:, self.ranks[0] :]) if trains else (history, cell))

    def _values(self, weights: _Weights, history: Tensor, known: Tensor | None = None) -> Tensor:
        """V(1), ..., V(N), side by side.

        Args:
            weights: prepared.
            history: the stored hidden states.
            known: V(2), ..., V(N) as the last step left them: then V(1) is of this step, and V(i) of the (i-1)-th after
                it. None: all are of this step, and made one after the other.
        """
        if known is not None and self.joint:
            history = torch.cat((history, known), 1)
        values = self.convolve(history, weights.reading, weights.reading_bias)
        if not weights.train:
            return values
        parts = list(torch.split(values, list(self.ranks), 1))
        before = parts if known is None else [parts[0], *torch.split(known, list(self.ranks[1:]), 1)]
        for i in range(self.order - 2, -1, -1):
            parts[i] = parts[i] + self.convolve(before[i + 1], weights.train[i])
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        """Arguments, those that are usual left out."""
        more = f", order={self.order}, steps={self.steps}, ranks={self.ranks}, window={self.window!r}"
        return super().extra_repr() + more + ("" if self.bias is not None else ", bias=False")


class ConvTTLSTM(Recurrent[ConvTTLSTMCell]):
    """A convolutional tensor-train LSTM that runs over a sequence of pictures, as nn.LSTM over one of vectors.

    Args:
        in_channels, hidden_channels, kernel_size, order, steps, ranks, window, bias, padding_mode, init, device, dtype:
            as for `ConvTTLSTMCell`.
        batch_first: sequences are (batch, time, channels, h, w) and not (time, batch, channels, h, w).
        checkpoint: False keeps all that the backward pass reads. A number of steps: only the states between segments of
            this many steps are kept, and each segment is computed again when its gradients are needed. True chooses
            it so that what is kept grows with the square root of the sequence's length, besides inputs and outputs.

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | tuple[int, int] = 5,
        *,
        order: int = 3,
        steps: int = 3,
        ranks: int | Sequence[int] = 8,
        window: str = "sliding",
        bias: bool = True,
        padding_mode: str = "zeros",
        init: str = "xavier",
        batch_first: bool = False,
        checkpoint: bool | int = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cell = ConvTTLSTMCell(
            in_channels, hidden_channels, kernel_size, order=order, steps=steps, ranks=ranks, window=window, bias=bias,
            padding_mode=padding_mode, init=init, device=device, dtype=dtype,
        )  # fmt: skip
        super().__init__(cell, batch_first=batch_first, checkpoint=checkpoint)


def _ranks(value: int | Sequence[int], order: int) -> tuple[int, ...]:
    if as_integer(value) is not None:
        return (positive("ranks", value),) * order
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != order:
        raise OptionError(
            f"ranks={shown(value)} of a train of order {order}", hint=f"a number for all, or {order} of them"
        )
    return tuple(positive("ranks", one) for one in value)
