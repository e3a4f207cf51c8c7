"""`convein.tune` where there is nothing to tune. Everything else about it is among the kernels' tests."""

from __future__ import annotations

import sys

import pytest
import torch

import convein
from convein.execution import kernels


def call() -> None:
    pytest.fail("nothing was to be called")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(convein.PlanError) as caught:
        convein.tune(call)
    assert str(caught.value) == (
        "there is nothing to tune: the kernels run on a GPU, and torch finds none\n\n"
        "call tune on the machine whose GPU it is for"
    )


def test_without_triton_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" or name.startswith("convein.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels.load.cache_clear()
    kernels.operators.cache_clear()
    with pytest.raises(convein.PlanError) as caught:
        convein.tune(call)
    kernels.operators.cache_clear()
    assert "written in triton, and 3.6 or newer is not installed" in str(caught.value)
    assert caught.value.hint == "pip install triton"


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(convein.OptionError, match='function="ij,jk->ik" cannot be called') as caught:
        convein.tune("ij,jk->ik", torch.ones(2, 3), torch.ones(3, 4))  # type: ignore[arg-type]
    assert 'convein.tune(conv_einsum, "ij,jk->ik", x, w)' in str(caught.value)
    with pytest.raises(convein.OptionError, match="timer=5 cannot be called"):
        convein.tune(call, timer=5)  # type: ignore[arg-type]
