"""What `test_distributed.py` starts with torchrun: both processes run every check, and the first writes a report."""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import convein
from convein.dialects import POOLING
from convein.layers import Conv2d, Linear

WHOLE, FIRST = Replicate(), Shard(0)
CP = "bshw,rt,rs,rh,rw->bthw|hw"
CP_SHAPES = [(4, 6, 8, 8), (5, 7), (5, 6), (5, 3), (5, 3)]

# name: expression, shapes, options, placements, placement of the result
CASES: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any], list[Placement], Placement]] = {
    "a cp layer": (CP, CP_SHAPES, {}, [FIRST, WHOLE, WHOLE, WHOLE, WHOLE], FIRST),
    "a batch that does not divide": (
        "bsh,tsh->bth|h", [(3, 4, 9), (5, 4, 3)], {"stride": 2}, [FIRST, WHOLE], FIRST,
    ),
    "a batch of one": ("bsh,tsh->tbh|h", [(1, 4, 9), (5, 4, 3)], {}, [FIRST, WHOLE], Shard(1)),
    "filters for each sample": ("bsh,btsh->bth|h", [(4, 3, 8), (4, 5, 3, 3)], {}, [FIRST, FIRST], FIRST),
    "long filters for each sample": ("bh,bh->bh|h", [(2, 4096), (2, 1025)], {}, [FIRST, FIRST], FIRST),
    "channels made": ("bshw,tshw->bthw|hw", [(2, 3, 6, 6), (4, 3, 3, 3)], {}, [WHOLE, FIRST], Shard(1)),
    "channels summed": ("bsh,tsh->bth|h", [(2, 4, 6), (5, 4, 3)], {}, [Shard(1), Shard(1)], Partial()),
    "a rank summed": (
        CP, CP_SHAPES, {"padding_mode": "circular"}, [WHOLE, FIRST, FIRST, FIRST, FIRST], Partial(),
    ),
    "a matrix product": ("ij,jk->ik", [(4, 5), (5, 6)], {}, [FIRST, WHOLE], FIRST),
    "a sum": ("ijk->j", [(4, 3, 2)], {}, [FIRST], Partial()),
    "nothing sharded": ("ij,jk->ik", [(4, 5), (5, 6)], {}, [WHOLE, WHOLE], WHOLE),
    "a transposed convolution": (
        "bsh,sth->bth|h", [(4, 3, 5), (3, 4, 3)], {"transposed": True, "stride": 2}, [FIRST, WHOLE], FIRST,
    ),
    "a reshaped layer": (
        "b(s u)h,rs,ru,rht->bth|h", [(4, 6, 7), (2, 2), (2, 3), (2, 3, 5)], {}, [FIRST, WHOLE, WHOLE, WHOLE], FIRST,
    ),
    "sizes by name": (
        "b(g s)h,(g t)sh->b(g t)h|h", [(4, 6, 7), (4, 3, 3)], {"sizes": {"g": 2, "b": 4}}, [FIRST, WHOLE], FIRST,
    ),
    "a dialect": ("bch->bch|h[avg=2]", [(4, 3, 8)], {"dialect": POOLING}, [FIRST], FIRST),
    "checkpointed": (CP, CP_SHAPES, {"checkpoint": True}, [FIRST, WHOLE, WHOLE, WHOLE, WHOLE], FIRST),
}  # fmt: skip

SHARD_HINT = (
    "along a dimension of the mesh shard one mode that is not convolved, in every operand that has it, and replicate "
    "the other operands: .redistribute(placements=[Replicate()])"
)
# expression, shapes, placements (None: an ordinary tensor), the message, the line of carets, the hint
REFUSALS: list[tuple[str, list[tuple[int, ...]], list[Placement | None], str, str, str]] = [
    ("ij,jk->ik", [(4, 5), (5, 6)], [FIRST, None], "operand 0 is a DTensor and operand 1 is not", "^^ ^^",
     "make one of operand 1: distribute_tensor(..., mesh, [Replicate()])"),
    ("bsh,tsh->bth|h", [(4, 2, 8), (3, 2, 3)], [Shard(2), WHOLE],
     "operand 0 is placed as S(2), and mode h is convolved", "^^^", SHARD_HINT),
    ("bsh,tsh->bth|h", [(4, 2, 8), (3, 2, 3)], [Shard(1), WHOLE],
     "mode s is sharded in operand 0 and whole in operand 1", "^^^ ^^^", SHARD_HINT),
    ("ij,jk->ik", [(4, 4), (4, 4)], [FIRST, FIRST],
     "operand 0 is sharded along mode i and operand 1 along mode j", "^^ ^^", SHARD_HINT),
    ("b(s t),t->bs", [(4, 6), (3,)], [Shard(1), WHOLE],
     "operand 0 is placed as S(1), a dimension that is composed of s and t", "^^^^^^", SHARD_HINT),
    ("bs->(b s)", [(4, 6)], [FIRST], "mode b is sharded in operand 0 and part of a composed dimension of the output",
     "^^", SHARD_HINT),
    ("bi,bi->bi", [(1, 4), (4, 4)], [FIRST, FIRST], "operand 0 is placed as S(0), where mode b has size 1", "^^",
     SHARD_HINT),
    ("iij->j", [(4, 4, 2)], [FIRST], "operand 0 is placed as S(0), and mode i is repeated there", "^^^", SHARD_HINT),
]  # fmt: skip


class Layer(nn.Module):
    """A convolution in four factors, and its sum over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList(0.5 * torch.randn(shape) for shape in CP_SHAPES[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(convein.conv_einsum(CP, x, *self.factors)).mean(dim=(2, 3))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), nn.Linear(7, 2))


def whole(x: torch.Tensor | None) -> torch.Tensor:
    assert x is not None
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def two_steps(model: nn.Module, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """The gradients of two steps, and the parameters after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        found.append([whole(p.grad).clone() for p in model.parameters()])
        optimizer.step()
    return [*found, [whole(p).clone() for p in model.parameters()]]


def train_like_one_process(mesh: DeviceMesh, wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(1)
    x = torch.randn(8, 6, 8, 8)
    alone = network()
    wrapped = wrap(copy.deepcopy(alone))
    ours = two_steps(wrapped, x.chunk(2)[mesh.get_rank()])
    for one, other in zip(ours, two_steps(alone, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2d(6, 7, 3, form="tt", rank=0.5), nn.ReLU(), Conv2d(7, 4, 3, form="rcp"), nn.Flatten(),
        Linear(64, 2, form="cp"),
    )  # fmt: skip


def wholly_sharded(mesh: DeviceMesh) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        for module in [one for one in model if [*one.parameters()]]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        return model

    return wrap


def check_layers(mesh: DeviceMesh) -> None:
    """Training, and evaluation between its steps, where the weights that are gathered are other ones each time."""
    torch.manual_seed(1)
    x = torch.randn(8, 6, 8, 8)
    for wrap in (DistributedDataParallel, wholly_sharded(mesh)):
        alone = layers()
        wrapped = wrap(copy.deepcopy(alone))
        for _ in range(2):
            ours = two_steps(wrapped, x.chunk(2)[mesh.get_rank()])
            for one, other in zip(ours, two_steps(alone, x), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            wrapped.eval()
            alone.eval()
            with torch.no_grad():
                for _ in range(3):
                    torch.testing.assert_close(wrapped(x), alone(x), rtol=1e-4, atol=1e-5)


def check_ddp(mesh: DeviceMesh) -> None:
    train_like_one_process(mesh, DistributedDataParallel)


def check_fsdp(mesh: DeviceMesh) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        assert isinstance(model, nn.Sequential)
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        return model

    train_like_one_process(mesh, wrap)


def check_dtensor(mesh: DeviceMesh) -> None:
    for name, (expression, shapes, options, placements, expected) in CASES.items():
        torch.manual_seed(2)
        alone = [torch.randn(shape, requires_grad=True) for shape in shapes]
        sharded = [
            distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
            for x, placement in zip(alone, placements, strict=True)
        ]
        wanted = convein.conv_einsum(expression, *alone, **options)
        for _ in range(2):  # the second time from the cache
            given = convein.conv_einsum(expression, *sharded, **options)
            assert given.placements == (expected,), (name, given.placements)
            torch.testing.assert_close(given.full_tensor(), wanted, rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(given.square().sum(), sharded)
        for ours, theirs in zip(gradients, torch.autograd.grad(wanted.square().sum(), alone), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-3, atol=1e-3)


def check_one_shape_in_two_placements(mesh: DeviceMesh) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    for left, right, result in ((FIRST, WHOLE, FIRST), (WHOLE, Shard(1), Shard(1)), (Shard(1), FIRST, Partial())):
        y = convein.conv_einsum("ij,jk->ik", distribute_tensor(a, mesh, [left]), distribute_tensor(b, mesh, [right]))
        assert y.placements == (result,)
        torch.testing.assert_close(y.full_tensor(), a @ b)
    torch.testing.assert_close(convein.conv_einsum("ij,jk->ik", a, b), a @ b)


def check_two_dimensions_of_a_mesh(mesh: DeviceMesh) -> None:
    square = init_device_mesh("cpu", (2, 1))
    torch.manual_seed(4)
    a, b = torch.randn(4, 4), torch.randn(4, 6)
    y = convein.conv_einsum(
        "ij,jk->ik", distribute_tensor(a, square, [FIRST, WHOLE]), distribute_tensor(b, square, [WHOLE, Shard(1)])
    )
    assert y.placements == (FIRST, Shard(1))
    torch.testing.assert_close(y.full_tensor(), a @ b)
    elsewhere = distribute_tensor(b, square, [WHOLE, WHOLE])
    with pytest.raises(convein.OperandError, match="all DTensors of an expression share their mesh"):
        convein.conv_einsum("ij,jk->ik", distribute_tensor(a, mesh, [WHOLE]), elsewhere)


def check_torch_compile(mesh: DeviceMesh) -> None:
    torch.manual_seed(5)
    x, w = torch.randn(4, 3, 6), torch.randn(5, 3, 3)

    def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return convein.conv_einsum("bsh,tsh->bth|h", x, w)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    y = compiled(distribute_tensor(x, mesh, [FIRST]), distribute_tensor(w, mesh, [WHOLE]))
    assert y.placements == (FIRST,)
    torch.testing.assert_close(y.full_tensor(), call(x, w))


def check_refusals(mesh: DeviceMesh) -> None:
    for expression, shapes, placements, message, carets, hint in REFUSALS:
        operands = [
            torch.ones(shape) if placement is None else distribute_tensor(torch.ones(shape), mesh, [placement])
            for shape, placement in zip(shapes, placements, strict=True)
        ]
        with pytest.raises(convein.OperandError) as caught:
            convein.conv_einsum(expression, *operands)
        expected = f"{message}\n\n    {expression}\n    {carets}\n\n{hint}"
        assert str(caught.value) == expected, f"{caught.value}\n---\n{expected}"


def check_a_compiled_expression(mesh: DeviceMesh) -> None:
    compiled = convein.compile("ij,jk->ik", (4, 5), (5, 6))
    a, b = (distribute_tensor(torch.ones(shape), mesh, [WHOLE]) for shape in ((4, 5), (5, 6)))
    with pytest.raises(convein.OperandError, match="a compiled expression does not take DTensors"):
        compiled(a, b)
    with pytest.raises(convein.OperandError, match="a compiled expression does not take DTensors"):
        convein.compile("ij,jk->ik", (None, 5), constants={1: b})
    torch.testing.assert_close(compiled(a.to_local(), b.to_local()), torch.full((4, 6), 5.0))


def check_no_calibration(mesh: DeviceMesh) -> None:
    """Every process plans with the same table, and none measures while the others wait."""
    convein.conv_einsum(CP, *(torch.ones(shape) for shape in CP_SHAPES))
    assert convein.compile(CP, *CP_SHAPES).plan is not None
    assert convein.calibration.current() is convein.planner.rates.SHIPPED
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json"))


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def main(report: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name, check in CHECKS.items():
        try:
            check(mesh)
        except Exception:  # noqa: BLE001 - it becomes part of the report
            failed = traceback.format_exc()
        else:
            failed = ""
        everywhere: list[str] = ["", ""]
        dist.all_gather_object(everywhere, failed)
        found[name] = [text for text in everywhere if text]
    if dist.get_rank() == 0:
        report.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    # Without the destructors of torch's own threads, which now and then abort a process that has done its work.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
