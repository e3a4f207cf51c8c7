"""Random expressions by kernels against the sums written out, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convein
import reference
from convein.errors import OptionError
from strategies import cases

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore::convein.ConveinWarning"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("convolved", [0, 2])
def test_whatever_kernels_compute_is_the_oracles_tensor(convolved: int, data: st.DataObject) -> None:
    case = data.draw(cases(operands=(2, 4), convolved=convolved))
    operands = [x.requires_grad_() for x in case.operands()]
    try:
        compiled = convein.compile(case.expression, *operands, backend="triton", **case.options)
    except OptionError as error:
        assert "no kernel computes a part of this" in str(error)  # noqa: PT017
        return
    assert compiled.program.kernels
    expected = reference.conv_einsum(case.expression, *operands, **case.options)
    result = compiled(*operands)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{case!r}: {text}")
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad(one, operands, weight, allow_unused=True) for one in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9, msg=lambda text: f"{case!r}: {text}")
