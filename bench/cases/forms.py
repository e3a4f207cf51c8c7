"""Factorised convolutions as values: the forms, the layers they stand for, ranks by a budget of parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

SPATIAL = "hw"
KERNEL = 3


@dataclass(frozen=True, slots=True)
class Form:
    """One way to factorise the weight of a convolution.

    Attributes:
        name: what tables call it.
        expression: what convein is given.
        terms: the same with a letter for each mode, and without the bar; composed dimensions are taken apart.
        ranks: the letters whose size is the rank.
        order: the factors in the order in which a person would apply them to x.
    """

    name: str
    expression: str
    terms: str
    ranks: str
    order: tuple[int, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The letters of x, then of each factor."""
        return tuple(self.terms.split("->")[0].split(","))

    @property
    def output(self) -> str:
        """The letters of the result."""
        return self.terms.split("->")[1]

    @property
    def channels(self) -> tuple[str, str]:
        """The letters of the channels that come in, and of those that go out."""
        return self.inputs[0].strip("b" + SPATIAL), self.output.strip("b" + SPATIAL)

    def sizes(self, channels: int, rank: int) -> dict[str, int]:
        """The sizes of the factors' modes."""
        known = dict.fromkeys(self.ranks, rank) | dict.fromkeys(SPATIAL, KERNEL)
        for letters in self.channels:
            known |= zip(letters, parts(channels, len(letters)), strict=True)
        return known

    def shapes(self, channels: int, rank: int) -> tuple[tuple[int, ...], ...]:
        """The factors' shapes."""
        sizes = self.sizes(channels, rank)
        return tuple(tuple(sizes[mode] for mode in term) for term in self.inputs[1:])

    def rank(self, channels: int, percent: int) -> int:
        """The largest rank, at least 1, whose factors have at most so many percent of the dense weight's entries."""
        budget = channels * channels * KERNEL**2 * percent // 100
        rank = 1
        while sum(map(prod, self.shapes(channels, rank + 1))) <= budget:
            rank += 1
        return rank


def parts(channels: int, count: int) -> tuple[int, ...]:
    """A power of two as a product of powers of two, as equal as can be, the smallest first."""
    exponent = channels.bit_length() - 1
    return tuple(2 ** ((exponent + place) // count) for place in range(count))


FORMS = (
    Form("CP", "bshw,rs,rh,rw,rt->bthw|hw", "bshw,rs,rh,rw,rt->bthw", "r", (1, 2, 3, 4)),
    Form("Tucker-2", "bshw,rs,qrhw,qt->bthw|hw", "bshw,rs,qrhw,qt->bthw", "rq", (1, 2, 3)),
    Form("TT", "bshw,sa,ahc,cwd,dt->bthw|hw", "bshw,sa,ahc,cwd,dt->bthw", "acd", (1, 2, 3, 4)),
    Form("TR", "bshw,atc,csd,dhwa->bthw|hw", "bshw,atc,csd,dhwa->bthw", "acd", (2, 3, 1)),
    Form(
        "RCP",
        "b(s1 s2 s3)hw,r(t1)(s1),r(t2)(s2),r(t3)(s3),rhw->b(t1 t2 t3)hw|hw",
        "bijkhw,rxi,ryj,rzk,rhw->bxyzhw",
        "r",
        (1, 2, 3, 4),
    ),
)

_NAME = re.compile(
    r"(?P<form>\S+) (?P<channels>\d+) channels (?P<size>\d+)x\d+ (?P<percent>\d+)% batch (?P<batch>\d+) "
    r"(?P<direction>\S+) (?P<layout>\S+)"
)


@dataclass(frozen=True, slots=True)
class Case:
    """What one group measures; its text is the group's name."""

    form: str
    channels: int
    size: int
    percent: int
    batch: int
    direction: str
    layout: str

    def __str__(self) -> str:
        layer = f"{self.form} {self.channels} channels {self.size}x{self.size} {self.percent}%"
        return f"{layer} batch {self.batch} {self.direction} {self.layout}"

    @property
    def trains(self) -> bool:
        """Whether gradients of all operands are part of the job."""
        return self.direction == "forward+backward"

    @property
    def memory_format(self) -> torch.memory_format:
        """How x lies in memory, and the gradient of the result."""
        return memory_format(self.layout)


def memory_format(layout: str) -> torch.memory_format:
    """Torch's word for a layout."""
    return torch.channels_last if layout == "channels-last" else torch.contiguous_format


def parse_case(name: str) -> Case:
    """The case that a group's name stands for."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a factorised layer's group")
    words = match.groupdict()
    numbers = {key: int(words[key]) for key in ("channels", "size", "percent", "batch")}
    return Case(form=words["form"], direction=words["direction"], layout=words["layout"], **numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """The tensors of a case.

    Attributes:
        case, form: what they are for.
        x: the input, in the case's layout.
        factors: in the order of the expression.
        weight: the dense weight that the factors stand for.
        gradient: of the result, for the backward pass.
    """

    case: Case
    form: Form
    x: Tensor
    factors: tuple[Tensor, ...]
    weight: Tensor
    gradient: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gets gradients."""
        return (self.x, *self.factors)

    def split(self) -> Tensor:
        """The input with the form's channel modes apart, as a view."""
        batch, channels = self.x.shape[:2]
        inner = parts(channels, len(self.form.channels[0]))
        return self.x.view(batch, *inner, *self.x.shape[2:])


def compose(form: Form, factors: Sequence[Tensor]) -> Tensor:
    """The dense weight, as F.conv2d takes it."""
    inner, outer = form.channels
    weight: Tensor = torch.einsum(f"{','.join(form.inputs[1:])}->{outer}{inner}{SPATIAL}", *factors)
    return weight.flatten(0, len(outer) - 1).flatten(1, len(inner))


def operands_of(case: Case) -> Operands:
    """Random operands, scaled so that the result is about as large as x."""
    form = next(form for form in FORMS if form.name == case.form)
    rank = form.rank(case.channels, case.percent)
    numbers = torch.Generator().manual_seed(0)
    picture = (case.batch, case.channels, case.size, case.size)
    x, gradient = (
        torch.randn(picture, generator=numbers).contiguous(memory_format=case.memory_format) for _ in range(2)
    )
    factors = [torch.randn(shape, generator=numbers) for shape in form.shapes(case.channels, rank)]
    factors[-1] /= (rank ** len(form.ranks) * case.channels * KERNEL**2) ** 0.5
    weight = compose(form, factors)
    for leaf in (x, *factors):
        leaf.requires_grad_(case.trains)
    return Operands(case, form, x, tuple(factors), weight, gradient)
