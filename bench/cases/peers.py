"""Operands of a factorised convolution -> every way to evaluate it, ours first.

A way is a call and the tensors that its backward pass gives gradients to: x, then the factors (here perhaps transposed,
as the way wants them). Where a way needs more memory than `MOST_BYTES` for one result, a sentence stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import opt_einsum
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

import convein
from cases.forms import KERNEL, SPATIAL, Case, Operands, memory_format
from cases.plain import chain, left_to_right

MOST_BYTES = 2**30
IMPLEMENTATIONS = {
    "CP": ("factorized", "reconstructed", "mobilenet"),
    "Tucker-2": ("factorized", "reconstructed"),
    "TT": ("factorized", "reconstructed"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A call, the tensors that get gradients, and how the gradient of its result lies in memory."""

    call: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    memory_format: torch.memory_format


Maker = Callable[[Operands], Way | str]


def makers(case: Case) -> dict[str, Maker]:
    """Every way that there is for a case, by name.

    Constants have no gradients. A call by the text costs microseconds more than a compiled one: of one picture, that is
    seen.
    """
    implementations = IMPLEMENTATIONS.get(case.form, ())
    return {
        "convein.compile": _compiled,
        **({"convein.conv_einsum": _called} if case.batch == 1 else {}),
        **({} if case.trains else {"convein.compile, constants": _folded}),
        **{f"tensorly-torch {name}": partial(tensorly, name) for name in implementations},
        "left to right": _left_to_right,
        "FLOP-optimal": _flop_optimal,
        "opt_einsum, F.unfold": _unfolded,
        "opt_einsum, einconv": _patterns,
        "dense NCHW": partial(dense, "NCHW"),
        "dense channels-last": partial(dense, "channels-last"),
    }


def _compiled(given: Operands) -> Way:
    expression = convein.compile(given.form.expression, *given.leaves)
    return _way(given, lambda: expression(*given.leaves))


def _called(given: Operands) -> Way:
    return _way(given, lambda: convein.conv_einsum(given.form.expression, *given.leaves))


def _folded(given: Operands) -> Way:
    constants = list(range(1, len(given.leaves)))
    expression = convein.compile(given.form.expression, *given.leaves, constants=constants)
    return _way(given, lambda: expression(given.x))


def tensorly(implementation: str, given: Operands) -> Way | str:
    """A layer of tensorly-torch with our factors; Tucker's spatial modes have no factor there, as here."""
    try:
        from tltorch import CPTensor, FactorizedConv, TTTensor, TuckerTensor
    except ImportError:
        return "tensorly-torch is not installed: pip install '.[bench]'"
    factors, channels = given.factors, given.case.channels
    if given.form.name == "CP":
        rs, rh, rw, rt = own = [_parameter(given, factor.t()) for factor in factors]
        weight = CPTensor(rs.new_ones(rs.shape[1]), [rt, rs, rh, rw])
    elif given.form.name == "Tucker-2":
        core = _parameter(given, factors[1])
        rs, qt = (_parameter(given, factors[place].t()) for place in (0, 2))
        own = [rs, core, qt]
        shape = (channels, channels, KERNEL, KERNEL)
        weight = TuckerTensor(core, [qt, rs], shape=shape, rank=tuple(core.shape))
    else:
        sa, ahc, cwd, dt = factors
        own = [_parameter(given, factor) for factor in (sa.unsqueeze(0), ahc, cwd, dt.unsqueeze(2))]
        weight = TTTensor(own)
    layer = FactorizedConv.from_factorization(weight, implementation=implementation, padding=KERNEL // 2)
    return Way(lambda: layer(given.x), (given.x, *own), given.case.memory_format)


def _left_to_right(given: Operands) -> Way | str:
    return _by_hand(given, left_to_right(len(given.leaves), given.form.order))


def _flop_optimal(given: Operands) -> Way | str:
    shapes = [tuple(leaf.shape) for leaf in given.leaves]
    _, info = convein.contract_path(given.form.expression, *shapes, optimize="optimal", cost="flops")
    return _by_hand(given, info.ssa_path)


def _by_hand(given: Operands, order: Sequence[tuple[int, ...]]) -> Way | str:
    form, case = given.form, given.case
    sizes = form.sizes(case.channels, form.rank(case.channels, case.percent)) | {"b": case.batch}
    steps = chain(form.inputs, form.output, sizes, case.size, order)
    if excuse := _too_large(steps.largest):
        return excuse
    axes = tuple(steps.modes.index(mode) for mode in form.output)
    return _way(given, lambda: steps(given.split(), *given.factors).permute(axes).reshape(given.x.shape))


def _unfolded(given: Operands) -> Way | str:
    form, case = given.form, given.case
    inner, outer = form.channels
    equation = f"b{inner}{SPATIAL}p,{','.join(form.inputs[1:])}->b{outer}p"
    split = given.split().shape[:-2]
    shapes = ((*split, KERNEL, KERNEL, case.size**2), *(tuple(factor.shape) for factor in given.factors))
    contract = _contraction(equation, shapes)
    if isinstance(contract, str):
        return contract

    def call() -> Tensor:
        columns = F.unfold(given.x, KERNEL, padding=KERNEL // 2).view(shapes[0])
        return contract(columns, *given.factors).reshape(given.x.shape)

    return _way(given, call)


def _patterns(given: Operands) -> Way | str:
    """The convolution as a product with einconv's patterns: p is 1 where input and filter entry give an output."""
    try:
        from einconv import index_pattern
    except ImportError:
        return "einconv is not installed: pip install '.[bench]'"
    inner, outer = given.form.channels
    equation = f"b{inner}HW,hYH,wXW,{','.join(given.form.inputs[1:])}->b{outer}YX"
    pattern = index_pattern(given.case.size, KERNEL, padding=KERNEL // 2, dtype=torch.float32)
    operands = (pattern, pattern, *given.factors)
    shapes = (given.split().shape, *(tuple(operand.shape) for operand in operands))
    contract = _contraction(equation, shapes)
    if isinstance(contract, str):
        return contract
    return _way(given, lambda: contract(given.split(), *operands).reshape(given.x.shape))


def dense(layout: str, given: Operands) -> Way:
    """The layer that the factors stand for, in the layout that it likes, whatever the case's layout is."""
    order = memory_format(layout)
    x, weight = (
        tensor.detach().clone(memory_format=order).requires_grad_(given.case.trains)
        for tensor in (given.x, given.weight)
    )
    return Way(lambda: F.conv2d(x, weight, padding=KERNEL // 2), (x, weight), order)


def _way(given: Operands, call: Callable[[], Tensor]) -> Way:
    return Way(call, given.leaves, given.case.memory_format)


def _parameter(given: Operands, tensor: Tensor) -> Parameter:
    return Parameter(tensor.detach().contiguous(), requires_grad=given.case.trains)


@cache
def _contraction(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Callable[..., Tensor] | str:
    """The cheapest order that opt_einsum's exact search finds, ready to be called."""
    path, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="optimal")
    if excuse := _too_large(int(info.largest_intermediate)):
        return excuse
    contract: Callable[..., Tensor] = opt_einsum.contract_expression(equation, *shapes, optimize=path)
    return contract


def _too_large(elements: int) -> str:
    size = elements * 4
    return f"a result of {size / 2**30:.1f} GiB" if size > MOST_BYTES else ""
