"""Expression: one expression compiled for given sizes, to be called many times."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from convein.drawing import Svg, draw_both
from convein.errors import OperandError, ShapeError
from convein.execution import load
from convein.lowering import Program
from convein.lowering.note import told
from convein.metering import Footprint, Sample, predict
from convein.network import Network
from convein.operands import check_operands, from_numpy, is_distributed, refuse_distributed
from convein.planner import Plan, path_info


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A compiled expression: call it with the operands that are not constants.

    `print` shows every stage. Attributes `network`, `plan`, `program` and `source` are the stages themselves.

    Attributes:
        program: the whole program, constants included as parameters.
        positions: the operands that a call takes.
        shapes: their shapes; None where a size is free.
        dtype, device: what it was compiled for.
        _rest: the program that is called: of the other operands, then of `_folded`.
        _folded: what was computed of the constants.
        _samples: what the operands of a call are expected to be like.
    """

    program: Program
    positions: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtype: torch.dtype
    device: torch.device
    _rest: Program = field(repr=False)
    _folded: tuple[torch.Tensor, ...] = field(repr=False)
    _samples: tuple[Sample, ...] = field(repr=False)
    _function: Callable[..., Any] = field(init=False, repr=False)
    _fixed: tuple[tuple[tuple[int | None, ...], torch.dtype, torch.device], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_function", load(self._rest))
        object.__setattr__(self, "_fixed", tuple((shape, self.dtype, self.device) for shape in self.shapes))

    def __reduce__(self) -> tuple[type[Expression], tuple[object, ...]]:
        """For copies and pickles: the function is made again from its program."""
        return Expression, tuple(getattr(self, part.name) for part in fields(self) if part.init)

    @property
    def plan(self) -> Plan:
        """The order of the steps and what they cost."""
        return self.program.plan

    @property
    def network(self) -> Network:
        """The operands and modes with their sizes."""
        return self.plan.network

    @property
    def source(self) -> str:
        """The program as Python text; it runs by itself where convein is installed, whose operators it may import."""
        return self.program.source

    @property
    def price(self) -> float:
        """Microseconds that a call is expected to take, with its backward pass where gradients are needed.

        It is the time model's, for the calls of the program as it is; what was computed of constants is not part of it.
        With loops, which a memory limit brings, it is that of one chunk. `plan.total` is another number: what the
        search knew of the steps before there were calls, and without kernels.
        """
        return self._rest.price

    @property
    def saved_bytes(self) -> int:
        """Bytes that a call keeps for the backward pass, operands and constants excluded.

        This is what autograd keeps: each storage once, with free sizes as they were planned. It is found by running the
        program on tensors without memory, and differs from `plan.saved_bytes`, which the search counts with and which
        knows partial results only.
        """
        return self._footprint().saved

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive during a call and, where gradients are needed, its backward pass.

        Operands and constants are excluded. Partial results, the result, the gradient that comes for it and the
        gradients of the operands are included, as far as they are alive at the same time; result and incoming gradient
        stay to the end. What a single call of torch needs for itself is unknown and not counted.
        """
        return self._footprint().peak

    def _footprint(self) -> Footprint:
        samples = [*self._samples, *map(Sample.of, self._folded)]
        return predict(self._function, samples, autocast_off=bool(self._rest.autocast_off))

    def explain(self) -> str:
        """Every stage, from the text to the program, and which fused kernels it calls, and why not others."""
        info = path_info(self.plan)
        called = [f"{name}: called" for name in self.program.kernels]
        notes = [*called, *told(self.program.notes)] or ["no run of these steps is one that a kernel computes"]
        kernels = "\n".join(["Kernels", *(f"  {note}" for note in notes)])
        return "\n\n".join([f"Equation  {self.network.equation}", str(self.network), str(info), kernels, self.source])

    def sharing(self, others: Iterable[Expression]) -> Expression:
        """The same expression, with constants folded by the others in place of its own where those are equal."""
        known = [folded for other in others for folded in other._folded]
        folded = tuple(next((one for one in known if _is_same(one, mine)), mine) for mine in self._folded)
        return self if all(map(operator.is_, folded, self._folded)) else replace(self, _folded=folded)

    def draw(self, path: str | Path | None = None) -> Svg:
        """The tensor diagram and the contraction tree, as SVG text that a notebook shows as the picture.

        Args:
            path: a file to write it to.
        """
        picture = draw_both(self.plan)
        if path is not None:
            Path(path).write_text(picture, encoding="utf-8")
        return picture

    def _repr_svg_(self) -> str:
        return self.draw()

    def __call__(self, *operands: Any) -> Any:
        """The value for these operands.

        Raises:
            ShapeError: their number, or a size that is not free, differs from what was compiled.
            OperandError: something is not a tensor, or mixes dtypes or devices.
        """
        try:
            fits = tuple([(x.shape, x.dtype, x.device) for x in operands]) == self._fixed
        except (AttributeError, RuntimeError, ValueError):  # no dense tensor: the long way says what it is
            fits = False
        if fits and not is_distributed(operands):
            return self._function(*operands, *self._folded)
        return self._checked_call(operands)

    def __str__(self) -> str:
        return self.explain()

    def _checked_call(self, operands: Sequence[Any]) -> Any:
        arrays = from_numpy(operands)
        if arrays is not None:
            return self(*arrays).numpy(force=True)
        equation = self.network.equation
        if len(operands) != len(self.positions):
            raise ShapeError(
                f"this expression takes {len(self.positions)} operand{'' if len(self.positions) == 1 else 's'}, and "
                f"{len(operands)} {'was' if len(operands) == 1 else 'were'} passed",
                text=equation.text,
            )
        check_operands(operands, equation, self.positions)
        refuse_distributed(operands, equation)
        for position, operand, shape in zip(self.positions, operands, self.shapes, strict=True):
            wrong = len(shape) != operand.dim()
            if wrong or any(
                size is not None and size != given for size, given in zip(shape, operand.shape, strict=True)
            ):
                wanted = ", ".join("free" if size is None else str(size) for size in shape)
                raise ShapeError(
                    f"operand {position} has shape {tuple(operand.shape)}, "
                    f"and the expression was compiled for ({wanted})",
                    text=equation.text,
                    spans=[equation.inputs[position].span],
                    hint="None instead of a size leaves it free; other sizes need their own compile",
                )
        self._check_free(operands)
        self._check_kind(operands)
        return self._function(*operands, *self._folded)

    def _check_free(self, operands: Sequence[torch.Tensor]) -> None:
        """Free sizes of one mode must be equal, and composed ones divisible."""
        network = self.network
        shapes = {j: operand.shape for j, operand in zip(self.positions, operands, strict=True)}
        sizes = dict(network.sizes)
        for free in network.symbolic:
            rest = prod([sizes[mode] for mode in free.divisors])
            sizes[free.mode] = shapes[free.operand][free.axis] // rest if rest else 0
        for position, shape in zip(self.positions, self.shapes, strict=True):
            for axis in [axis for axis, size in enumerate(shape) if size is None]:
                modes, given = network.operands[position].axes[axis], shapes[position][axis]
                wanted = prod([sizes[mode] for mode in modes])
                if given != wanted:
                    parts = ", ".join([f"{mode}={sizes[mode]}" for mode in modes])
                    raise ShapeError(
                        f"dimension {axis} of operand {position} has size {given}, and the other dimensions make it "
                        f"{wanted} ({parts})",
                        text=network.equation.text,
                        spans=[network.equation.inputs[position].span],
                        hint="free sizes do not broadcast" if 1 in (given, wanted) else None,
                    )

    def _check_kind(self, operands: Sequence[torch.Tensor]) -> None:
        """The program was written for one kind of number, and the constants are where they are."""
        text = self.network.equation.text
        if not operands:
            return
        dtype, device = operands[0].dtype, operands[0].device
        inexact = dtype.is_floating_point or dtype.is_complex
        related = inexact and self._is_inexact and dtype.is_complex == self.dtype.is_complex
        converts = bool(self.program.autocast_off)  # to and from the dtype that it was compiled for
        if dtype != self.dtype and (converts or not related):
            raise OperandError(
                f"this expression was compiled for {self.dtype}, and the operands have dtype {dtype}",
                text=text,
                hint=f"compile it with dtype={dtype}",
            )
        for folded in self._folded[:1]:
            if folded.dtype != dtype and not converts and not torch.is_autocast_enabled(device.type):
                raise OperandError(
                    f"the constants have dtype {folded.dtype}, and the operands {dtype}",
                    text=text,
                    hint=f"convert the operands with .to({folded.dtype}), or compile with constants of {dtype}",
                )
            if folded.device != device:
                raise OperandError(f"the constants are on {folded.device}, and the operands on {device}", text=text)

    @property
    def _is_inexact(self) -> bool:
        return self.dtype.is_floating_point or self.dtype.is_complex


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one tensor can stand for another."""
    kinds = [(x.shape, x.stride(), x.dtype, x.device) for x in (one, other)]
    return kinds[0] == kinds[1] and torch.equal(one, other)
