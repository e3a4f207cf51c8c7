"""Categorical: a layer every weight of which is one of a few levels, with a probability for each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OperandError, OptionError
from convein.layers.bqn import dual
from convein.layers.bqn.activations import Activation, Discrete, Gaussian, Pmf, as_activation, as_point
from convein.layers.bqn.levels import LEVELS, Lattice, Levels, read_levels
from convein.layers.bqn.modes import ANALYTIC, MAP, SAMPLED, Moded
from convein.layers.bqn.stencil import Stencil
from convein.layers.bqn.sums import (
    PROPAGATIONS,
    choose,
    exact,
    moments,
    product_lattice,
    products,
    support,
)
from convein.layers.constants import constant
from convein.options import one_of, shown
from convein.pipeline import conv_einsum


class Categorical(Moded):
    """What `Linear` and the convolutions have in common; they are made by their own names.

    Attributes:
        theta: log-probabilities of the levels up to a constant, (*weight, levels).
        theta_bias: those of the bias, (outputs, levels), or None.
        levels: the numbers that weights can be, sorted.
        propagation: how distributions pass the sum.
    """

    theta_bias: nn.Parameter | None

    def __init__(
        self,
        stencil: Stencil,
        *,
        bias: bool,
        levels: Levels,
        propagation: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise OptionError(f"dtype={dtype!r} of log-probabilities", hint="a floating point dtype: torch.float32")
        self.stencil = stencil
        self.levels = read_levels(levels)
        self.propagation = one_of("propagation", propagation, PROPAGATIONS)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        count = len(self.levels)
        self.theta = nn.Parameter(torch.empty(*stencil.weight_shape, count, **made))
        self.register_parameter("theta_bias", None)
        if bias:
            self.theta_bias = nn.Parameter(torch.empty(stencil.outputs, count, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all log-probabilities near zero (Xavier's uniform draw), those of the bias are zero."""
        nn.init.xavier_uniform_(self.theta)
        if self.theta_bias is not None:
            nn.init.zeros_(self.theta_bias)

    def probabilities(self) -> tuple[Tensor, Tensor | None]:
        """Of the levels, along the last dimension: the weights' and the bias's."""
        bias = self.theta_bias
        return self.theta.softmax(-1), None if bias is None else bias.softmax(-1)

    def entropy(self) -> Tensor:
        """The sum of the entropies of all weights and biases, in nats: a scalar."""
        logs = [theta.log_softmax(-1) for theta in (self.theta, self.theta_bias) if theta is not None]
        # A level that is excluded adds nothing, and its logarithm is -inf.
        terms = [torch.where(log == -math.inf, 0, log).mul(log.exp()).sum() for log in logs]
        return -torch.stack(terms).sum()

    def likeliest(self) -> tuple[Tensor, Tensor | None]:
        """The level with the highest probability, of every weight and bias; of equal ones the first."""
        numbers, bias = self._numbers(), self.theta_bias
        return numbers[self.theta.argmax(-1)], None if bias is None else numbers[bias.argmax(-1)]

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """One level for every weight and bias, by their probabilities.

        Args:
            generator: source of the random numbers; torch's own if it is not given.
        """
        weight, bias = self.probabilities()
        return self._drawn(weight, generator), None if bias is None else self._drawn(bias, generator)

    def weights(self, mode: str, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """The weights and the bias that a network of plain numbers has.

        Raises:
            OptionError: the mode is neither "sampled" nor "map".
        """
        if mode == SAMPLED:
            return self.draw(generator)
        if mode != MAP:
            raise OptionError(f"mode={mode!r} gives no numbers for weights", hint='"sampled" or "map"')
        return self.likeliest()

    def forward(self, input: Tensor | Activation, *, signs: bool = False) -> Tensor | Activation:
        """The sums, in the layer's mode.

        Args:
            input: known numbers, or an activation of another layer: (..., inputs, *sizes).
            signs: whether only the signs of the sums will be asked for: then they may come instead, from a kernel that
                gives nothing else.

        Returns:
            In the analytic mode a `Gaussian`, or a `Pmf` where the propagation is exact; else a tensor.

        Raises:
            OperandError: the propagation that was asked for cannot take this input.
        """
        if self.mode != ANALYTIC:
            weight, bias = self.weights(self.mode)
            value = self.stencil.apply(as_point(input), weight)
            return value if bias is None else value + self.stencil.at_outputs(bias)
        return self._propagate(as_activation(input), signs=signs)

    def filled(self, made: nn.Module, mode: str, generator: torch.Generator | None) -> nn.Module:
        """A layer of torch of this one's shapes, made without numbers, with the weights of a mode."""
        weight, bias = self.weights(mode, generator)
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        made.to_empty(device=weight.device).to(weight.dtype).load_state_dict(state)
        return made

    def _propagate(self, input: Activation, *, signs: bool) -> Gaussian | Pmf | Discrete:
        weight, bias = self.probabilities()
        if isinstance(input, (Discrete, Pmf)) and self.propagation != "clt":
            found = self._exactly(input, weight, bias)
            if found is not None:
                return found
        elif self.propagation not in {"auto", "clt"}:
            raise OperandError(
                f'propagation="{self.propagation}" sums numbers of a lattice, and the input is {type(input).__name__}',
                hint='propagation="auto" is exact where that is possible',
            )
        inside, around = self._moments(weight), None if bias is None else self._moments(bias)
        if isinstance(input, Discrete):
            by_kernel = dual.propagate(self.stencil, input, inside, around, signs=signs)
            if by_kernel is not None:
                return by_kernel
        return moments(self.stencil, input, *inside, around)

    def _exactly(self, input: Discrete | Pmf, weight: Tensor, bias: Tensor | None) -> Pmf | None:
        """The distribution of the sums, or None where their moments are to do."""
        way, numbers = self._way(input)
        if numbers is None:
            return None
        taps = products(self.stencil, input, weight, self.levels, bias, numbers)
        found = exact(taps, numbers, way)
        place = -2 - len(self.stencil.kernel)
        return Pmf(found.probabilities.movedim(-2, place), found.lowest, found.step)

    def _way(self, input: Discrete | Pmf) -> tuple[str, Lattice | None]:
        """How the sums are propagated, and what products can be; None if only by their moments."""
        entries = input.minus if isinstance(input, Discrete) else input.probabilities[..., 0]
        sizes = entries.shape[entries.ndim - len(self.stencil.kernel) :] if self.stencil.kernel else ()
        copies = self.stencil.reads_copies(sizes)
        if copies and self.propagation != "auto":
            raise OperandError(
                f'propagation="{self.propagation}" sums independent numbers, and with '
                f'padding_mode="{self.stencil.padding_mode}" an output reads one entry of {tuple(sizes)} several times',
                hint='propagation="clt" has the exact mean and variance',
            )
        if copies:
            return "clt", None
        try:
            numbers = product_lattice(
                self.levels, support(input), has_bias=self.theta_bias is not None, has_zero=self.stencil.pads_zeros
            )
        except OptionError:
            if self.propagation != "auto":
                raise
            return "clt", None
        way = choose(self.propagation, self.stencil.fan_in + (self.theta_bias is not None), numbers.size)
        return way, None if way == "clt" else numbers

    def _moments(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        numbers = self._numbers()
        mean: Tensor = conv_einsum("...q,q->...", probabilities, numbers)
        # From the distances to the mean, of which no rounding makes the variance negative.
        distances = (numbers - mean.unsqueeze(-1)).square()
        var: Tensor = conv_einsum("...q,...q->...", probabilities, distances)
        return mean, var

    def _numbers(self) -> Tensor:
        return constant(self.levels, self.theta.dtype, self.theta)

    def _drawn(self, probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
        """The level whose part of [0, 1) a uniform number falls into; numbers of half precision are too coarse."""
        wide = probabilities.float() if probabilities.dtype.itemsize < 4 else probabilities
        uniform = torch.rand((*wide.shape[:-1], 1), generator=generator, dtype=wide.dtype, device=wide.device)
        return self._numbers()[(uniform >= wide.cumsum(-1)[..., :-1]).sum(-1)]

    def explain(self) -> str:
        """What computes the sums of random signs: a kernel, or plain calls, and why.

        For inputs of the dtype and on the device of the weights, outside of graphs and of torch.func.
        """
        each = zip(self.stencil.kernel, self.stencil.dilation, self.stencil.padding)
        sizes = [d * (k - 1) + 1 + lo + hi for k, d, (lo, hi) in each]
        signs = Discrete(self.theta.new_zeros(1, self.stencil.inputs, *sizes))
        way = "clt" if self.propagation == "clt" else self._way(signs)[0]
        reason = f"their distribution is exact, by {way}" if way != "clt" else None
        reason = reason or dual.hindrance(self.stencil, signs.minus, self.theta[..., 0])
        if reason is not None:
            return f"Sums of random signs are plain calls: {reason}."
        return (
            f"Means and variances of sums of random signs are one kernel, {dual.MOMENTS}; "
            f"before a Sign in a bqn.Sequential, {dual.SIGNS} gives the new signs."
        )

    def extra_repr(self) -> str:
        """Torch's arguments, the levels, the propagation."""
        names = [name for name, levels in LEVELS.items() if levels == self.levels]
        parts = [str(self.stencil), f"levels={shown(names[0] if names else self.levels)}"]
        if self.propagation != PROPAGATIONS[0]:
            parts.append(f'propagation="{self.propagation}"')
        return ", ".join([*parts, *([] if self.theta_bias is not None else ["bias=False"])])
