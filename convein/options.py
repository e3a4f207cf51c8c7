"""The options of one convolved mode: their names, defaults and legal values."""

from __future__ import annotations

from dataclasses import dataclass, fields

Padding = str | int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class ConvOptions:
    """How one mode is convolved. Defaults are the meaning of a bare `|h`.

    Attributes:
        stride: step between the signal indices that two neighbouring outputs read.
        dilation: step between the signal indices that two neighbouring filter entries read.
        padding: `"same"`, `"valid"`, `"full"`, a number for both sides, or a pair `(lo, hi)`.
        flip: reverse every filter first (true convolution, as np.convolve).
        signal: `"first"`, `"largest"` or the position of the operand that is the signal.
        padding_mode: `"zeros"`, `"circular"`, `"reflect"` or `"replicate"`.
        transposed: the adjoint, as F.conv_transposeNd.
        output_padding: extra length of a transposed convolution's output.
    """

    stride: int = 1
    dilation: int = 1
    padding: Padding = "same"
    flip: bool = False
    signal: str | int = "first"
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: int = 0


OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in fields(ConvOptions))
