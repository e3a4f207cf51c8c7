"""Request + device -> Target: the rates to plan with, and the kernels that there are."""

from __future__ import annotations

from typing import Any

import torch

from convein import calibration
from convein.errors import OptionError
from convein.execution import kernels
from convein.execution.ops import is_untraced, is_untransformed
from convein.lowering import Target
from convein.network import Network
from convein.request import Request


def aim(
    request: Request, network: Network, dtype: torch.dtype, device: torch.device, *, knows_memory: bool = True
) -> Target:
    """What the program of a request will run on.

    Args:
        request: what was asked for.
        network: with the sizes to plan with.
        dtype: of the operands.
        device: of the operands.
        knows_memory: as in `Target`.

    Raises:
        OptionError: `backend="triton"`, and there are no kernels here; or `accumulate` does not fit the dtype.
    """
    wide, narrow = request.dtypes(_called(dtype, device) if request.accumulate is None else dtype)
    rates = calibration.current(request.cost, device.type, wide)
    absence = _absence(request.backend, device)
    if absence and request.backend == "triton":
        raise OptionError(
            f'backend="triton": {absence}',
            text=request.equation.text,
            hint='backend="auto" takes kernels where they run, and calls of torch elsewhere',
        )
    return Target(
        wide,
        device.type,
        dict(network.sizes),
        rates,
        knows_memory=knows_memory,
        narrow=narrow,
        refusal=None if absence else kernels.refusal,
        absence=absence,
        forced=request.backend == "triton",
    )


def surroundings() -> tuple[Any, ...]:
    """What decides which kernels a call takes, besides its operands: plans are remembered for one of these."""
    return torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"), is_untransformed()


def _called(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the calls: that of the operands, unless torch.autocast converts them on a GPU."""
    converted = device.type == "cuda" and dtype.is_floating_point and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if converted and dtype is not torch.float64 else dtype


def _absence(backend: str, device: torch.device) -> str:
    """Why no kernel is considered, in a clause; "" if they are."""
    if backend == "torch":
        return 'backend="torch" was asked for'
    if backend == "auto" and device.type == "cpu":
        return "the operands are on cpu, and the kernels run on cuda"
    if backend == "auto" and not is_untraced():
        return "what is traced or transformed consists of calls of torch alone"
    return kernels.absence(device, asked=backend == "triton") or ""
