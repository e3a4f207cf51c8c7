"""Nothing on the way of a call waits for a device: what one is, a CUDA graph can record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from convein import conv_einsum, layers
from convein.layers import bqn
from convein.layers.constants import constant

aten = torch.ops.aten
# What hands a number or a size of a result to Python, and what copies numbers of Python to a device.
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy, aten.masked_select,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.lift_fresh, aten.lift_fresh_copy,
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails at the first call that waits for the device."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        assert operator.overloadpacket not in WAITING, f"{operator} waits for the device"
        if operator.overloadpacket in {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}:
            masks = [x for x in args[1] if x is not None and x.dtype in {torch.bool, torch.uint8}]
            assert not masks, f"{operator} by a mask waits for the device"
        return operator(*args, **(kwargs or {}))


def run(call: Callable[[], Any], wanted: Sequence[Tensor]) -> None:
    """Forward and backward, once as it comes, and once again, when everything is planned, without waiting."""
    for mode in (None, NoWaiting()):
        if mode is None:
            values(call())
            continue
        with mode:
            found = [one for one in values(call()) if one.requires_grad]
            torch.autograd.grad(found, wanted, [torch.ones_like(one) for one in found], allow_unused=True)


def values(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [one for part in output for one in values(part)]
    names = [name for name in ("minus", "value", "mean", "var", "probabilities") if name in type(output).__slots__]
    return [getattr(output, name) for name in names]


def test_what_waits_is_seen() -> None:
    x = torch.ones(3, requires_grad=True)
    for call in (lambda: x * x.sum().item(), lambda: x[x > 0], lambda: x * torch.tensor([1.0, 2.0, 3.0])):
        with pytest.raises(AssertionError, match="waits for the device"):
            run(call, [x])


EXPRESSIONS: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "matrices": ("ab,bc,cd->ad", ((3, 4), (4, 5), (5, 2)), {}),
    "convolution": ("bshw,tshw->bthw|hw", ((2, 3, 6, 7), (4, 3, 3, 3)), {"stride": 2}),
    "cp": ("bshw,rt,rs,rh,rw->bthw|hw", ((2, 3, 6, 7), (4, 5), (4, 3), (4, 3), (4, 3)), {"dilation": 2}),
    "circular": ("bshw,tshw->bthw|hw", ((2, 3, 6, 7), (4, 3, 3, 3)), {"padding_mode": "circular"}),
    "reflect": ("bsh,tsh->bth|h", ((2, 3, 6), (4, 3, 3)), {"padding_mode": "reflect"}),
    "transposed": ("bsh,tsh->bth|h", ((2, 3, 6), (4, 3, 3)), {"transposed": True, "stride": 2}),
    "long filters": ("bh,h->bh|h", ((2, 3000), (2999,)), {"padding": "full", "flip": True}),
    "diagonal": ("aab,b->a", ((3, 3, 4), (4,)), {}),
    "reshaped": ("b(s1 s2)h,r(t1)(s1),r(t2)(s2),rh->b(t1 t2)h|h", ((2, 6, 5), (2, 2, 2), (2, 3, 3), (2, 3)), {}),
    "checkpoints": ("bsh,rs,rh,rt->bth|h", ((2, 3, 6), (4, 3), (4, 3), (4, 2)), {"checkpoint": True}),
}


@pytest.mark.parametrize(("text", "shapes", "options"), EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_expressions(text: str, shapes: Sequence[tuple[int, ...]], options: dict[str, Any]) -> None:
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    run(lambda: conv_einsum(text, *operands, **options), operands)


def signs(*shape: int) -> bqn.Discrete:
    return bqn.Discrete(torch.rand(shape, requires_grad=True))


def normal(*shape: int) -> bqn.Gaussian:
    return bqn.Gaussian(torch.randn(shape, requires_grad=True), torch.rand(shape, requires_grad=True))


LAYERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "conv": lambda: (layers.Conv2d(4, 6, 3, form="cp", rank=4, padding=1), torch.randn(2, 4, 6, 6)),
    "reshaped conv": lambda: (layers.Conv2d(4, 6, 3, form="rtt", rank=2), torch.randn(2, 4, 6, 6)),
    "conv transpose": lambda: (layers.ConvTranspose2d(4, 6, 3, form="tucker", rank=2), torch.randn(2, 4, 6, 6)),
    "linear": lambda: (layers.Linear(8, 6, form="tt", rank=2), torch.randn(2, 8)),
    "evaluated": lambda: (layers.Conv2d(4, 6, 3, form="cp", rank=4).eval(), torch.randn(2, 4, 6, 6)),
    "arma": lambda: (layers.ARMA2d(4, 6, 3), torch.randn(2, 4, 6, 6)),
    "conv lstm": lambda: (layers.ConvLSTM(2, 3, 3), torch.randn(3, 1, 2, 5, 5)),
    "conv-tt lstm": lambda: (layers.ConvTTLSTM(2, 3, 3, order=2, steps=2, ranks=2), torch.randn(3, 1, 2, 5, 5)),
    "conv-tt lstm, checkpoints": lambda: (
        layers.ConvTTLSTM(2, 3, 3, window="fixed", order=2, steps=2, ranks=2, checkpoint=2), torch.randn(3, 1, 2, 5, 5)
    ),
    "frame predictor": lambda: (layers.FramePredictor(1, (4, 4), 1, skip=None, ranks=2), torch.randn(2, 3, 1, 8, 8)),
    "bqn conv of numbers": lambda: (bqn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)),
    "bqn conv of signs": lambda: (bqn.Conv2d(5, 3, 3, levels="ternary", padding=1), signs(2, 5, 5, 5)),
    "bqn conv of normal numbers": lambda: (bqn.Conv2d(5, 3, 3), normal(2, 5, 5, 5)),
    "bqn conv, circular": lambda: (bqn.Conv2d(5, 3, 3, padding=1, padding_mode="circular"), signs(2, 5, 5, 5)),
    "bqn conv, reflect": lambda: (bqn.Conv2d(5, 3, 3, padding=1, padding_mode="reflect"), signs(2, 5, 5, 5)),
    "bqn linear, contraction": lambda: (bqn.Linear(4, 3, propagation="contraction"), signs(2, 4)),
    "bqn linear, convolution": lambda: (bqn.Linear(9, 3, propagation="convolution"), signs(2, 9)),
    "bqn conv, convolution": lambda: (bqn.Conv2d(2, 3, 2, propagation="convolution"), signs(2, 2, 3, 3)),
    "bqn linear and sign": lambda: (bqn.Sequential(bqn.Linear(40, 3), bqn.Sign()), signs(2, 40)),
    "bqn exact sign": lambda: (bqn.Sequential(bqn.Linear(4, 3), bqn.Sign()), signs(2, 4)),
    "bqn batch norm": lambda: (bqn.BatchNorm2d(3), normal(4, 3, 5, 5)),
    "bqn max pool": lambda: (bqn.MaxPool2d(3, 2, 1), normal(2, 3, 6, 6)),
    "bqn max pool of signs": lambda: (bqn.MaxPool2d(2), signs(2, 3, 6, 6)),
    "bqn average pool": lambda: (bqn.AvgPool2d(2), normal(2, 3, 6, 6)),
    "bqn average pool of signs": lambda: (bqn.AvgPool2d(2), signs(2, 3, 6, 6)),
    "bqn random pool": lambda: (bqn.RandomPool2d(2), signs(2, 3, 6, 6)),
    "bqn residual": lambda: (bqn.Residual(bqn.Sign()), signs(2, 3)),
    "bqn softmax": lambda: (bqn.SoftmaxHead(8), normal(2, 3)),
    "bqn gaussian head": lambda: (bqn.GaussianHead(3), normal(2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_layers(make: Callable[[], tuple[nn.Module, Any]]) -> None:
    layer, x = make()
    inputs = [one for one in values(x) if one.requires_grad]
    run(lambda: layer(x), [*inputs, *layer.parameters()])


def test_bayesian_networks_in_every_mode() -> None:
    network = bqn.Sequential(bqn.Conv2d(2, 40, 3), bqn.BatchNorm2d(40), bqn.Sign(), bqn.Flatten(), bqn.Linear(160, 3))
    head, x, labels = bqn.SoftmaxHead(), torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    wanted = [*network.parameters(), *head.parameters()]
    run(lambda: bqn.objective(head(network(x), labels), network, examples=100, weight=1e-3), wanted)
    for mode in ("sampled", "map"):
        bqn.set_mode(network, mode)
        with NoWaiting():
            head(network(x))


def test_constants_are_copied_once_and_serve_everywhere() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        first = constant((0.125, 3.0), torch.float32, x)
    assert constant((0.125, 3.0), torch.float32, x) is first
    (x * first).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.125, 3.0]))
    assert constant((0.125, 3.0), torch.float64, x).dtype is torch.float64
    with FakeTensorMode():
        constant((0.375, 3.0), torch.float32, x)
    assert type(constant((0.375, 3.0), torch.float32, x)) is Tensor
    traced = torch.compile(lambda x: x * constant((0.25, 3.0), torch.float32, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(torch.ones(2)), torch.tensor([0.25, 3.0]))
