"""The convolutional LSTM: an LSTM whose states are pictures.

X. Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting", NeurIPS 2015,
without its peepholes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from convein.layers.ctt import draw
from convein.layers.recurrence import Cell, Recurrent, State, gated, zeros


class _Weights(NamedTuple):
    gates: Tensor
    bias: Tensor | None


class ConvLSTMCell(Cell):
    """One step: z = W * x + K * h + bias, with the gates i, f, o, g of an LSTM.

    The state is (h, c), both (batch, hidden_channels, h, w).

    Args:
        in_channels, hidden_channels: of x and of h.
        kernel_size: k, or one number for each of h and w.
        bias: whether there is one.
        padding_mode: "zeros" or "circular".
        init: "xavier" (uniform, biases zero), or "torch" as nn.Conv2d draws weights and biases.
        device, dtype: of the parameters.

    Attributes:
        W, K: kernels (4 hidden_channels, in_channels, kh, kw) and (4 hidden_channels, hidden_channels, kh, kw).
        bias: (4 hidden_channels,), or None.

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
        bias: bool = True,
        padding_mode: str = "zeros",
        init: str = "xavier",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, kernel_size, padding_mode, init)
        outputs = 4 * self.hidden_channels
        self.W = nn.Parameter(torch.empty(outputs, self.in_channels, *self.kernel_size, device=device, dtype=dtype))
        self.K = nn.Parameter(torch.empty(outputs, self.hidden_channels, *self.kernel_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both kernels as the one convolution that they are together."""
        inputs = self.in_channels + self.hidden_channels
        for kernel in (self.W, self.K):
            draw(kernel, self.init, inputs=inputs)
        if self.bias is not None:
            draw_bias(self.bias, self.init, inputs * self.W[0, 0].numel())

    @property
    def state_channels(self) -> tuple[int, ...]:
        """The channels of h and c."""
        return self.hidden_channels, self.hidden_channels

    def prepare(self) -> _Weights:
        """Both kernels side by side."""
        bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        return _Weights(torch.cat((self.W, self.K), 1), bias)

    def start(self, x: Tensor, weights: _Weights) -> State:  # type: ignore[override]  # noqa: ARG002
        """Zeros."""
        return zeros(x, self.hidden_channels), zeros(x, self.hidden_channels)

    def advance(self, weights: _Weights, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, with prepared weights: h and the next state."""
        h, cell = state
        h, cell = gated(self.convolve(torch.cat((x, h), 1), *weights), cell)
        return h, (h, cell)

    def extra_repr(self) -> str:
        """Arguments, those that are usual left out."""
        return super().extra_repr() + ("" if self.bias is not None else ", bias=False")


class ConvLSTM(Recurrent[ConvLSTMCell]):
    """A convolutional LSTM that runs over a sequence of pictures, as nn.LSTM over one of vectors.

    Args:
        in_channels, hidden_channels, kernel_size, bias, padding_mode, init, device, dtype: as for `ConvLSTMCell`.
        batch_first: sequences are (batch, time, channels, h, w) and not (time, batch, channels, h, w).
        checkpoint: what the backward pass reads is computed again, as for `ConvTTLSTM`.

    Raises:
        OptionError: what does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | tuple[int, int] = 5,
        *,
        bias: bool = True,
        padding_mode: str = "zeros",
        init: str = "xavier",
        batch_first: bool = False,
        checkpoint: bool | int = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cell = ConvLSTMCell(
            in_channels, hidden_channels, kernel_size, bias=bias, padding_mode=padding_mode, init=init, device=device,
            dtype=dtype,
        )  # fmt: skip
        super().__init__(cell, batch_first=batch_first, checkpoint=checkpoint)


@torch.no_grad()
def draw_bias(bias: Tensor, init: str, fan_in: int) -> None:
    """Draws a bias: zeros, or with init="torch" as nn.Conv2d does."""
    if init == "xavier":
        nn.init.zeros_(bias)
    else:
        nn.init.uniform_(bias, -(fan_in**-0.5), fan_in**-0.5)
