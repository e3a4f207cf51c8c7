"""Command line -> the plan of an expression: its table, its program, its picture."""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import convein
from convein.drawing import draw_both
from convein.errors import ConveinError, OptionError, ShapeError
from convein.options import OPTION_NAMES, as_integer, shown
from convein.planner import path_info
from convein.tensorizing import command

_DESCRIPTION = """\
Prints in which order an expression would be evaluated, and what each step costs; nothing is computed.

A shape is written 4,7,9 and that of a scalar - or (); None in a shape is a free size. Every option of a convolution
has one value for all modes after the bar, or one for each of some modes, or stands in the expression itself.
"""
_EXAMPLES = """\
examples:
  python -m convein "ijk,jl,lmq,njpq->ijknp|j" 4,7,9 10,5 5,4,2 6,8,9,2 --signal first
  python -m convein "bshw,tshw->bthw|hw" 8,16,32,32 24,16,3,3 --stride 2 --padding "h=(0,1),w=valid" --grad=1
  python -m convein "bshw,tshw->bthw|h[stride=2],w[flip]" 8,16,32,32 24,16,3,3 --svg layer.svg
  python -m convein "b(g s)h,(g t)sh->b(g t)h|h" 8,16,32 24,4,3 --sizes g=4 --source
  python -m convein "bshw,rt,rs->bthw" 8,64,56,56 16,64 16,64 --device cuda --dtype bfloat16 --memory-limit 64MiB
another command factorises the layers of a model: python -m convein tensorize --help
"""
_VALUES = {
    "stride": "2 or h=2,w=1",
    "dilation": "2 or h=2,w=1",
    "padding": "same, valid, full, 1 or h=1,w=(0,1)",
    "flip": "reverse the filters: true convolution, as np.convolve",
    "signal": "first, largest, or an operand's position",
    "padding_mode": "zeros, circular, reflect or replicate",
    "transposed": "the adjoint, as torch's conv_transpose",
    "output_padding": "1 or h=1,w=0",
}
# These may stand alone. Their values are joined by "=", so that an expression after them is never taken for one.
_ALONE = ("--grad", "--flip", "--transposed", "--checkpoint")
_QUOTE = 'the expression stands in quotes, because the shell takes "->" and "|" for itself: "ij,jk->ik"'
_SETTING = re.compile(r"\s*(\w+)\s*=\s*(\([^()]*\)|[^,()=]+)\s*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: what follows the program's name; by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = None
    if words[:1] != ["tensorize"]:
        parsed = _parser().parse_args([f"{word}=true" if word in _ALONE else word for word in words])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            report = _report(parsed) if parsed else command.report(words[1:])
        except (ConveinError, OSError) as error:
            print(error, file=sys.stderr)
            if parsed and _unquoted(parsed):
                print(f"\n{_QUOTE}", file=sys.stderr)
            return 2
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print("warning: " + re.sub(r'signal="(\w+)"', r"--signal \1", message), file=sys.stderr)
    try:
        print(report, flush=True)
    except BrokenPipeError:  # the reader, `head` for example, has seen enough; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _unquoted(parsed: argparse.Namespace) -> bool:
    """Whether the shell seems to have cut the expression at a blank or at ">"."""
    words = [parsed.expression, *parsed.shapes]
    cut = any(word.endswith("-") and word != "-" for word in words)
    return cut or any(re.fullmatch(r"[^\W\d]+,?", word) and word.lower() != "none" for word in parsed.shapes)


def _report(parsed: argparse.Namespace) -> str:
    """What is printed; the picture is written on the way."""
    shapes = [_shape(text, position) for position, text in enumerate(parsed.shapes)]
    given = {name: text for name, text in vars(parsed).items() if text is not None}
    options = {name: _setting(name, given[name]) for name in (*OPTION_NAMES, "sizes") if name in given}
    options |= {name: _order(given[name]) for name in ("optimize", "cost") if name in given}
    options |= {name: _value(given[name]) for name in ("memory_limit", "checkpoint", "backend") if name in given}
    if "accumulate" in given:
        options["accumulate"] = _dtype("accumulate", given["accumulate"])
    # Only convein.compile takes what kind of operands will come.
    kind = {"dtype": _dtype("dtype", given["dtype"]) if "dtype" in given else None, "device": parsed.device}
    grad = _positions(given["grad"]) if "grad" in given else None
    if parsed.source or any(kind.values()):
        compiled = convein.compile(parsed.expression, *shapes, grad=grad, **kind, **options)
        plan = compiled.plan
        report = compiled.source.rstrip("\n") if parsed.source else str(path_info(plan))
    else:
        _, info = convein.contract_path(parsed.expression, *shapes, grad=grad, **options)
        plan, report = info.plan, str(info)
    if parsed.svg:
        Path(parsed.svg).write_text(draw_both(plan), encoding="utf-8")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convein",
        usage="%(prog)s expression [shape ...] [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("expression", help='"inputs -> output | convolved modes"')
    parser.add_argument("shapes", nargs="*", metavar="shape", help="one for each input")
    parser.add_argument("--svg", metavar="FILE", help="write the tensor diagram and the contraction tree to a file")
    parser.add_argument("--source", action="store_true", help="print the program instead of the table")
    parser.add_argument("--optimize", metavar="NAME", help='the search, or a path such as "[(0, 1), (0, 1)]"')
    parser.add_argument("--cost", metavar="NAME", help="what is minimised: time, flops, training or memory")
    parser.add_argument(
        "--grad", nargs="?", metavar="=0,2", help="gradients are needed, of all operands or of those at these positions"
    )
    parser.add_argument("--sizes", metavar="s1=4,t1=8", help="sizes that the shapes leave open")
    parser.add_argument("--memory-limit", metavar="BYTES", help="alive at a time: 1048576, 2GiB, 80%% of what is free")
    parser.add_argument(
        "--checkpoint", nargs="?", metavar="=BYTES", help="compute values again for the gradients, and keep so much"
    )
    parser.add_argument("--device", metavar="NAME", help="of the operands: cpu, or cuda, which may be absent")
    parser.add_argument("--dtype", metavar="NAME", help="of the operands: float32, bfloat16, ...")
    parser.add_argument("--accumulate", metavar="NAME", help="a wider dtype to compute in")
    parser.add_argument("--backend", metavar="NAME", help="auto, torch or triton")
    for name in OPTION_NAMES:
        option = "--" + name.replace("_", "-")
        if option in _ALONE:
            parser.add_argument(option, nargs="?", metavar="=VALUE", help=_VALUES[name])
        else:
            parser.add_argument(option, metavar="VALUE", help=_VALUES[name])
    parser.add_argument("--version", action="version", version=f"convein {convein.__version__}")
    return parser


def _shape(text: str, position: int) -> tuple[int | None, ...]:
    inner = text.strip().removeprefix("(").removesuffix(")").strip()
    if inner in ("", "-"):
        return ()
    sizes = [None if size.strip().lower() == "none" else _value(size) for size in inner.removesuffix(",").split(",")]
    if any(size is not None and as_integer(size) is None for size in sizes):
        raise ShapeError(
            f"operand {position} has the shape {shown(text)}",
            hint="a shape is written 4,7,9 and that of a scalar - or (); None is a free size",
        )
    return tuple(sizes)


def _setting(name: str, text: str) -> Any:
    """One value, or a dict from modes to values."""
    if "=" not in text:
        return _value(text)
    settings = {}
    place = 0
    while place <= len(text):
        found = _SETTING.match(text, place)
        if not found or text[found.end() : found.end() + 1] not in ("", ","):
            option = "--" + name.replace("_", "-")
            raise OptionError(f"{option} {text}", hint=f"a value for each of some modes is written {option} h=2,w=1")
        settings[found[1]] = _value(found[2])
        place = found.end() + 1
    return settings


def _value(text: str) -> Any:
    """An integer, a truth value, a pair in parentheses, or the word itself."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return tuple(_value(part) for part in text[1:-1].split(","))
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text


def _dtype(name: str, text: str) -> torch.dtype:
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise OptionError(f"--{name} {text}", hint=f"a dtype is one of torch's: --{name} float32")
    return found


def _order(text: str) -> Any:
    """A name, or an explicit path."""
    if not text.startswith(("[", "(")):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _positions(text: str) -> bool | list[int]:
    if text in ("true", "false"):
        return text == "true"
    try:
        return [int(position) for position in text.split(",")]
    except ValueError:
        raise OptionError(
            f"--grad={text}", hint="--grad alone means all operands, --grad=0,2 those at these positions"
        ) from None


if __name__ == "__main__":
    raise SystemExit(main())
