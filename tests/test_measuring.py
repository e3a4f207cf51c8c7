"""`optimize="measure"`: what is fastest runs and is remembered, nothing else changes, and where it must not measure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import convein
from contexts import deterministic
from convein import cache, conv_einsum, measuring, pipeline
from convein.lowering import Program, Target, lower
from convein.metering import LiveMemory, Sample
from convein.planner import plan

CP = "bshw,rs,rh,rw,rt->bthw|hw"
SHAPES = (4, 8, 6, 6), (3, 8), (3, 3), (3, 3), (3, 5)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    convein.cache_clear()


def operands(*, grad: bool = False) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=numbers, requires_grad=grad) for shape in SHAPES]


class Clock:
    """Stands for `measuring.seconds`: the job that comes at `place` is the fastest."""

    def __init__(self, place: int = 0) -> None:
        self.place, self.calls = place, 0

    def __call__(self, call: Callable[[], object], device: torch.device) -> float:
        call()
        self.calls += 1
        return 1e-3 if (self.calls - 1) // 2 == self.place else 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "seconds", clock)
    return clock


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """The programs that run, in order."""
    found: list[Program] = []

    def load(program: Program) -> Callable[..., Any]:
        function = original(program)

        def recorded(*given: Tensor) -> Any:
            found.append(program)
            return function(*given)

        return recorded

    original = pipeline.load
    monkeypatch.setattr(pipeline, "load", load)
    return found


# Which program runs


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("place", range(measuring.TIMED))
def test_the_fastest_is_used_and_remembered(place: int, grad: bool, clock: Clock, ran: list[Program]) -> None:
    clock.place = place
    given = operands(grad=grad)
    wanted = conv_einsum(CP, *given)
    ran.clear()
    first = conv_einsum(CP, *given, optimize="measure")
    tried = list(dict.fromkeys(program.source for program in ran))
    assert len(tried) == measuring.TIMED
    assert ran[-1].source == tried[place]
    assert ran[-1].plan.optimizer == "measure"
    assert bool(ran[-1].plan.needs_grad) == grad
    assert len(ran) == 2 * len(tried) + 1  # what is hopeless after two calls gets no third one
    timed = clock.calls
    ran.clear()
    second = conv_einsum(CP, *given, optimize="measure")
    assert clock.calls == timed
    assert [program.source for program in ran] == [tried[place]]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, wanted)


def test_the_most_promising_come_first_and_none_twice() -> None:
    network = convein.contract_path(CP, *SHAPES)[1].plan.network
    target = Target(torch.float32, "cpu", dict(network.sizes))
    found = measuring.programs(network, target, (), {"cost": "time", "rates": target.rates})
    assert len({program.source for program in found}) == len(found) == measuring.TIMED
    assert [program.price for program in found] == sorted(program.price for program in found)
    best = lower(plan(network, cost="time", rates=target.rates), target)
    assert found[0].price <= best.price


@pytest.mark.parametrize("place", [0, 2])
def test_compile_measures_at_once(place: int, clock: Clock) -> None:
    clock.place = place
    x, *factors = operands(grad=True)
    made = convein.compile(CP, x, *factors, optimize="measure")
    assert clock.calls >= 2 * measuring.TIMED
    assert made.plan.optimizer == "measure"
    assert "Optimizer:  measure, by time" in str(made)
    timed = clock.calls
    result = made(x, *factors)
    torch.testing.assert_close(result, conv_einsum(CP, x, *factors))
    result.sum().backward()
    assert x.grad is not None
    assert clock.calls == timed
    clock.calls, clock.place = 0, 1
    assert convein.compile(CP, x, *factors, optimize="measure").source != made.source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
def test_shapes_are_measured_on_random_numbers(dtype: torch.dtype, clock: Clock) -> None:
    made = convein.compile("ab,bc,cd->ad", (None, 4), (4, 5), (5, 6), dtype=dtype, optimize="MEASURE")
    assert clock.calls
    given = [torch.ones(shape, dtype=dtype) for shape in ((2, 4), (4, 5), (5, 6))]
    assert torch.equal(made(*given), conv_einsum("ab,bc,cd->ad", *given))


def test_constants_are_folded_before_times_are_taken(clock: Clock) -> None:
    x, *factors = operands()
    made = convein.compile(CP, SHAPES[0], constants=dict(enumerate(factors, 1)), optimize="measure")
    assert clock.calls
    torch.testing.assert_close(made(x), conv_einsum(CP, x, *factors))


@pytest.mark.parametrize("grad", [False, True])
def test_the_backward_pass_counts_where_gradients_are_needed(grad: bool, clock: Clock) -> None:
    """Also with what is computed again for it."""
    seen: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            seen.append(True)
            return gradients[0]

    measuring.fastest([Watched.apply, Watched.apply], [torch.ones(2)], [grad])
    assert bool(seen) == grad
    given = operands(grad=grad)
    result = conv_einsum(CP, *given, optimize="measure", checkpoint=True)
    torch.testing.assert_close(result, conv_einsum(CP, *given))


def test_what_fails_never_wins() -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too large")

    assert measuring.fastest([fails, torch.neg], [torch.ones(2)], [False]) == 1
    assert measuring.fastest([fails, fails], [torch.ones(2)], [False]) == 0


def test_one_program_needs_no_clock(clock: Clock) -> None:
    made = convein.compile("ij,jk->ik", (4, 5), (5, 6), optimize="measure")
    assert (clock.calls, made.plan.optimizer) == (0, "measure")


def test_nothing_is_computed_for_a_path(clock: Clock) -> None:
    path, info = convein.contract_path(CP, *operands(), optimize="measure")
    assert (path, info.optimizer) == (convein.contract_path(CP, *SHAPES)[0], "optimal")
    assert clock.calls == 0


def test_nothing_is_computed_for_a_path_with_checkpoints(clock: Clock) -> None:
    path, _ = convein.contract_path(CP, *operands(), optimize="measure", checkpoint=True)
    assert path == convein.contract_path(CP, *SHAPES, checkpoint=True)[0]
    assert clock.calls == 0


def test_of_two_threads_that_measure_the_same_the_first_is_remembered() -> None:
    assert cache.store("key", torch.neg) is torch.neg
    assert cache.store("key", torch.abs) is torch.neg
    assert cache.lookup("key") is torch.neg


# What nobody notices


def test_nothing_is_disturbed() -> None:
    given = operands(grad=True)
    before = [x.detach().clone() for x in given]
    hooked: list[object] = []
    for x in given:
        x.register_hook(hooked.append)
    state = torch.random.get_rng_state()
    conv_einsum(CP, *given, optimize="measure")
    convein.compile(CP, *SHAPES, grad=True, optimize="measure")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(x.grad is None and x._version == 0 and x.requires_grad for x in given)
    assert all(map(torch.equal, given, before))
    assert not hooked


def test_the_callers_hooks_and_modes_stay_outside() -> None:
    given = operands(grad=True)
    packed: list[int] = []
    for _ in range(2):
        packed.append(0)

        def pack(tensor: Tensor) -> Tensor:
            packed[-1] += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            conv_einsum(CP, *given, optimize="measure")
    assert packed[0] == packed[1] > 0
    frozen = operands()
    with torch.inference_mode():
        assert conv_einsum(CP, *frozen, optimize="measure").is_inference()
    recomputed = torch.utils.checkpoint.checkpoint(
        lambda *x: conv_einsum(CP, *x, optimize="measure", padding=1), *given, use_reentrant=False
    )
    recomputed.sum().backward()
    assert given[0].grad is not None


def test_autocast_is_the_callers() -> None:
    def seen(x: Tensor) -> Tensor:
        types.append((x @ x).dtype)
        return x

    types: list[torch.dtype] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measuring.fastest([seen, seen], [Sample((2, 2), torch.float32, "cpu")], [False])
        x, *factors = operands()
        mixed = conv_einsum(CP, x.bfloat16(), *factors, optimize="measure")
    assert set(types) == {torch.bfloat16}
    assert mixed.dtype == torch.bfloat16


def test_a_bar_appears_only_if_it_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(measuring, "_bar", lambda rounds: lengths.append(rounds) or range(rounds))
    for spent in (0.01, 3.0):
        monkeypatch.setattr(measuring, "seconds", lambda call, device, spent=spent: spent)
        assert measuring.fastest([torch.neg, torch.abs], [torch.ones(2)], [False]) == 0
    assert lengths == [measuring.LEAST_ROUNDS]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(measuring._bar(3)) == [0, 1, 2]


# Where times must not decide


@contextmanager
def distributed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        yield


@pytest.mark.parametrize("place", [deterministic, distributed, LiveMemory])
def test_elsewhere_the_model_decides_and_that_is_not_remembered(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = operands()
    wanted = conv_einsum(CP, *given)
    with place():
        for _ in range(2):
            assert torch.equal(conv_einsum(CP, *given, optimize="measure"), wanted)
        made = convein.compile(CP, *given, optimize="measure")
    assert (clock.calls, made.plan.optimizer) == (0, "optimal")
    conv_einsum(CP, *given, optimize="measure")
    assert clock.calls


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_no_trace_is_measured(clock: Clock) -> None:
    def call(*given: Tensor) -> Tensor:
        return conv_einsum(CP, *given, optimize="measure")

    given = operands()
    wanted = conv_einsum(CP, *given)
    x, *factors = given
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(*given), wanted)
    torch.testing.assert_close(torch.jit.trace(call, tuple(given), check_trace=False)(*given), wanted)
    torch.testing.assert_close(make_fx(call)(*given)(*given), wanted)
    torch.testing.assert_close(torch.vmap(call, (0, *[None] * 4))(x.unsqueeze(1), *factors).squeeze(1), wanted)
    assert call(*(tensor.to("meta") for tensor in given)).shape == wanted.shape
    fake = FakeTensorMode()
    assert call(*map(fake.from_tensor, given)).shape == wanted.shape
    assert convein.compile(CP, *SHAPES, device="meta", optimize="measure").plan.optimizer == "optimal"
    assert clock.calls == 0
    call(*given)
    assert clock.calls


def test_where_all_operands_are_constants_there_is_nothing_to_time(clock: Clock) -> None:
    text, (_, *factors) = "rs,rh,rw,rt->shwt", operands()
    made = convein.compile(text, *factors, constants=range(4), optimize="measure")
    torch.testing.assert_close(made(), conv_einsum(text, *factors))
    assert clock.calls == 0
