"""The options of one convolved mode + its sizes -> Convolution: paddings become numbers, the output gets its size."""

from __future__ import annotations

from convein.errors import OptionError, ShapeError, Span
from convein.options import ConvOptions
from convein.syntax import Convolved, Equation
from convein.windows import Convolution


def resolve_convolution(equation: Equation, convolved: Convolved, carriers: list[tuple[int, int]]) -> Convolution:
    """Resolves one convolved mode.

    Args:
        equation: where it stands.
        convolved: the mode and its options.
        carriers: `(operand, size)` of each operand that carries it, in operand order.

    Raises:
        ShapeError: the output would be empty, or a filter is.
        OptionError: an option does not fit these sizes.
    """
    mode, options = convolved.mode, convolved.options
    signal = _signal(options.signal, carriers)
    n = dict(carriers)[signal]
    filters = tuple((j, k) for j, k in carriers if j != signal)
    for j, k in filters:
        if k == 0:
            raise ShapeError(
                f"mode {mode} of operand {j} is a filter of size 0", text=equation.text, spans=[convolved.span]
            )
    reach = options.dilation * sum(k - 1 for _, k in filters)
    lo, hi = _padding(options, reach)
    if options.transposed:
        length = (n - 1) * options.stride + reach + 1 - lo - hi + options.output_padding
        if options.padding == "same":
            length = n * options.stride
            hi = reach + 1 - options.stride - lo
    else:
        length = (n + lo + hi - reach - 1) // options.stride + 1
    if length < 1:
        _refuse_empty(equation, convolved, n, reach, lo, hi, length, longer=n < max(k for _, k in carriers))
    _check_extension(equation, convolved, n, lo, hi)
    return Convolution(
        mode=mode,
        signal=signal,
        filters=tuple(j for j, _ in filters),
        n=n,
        kernels=tuple(k for _, k in filters),
        stride=options.stride,
        dilation=options.dilation,
        lo=lo,
        hi=hi,
        length=length,
        flip=options.flip,
        padding_mode=options.padding_mode,
        transposed=options.transposed,
    )


def _signal(wanted: str | int, carriers: list[tuple[int, int]]) -> int:
    if wanted == "largest":
        return max(carriers, key=lambda carrier: carrier[1])[0]
    return wanted if isinstance(wanted, int) else carriers[0][0]


def _padding(options: ConvOptions, reach: int) -> tuple[int, int]:
    match options.padding:
        case "same":
            lo = reach - reach // 2 if options.flip else reach // 2
            return lo, reach - lo
        case "valid":
            return 0, 0
        case "full":
            return reach, reach
        case int(both):
            return both, both
        case (lo, hi):
            return lo, hi
    raise OptionError(f"padding={options.padding!r}", hint='"same", "valid", "full", a number, or a pair (lo, hi)')


def _check_extension(equation: Equation, convolved: Convolved, n: int, lo: int, hi: int) -> None:
    options = convolved.options
    spans: list[Span] = [convolved.span]
    if options.padding_mode == "reflect" and max(lo, hi) >= n:
        raise OptionError(
            f'padding_mode="reflect" of mode {convolved.mode}: '
            f"the padding ({lo}, {hi}) must be smaller than the signal, {n}",
            text=equation.text,
            spans=spans,
            hint='"replicate" and "circular" take any padding',
        )


def _refuse_empty(
    equation: Equation, convolved: Convolved, n: int, reach: int, lo: int, hi: int, length: int, *, longer: bool
) -> None:
    options = convolved.options
    if options.transposed:
        size = f"({n} - 1)*{options.stride} + {reach} + 1 - {lo} - {hi} + {options.output_padding}"
        hint = "a smaller padding or a larger output_padding leaves something"
    else:
        size = f"({n} + {lo} + {hi} - {reach} - 1)//{options.stride} + 1"
        hint = f'the filters reach over {reach + 1} entries: padding="same" keeps the size, "full" all overlaps'
        if longer:
            hint = 'the signal is the first operand that carries the mode, and a later one is longer: signal="largest"'
    raise ShapeError(
        f"the output of mode {convolved.mode} is empty: its size would be {size} = {length}",
        text=equation.text,
        spans=[convolved.span],
        hint=hint,
    )
