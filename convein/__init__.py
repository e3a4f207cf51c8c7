"""convein: a compiler for multilinear expressions with convolutions, on PyTorch.

One string says what is multiplied, summed and convolved; `conv_einsum` returns exactly that tensor, in the cheapest
order.
"""

from convein import dialects, distill, layers
from convein.cache import cache_clear, cache_info
from convein.calibration import calibrate
from convein.dialect import Dialect
from convein.errors import (
    ConveinError,
    ConveinWarning,
    ExpressionError,
    OperandError,
    OptionError,
    PlanError,
    ShapeError,
)
from convein.expression import Expression
from convein.pipeline import compile, contract_path, conv_einsum  # noqa: A004
from convein.syntax import parse
from convein.tensorizing import densify, tensorize
from convein.tuning import tune

contract_expression = compile

__version__ = "0.1.0"

__all__ = [
    "ConveinError",
    "ConveinWarning",
    "Dialect",
    "Expression",
    "ExpressionError",
    "OperandError",
    "OptionError",
    "PlanError",
    "ShapeError",
    "cache_clear",
    "cache_info",
    "calibrate",
    "compile",
    "contract_expression",
    "contract_path",
    "conv_einsum",
    "densify",
    "dialects",
    "distill",
    "layers",
    "parse",
    "tensorize",
    "tune",
]
