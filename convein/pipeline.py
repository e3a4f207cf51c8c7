"""The whole road on one page, and what a user calls: `conv_einsum`, `contract_path`, `compile`.

text --parse--> Equation --bind--> Network --plan--> Plan --lower--> Program --run--> tensor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from convein import cache, measuring
from convein.aiming import aim, surroundings
from convein.arguments import (
    check_constants,
    check_fixed,
    check_kind,
    free_axes,
    gradients_needed,
    with_constants,
)
from convein.binding import bind
from convein.distributed import on_shards
from convein.drafting import drafts, order
from convein.errors import OperandError
from convein.execution import load
from convein.execution.symbols import DEFAULT_HINT
from convein.expression import Expression
from convein.memory import Draft
from convein.metering import Sample, memory_order
from convein.network import Network
from convein.operands import check_operands, from_numpy, is_dense, is_distributed, rechecked, refuse_distributed
from convein.options import OPTION_NAMES, UNSET
from convein.planner import PathInfo, path_info
from convein.request import PLANNING, Request, freeze, make_request, open_request
from convein.syntax import Dialect
from convein.tracing import (
    find_held,
    gradients_asked,
    hold,
    is_proxy,
    is_symbolic,
    opaque,
    plan_shapes,
    record,
    register,
)

_DEFAULTS: dict[str, Any] = {**dict.fromkeys(OPTION_NAMES, UNSET), **PLANNING}
_NO_CHOICES = (UNSET,) * len(OPTION_NAMES)
_ABSENT = object()
# What a graph takes as an argument by its value.
_TRACEABLE = (str, bool, list, tuple)


def conv_einsum(
    expression: Any,
    *operands: Any,
    sizes: Mapping[Any, int] | None = None,
    convolved: Sequence[Any] | None = None,
    stride: Any = UNSET,
    dilation: Any = UNSET,
    padding: Any = UNSET,
    flip: Any = UNSET,
    signal: Any = UNSET,
    padding_mode: Any = UNSET,
    transposed: Any = UNSET,
    output_padding: Any = UNSET,
    optimize: Any = "auto",
    cost: Any = "auto",
    memory_limit: Any = None,
    checkpoint: Any = False,
    backend: str = "auto",
    dialect: Dialect | None = None,
    accumulate: torch.dtype | None = None,
    **unknown: Any,
) -> Any:
    """The tensor that an expression means, evaluated in the cheapest order.

    Every option of a convolution is one value for all convolved modes, or a dict by mode; it may stand in the text too
    (`|h[stride=2], w`). Defaults: stride 1, dilation 1, padding "same", padding_mode "zeros", flip False, signal
    "first", transposed False, output_padding 0.

    Args:
        expression: `"inputs -> output | convolved modes"`, or the first operand of the interleaved form
            `conv_einsum(x, [0, 1], y, [1, 2], [0, 2], convolved=[1])`.
        *operands: one torch tensor for each input; all numpy arrays gives a numpy array.
        sizes: sizes of modes that the shapes leave open, by name (for a convolved mode the signal's).
        convolved: the convolved modes of the interleaved form.
        stride: step between the signal indices that neighbouring outputs read.
        dilation: step between the signal indices that neighbouring filter entries read.
        padding: "same", "valid", "full", a number for both sides, or in a dict a pair `(lo, hi)`.
        flip: reverse every filter first: true convolution, as np.convolve.
        signal: "first", "largest" or the position of the operand that is the signal.
        padding_mode: "zeros", "circular", "reflect" or "replicate".
        transposed: the adjoint, as F.conv_transposeNd.
        output_padding: extra length of a transposed convolution's output.
        optimize: the search for the order: "auto", "optimal", "greedy", a name or an optimiser object of opt_einsum or
            cotengra, or an explicit path. "measure" runs the best few on these operands, with the backward pass where
            gradients are needed, and remembers the fastest; in a trace, under torch.use_deterministic_algorithms and in
            a distributed group it is "auto", unless the same call was measured before.
        cost: what the search minimises: "auto", "time", "flops", "training", "memory", or the sum of a function of a
            step, which has `left`, `right`, `result` (mode to size) and `macs`.
        memory_limit: the most bytes that may be alive at a time, operands excluded: a number, "2GiB", or "80%" of what
            is free when the call is planned. It holds for the call and, where gradients are needed, its backward pass:
            values are computed again and modes sliced until the prediction fits. It counts tensors, not what a single
            call of torch needs for itself, and is that of the plain call: under autocast or vmap more may be alive.
        checkpoint: True keeps only the operands for the backward pass and computes the rest again; a number is how many
            bytes may be kept besides the operands: what is kept is chosen so that the least time is lost.
        backend: "torch" for calls of torch alone; "triton" for the Triton kernels that fuse several steps, wherever
            they can; "auto" for whatever is expected to be faster on a GPU, and calls of torch elsewhere and in traces.
        dialect: rules added to the language.
        accumulate: a wider dtype to compute in, partial results included: the operands are converted, and the result
            is converted back. torch.autocast changes nothing inside.
        **unknown: refused, with the right name.

    Returns:
        The result. Its memory order is whatever is fastest, often channels last: use `.reshape` on it, or
        `.contiguous()` before `.view`.

    Raises:
        ConveinError: whatever does not fit, with the place in the expression.
    """
    choices = (stride, dilation, padding, flip, signal, padding_mode, transposed, output_padding)
    planning = (sizes, convolved, optimize, cost, memory_limit, checkpoint, backend, dialect, accumulate)
    if torch.compiler.is_dynamo_compiling():
        register()
        given = _given(choices, planning, unknown)
        objects = [name for name in ("optimize", "cost", "dialect") if not isinstance(given.get(name, ""), _TRACEABLE)]
        held = {name: hold(given.pop(name)) for name in objects}
        return _evaluate(expression, *operands, held=held, **given)
    key: Any = None
    found = None
    try:
        key = (
            expression,
            choices if choices == _NO_CHOICES else freeze(choices),
            planning,
            (optimize.__class__, checkpoint.__class__),  # 1 equals True, and means nothing here
            torch.is_grad_enabled(),
            surroundings(),
            # The sizes one by one: a proxy of torch.fx then stops here, before it records the questions that follow.
            *[
                (*x.shape, x.__class__, x.dtype, x.device, x.requires_grad, x.is_contiguous() or x.stride())
                for x in operands
            ],
        )
        found = cache.lookup(key)
    except (TypeError, AttributeError, ValueError, RuntimeError):
        key = None  # something unhashable, or no dense tensor: the long way tells which
    if found is not None and not unknown:
        return found(*operands)
    return _evaluate_keyed(key, expression, operands, _given(choices, planning, unknown))


def contract_path(
    expression: Any,
    *operands: Any,
    grad: bool | Sequence[int] | None = None,
    shapes: bool | None = None,
    **options: Any,
) -> tuple[list[tuple[int, ...]], PathInfo]:
    """The order in which `conv_einsum` would evaluate an expression, and what it costs; nothing is computed.

    Args:
        expression: as for `conv_einsum`.
        *operands: tensors, or shapes such as `(4, 7, 9)`.
        grad: which operands need gradients: True, False or positions; None asks the tensors.
        shapes: accepted as opt_einsum does; shapes are recognised without it.
        **options: those of `conv_einsum`; `optimize="measure"` is "auto" here.

    Returns:
        opt_einsum's path (pairs of positions in the shrinking list of operands), and a PathInfo; `print` it.
    """
    request, known = open_request(expression, operands, options)
    network = _bind_shapes(request, known, shapes)
    if request.kept is not None or request.limit is not None:  # what fits is known once there is a program
        given = {**options, "optimize": "auto"} if measuring.is_wanted(request.optimize) else options
        planned = compile(expression, *operands, grad=grad, **given).plan
        return list(planned.path), path_info(planned)
    dense = {j: x for j, x in enumerate(known) if isinstance(x, torch.Tensor) and is_dense(x)}
    kinds = ((x.dtype, x.device) for x in dense.values())
    dtype, device = next(kinds, (torch.get_default_dtype(), torch.device("cpu")))
    target = aim(request, network, dtype, device)
    orders = tuple(memory_order(dense[j]) if j in dense else () for j in range(len(known)))
    planned = order(request, network, target, gradients_needed(known, grad, network), orders)
    return list(planned.path), path_info(planned)


def compile(
    expression: Any,
    *operands: Any,
    constants: Mapping[int, torch.Tensor] | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    grad: bool | Sequence[int] | None = None,
    **options: Any,
) -> Expression:
    """Plans an expression once, for calls with many operands of the same shapes.

    Args:
        expression: as for `conv_einsum`.
        *operands: a shape or a tensor for each input. None in a shape is a free size, the batch's for example: orders
            are planned as if it were 32, and convolved modes need a number. A constant's tensor stands here, or in
            `constants`.
        constants: `{position: tensor}`, or the positions of operands passed as tensors: what depends on them alone is
            computed now, once, and no gradient goes to them. Those that only meet other operands are kept as they are,
            without a copy: what is written to them later counts.
        dtype: of the operands to come; by default that of the tensors given, else torch's default.
        device: likewise.
        grad: which operands will need gradients: True, False or positions; None asks the tensors.
        **options: those of `conv_einsum`; `optimize="measure"` runs the best few orders now, on the tensors given and
            on random numbers for shapes. With `checkpoint`, all operands count as needing gradients if neither `grad`
            nor a tensor says which.

    Raises:
        ConveinError: whatever does not fit, with the place in the expression.
    """
    request, operands = open_request(expression, operands, options)
    operands, fixed = with_constants(operands, constants, request.equation)
    network = _bind_shapes(request, operands)
    tensors = {j: operand for j, operand in enumerate(operands) if isinstance(operand, torch.Tensor)}
    check_operands(tuple(tensors.values()), request.equation, tuple(tensors))
    refuse_distributed(tensors.values(), request.equation)
    dtype, where = check_kind(tuple(tensors.values()), dtype, device)
    check_constants(request.equation, dtype)
    check_fixed(fixed, request.equation, dtype, where)
    if grad is None and request.kept is not None and not any(x.requires_grad for x in tensors.values()):
        grad = dtype.is_floating_point or dtype.is_complex  # checkpoints are for gradients
    needs_grad = gradients_needed(operands, grad, network) & ~sum(1 << position for position in fixed)
    # Calls may bring other layouts: only what is likely to come again decides, and nothing relies on it.
    lasting = {convolution.signal for convolution in network.convolutions.values()} | set(fixed)
    orders = tuple(memory_order(tensors[j]) if j in tensors and j in lasting else () for j in range(len(operands)))
    target = aim(request, network, dtype, where, knows_memory=False)
    passed = [(j, o) for j, o in enumerate(network.operands) if o.constant is None and j not in fixed]
    free = free_axes(network, operands)
    shapes = tuple(tuple(None if (j, a) in free else n for a, n in enumerate(o.shape)) for j, o in passed)

    def finish(made: Draft) -> Expression:
        with torch.inference_mode(False), torch.no_grad():  # what is folded may serve in training later
            folded = load(made.before)(*(operands[position].detach() for position in sorted(fixed))) if fixed else ()
        return Expression(
            program=made.whole,
            positions=tuple(j for j, _ in passed),
            shapes=shapes,
            dtype=dtype,
            device=where,
            _rest=made.rest,
            _folded=tuple(folded) if isinstance(folded, tuple) else (folded,),
            _samples=made.samples[: len(passed)],
        )

    samples = [
        Sample(o.shape, dtype, str(where), grad=bool(needs_grad >> j & 1)).placed_as(tensors.get(j))
        for j, o in enumerate(network.operands)
        if o.constant is None
    ]
    several = measuring.is_wanted(request.optimize) and measuring.is_possible(where, tuple(tensors.values()))
    found = drafts(request, network, target, needs_grad, samples, frozenset(fixed), orders, several)
    made = [finish(one) for one in found]
    timed = [tensors.get(j, samples[j]) for j, _ in passed]
    return made[measuring.fastest(made, timed, [samples[j].grad for j, _ in passed])]


@opaque
def _evaluate(expression: Any, *operands: Any, held: Mapping[str, int], **given: Any) -> Any:
    """A call that graphs take as it is; `held` are the options that are objects."""
    objects = {name: find_held(number) for name, number in held.items()}
    return _evaluate_keyed(None, expression, operands, {**given, **objects})


def _evaluate_keyed(key: Any, expression: Any, operands: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """A call that the cache did not answer under `key` (None where no key could be made)."""
    if is_proxy((expression, *operands)):
        return record(conv_einsum, (expression, *operands), given)
    if not isinstance(expression, str):
        request, operands = make_request(expression, operands, given)
        given = {name: value for name, value in given.items() if name != "convolved"}
        return conv_einsum(request.equation.text, *operands, **given)
    arrays = from_numpy(operands)
    if arrays is not None:
        return conv_einsum(expression, *arrays, **given).numpy(force=True)
    dense = [x for x in operands if isinstance(x, torch.Tensor) and is_dense(x)]
    if measuring.is_wanted(given.get("optimize")) and dense and not measuring.is_possible(dense[0].device, dense):
        return _evaluate_keyed(None, expression, operands, {**given, "optimize": "auto"})
    symbolic = is_symbolic(dense)
    if key is None and not symbolic and len(dense) == len(operands):
        metas = [
            (x.shape, x.__class__, x.dtype, x.device, x.requires_grad, x.is_contiguous() or x.stride())
            for x in operands
        ]
        key = (expression, freeze(given), torch.is_grad_enabled(), surroundings(), *metas)
        found = cache.lookup(key)
        if found is not None:
            return found(*operands)
    request, operands = make_request(expression, operands, given)
    check_operands(operands, request.equation)
    if is_distributed(operands):
        function = on_shards(conv_einsum, request, given, plan_shapes(operands)[0])
    else:
        function = _prepare(request, operands)
    if not symbolic:
        function = cache.store(key, function)
    return function(*operands)


def _prepare(request: Request, operands: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """The whole road, from checked operands to a function of them."""
    shapes, symbolic = plan_shapes(operands)
    network = bind(request.equation, shapes, dict(request.sizes), symbolic)
    for position, axis in symbolic:
        if any(mode in network.convolutions for mode in network.operands[position].axes[axis]):
            int(operands[position].shape[axis])  # a convolved size is part of the program: this guards on it
    mixed = any(operand.dtype != operands[0].dtype for operand in operands)
    dtype = torch.get_autocast_dtype(operands[0].device.type) if mixed else operands[0].dtype
    check_constants(request.equation, dtype)
    needs_grad = gradients_needed(operands, gradients_asked(operands), network)
    target = aim(request, network, dtype, operands[0].device)
    unknown = {position for position, _ in symbolic}
    orders = tuple(() if j in unknown else memory_order(operand) for j, operand in enumerate(operands))
    samples = [
        Sample(o.shape, x.dtype, str(x.device), grad=bool(needs_grad >> j & 1)).placed_as(None if j in unknown else x)
        for j, (o, x) in enumerate(zip(network.operands, operands, strict=False))
    ]
    several = measuring.is_wanted(request.optimize)
    found = drafts(request, network, target, needs_grad, samples, frozenset(), orders, several, bool(symbolic))
    made = [load(one.rest) for one in found]
    function = made[measuring.fastest(made, operands, [sample.grad for sample in samples])]
    return rechecked(function, request.equation) if mixed else function


def _bind_shapes(request: Request, operands: Sequence[Any], shapes: bool | None = None) -> Network:
    if shapes and any(isinstance(operand, torch.Tensor) for operand in operands):
        raise OperandError(
            "shapes=True was given with tensors", hint="leave shapes= out: shapes are recognised without it"
        )
    known = [tuple(operand.shape) if isinstance(operand, torch.Tensor) else operand for operand in operands]
    return bind(request.equation, known, dict(request.sizes), free_hint=DEFAULT_HINT)


def _given(choices: tuple[Any, ...], planning: tuple[Any, ...], unknown: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that differ from their defaults."""
    options = {**dict(zip(OPTION_NAMES, choices, strict=True)), **dict(zip(PLANNING, planning, strict=True)), **unknown}
    return {name: value for name, value in options.items() if value is not _DEFAULTS.get(name, _ABSENT)}
