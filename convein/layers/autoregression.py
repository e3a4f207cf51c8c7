"""The circular linear system `A * y = x` of an autoregression, solved by real FFTs, and the filter A that undoes it.

A is one filter for each channel, separable over the dimensions, with Q cascaded factors along each of them. A factor
has three taps: f(-1), f(0) = 1 and f(1), where f(k) multiplies y[i - k]. It is given by the sum f(-1) + f(1) and the
difference f(-1) - f(1) of its outer taps; its frequency response is

    F(w) = 1 + sum * cos w + j * difference * sin w,

which is at least 1 - |sum| in magnitude, whatever the difference: |sum| < 1 is what makes the system solvable, and
1 / (1 - |sum|) is the most that a factor amplifies. Responses are exact on grids of any size: where there are fewer
points than taps, the taps wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from convein.errors import OperandError, ShapeError
from convein.pipeline import conv_einsum
from convein.tracing import opaque, register

MODES = {1: "h", 2: "hw", 3: "dhw"}
_HALF = (torch.float16, torch.bfloat16)


def autoregress(input: Tensor, sum: Tensor, difference: Tensor) -> Tensor:
    """Solves `A * y = input`, circularly, in every channel (J. Su, 2022, chapter 6).

    One real FFT of the input, one multiplication by the reciprocal of all factors' responses, one inverse. The backward
    pass solves the adjoint system (theorem 6.4) and keeps the result `y` and the taps only; if the taps need no
    gradient, the taps only.

    Args:
        input: (..., c, *space), floating point; half types are computed in float32.
        sum: (c, q, d), f(-1) + f(1) of the q factors along each of the d dimensions of space.
        difference: (c, q, d), f(-1) - f(1).

    Returns:
        `y`, of the input's shape, and of its dtype; under autocast half types give float32.

    Raises:
        ShapeError: the factors do not fit the input.
        OperandError: the input is not real floating point.
    """
    if torch.compiler.is_dynamo_compiling():
        register()
    _check(input, sum, difference)
    if input.numel() == 0:
        return input + 0 * (sum.sum() + difference.sum()).to(input.dtype)
    wide = computed(input.dtype)
    if wide != input.dtype and not input.is_meta and torch.is_autocast_enabled(input.device.type):
        input = input.to(wide)
    value: Tensor = _solved(input, sum.to(wide), difference.to(wide))
    return value


def whiten(output: Tensor, sum: Tensor, difference: Tensor) -> Tensor:
    """The filter that `autoregress` undoes, `A * output`, circular: evaluated by the engine, without FFTs of ours.

    Args:
        output: (..., c, *space).
        sum: as for `autoregress`.
        difference: as for `autoregress`.

    Raises:
        ShapeError: the factors do not fit.
        OperandError: the output is not real floating point.
    """
    _check(output, sum, difference)
    modes = MODES[sum.shape[2]]
    filters = taps(sum, difference).to(output.dtype)
    places = [(axis, number) for axis in range(len(modes)) for number in range(sum.shape[1])]
    terms = ",".join(f"c{modes[axis]}" for axis, _ in places)
    text = f"...c{modes},{terms}->...c{modes}|{modes}"
    each = [filters[:, number, axis] for axis, number in places]
    value: Tensor = conv_einsum(text, output, *each, padding_mode="circular", flip=True, signal="first")
    return value


def taps(sum: Tensor, difference: Tensor) -> Tensor:
    """(c, q, d, 3): f(-1), f(0) = 1 and f(1) of every factor."""
    return torch.stack([(sum + difference) / 2, torch.ones_like(sum), (sum - difference) / 2], -1)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of a dtype are computed: float32 for half types."""
    return torch.float32 if dtype in _HALF else dtype


def _check(input: Tensor, sum: Tensor, difference: Tensor) -> None:
    if not input.dtype.is_floating_point:
        raise OperandError(f"an autoregression of {input.dtype}", hint="its values are real: torch.float32, say")
    if sum.dim() != 3 or int(sum.shape[2]) not in MODES or sum.shape != difference.shape:
        raise ShapeError(
            f"sum and difference have shapes {tuple(sum.shape)} and {tuple(difference.shape)}",
            hint="both are (channels, factors, dimensions), with 1 to 3 dimensions",
        )
    dimensions = sum.shape[2]
    if input.dim() <= dimensions or input.shape[-1 - dimensions] != sum.shape[0]:
        raise ShapeError(
            f"the input's shape is {tuple(input.shape)}, and there are factors for {sum.shape[0]} channels of "
            f"{dimensions} dimensions",
            hint=f"the input is (..., {sum.shape[0]}{', size' * dimensions})",
        )


class _Autoregression(torch.autograd.Function):
    """The solution. All its derivatives are solutions of the same kind of system, so it can be derived again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, sum: Tensor, difference: Tensor) -> Tensor:
        space = input.shape[-sum.shape[2] :]
        spectrum = _transformed(input, sum) / _product(_responses(sum, difference, space))
        return _restored(spectrum, space).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, sum, difference = inputs
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(sum, difference, output if learns else None)
        ctx.save_for_forward(sum, difference, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sum, difference, output = ctx.saved_tensors
        # A correlates where it convolved: f(-1) and f(1) have changed places.
        adjoint: Tensor = _solved(gradient, sum, -difference)
        if output is None:
            return adjoint, None, None
        return adjoint, *_of_taps(adjoint, output, sum, difference)

    @staticmethod
    def jvp(ctx: Any, input: Tensor, sum: Tensor, difference: Tensor) -> Tensor:
        old_sum, old_difference, output = ctx.saved_tensors
        space = output.shape[-old_sum.shape[2] :]
        change = _relative_change(sum, difference, old_sum, old_difference, space)
        lost = _restored(_transformed(output, old_sum) * change, space).to(output.dtype)
        tangent: Tensor = _solved(input, old_sum, old_difference) - lost
        return tangent


@opaque
def _solved(input: Tensor, sum: Tensor, difference: Tensor) -> Tensor:
    """As it is in the graphs of torch.compile: dynamo would not look into a function with tangents."""
    value: Tensor = _Autoregression.apply(input, sum, difference)  # type: ignore[no-untyped-call]
    return value


def _of_taps(adjoint: Tensor, output: Tensor, sum: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the inner product of `adjoint` with what a change of each tap makes of `output` (theorem 6.4).

    A factor's own response is missing from what its change meets: all responses are in the product, and each factor
    divides by its own when only its own dimension is left.
    """
    space = output.shape[-sum.shape[2] :]
    responses = _responses(sum, difference, space)
    cross = _transformed(adjoint, sum).conj() * _transformed(output, sum)
    cross = _summed(cross, range(cross.dim() - 1 - len(space)))
    cross = cross * _product(responses) * _multiplicity(space[-1], sum) / math.prod(space)
    sums, differences = [], []
    for axis, (response, size) in enumerate(zip(responses, space)):
        met = _summed(cross, [1 + other for other in range(len(space)) if other != axis]).unsqueeze(1) / response
        cosine, sine, _ = _waves(size, response.shape[-1], sum)
        sums.append(-(met.real * cosine).sum(-1))
        differences.append((met.imag * sine).sum(-1))
    return torch.stack(sums, -1), torch.stack(differences, -1)


def _summed(values: Tensor, axes: Sequence[int]) -> Tensor:
    """To torch, no axes are all of them."""
    return values.sum(tuple(axes)) if axes else values


def _relative_change(
    sum: Tensor, difference: Tensor, old_sum: Tensor, old_difference: Tensor, space: Sequence[int]
) -> Tensor:
    """What changes of the taps make of the response of A, over that response: (c, *frequencies)."""
    parts = []
    for axis, response in enumerate(_responses(old_sum, old_difference, space)):
        cosine, sine, _ = _waves(space[axis], response.shape[-1], old_sum)
        change = torch.complex(sum[..., axis, None] * cosine, difference[..., axis, None] * sine)
        parts.append((change / response).sum(1))
    return _outer(parts, torch.add)


def _transformed(values: Tensor, sum: Tensor) -> Tensor:
    """The spectrum over space: of the last dimension, one half."""
    spectrum: Tensor = torch.fft.rfftn(values.to(sum.dtype), dim=tuple(range(-sum.shape[2], 0)))
    return spectrum


def _restored(spectrum: Tensor, space: Sequence[int]) -> Tensor:
    values: Tensor = torch.fft.irfftn(spectrum, s=tuple(space), dim=tuple(range(-len(space), 0)))
    return values


def _responses(sum: Tensor, difference: Tensor, space: Sequence[int]) -> list[Tensor]:
    """The frequency responses of all factors, (c, q, frequencies) for each dimension.

    1 + sum * cos w is evaluated as the sum of two numbers of one sign, so that it is as exact as the sum even where the
    two nearly cancel: at w = 0 if the sum is near -1, at w = pi if it is near 1.
    """
    found = []
    for axis, size in enumerate(space):
        frequencies = size // 2 + 1 if axis == len(space) - 1 else size
        each, slope = sum[..., axis, None], difference[..., axis, None]
        _, sine, half = _waves(size, frequencies, sum)
        real = torch.where(
            each < 0, (1 + each) - 2 * each * half.sin().square(), (1 - each) + 2 * each * half.cos().square()
        )
        found.append(torch.complex(real, slope * sine))
    return found


def _waves(size: int, frequencies: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos w, sin w and w / 2 at the first frequencies of a grid."""
    half = torch.arange(frequencies, dtype=like.dtype, device=like.device) * (math.pi / size)
    return (2 * half).cos(), (2 * half).sin(), half


def _multiplicity(size: int, like: Tensor) -> Tensor:
    """How many frequencies of a real signal each frequency of the half spectrum stands for."""
    number = torch.arange(size // 2 + 1, device=like.device)
    return 1 + ((number > 0) & (2 * number < size)).to(like.dtype)


def _product(responses: Sequence[Tensor]) -> Tensor:
    """The response of A: (c, *frequencies)."""
    return _outer([response.prod(1) for response in responses], torch.mul)


def _outer(parts: Sequence[Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(c, n1), (c, n2), ... -> (c, n1, n2, ...)."""
    value = parts[0]
    for part in parts[1:]:
        value = combine(value.unsqueeze(-1), part.view(part.shape[0], *(1,) * (value.dim() - 1), -1))
    return value
