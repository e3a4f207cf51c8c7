"""The convolutional tensor-train, its LSTM and the plain one: golden vectors, the formulas written out, modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, jvp, vmap

from convein.errors import OperandError, OptionError, ShapeError
from convein.layers import ConvEinsum, ConvLSTM, ConvLSTMCell, ConvTensorTrain, ConvTTLSTM, ConvTTLSTMCell
from convein.metering import LiveMemory

GOLDEN = Path(__file__).parent / "golden"
DOUBLE = torch.float64
Cell = ConvTTLSTMCell | ConvLSTMCell


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.tensor(file[key]) for key in file.files}


def same(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def sequence(steps: int = 4, batch: int = 2, channels: int = 3, size: tuple[int, int] = (6, 5), **more: Any) -> Tensor:
    return torch.randn(steps, batch, channels, *size, **{"dtype": DOUBLE, **more})


# Golden vectors

TRAINS = [
    ("stage", "recursive", "out_recursive_zero"),
    ("whole", "recursive", "out_composed_zero"),
    ("whole", "composed", "out_composed_zero"),
    ("circular", "recursive", "out_circular"),
    ("circular", "composed", "out_circular"),
]


@pytest.mark.parametrize(("padding", "evaluation", "key"), TRAINS)
def test_golden_tensor_train(padding: str, evaluation: str, key: str) -> None:
    known = golden("ctt_module")
    train = ConvTensorTrain((8, 3, 4, 2), 3, padding=padding, evaluation=evaluation, dtype=DOUBLE)
    train.load_state_dict({name: known[name] for name in ("G1", "G2", "G3")})
    same(train(known["H1"], known["H2"], known["H3"]), known[key])


@pytest.mark.parametrize("checkpoint", [False, True, 3])
@pytest.mark.parametrize("name", ["n2m2", "n3m3"])
def test_golden_conv_tt_lstm_with_gradients(name: str, checkpoint: bool | int) -> None:
    known = golden(f"convttlstm_{name}")
    order, steps, rank, kernel = (int(known[key]) for key in ("order", "steps", "rank", "kernel_size"))
    layer = ConvTTLSTM(3, 4, kernel, order=order, steps=steps, ranks=rank, checkpoint=checkpoint, dtype=DOUBLE)
    layer.cell.load_state_dict({key: known["gate_bias" if key == "bias" else key] for key in layer.cell.state_dict()})
    check(layer, known)
    with_gradient = {key for key, _ in layer.cell.named_parameters() if f"grad_{key}" in known}
    assert with_gradient == {"W", *(f"{kind}{i}" for kind in "PG" for i in range(1, order + 1))}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_golden_conv_lstm_with_gradients(checkpoint: bool) -> None:
    known = golden("convlstm_cell")
    layer = ConvLSTM(3, 4, 3, checkpoint=checkpoint, dtype=DOUBLE)
    layer.cell.load_state_dict({key: known[key] for key in ("W", "K", "bias")})
    check(layer, known)


def check(layer: ConvTTLSTM | ConvLSTM, known: dict[str, Tensor]) -> None:
    x = known["x"].requires_grad_()
    outputs, state = layer(x)
    same(outputs, known["h"])
    same(state[1], known["c_last"])
    (outputs * known["loss_weight"]).sum().backward()
    same(x.grad, known["grad_x"])
    for name, parameter in layer.cell.named_parameters():
        if f"grad_{name}" in known:
            same(parameter.grad, known[f"grad_{name}"])


# The formulas, written out


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, mode: str = "zeros") -> Tensor:
    high, wide = weight.shape[-2:]
    sides = ((wide - 1) // 2, wide // 2, (high - 1) // 2, high // 2)
    padded = F.pad(x, sides, mode="constant" if mode == "zeros" else mode)
    return F.conv2d(padded, weight, bias)


def written_out(cell: ConvTTLSTMCell, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Section by section as the dissertation has it; every stored state is a picture of its own."""
    p = dict(cell.named_parameters())
    order, kept, mode = cell.order, cell.stored, cell.padding_mode
    shape = (frames.shape[1], cell.hidden_channels, *frames.shape[3:])
    past = [frames.new_zeros(shape)] * cell.steps
    c, outputs = frames.new_zeros(shape), []
    for x in frames:
        v = None
        for i in range(order, 0, -1):
            newest = cell.steps - (i - 1 if cell.window == "sliding" else 0)
            states = torch.cat(past[newest - kept : newest], 1)
            read = convolve(states, p[f"P{i}"].flatten(1, 2), p.get(f"P{i}_bias"), mode)
            v = read if v is None else read + convolve(v, p[f"G{i + 1}"], p.get(f"G{i + 1}_bias"), mode)
        assert v is not None
        z = convolve(x, p["W"], p.get("bias"), mode) + convolve(v, p["G1"], None, mode)
        i_, f, o, g = z.chunk(4, 1)
        c = f.sigmoid() * c + i_.sigmoid() * g.tanh()
        outputs.append(o.sigmoid() * c.tanh())
        past = [*past[1:], outputs[-1]]
    return torch.stack(outputs), c


CELLS = [
    {"order": 1, "steps": 1, "ranks": 2},
    {"order": 1, "steps": 3, "ranks": 3, "padding_mode": "circular"},
    {"order": 2, "steps": 4, "ranks": (3, 2)},
    {"order": 3, "steps": 5, "ranks": (2, 3, 1), "padding_mode": "circular"},
    {"order": 3, "steps": 3, "ranks": 2, "bias": False},
    {"order": 7, "steps": 7, "ranks": 4},
    {"order": 1, "steps": 2, "ranks": 2, "window": "fixed"},
    {"order": 3, "steps": 5, "ranks": (2, 3, 1), "window": "fixed"},
    {"order": 2, "steps": 2, "ranks": 2, "window": "fixed", "bias": False, "padding_mode": "circular"},
]


def drawn(cell: Cell) -> Cell:
    """The cell with biases that are not zero."""
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    return cell


@pytest.mark.parametrize("kernel", [3, (2, 4), (1, 3)])
@pytest.mark.parametrize("options", CELLS, ids=str)
def test_a_sequence_is_what_the_formulas_say(options: dict[str, Any], kernel: Any) -> None:
    layer = ConvTTLSTM(3, 2, kernel, **options, dtype=DOUBLE)
    drawn(layer.cell)
    x = sequence(9).requires_grad_()
    outputs, state = layer(x)
    expected, c = written_out(layer.cell, x)
    same(outputs, expected)
    same(state[1], c)
    weight, leaves = torch.randn_like(outputs), [x, *layer.parameters()]
    same(*(torch.autograd.grad((value * weight).sum(), leaves) for value in (outputs, expected)))


def test_every_way_through_a_step_is_tested_above() -> None:
    cells = [ConvTTLSTMCell(3, 2, 3, **options) for options in CELLS]
    assert {(cell.window, cell.joint, len(cell.prepare().train) > 0) for cell in cells} == {
        ("sliding", True, False),
        ("sliding", False, True),
        ("fixed", False, False),
        ("fixed", False, True),
    }


@pytest.mark.parametrize("make", [lambda: ConvTTLSTM(3, 2, 3, order=2, steps=3), lambda: ConvLSTM(3, 2, 3)])
def test_cells_and_sequences_and_their_parts_agree(make: Any) -> None:
    layer = make().double()
    drawn(layer.cell)
    x = sequence(5)
    outputs, last = layer(x)
    first, state = layer(x[:2])
    rest, end = layer(x[2:], state)
    same(torch.cat((first, rest)), outputs)
    same(end, last)
    state = None
    for frame, expected in zip(x, outputs, strict=True):
        h, state = layer.cell(frame, state)
        same(h, expected)
    layer.batch_first = True
    turned, _ = layer(x.transpose(0, 1))
    same(turned, outputs.transpose(0, 1))


def test_pictures_smaller_than_the_kernel_and_empty_batches() -> None:
    layer = ConvTTLSTM(3, 2, 5, ranks=2, dtype=DOUBLE)
    x = sequence(2, size=(2, 3))
    same(layer(x)[0], written_out(layer.cell, x)[0])
    assert layer(x[:, :0])[0].shape == (2, 0, 2, 2, 3)


@settings(max_examples=25)
@given(st.data())
def test_linear_time_and_composed_kernels_are_one_function(data: st.DataObject) -> None:
    order = data.draw(st.integers(1, 4), "order")
    channels = tuple(data.draw(st.integers(1, 3)) for _ in range(order + 1))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "kernel")
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)), "size")
    padding = data.draw(st.sampled_from(["whole", "circular"]))
    trains = [
        ConvTensorTrain(channels, kernel, padding=padding, evaluation=evaluation, dtype=DOUBLE)
        for evaluation in ("recursive", "composed")
    ]
    trains[1].load_state_dict(trains[0].state_dict())
    inputs = [torch.randn(2, c, *size, dtype=DOUBLE, requires_grad=True) for c in channels[1:]]
    values = [train(*inputs) for train in trains]
    same(values[0], values[1])
    if padding == "whole":
        same(values[0], beyond_the_picture(trains[0].kernels, inputs))
    weight = torch.randn_like(values[0])
    gradients = [
        torch.autograd.grad((value * weight).sum(), [*inputs, *train.parameters()])
        for value, train in zip(values, trains, strict=True)
    ]
    same(*gradients)


def beyond_the_picture(kernels: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """The train on a ground so large that nothing reaches its border, cut in the end."""
    far = sum(max(kernel.shape[-2:]) for kernel in kernels)
    value = torch.zeros(1, dtype=DOUBLE)
    for i in range(len(kernels), 0, -1):
        value = convolve(value + F.pad(inputs[i - 1], (far,) * 4), kernels[i - 1], None)
    return value[..., far:-far, far:-far]


def test_a_cell_is_its_tensor_train() -> None:
    """The states of a sliding window, put through `ConvTensorTrain` at every step."""
    layer = ConvTTLSTM(3, 2, 3, order=3, steps=3, ranks=(2, 3, 1), bias=False, dtype=DOUBLE)
    cell, x = layer.cell, sequence(5)
    train = ConvTensorTrain((8, 2, 3, 1), 3, dtype=DOUBLE)
    train.load_state_dict({f"G{i}": getattr(cell, f"G{i}") for i in (1, 2, 3)})
    outputs = [torch.zeros(2, 2, 6, 5, dtype=DOUBLE)] * 3
    c = outputs[0]
    for frame in x:
        inputs = [convolve(outputs[-i], getattr(cell, f"P{i}").flatten(1, 2), None) for i in (1, 2, 3)]
        i_, f, o, g = (convolve(frame, cell.W, None) + train(*inputs)).chunk(4, 1)
        c = f.sigmoid() * c + i_.sigmoid() * g.tanh()
        outputs.append(o.sigmoid() * c.tanh())
    same(layer(x)[0], torch.stack(outputs[3:]))


def test_second_derivatives() -> None:
    layer = ConvTTLSTM(1, 1, 2, order=2, steps=2, ranks=1, dtype=DOUBLE)
    drawn(layer.cell)
    x = sequence(2, 1, 1, (2, 2)).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    given_ = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))
    assert torch.autograd.gradcheck(run, given_)
    assert torch.autograd.gradgradcheck(run, given_)


# Memory


def kept(layer: ConvTTLSTM | ConvLSTM, steps: int) -> tuple[int, int]:
    """Bytes that are alive after the forward pass, and the most within the backward pass; without inputs, outputs."""
    x = sequence(steps, 1, 2, (8, 8), dtype=torch.float32, requires_grad=True)
    with LiveMemory() as memory:
        outputs, _ = layer(x)
        after = memory.live - outputs.nbytes
        outputs.backward(torch.ones_like(outputs))
    return after, memory.peak - 3 * outputs.nbytes  # the outputs, their gradient, and those by step


@pytest.mark.parametrize("make", [lambda: ConvTTLSTM(2, 8, 3, ranks=4, checkpoint=True), lambda: ConvLSTM(2, 8, 3)])
def test_checkpoints_keep_the_square_root_of_the_length(make: Any) -> None:
    layer = make()
    layer.checkpoint = True
    (short, short_peak), (long, long_peak) = kept(layer, 16), kept(layer, 64)
    assert long <= 2.2 * short
    assert long_peak <= 2.6 * short_peak
    layer.checkpoint = False
    assert kept(layer, 64)[0] > 3.5 * kept(layer, 16)[0]
    assert kept(layer, 64)[0] > 4 * long


@pytest.mark.parametrize("checkpoint", [True, 1, 3, 100])
def test_checkpoints_change_nothing(checkpoint: bool | int) -> None:
    plain = ConvTTLSTM(3, 2, 3, order=2, steps=3, ranks=2, dtype=DOUBLE)
    other = ConvTTLSTM(3, 2, 3, order=2, steps=3, ranks=2, checkpoint=checkpoint, dtype=DOUBLE)
    drawn(plain.cell)
    other.load_state_dict(plain.state_dict())
    x = sequence(7).requires_grad_()
    values = [layer(x)[0] for layer in (plain, other)]
    same(*values, 0)
    weight = torch.randn_like(values[0])
    gradients = [
        torch.autograd.grad((value * weight).sum(), [x, *layer.parameters()])
        for value, layer in zip(values, (plain, other), strict=True)
    ]
    same(*gradients, 1e-12)


# Modules


def layers() -> list[Any]:
    return [
        ConvTTLSTM(3, 2, 3, order=2, steps=3, ranks=2),
        ConvTTLSTM(3, 2, 3, order=2, steps=3, ranks=2, window="fixed", bias=False),
        ConvLSTM(3, 2, 3),
    ]


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z_]+. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("layer", layers(), ids=["sliding", "fixed", "plain"])
def test_copies_state_dicts_and_types(layer: Any) -> None:
    drawn(layer.cell)
    x = sequence(3, dtype=torch.float32)
    value = layer(x)[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        assert torch.equal(other(x)[0], value)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(layer)
    fresh.reset_parameters()
    assert not torch.equal(fresh(x)[0], value)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x)[0], value)
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), value, rtol=0, atol=0.03)
    with torch.autocast("cpu"):
        torch.testing.assert_close(layer(x)[0].float(), value, rtol=0, atol=0.03)
    same(copy.deepcopy(layer).double()(x.double())[0].float(), value, 1e-5)
    batched = vmap(lambda x: layer(x)[0])(torch.stack((x, -x)))
    same(batched[0], value, 1e-5)
    _, slope = jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))
    assert torch.isfinite(slope).all()
    assert ConvLSTM(3, 2, 3, device="meta")(x.to("meta"))[0].shape == value.shape


def test_gradients_of_torch_func_are_not_checkpointed() -> None:
    layer, x = ConvLSTM(2, 3, checkpoint=True, dtype=DOUBLE), torch.randn(3, 1, 2, 4, 4, dtype=DOUBLE)
    parameters = {name: one.detach() for name, one in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        value: Tensor = functional_call(layer, parameters, (x,))[0]
        return value.square().sum()

    with pytest.raises(OptionError, match=r"checkpoint=True: gradients of torch\.func keep what they need"):
        torch.func.grad(loss)(parameters)
    layer.checkpoint = False
    ours = torch.func.grad(loss)(parameters)
    layer.checkpoint = True
    layer(x)[0].square().sum().backward()
    same(ours, {name: one.grad for name, one in layer.named_parameters()})


@pytest.mark.parametrize("checkpoint", [False, True])
def test_one_graph_for_every_batch(checkpoint: bool) -> None:
    layer = ConvTTLSTM(3, 2, 3, order=2, steps=2, ranks=2, checkpoint=checkpoint)
    drawn(layer.cell)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = sequence(3, batch, dtype=torch.float32)
        values = [run(x)[0] for run in (compiled, layer)]
        same(*values, 1e-5)
        same(*(torch.autograd.grad(value.square().sum(), [*layer.parameters()]) for value in values), 1e-4)


def test_export_with_a_dynamic_batch() -> None:
    layer = ConvTTLSTM(3, 2, 3, order=2, steps=2, ranks=2)
    x = sequence(2, dtype=torch.float32)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = sequence(2, 5, dtype=torch.float32)
    same(loaded(x), layer(x), 1e-5)


def test_parameters_and_how_they_are_drawn() -> None:
    order, stored, rank, hidden, inputs, taps = 3, 3, 8, 32, 16, 25
    cell = ConvTTLSTMCell(inputs, hidden, order=order, steps=order + stored - 1)
    count = order * (stored * taps * hidden * rank + rank) + (order - 1) * (taps * rank**2 + rank)
    assert sum(p.numel() for p in cell.parameters()) == count + (taps * (rank + inputs) + 1) * 4 * hidden
    fans = {
        "P2": (stored * hidden, rank),
        "G1": (inputs + rank, 4 * hidden),
        "W": (inputs + rank, 4 * hidden),
        "G3": (rank, rank),
    }
    drawn_as_torch = ConvTTLSTMCell(inputs, hidden, order=order, steps=order + stored - 1, init="torch")
    for name, (fan_in, fan_out) in fans.items():
        bounds = (6 / ((fan_in + fan_out) * taps)) ** 0.5, (fan_in * taps) ** -0.5
        for made, bound in zip((cell, drawn_as_torch), bounds, strict=True):
            assert 0.97 * bound < float(getattr(made, name).detach().abs().max()) <= bound
    assert not cell.G2_bias.any()
    assert not cell.bias.any()
    assert 0.1 < float(drawn_as_torch.bias.detach().abs().max()) * (taps * (inputs + rank)) ** 0.5 <= 1
    assert all(p is not None for p in (cell.P1_bias, cell.G3_bias))
    assert "bias=False" in repr(ConvTTLSTMCell(3, 2, bias=False))
    assert "padding='whole'" in repr(ConvTensorTrain((4, 2), padding="whole"))


# Errors


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ConvTTLSTMCell(3, 4, order=3, steps=2), "steps=2 stored states for order=3"),
        (lambda: ConvTTLSTMCell(3, 4, ranks=(8, 8)), r"ranks=\(8, 8\) of a train of order 3"),
        (lambda: ConvTTLSTMCell(3, 4, ranks=0), "ranks=0 is no size"),
        (
            lambda: ConvTTLSTMCell(3, 4, window="rolling"),
            "window=\"rolling\": there is no such window\n\none of 'sliding', 'fixed'",
        ),
        (lambda: ConvTTLSTMCell(3, 0), "hidden_channels=0"),
        (lambda: ConvTTLSTM(3, 4, (3, 3, 3)), r"kernel_size=\(3, 3, 3\)"),
        (lambda: ConvLSTM(3, 4, padding_mode="reflect"), 'padding_mode="reflect"'),
        (lambda: ConvLSTM(3, 4, init="kaiming"), 'init="kaiming"'),
        (lambda: ConvLSTM(3, 4, checkpoint=0), "checkpoint=0 of a sequence"),
        (lambda: ConvLSTM(3, 4, checkpoint="yes"), 'checkpoint="yes" of a sequence'),
        (lambda: ConvTensorTrain((4, 2), evaluation="composed"), 'evaluation="composed" with padding="stage"'),
        (lambda: ConvTensorTrain((4,)), r"channels=\(4,\) is no train"),
        (lambda: ConvTensorTrain((4, 2), padding="same"), 'padding="same"'),
    ],
)
def test_options_that_do_not_fit(make: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make()


def test_shapes_that_do_not_fit() -> None:
    layer, x = ConvTTLSTM(3, 2, 3, ranks=2, dtype=DOUBLE), sequence(2)
    with pytest.raises(ShapeError, match=r"the sequence is \(2, 3, 6, 5\)"):
        layer(x[0])
    with pytest.raises(ShapeError, match=r"the sequence is \(0, 2, 3, 6, 5\)"):
        layer(x[:0])
    with pytest.raises(ShapeError, match=r"the input of ConvTTLSTMCell is \(2, 2, 6, 5\)"):
        layer(x[:, :, :2])
    train = ConvTensorTrain((4, 3, 2), 3, dtype=DOUBLE)
    with pytest.raises(ShapeError, match="1 inputs for a train of order 2"):
        train(x[0])
    with pytest.raises(ShapeError, match=r"input 2 of the train is \(2, 3, 6, 5\)"):
        train(x[0], x[0])


@pytest.mark.parametrize(
    ("change", "came"),
    [
        (lambda state: state[:2], "2 tensors (2, 4, 6, 5), (2, 4, 6, 5), "),
        (lambda state: [one[:, :2] for one in state], "3 tensors (2, 2, 6, 5), (2, 2, 6, 5), (2, 2, 6, 5), "),
        (lambda state: [one[:1] for one in state], "3 tensors (1, 4, 6, 5), (1, 4, 6, 5), (1, 16, 6, 5), "),
        (lambda state: [one[..., :5, :] for one in state], "3 tensors (2, 4, 5, 5), (2, 4, 5, 5), (2, 16, 5, 5), "),
        (lambda state: [one[None, :, :, 0, 0] for one in state], "3 tensors (1, 2, 4), (1, 2, 4), (1, 2, 16), "),
        (lambda _state: (), "0 tensors (), "),
        (lambda state: state[0], "a tensor (2, 4, 6, 5)"),
        (lambda state: (state, state), "(("),
    ],
)
def test_a_state_of_another_cell(change: Any, came: str) -> None:
    layer, x = ConvTTLSTM(3, 4, 3, dtype=DOUBLE), torch.randn(2, 2, 3, 6, 5, dtype=DOUBLE)
    state = layer(x)[1]
    with pytest.raises(ShapeError) as raised:
        layer(x, change(state))
    assert str(raised.value).startswith(f"the state of ConvTTLSTMCell is {came}")
    assert "(2, 4, 6, 5), (2, 4, 6, 5), (2, 16, 6, 5)" in raised.value.hint


@pytest.mark.parametrize("options", [{}, {"window": "fixed", "steps": 4}, {"order": 1, "steps": 2}, {"steps": 5}])
def test_every_cell_says_what_its_state_is(options: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 6, 5)
    for cell in (ConvTTLSTMCell(3, 4, 3, **options), ConvLSTMCell(3, 4, 3)):
        state = cell(x)[1]
        assert tuple(one.shape[1] for one in state) == cell.state_channels
        assert cell(x, list(state))[0].shape == (2, 4, 6, 5)
        with pytest.raises(OperandError, match=r"is torch\.float64 on cpu, and the weights are torch\.float32"):
            cell(x, tuple(one.double() for one in state))


def test_inputs_of_another_kind() -> None:
    layer, x = ConvLSTM(3, 4, 3), torch.zeros(2, 2, 3, 6, 5)
    state = layer(x)[1]
    for value, hint in (
        (x.to(torch.uint8), "convert the input with .to(torch.float32)"),
        (x.double(), "convert the input with .to(torch.float32), or the layer with .to(torch.float64)"),
        (x.to("meta"), "tensors on the meta device have no values: either both are there, or none of them"),
    ):
        for enabled in (False, True):
            with pytest.raises(OperandError) as raised, torch.autocast("cpu", enabled=enabled):
                layer(value)
            assert raised.value.hint == hint
    with pytest.raises(OperandError) as raised:
        layer(x.bfloat16())
    assert raised.value.hint.endswith("or call under torch.autocast")
    with torch.autocast("cpu"):
        assert layer(x.bfloat16(), state)[0].shape == (2, 2, 4, 6, 5)
        assert layer(x, layer(x.bfloat16())[1])[0].shape == (2, 2, 4, 6, 5)


def test_a_stage_is_the_same_convolution_as_any_other_layer() -> None:
    train = ConvTensorTrain((4, 3), 3, dtype=DOUBLE)
    layer = ConvEinsum("...shw,tshw->...thw|hw", {"s": 3, "t": 4, "h": 3, "w": 3}, dtype=DOUBLE)
    layer.load_state_dict({"w1": train.G1})
    x = sequence(2)
    same(train(x), layer(x))
