"""Every sample by which torch tests its own einsum and convolutions, as an expression."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import convein

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import SampleInput

# Fewer samples than these would mean that torch moved them, and that nothing was tested.
AT_LEAST = {
    "einsum": 11,
    "nn.functional.conv1d": 10,
    "nn.functional.conv2d": 30,
    "nn.functional.conv3d": 20,
    "nn.functional.conv_transpose1d": 10,
    "nn.functional.conv_transpose2d": 12,
    "nn.functional.conv_transpose3d": 10,
}
DTYPES = [torch.float64, torch.complex128]
AXES = "hwd"


def samples(name: str, dtype: torch.dtype) -> list[SampleInput]:
    (info,) = [info for info in op_db if info.name == name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(info.sample_inputs("cpu", dtype, requires_grad=True))


def torchs(name: str, sample: SampleInput) -> torch.Tensor:
    (info,) = [info for info in op_db if info.name == name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return info.op(sample.input, *sample.args, **sample.kwargs)


def each(value: Any, axes: str) -> dict[str, Any]:
    """torch's number, or one number an axis, as a dict by mode."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return dict(zip(axes, values * len(axes) if len(values) == 1 else values, strict=False))


def as_expression(name: str, sample: SampleInput) -> tuple[str, dict[str, Any], torch.Tensor | None]:
    """The expression, the options and the bias of one sample of a convolution."""
    x, (weight, bias) = sample.input, sample.args
    kwargs = dict(sample.kwargs)
    axes = AXES[: weight.dim() - 2]
    groups = kwargs.pop("groups", 1)
    transposed = "transpose" in name
    options: dict[str, Any] = {"padding": 0, "transposed": transposed}
    for option, value in kwargs.items():
        options[option] = value if isinstance(value, str) else each(value, axes)
    batch = "b" if x.dim() == weight.dim() else ""
    kernel = f"(g s)t{axes}" if transposed else f"(g t)s{axes}"
    return f"{batch}(g s){axes},{kernel}->{batch}(g t){axes}|{axes}", options | {"sizes": {"g": groups}}, bias


def assert_same_gradients(ours: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    weights = torch.linspace(-1, 2, theirs.numel()).reshape(theirs.shape).to(theirs.dtype)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::convein.ConveinWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in AT_LEAST if name != "einsum"])
def test_convolutions(name: str, dtype: torch.dtype) -> None:
    found = samples(name, dtype)
    assert len(found) >= AT_LEAST[name]
    for sample in found:
        theirs = torchs(name, sample)
        expression, options, bias = as_expression(name, sample)
        weight = sample.args[0]
        ours = convein.conv_einsum(expression, sample.input, weight, **options)
        inputs = [sample.input, weight]
        if bias is not None:
            ours = ours + bias.reshape(-1, *[1] * (weight.dim() - 2))
            inputs.append(bias)
        assert_same_gradients(ours, theirs, inputs)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bfloat16], ids=str)
def test_einsum(dtype: torch.dtype) -> None:
    (info,) = [info for info in op_db if info.name == "einsum"]
    assert dtype in info.dtypes
    found = list(info.sample_inputs("cpu", dtype, requires_grad=dtype in DTYPES))
    assert len(found) >= AT_LEAST["einsum"]
    for sample in found:
        (expression,), operands = sample.args, list(sample.input)
        theirs, ours = torch.einsum(expression, *operands), convein.conv_einsum(expression, *operands)
        if dtype in DTYPES:
            assert_same_gradients(ours, theirs, operands)
        else:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::convein.ConveinWarning")
def test_what_torch_refuses_is_refused() -> None:
    (info,) = [info for info in op_db if info.name == "nn.functional.conv2d"]
    refused = 0
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        if not isinstance(sample.args[0], torch.Tensor) or sample.input.dtype != sample.args[0].dtype:
            continue
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            torchs("nn.functional.conv2d", sample)
        refused += 1
    assert refused >= 0
