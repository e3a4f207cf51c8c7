"""Kernels are loaded when they are asked for, and say why they are not there. No test here runs one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from convein.errors import OptionError
from convein.execution import kernels
from convein.layers import ConvLSTMCell, bqn, explain


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu")])
@pytest.mark.parametrize("asked", [False, True])
def test_there_are_no_kernels_beside_a_gpu(device: str | torch.device, asked: bool) -> None:
    reason = kernels.absence(device, asked=asked)
    assert reason == f"the operands are on {torch.device(device).type}, and the kernels run on cuda"


def test_without_triton_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" or name.startswith("convein.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels.load.cache_clear()
    kernels.operators.cache_clear()
    assert kernels.absence("cuda") == "triton 3.6 or newer is not installed (pip install triton)"
    kernels.load.cache_clear()
    kernels.operators.cache_clear()


@pytest.mark.parametrize(("version", "is_old"), [("3.2.0", True), ("3.5.1+git1", True), ("3.6.0", False)])
def test_an_old_triton_is_none(version: str, is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", version)
    kernels.operators.cache_clear()
    assert (kernels.absence("cuda") == "triton 3.6 or newer is not installed (pip install triton)") is is_old
    kernels.operators.cache_clear()


def test_a_program_with_kernels_says_what_it_misses_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(kernels, "load", missing)
    with pytest.raises(OptionError, match="planned for Triton kernels, and calls pair: triton is not installed"):
        kernels.kernel("pair", torch.ones(2, 2), torch.ones(2, 2))


def test_calls_that_a_kernel_refuses_are_plain() -> None:
    z, cell = torch.randn(2, 12, 5), torch.randn(2, 3, 5)
    gates = z.chunk(4, 1)
    state = gates[1].sigmoid() * cell + gates[0].sigmoid() * gates[3].tanh()
    h, after = kernels.call("lstm_gates", z, cell)
    torch.testing.assert_close(after, state)
    torch.testing.assert_close(h, gates[2].sigmoid() * state.tanh())
    assert kernels.refusal("lstm_gates", z, cell) == "the tensors are on cpu, and the kernels run on cuda"


LAYERS = """
import subprocess
import sys
import torch
from convein.layers import ConvLSTM, ConvTTLSTM, bqn

network = torch.nn.Sequential(bqn.Conv2d(1, 4, 3, padding=1), bqn.Sign(), bqn.Conv2d(4, 2, 3), bqn.Sign())
minus = network(torch.randn(2, 1, 6, 6)).minus
hidden, _ = ConvLSTM(1, 2, 3)(torch.randn(2, 1, 1, 4, 4))
more, _ = ConvTTLSTM(1, 2, 3)(torch.randn(2, 1, 1, 4, 4))
(minus.sum() + hidden.sum() + more.sum()).backward()
print("triton" in sys.modules)
"""


def test_layers_on_a_cpu_leave_triton_alone() -> None:
    run = subprocess.run([sys.executable, "-c", LAYERS], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["False"], run.stdout + run.stderr


def test_layers_beside_a_gpu_say_why_they_are_plain_calls() -> None:
    network = nn.Sequential(bqn.Conv2d(8, 4, 3), bqn.Sign(), ConvLSTMCell(4, 2))
    reason = "plain calls: the operands are on cpu, and the kernels run on cuda."
    assert explain(network).splitlines() == [
        f"0 (Conv2d): Sums of random signs are {reason}",
        f"2 (ConvLSTMCell): The gates are {reason}",
    ]
    assert (
        explain(nn.Linear(2, 3))
        == "No module has a kernel of its own; what an expression calls, explain() of a compiled one says."
    )


@pytest.mark.parametrize("mode", ["analytic", "map"])
def test_a_sequence_without_kernels_is_that_of_torch(mode: str) -> None:
    layers = [bqn.Conv2d(1, 4, 3), bqn.Sign(), bqn.Conv2d(4, 3, 3, propagation="clt"), bqn.Sign(), bqn.Flatten()]
    theirs, ours = (kind(*layers, bqn.SoftmaxHead()) for kind in (nn.Sequential, bqn.Sequential))
    bqn.set_mode(theirs, mode)
    x = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(torch.export.export(ours, (x,)).module()(x), ours(x))
    assert bqn.Sequential()(x) is x
