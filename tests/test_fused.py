"""Which steps become fused kernels on a GPU, and why others do not. Nothing here runs one: plans need no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import convein
from convein import measuring
from convein.errors import OptionError
from convein.execution import kernels
from convein.lowering import Target
from convein.lowering.chain import runs
from convein.planner import accelerators, plan, rates
from convein.planner.accelerators import accelerator
from convein.planner.chains import MOST_FACTORS, chains

BATCH = 128
CP = "bhws,rs,rh,rw,tr->bhwt|hw"


def compiled(text: str, *shapes: tuple[int, ...], **options: Any) -> convein.Expression:
    """For a GPU."""
    return convein.compile(text, *shapes, **{"dtype": torch.bfloat16, "device": "cuda", **options})


def layer(channels: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
    return (BATCH, size, size, channels), (rank, channels), (rank, 3), (rank, 3), (channels, rank)


@pytest.mark.parametrize(
    ("channels", "rank", "size", "expected"),
    [
        (64, 64, 56, ("pointwise_depthwise",)),
        (128, 64, 28, ("pointwise_depthwise",)),
        (256, 256, 14, ("depthwise_pointwise",)),
        (64, 275, 56, ()),
    ],
)
def test_small_layers_are_fused_and_those_that_are_hardly_compressed_composed(
    channels: int, rank: int, size: int, expected: tuple[str, ...]
) -> None:
    assert compiled(CP, *layer(channels, rank, size)).program.kernels == expected


def test_backend_torch_calls_no_kernel_and_triton_calls_them_where_they_are_slower() -> None:
    assert compiled(CP, *layer(64, 64, 56), backend="torch").program.kernels == ()
    text, shapes = "bhws,tshw->bhwt|hw", ((BATCH, 28, 28, 256), (256, 256, 3, 3))
    assert compiled(text, *shapes).program.kernels == ()
    forced = compiled(text, *shapes, backend="triton")
    assert forced.program.kernels == ("pair",)
    assert forced.price > compiled(text, *shapes).price


def test_kernels_are_expected_to_be_faster_than_what_they_replace() -> None:
    for shapes in (layer(64, 64, 56), layer(128, 64, 28), layer(256, 256, 14)):
        assert compiled(CP, *shapes).price < compiled(CP, *shapes, backend="torch").price


def test_training_counts_the_gradients() -> None:
    forward, training = (compiled(CP, *layer(64, 64, 56), grad=grad) for grad in (False, True))
    assert training.program.kernels
    assert training.price > 2 * forward.price


def test_a_free_batch_is_read_at_run_time() -> None:
    shapes: Any = ((None, 32, 32, 64), *layer(64, 64, 32)[1:])
    free = convein.compile(CP, *shapes, dtype=torch.bfloat16, device="cuda", backend="triton")
    assert "pointwise_depthwise" in free.program.kernels
    assert "n0" in free.source


def test_explain_names_the_kernels_and_the_reasons() -> None:
    text = compiled(CP, *layer(64, 64, 56)).explain()
    assert "Kernels\n  pointwise_depthwise: called\n" in text
    text = compiled(CP, *layer(512, 512, 14)).explain()
    assert re.search(r"pointwise_depthwise, .* and \d more: there are 512 channels outside, more than 128\n", text)
    text = convein.compile(CP, *layer(4, 4, 8)).explain()
    assert "Kernels\n  the operands are on cpu, and the kernels run on cuda\n" in text
    text = compiled("ab,c->abc", (4, 5), (6,)).explain()
    assert "Kernels\n  no run of these steps is one that a kernel computes\n" in text
    assert 'backend="torch" was asked for' in compiled(CP, *layer(4, 4, 8), backend="torch").explain()


@pytest.mark.parametrize(
    ("text", "shapes", "options", "reason"),
    [
        (CP, layer(4, 4, 8), {"stride": 2}, "the convolution has a stride"),
        (CP, layer(4, 4, 8), {"transposed": True, "stride": 2, "padding": 0}, "the convolution is transposed"),
        (CP, layer(4, 4, 8), {"dtype": torch.float64}, "on a GPU the kernel has no products of float64"),
        (
            "bsdhw,rs,rdhw,tr->btdhw|dhw",
            ((2, 4, 5, 6, 7), (3, 4), (3, 3, 3, 3), (4, 3)),
            {},
            "3 modes are convolved, and the kernel is for images",
        ),
        (
            "bsghw,rs,rghw,tr->btghw|hw",
            ((2, 4, 3, 6, 7), (3, 4), (3, 3, 3, 3), (4, 3)),
            {},
            "the factors share only some of their channels",
        ),
    ],
)
def test_what_no_kernel_is_for_is_refused_with_the_reason(
    text: str, shapes: tuple[tuple[int, ...], ...], options: dict[str, Any], reason: str
) -> None:
    assert compiled(text, *shapes, **options).program.kernels.count("pointwise_depthwise") == 0
    assert reason in compiled(text, *shapes, **options).explain()


def test_forced_kernels_are_refused_in_a_sentence() -> None:
    with pytest.raises(OptionError, match="the operands are on cpu, and the kernels run on cuda"):
        convein.conv_einsum("ab,bc->ac", torch.ones(2, 3), torch.ones(3, 4), backend="triton")
    with pytest.raises(OptionError, match="no kernel computes a part of this") as caught:
        compiled("ab,c->abc", (4, 5), (6,), backend="triton")
    assert 'backend="auto"' in str(caught.value)
    with pytest.raises(OptionError, match="the convolution is transposed"):
        compiled(CP, *layer(4, 4, 8), transposed=True, stride=2, padding=0, backend="triton")
    with pytest.raises(OptionError, match='backend="cuda"') as caught:
        compiled(CP, *layer(4, 4, 8), backend="cuda")
    assert '"auto", "torch" and "triton"' in str(caught.value)


def letters(text: str, *shapes: tuple[int, ...]) -> str:
    """Of the whole chain, joined from left to right."""
    network = convein.compile(text, *shapes).network
    order = plan(network, optimize="left-to-right")
    sides = [frozenset(operand.modes) for operand in network.operands]
    sides += [frozenset(network.modes(step.result_set)) for step in order.steps]
    return max((run.letters for run in runs(order, len(order.steps) - 1, lambda number: tuple(sides[number]))), key=len)


@pytest.mark.parametrize(
    ("text", "shapes", "expected"),
    [
        ("bshw,rs,rhw,tr->bthw|hw", ((2, 4, 7, 7), (3, 4), (3, 3, 3), (5, 3)), "PDP"),
        ("(one)y(two)x,(three)(two),x(three)->(one)y(three)x|x", ((2, 7, 4, 7), (3, 4), (3, 3)), "PD"),
        ("bshw,rs,qrhw,tq->bthw|wh", ((2, 4, 7, 7), (3, 4), (2, 3, 3, 3), (5, 2)), "PCP"),
        ("ab,ab,b->a", ((3, 4), (3, 4), (4,)), "HH"),
        ("bshw,rshw->brhw|hw", ((2, 4, 7, 7), (3, 4, 3, 3)), "C"),
        ("bsh,bsh->bsh|h", ((2, 4, 7), (2, 4, 3)), "D"),
        ("bgsh,gtsh->bgth|h", ((2, 3, 4, 7), (3, 5, 4, 3)), "G"),
        ("bgs,gts->bgt", ((2, 3, 4), (3, 5, 4)), "B"),
        ("ab,c->abc", ((3, 4), (5,)), "-"),
    ],
)
def test_steps_are_letters_by_their_modes_alone(text: str, shapes: tuple[tuple[int, ...], ...], expected: str) -> None:
    assert letters(text, *shapes) == expected


def test_chains_group_neighbours_in_every_way_and_are_orders() -> None:
    network = convein.compile(CP, *layer(8, 4, 9)).network
    found = list(chains(network))
    assert len(set(found)) == 2 ** (len(network.operands) - 2) == 8
    for order in found:
        assert sorted(value for pair in order for value in pair) == list(range(2 * len(network.operands) - 2))


def test_long_networks_have_no_chains() -> None:
    count = MOST_FACTORS + 2
    network = convein.compile(",".join(["ab"] * count) + "->a", *[(2, 3)] * count).network
    assert list(chains(network)) == []


def test_channels_first_are_read_as_they_lie() -> None:
    first = compiled("bshw,rs,rh,rw,tr->bthw|hw", (BATCH, 64, 56, 56), *layer(64, 64, 56)[1:])
    assert first.program.kernels == ("pair", "pointwise_depthwise")
    assert "contiguous" not in first.source


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_a_gpu_has_rates_for_every_class_and_type(dtype: torch.dtype) -> None:
    table = accelerator(dtype)
    kinds = {value for name, value in vars(rates).items() if name.isupper() and isinstance(value, str)}
    assert {*table.forward} == {*table.backward} == kinds
    assert table.itemsize == dtype.itemsize


def test_a_card_that_was_measured_has_its_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = {"overhead": 7.0, "flops": 1e5, "bandwidth": 1e3, "overlaps": True}
    tables = {"measured: A card, bfloat16": {part: {rates.MATRIX: rate} for part in ("forward", "backward")}}
    monkeypatch.setattr(accelerators, "_measured", lambda: tables)
    own, other = (accelerator.__wrapped__(torch.bfloat16, card) for card in ("A card", "Another"))
    assert own.name == "measured: A card, bfloat16"
    assert own.forward[rates.MATRIX] == own.backward[rates.MATRIX] == rates.Rate(**rate)
    assert own.forward[rates.FUSED] == other.forward[rates.FUSED]
    assert other.forward[rates.MATRIX] != own.forward[rates.MATRIX]


def test_measuring_times_programs_with_kernels_and_without() -> None:
    network = compiled(CP, *layer(64, 64, 56)).network
    target = Target(torch.bfloat16, "cuda", dict(network.sizes), accelerator(torch.bfloat16), refusal=kernels.refusal)
    found = measuring.programs(network, target, (), {"rates": target.rates})
    assert len({program.source for program in found}) == len(found)
    assert {bool(program.kernels) for program in found} == {True, False}
    assert [program.price for program in found] == sorted(program.price for program in found)


def test_a_gpu_moves_numbers_while_it_computes() -> None:
    rate = accelerator(torch.bfloat16).forward[rates.MATRIX]
    flops, moved = 1e9, 1e6
    assert rate.time(flops, moved) == pytest.approx(max(rate.time(flops, 0), rate.time(0, moved)))


def test_what_needs_a_gpu_to_be_asked_is_planned_or_refused_without_one() -> None:
    if torch.cuda.is_available():
        return
    assert compiled(CP, *layer(64, 64, 56), optimize="measure").program.kernels
    with pytest.raises(OptionError, match="there is no GPU here to ask"):
        compiled(CP, *layer(64, 64, 56), memory_limit="80%")


def test_autocast_decides_what_kernels_are_asked_for() -> None:
    shapes = layer(64, 64, 56)
    torch.set_autocast_enabled("cuda", True)  # torch.autocast itself warns where there is no GPU
    try:
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        mixed = convein.compile(CP, *shapes, device="cuda", dtype=torch.float32)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert mixed.program.kernels
    plain = convein.compile(CP, *shapes, device="cuda", dtype=torch.float32)
    assert plain.program.kernels == ()
    assert "products of float32 are not to be rounded" in plain.explain()


class Kernels(TorchDispatchMode):
    """Remembers which kernels are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "convein":
            self.called.append(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def test_what_was_planned_for_forward_derivatives_serves_these_only() -> None:
    with FakeTensorMode():
        tensors = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in layer(64, 64, 56)]
        with forward_ad.dual_level(), Kernels() as derived:
            convein.conv_einsum(CP, *tensors)
        with Kernels() as plain:
            convein.conv_einsum(CP, *tensors)
    assert (derived.called, plain.called) == ([], ["pointwise_depthwise"])


def test_a_fused_layer_keeps_its_operands_only() -> None:
    shapes = (BATCH, 56, 56, 64), (64, 64), (64, 3, 3), (64, 64)
    text = "bhws,rs,rhw,tr->bhwt|hw"
    fused = compiled(text, *shapes, grad=True, backend="triton")
    plain = compiled(text, *shapes, grad=True, backend="torch", optimize=False)
    assert fused.program.kernels == ("pointwise_depthwise",)
    assert fused.saved_bytes == 0
    assert plain.saved_bytes >= 2 * BATCH * 64 * 56 * 56 * 2
