"""DTensors: every process evaluates the expression of its shards, and the results are the shards of the result.

That is right for shards along modes that are not convolved: a mode that is kept is sharded in the result, too, and a
mode that is summed makes it a Partial. Other shards are refused; torch's own calls would take some of them, and
convolve what each process has as if there were nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from convein.binding import bind
from convein.equation import Equation
from convein.errors import OperandError
from convein.network import Network
from convein.operands import is_distributed
from convein.request import Request

_HINT = (
    "along a dimension of the mesh shard one mode that is not convolved, in every operand that has it, and replicate "
    "the other operands: .redistribute(placements=[Replicate()])"
)


def on_shards(
    call: Callable[..., Any], request: Request, given: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]
) -> Callable[..., Any]:
    """A function of DTensors with these shapes, whatever their placements.

    Args:
        call: evaluates an expression of ordinary tensors.
        request: the expression.
        given: the keywords that it was called with.
        shapes: of the operands as wholes.
    """
    network = bind(request.equation, shapes, dict(request.sizes))

    def run(*operands: Any) -> Any:
        sharded = _sharded_modes(network, operands)
        # The sizes of what is sharded are smaller in each process, and plain to see.
        sizes = {mode: size for mode, size in request.sizes if mode not in sharded}
        parts = [_part(operand, sharded) for operand in operands]
        result = call(request.equation.text, *parts, **{**given, "sizes": sizes})
        return _whole(network, result, operands[0].device_mesh, sharded)

    return run


def _part(operand: Any, sharded: Sequence[str | None]) -> torch.Tensor:
    """What this process has of a DTensor. What every process has whole gets its gradient from all of them."""
    from torch.distributed.tensor import Partial, Replicate

    gradients = [
        Partial() if mode is not None and isinstance(placement, Replicate) else placement
        for mode, placement in zip(sharded, operand.placements, strict=True)
    ]
    part: torch.Tensor = operand.to_local(grad_placements=gradients)
    return part


def _whole(network: Network, part: torch.Tensor, mesh: Any, sharded: Sequence[str | None]) -> torch.Tensor:
    """The result as a DTensor."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    axes = network.output_axes
    placements = [
        Replicate() if mode is None else Shard(axes.index((mode,))) if (mode,) in axes else Partial()
        for mode in sharded
    ]
    like = torch.empty(network.output_shape, device="meta")
    return DTensor.from_local(
        part.contiguous(), mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _sharded_modes(network: Network, operands: tuple[Any, ...]) -> list[str | None]:
    """For each dimension of the mesh the mode that is sharded along it, if any."""
    equation = network.equation
    plain = [position for position, operand in enumerate(operands) if not is_distributed([operand])]
    if plain:
        other = next(position for position in range(len(operands)) if position not in plain)
        raise _refusal(
            equation,
            f"operand {other} is a DTensor and operand {plain[0]} is not",
            (other, plain[0]),
            f"make one of operand {plain[0]}: distribute_tensor(..., mesh, [Replicate()])",
        )
    mesh = operands[0].device_mesh
    for position, operand in enumerate(operands):
        if operand.device_mesh != mesh:
            found = f"operand 0 is on {mesh} and operand {position} on {operand.device_mesh}"
            raise _refusal(equation, found, (0, position), "all DTensors of an expression share their mesh")
    return [_sharded_mode(network, [o.placements[dim] for o in operands]) for dim in range(mesh.ndim)]


def _sharded_mode(network: Network, placements: list[Any]) -> str | None:
    """The mode that these placements along one dimension of the mesh shard."""
    from torch.distributed.tensor import Replicate

    passed = [operand for operand in network.operands if operand.constant is None]
    modes = {j: _mode_of(network, j, p) for j, p in enumerate(placements) if not isinstance(p, Replicate)}
    if not modes:
        return None
    (first, mode), *others = modes.items()
    for position, other in others:
        if other != mode:
            found = f"operand {first} is sharded along mode {mode} and operand {position} along mode {other}"
            raise _refusal(network.equation, found, (first, position))
    for position, operand in enumerate(passed):
        if mode in operand.modes and position not in modes:
            found = f"mode {mode} is sharded in operand {first} and whole in operand {position}"
            raise _refusal(network.equation, found, (first, position))
    if mode in network.output and (mode,) not in network.output_axes:
        found = f"mode {mode} is sharded in operand {first} and part of a composed dimension of the output"
        raise _refusal(network.equation, found, (first,))
    return mode


def _mode_of(network: Network, position: int, placement: Any) -> str:
    """The mode along which an operand is sharded."""
    from torch.distributed.tensor import Shard

    operand = [operand for operand in network.operands if operand.constant is None][position]
    found = f"operand {position} is placed as {placement}"
    if type(placement) is not Shard:
        raise _refusal(network.equation, found, (position,))
    axis = operand.axes[placement.dim]
    if len(axis) > 1:
        raise _refusal(network.equation, f"{found}, a dimension that is composed of {' and '.join(axis)}", (position,))
    (mode,) = axis
    if mode in network.convolutions:
        raise _refusal(network.equation, f"{found}, and mode {mode} is convolved", (position,))
    if mode not in operand.modes:
        raise _refusal(network.equation, f"{found}, where mode {mode} has size 1", (position,))
    if sum(mode in other for other in operand.axes) > 1:
        raise _refusal(network.equation, f"{found}, and mode {mode} is repeated there", (position,))
    return mode


def _refusal(equation: Equation, message: str, positions: Sequence[int], hint: str = _HINT) -> OperandError:
    places = [term.span for term in equation.inputs if term.constant is None]
    return OperandError(message, text=equation.text, spans=[places[position] for position in positions], hint=hint)
