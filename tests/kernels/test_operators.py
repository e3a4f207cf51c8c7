"""What all kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from convein.kernels import operators
from torch._subclasses import FakeTensorMode


def test_a_kernel_is_launched_on_the_gpu_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.append(None)

    def launch(*arguments: object) -> int:
        assert current == [torch.device("cuda:1")]
        return len(arguments)

    with FakeTensorMode():
        x = torch.empty(2, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device", entered)
    assert operators.at_home(launch)(None, x, (1, 2)) == 3
    assert current == [torch.device("cuda:1"), None]
