"""What a network ends in: probabilities of classes, or a number with its uncertainty; and the loss of either."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError
from convein.layers.bqn.activations import Activation, Dirac, Gaussian, as_activation
from convein.layers.bqn.modes import Layer
from convein.layers.conv import positive
from convein.pipeline import conv_einsum

Bound = Literal["theorem", "published"]


class SoftmaxHead(Layer):
    """Classes: softmax of normal logits over a learned scale s. J. Su, 2022, theorem 5.2.

    Args:
        scale: s at the start; the fan-in of the layer before is a good one.
        bound: "theorem" is the bound of theorem 5.2, -mean_y / s + log sum_k exp(mean_k / s + var_k / (2 s^2));
            "published" is that of the published code, with var_k / s^2, which is looser.
        device, dtype: of the scale.

    Raises:
        OptionError: the scale is not above zero, or there is no such bound.
    """

    def __init__(
        self,
        scale: float = 1.0,
        bound: Bound = "theorem",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise OptionError(f"scale={scale!r} of the logits", hint="a number above 0")
        if bound not in {"theorem", "published"}:
            raise OptionError(f"bound={bound!r}: the head has no such bound", hint='"theorem" or "published"')
        self.bound = bound
        self.log_scale = nn.Parameter(torch.full((1,), math.log(scale), device=device, dtype=dtype))

    def forward(self, input: Tensor | Activation, targets: Tensor | None = None) -> Tensor:
        """Probabilities, or with targets the loss of every example.

        Args:
            input: logits, (..., classes). A tensor is known logits.
            targets: classes, (...).

        Returns:
            Without targets, probabilities (..., classes) that sum to one; of random logits, the expected softmax to
            second order in their deviations, without negative ones. With targets, (...): negative log-likelihoods in
            nats; of random logits an upper bound of their expectation.

        Raises:
            ShapeError: there is not one target for each example.
        """
        if isinstance(input, Dirac) and input.noise == 0:
            input = input.value
        if targets is not None:
            _check_targets(input if isinstance(input, Tensor) else as_activation(input).mean, targets)
        if isinstance(input, Tensor):
            logits = input / self.log_scale.exp()
            if targets is None:
                return logits.softmax(-1)
            flat = logits.reshape(-1, logits.shape[-1])
            return F.cross_entropy(flat, targets.flatten(), reduction="none").view(targets.shape)
        random = as_activation(input)
        mean, var = random.mean / self.log_scale.exp(), random.var / (2 * self.log_scale).exp()
        if targets is None:
            return _expected_softmax(mean, var)
        looser = 1.0 if self.bound == "published" else 0.5
        chosen = mean.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (mean + looser * var).logsumexp(-1) - chosen

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """`ScaledSoftmax`."""
        return ScaledSoftmax(self.log_scale.detach().exp())

    def extra_repr(self) -> str:
        """The bound."""
        return f'bound="{self.bound}"'


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    if targets.shape != logits.shape[:-1]:
        raise ShapeError(
            f"targets of {tuple(targets.shape)} for logits of {tuple(logits.shape)}",
            hint=f"one class for each example: {tuple(logits.shape[:-1])}",
        )


class ScaledSoftmax(nn.Module):
    """softmax(logits / scale)."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        """Probabilities: (..., classes) -> (..., classes)."""
        return (input / self.scale).softmax(-1)


class GaussianHead(Layer):
    """Regression: a linear map with known real weights of random numbers, and noise of a learned variance.

    J. Su, 2022, section 5.4.

    Args:
        in_features: entries of the input.
        out_features: numbers that are predicted.
        device, dtype: of the weights and of the noise's log-variance.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = positive("out_features", out_features), positive("in_features", in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.log_var = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights with variance 1 / in_features, noise of variance 1."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.log_var)

    def forward(self, input: Tensor | Activation, targets: Tensor | None = None) -> Gaussian | Tensor:
        """The distribution of the targets, or with targets the loss of every example.

        Args:
            input: (..., in).
            targets: (..., out).

        Returns:
            Without targets a `Gaussian` (..., out), whose variance holds the noise once. With targets (...): the
            expected negative log-likelihood in nats, exactly, summed over the outputs.

        Raises:
            ShapeError: the targets have another shape than the prediction.
        """
        found = as_activation(input)
        mean: Tensor = conv_einsum("...s,ts->...t", found.mean, self.weight)
        var: Tensor = conv_einsum("...s,ts->...t", found.var, self.weight.square())
        noise = self.log_var.exp()
        if targets is None:
            return Gaussian(mean, var + noise)
        if targets.shape != mean.shape:
            raise ShapeError(f"targets have the shape {tuple(targets.shape)}, and predictions {tuple(mean.shape)}")
        squares = ((targets - mean).square() + var) / noise
        return (squares + self.log_var + math.log(2 * math.pi)).sum(-1) / 2

    def plain(self, mode: str, generator: torch.Generator | None) -> nn.Module:  # noqa: ARG002
        """nn.Linear: the mean of the prediction."""
        made = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=False, device="meta")
        made.to_empty(device=self.weight.device).to(self.weight.dtype).load_state_dict({"weight": self.weight})
        return made

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


def _expected_softmax(mean: Tensor, var: Tensor) -> Tensor:
    """p_c + (p_c (1 - 2 p_c) v_c - p_c sum_k p_k (1 - 2 p_k) v_k) / 2, no entry below zero, summing to one."""
    p = mean.softmax(-1)
    bent = p * (1 - 2 * p) * var
    found = (p + (bent - p * bent.sum(-1, keepdim=True)) / 2).clamp_min(0)
    return found / found.sum(-1, keepdim=True)
