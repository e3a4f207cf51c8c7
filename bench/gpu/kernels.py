"""Each kernel beside its plain reference, what torch.compile makes of that, and what the card can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import convein
from gpu import clock
from gpu.clock import Call, Setting
from gpu.layers import FORWARD, TOLERANCE, TRAINING, compare
from measure import Group, Timing

KERNEL, REFERENCE = "kernel", "reference"
TUNED, COMPILED = f"{KERNEL}, tuned", f"{REFERENCE}, torch.compile"
MACHINE, COPY = "GPU", "copy"
COPIED, ROWS = 2**30, 8192  # bytes; rows and columns of a square matrix
PAIR = (1, 1)

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a kernel is called with, and what else computes the same.

    Attributes:
        arguments: of the kernel, its reference and its refusal.
        flops: operations that it cannot do without.
        others: further ways, functions of the arguments.
    """

    arguments: tuple[Any, ...]
    flops: float
    others: Mapping[str, Function] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [x for x in self.arguments if isinstance(x, Tensor)]


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one size; `make` gives what it is called with."""

    kernel: str
    size: str
    make: Callable[[Setting], Job]

    def __str__(self) -> str:
        return f"{self.kernel} {self.size}"


def _layer(channels: int, rank: int, side: int, dense: bool, setting: Setting) -> Job:
    n, s, r, side = (setting.size(full) for full in (128, channels, rank, side))
    x = setting.random(n, s, side, side).contiguous(memory_format=torch.channels_last)
    d = setting.random(*((r, r, 3, 3) if dense else (r, 3, 3)), seed=2) / (9 * (r if dense else 1)) ** 0.5
    a, c = setting.random(r, s, seed=1) / s**0.5, setting.random(s, r, seed=3) / r**0.5
    macs = n * side**2 * (2 * s * r + 9 * r * (r if dense else 1))
    return Job((x, a, d, c, PAIR, (side, side), PAIR, False), 2.0 * macs)


def _separable(channels: int, side: int, setting: Setting) -> Job:
    n, r, side = (setting.size(full) for full in (128, channels, side))
    x = setting.random(n, r, side, side).contiguous(memory_format=torch.channels_last)
    d, c = setting.random(r, 3, 3, seed=1) / 3, setting.random(r, r, seed=2) / r**0.5
    return Job((x, d, c, PAIR, PAIR, (side, side), PAIR), 2.0 * n * side**2 * r * (9 + r))


def _bayesian(signs: bool, setting: Setting) -> Job:
    n, s, side = (setting.size(full) for full in (128, 128, 16))
    minus = setting.random(n, s, side, side).sigmoid().contiguous(memory_format=torch.channels_last)
    w, v = setting.random(s, s, 3, 3, seed=1) / 3, setting.random(s, s, 3, 3, seed=2).square() / 9
    base = F.conv2d(torch.ones_like(minus[:1]), v, padding=1)[0].contiguous()
    arguments = (minus, w, setting.random(s, seed=3), base, PAIR, PAIR, (side, side), PAIR)
    return Job(arguments, 4.0 * 9 * n * side**2 * s * s, {THREE: partial(_three_convolutions, v, signs)})


THREE = "three convolutions"


def _three_convolutions(v: Tensor, signs: bool, minus: Tensor, w: Tensor, shift: Tensor, *_: object) -> Any:
    """Means and variances as they are written: those of the inputs, of the weights, and of both."""
    mean = F.conv2d(1 - 2 * minus, w, shift, padding=1)
    var = F.conv2d(4 * minus * (1 - minus), w * w, padding=1) + F.conv2d(torch.ones_like(minus), v, padding=1)
    return torch.special.erfc(mean / (2 * var).sqrt()) / 2 if signs else (mean, var)


def _gates(setting: Setting) -> Job:
    n, c, side = (setting.size(full) for full in (16, 32, 120))
    return Job((setting.random(n, 4 * c, side, side), setting.random(n, c, side, side, seed=1)), 0.0)


def _product(count: int, setting: Setting) -> Job:
    rows = setting.size(ROWS)
    tensors = [setting.random(rows, rows, seed=seed).float() for seed in range(count)]
    return Job((*tensors, *[None] * (3 - count), [1]), 0.0)


def _pointwise(channels: int, side: int, setting: Setting) -> Job:
    """An image as torch has it by default, whose channels are far apart: a product of matrices would copy it."""
    n, s, side = (setting.size(full) for full in (128, channels, side))
    equation = "bshw,ts->bthw"
    others = {"torch.einsum": lambda x, w, *_: torch.einsum(equation, x, w)}
    x, w = setting.random(n, s, side, side), setting.random(s, s, seed=1) / s**0.5
    return Job((x, w, equation, "", [], [], [], []), 2.0 * n * side**2 * s * s, others)


def _grouped(groups: int, channels: int, side: int, setting: Setting) -> Job:
    """A convolution that shares a mode, as the rank of a ring is shared."""
    n, g, s, side = (setting.size(full) for full in (128, groups, channels, side))
    x = setting.random(n, side, side, g, s).permute(0, 3, 4, 1, 2)
    w = setting.random(g, s, s, 3, 3, seed=1) / (9 * s) ** 0.5

    def convolved(x: Tensor, w: Tensor, *_: object) -> Tensor:
        return F.conv2d(x.flatten(1, 2), w.flatten(0, 1), padding=1, groups=g).reshape(n, g, s, side, side)

    options = ([1, 1], [1, 1], [1, 1], [side, side])
    arguments = (x, w, "bgshw,gtshw->bgthw", "hw", *options)
    return Job(arguments, 18.0 * n * side**2 * g * s * s, {"F.conv2d, groups": convolved})


LAYERS = ((64, 64, 56, False), (128, 64, 28, False), (128, 128, 28, False), (64, 32, 56, True))
CASES = (
    *(
        Case("pointwise_depthwise", f"{s}-R{r}-{s} {n}x{n}{', dense' * dense}", partial(_layer, s, r, n, dense))
        for s, r, n, dense in LAYERS
    ),
    *(
        Case("depthwise_pointwise", f"{channels} {side}x{side}", partial(_separable, channels, side))
        for channels, side in ((128, 28), (256, 14), (512, 7))
    ),
    Case("dual_product", "128 channels 16x16", partial(_bayesian, False)),
    Case("dual_signs", "128 channels 16x16", partial(_bayesian, True)),
    Case("pair", "1x1 of 64 channels 56x56, NCHW", partial(_pointwise, 64, 56)),
    Case("pair", "3x3 of 8 groups of 32 channels 28x28", partial(_grouped, 8, 32, 28)),
    Case("lstm_gates", "32 channels 120x120", _gates),
    Case("product_reduce", "of two, 64 Mi entries", partial(_product, 2)),
    Case("product_reduce", "of three, 64 Mi entries", partial(_product, 3)),
)


def groups(setting: Setting, cases: Sequence[Case] = CASES) -> Iterator[Group]:
    """What the card can do, then every kernel, forward and with its backward pass, as graphs."""
    yield Group(MACHINE, partial(_machine, setting), always=True, sampler=clock.sample)
    for case, direction in product(cases, (FORWARD, TRAINING)):
        yield Group(f"{case} {direction}", partial(variants, setting, case, direction), sampler=clock.sample)


def variants(setting: Setting, case: Case, direction: str) -> dict[str, Call]:
    """The kernel and everything else that computes the same, checked."""
    clock.start_afresh()
    job = case.make(setting)
    module = module_of(case)
    for leaf in job.leaves:
        leaf.requires_grad_(direction == TRAINING)
    kernel = getattr(torch.ops.convein, case.kernel)
    ways: dict[str, Function] = {KERNEL: kernel}
    if reason := module.refusal(*job.arguments):
        tqdm.write(f"{case}: without the kernel: {reason}")
        ways = {}
    ways |= {REFERENCE: module.reference, COMPILED: torch.compile(module.reference, backend=setting.compiler)}
    wanted = tree_leaves(module.reference(*(_exact(x) if isinstance(x, Tensor) else x for x in job.arguments)))
    calls: dict[str, Call] = {}

    def add(name: str, function: Function) -> None:
        try:
            compare(tree_leaves(function(*job.arguments)), wanted, TOLERANCE[job.leaves[0].dtype])
            calls[name] = clock.captured(_call(function, job, direction))
        except Exception as error:  # noqa: BLE001 - what a way cannot do is reported, whatever it raises
            tqdm.write(f"{case} {direction}: without {name}: {clock.reason(error)}")

    for name, function in {**ways, **job.others}.items():
        add(name, function)
    if KERNEL in calls and _tunes(f"{case} {direction}", kernel, job, direction):
        add(TUNED, kernel)
        import_module("convein.kernels.tuning").forget()
    return calls


def _tunes(name: str, kernel: Function, job: Job, direction: str) -> bool:
    """Whether a configuration is faster than the first; it serves then. The graph of the first one is what it was."""
    with torch.set_grad_enabled(direction == TRAINING):
        try:
            found = convein.tune(kernel, *job.arguments, save=False)
        except convein.PlanError:
            return False
    tqdm.write(f"{name}, tuned:\n{found}")
    return any(row.after != row.before for row in found.rows)


def verdicts(setting: Setting, timings: Sequence[Timing], cases: Sequence[Case] = CASES) -> str:
    """For every kernel the part of the card's speed that it reaches, and how many times longer the others take."""
    machine = {timing.variant: timing.median for timing in timings if timing.group == MACHINE}
    if not machine:
        return ""
    lines = [f"kernels: {limits(machine)}", f"{'':58} {'us':>8}  roofline  reaches  gain over the best other way"]
    for case, direction in product(cases, (FORWARD, TRAINING)):
        found = {timing.variant: timing.median for timing in timings if timing.group == f"{case} {direction}"}
        others = {name: spent for name, spent in found.items() if name not in (KERNEL, TUNED)}
        if KERNEL not in found or not others:
            continue
        best = min(others, key=others.__getitem__)
        reached = "                 "
        if direction == FORWARD:
            least = roofline(setting, case, machine)
            reached = f"{least * 1e6:8.1f}  {least / found[KERNEL]:7.2f}"
        gain = f"{others[best] / found[KERNEL]:4.2f}  {best}"
        if TUNED in found:
            gain += f", {found[KERNEL] / found[TUNED]:.2f} by tuning"
        if THREE in found:
            gain += f", {found[THREE] / found[KERNEL]:.2f} over {THREE}"
        lines.append(f"  {case!s:40} {direction:17} {found[KERNEL] * 1e6:8.1f}  {reached}  {gain}")
    return "\n".join(lines)


def module_of(case: Case) -> ModuleType:
    """The kernel's file."""
    return import_module(f"convein.kernels.{case.kernel}")


def roofline(setting: Setting, case: Case, machine: Mapping[str, float]) -> float:
    """The least seconds: operations over the peak, or bytes read and written once over the bandwidth."""
    job = case.make(setting)
    module = module_of(case)
    with torch.no_grad():
        results = tree_leaves(module.reference(*job.arguments))
    moved = sum(x.numel() * x.element_size() for x in (*job.leaves, *results))
    peaks = {name.split()[1]: float(name.split()[-2]) * 1e9 / spent for name, spent in machine.items() if name != COPY}
    peak = peaks[str(job.leaves[0].dtype).removeprefix("torch.").rstrip(",")]
    return max(job.flops / peak, float(moved) * machine[COPY] / (2 * COPIED / setting.shrink))


def limits(machine: Mapping[str, float]) -> str:
    """What the card can do, in a sentence."""
    speeds = [
        f"{float(name.split()[-2]) / spent / 1e3:.0f} TFLOP/s in {name.split()[1]}"
        for name, spent in machine.items()
        if name != COPY
    ]
    return f"the GPU does {', '.join(speeds)}, and copies {2 * COPIED / machine[COPY] / 1e9:.0f} GB/s"


def _machine(setting: Setting) -> dict[str, Call]:
    source = torch.empty(COPIED // setting.shrink, dtype=torch.uint8, device=setting.device).zero_()
    target, rows = torch.empty_like(source), setting.size(ROWS)
    found: dict[str, Call] = {COPY: lambda: target.copy_(source)}
    for dtype in (setting.dtype, torch.float32):
        a, b = (setting.random(rows, rows, seed=seed).to(dtype) for seed in (0, 1))
        name = f"product {str(dtype).removeprefix('torch.')} of {rows} by {rows}, {2 * rows**3 / 1e9:.6f} GFLOP"
        found[name] = partial(torch.mm, a, b)
    return found


def _call(function: Function, job: Job, direction: str) -> Call:
    if direction == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return function(*job.arguments)

        return forward
    seeds = [torch.ones_like(x) for x in tree_leaves(function(*job.arguments))]

    def train() -> object:
        return torch.autograd.grad(tree_leaves(function(*job.arguments)), job.leaves, seeds, allow_unused=True)

    return train


def _exact(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))
