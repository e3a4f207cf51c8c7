"""Command line -> the report of a dry run: what factorising a model would do."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convein.errors import OptionError
from convein.options import shown
from convein.tensorizing.model import tensorize

_DESCRIPTION = """\
Prints what factorising every layer of a model would do to its parameters, multiplications, time and memory; nothing is
decomposed.
"""
_EXAMPLES = """\
examples:
  python -m convein tensorize torchvision.models:resnet34 --input 1,3,224,224 --form auto --rank 0.1
  python -m convein tensorize mine.networks:small --input 8,128:int64 --skip first "head*" --training
  python -m convein tensorize networks:model --form tt --rank 8 --override "layer4.*:form=cp,rank=0.05"
"""


def report(arguments: Sequence[str]) -> str:
    """What `python -m convein tensorize` prints.

    Args:
        arguments: what follows the word.

    Raises:
        ConveinError: what does not fit.
    """
    parsed = _parser().parse_args(arguments)
    model = _model(parsed.model).train(parsed.training)
    inputs = tuple(_input(text) for text in parsed.input or ()) or None
    given: dict[str, Any] = {"form": parsed.form, "rank": _rank(parsed.rank)}
    given |= {name: getattr(parsed, name) for name in ("factors", "multiple") if getattr(parsed, name) is not None}
    overrides = dict(_override(text) for text in parsed.override or ())
    _, made = tensorize(model, **given, example_inputs=inputs, skip=parsed.skip, overrides=overrides, dry_run=True)
    if parsed.spec:
        Path(parsed.spec).write_text(json.dumps(made.spec, indent=1) + "\n", encoding="utf-8")
    return str(made)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convein tensorize",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="module:factory", help="what gives the model when it is called, or is a model")
    parser.add_argument(
        "--input", action="append", metavar="1,3,224,224", help="the shape of an input, once for each; 8,128:int64"
    )
    parser.add_argument("--form", default="cp", help='cp, tucker, tt, ..., or "auto"')
    parser.add_argument(
        "--rank", default="0.1", help="a fraction of the parameters, a number, or one for each bond: 8,16"
    )
    parser.add_argument(
        "--factors", type=int, metavar="3", help="into how many factors reshaped forms take the channels"
    )
    parser.add_argument("--multiple", type=int, metavar="16", help="round ranks down to a multiple")
    parser.add_argument("--skip", nargs="*", default=["first", "last"], help="layers to leave alone (first last)")
    parser.add_argument(
        "--override", action="append", metavar="PATTERN:form=tt,rank=8", help="other values for some layers"
    )
    parser.add_argument("--training", action="store_true", help="predict the times of a training step")
    parser.add_argument("--spec", metavar="FILE", help="write the spec, from which tensorize makes these layers")
    return parser


def _model(text: str) -> nn.Module:
    """What a name like "torchvision.models:resnet34" stands for; modules of the working directory are found, too."""
    name, colon, path = text.partition(":")
    if not (colon and name and path):
        raise OptionError(f"{text} names no model", hint="a model is written module:factory")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"{text}: {error}", hint="modules are searched as Python does, from this directory"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, dir(found), 1)
            hint = f"did you mean {close[0]}?" if close else None
            raise OptionError(f"{text}: there is no {part} in {getattr(found, '__name__', name)}", hint=hint)
        found = getattr(found, part)
    model = found if isinstance(found, nn.Module) or not callable(found) else _called(found, text)
    if not isinstance(model, nn.Module):
        raise OptionError(f"{text} gives a {type(model).__name__}", hint="an nn.Module, or a function that returns one")
    return model


def _called(factory: Callable[..., Any], text: str) -> Any:
    """What a factory returns. What goes wrong within it is its own."""
    try:
        wanted = inspect.signature(factory)
        wanted.bind()
    except ValueError:  # a function of C says nothing of its arguments
        pass
    except TypeError as error:
        raise OptionError(
            f"{text} cannot be called without arguments: {error}",
            hint="name a function that takes none: def small(): return Network(10)",
        ) from error
    return factory()


def _input(text: str) -> torch.Tensor:
    sizes, _, kind = text.partition(":")
    dtype = getattr(torch, kind, None) if kind else torch.get_default_dtype()
    try:
        shape = [int(size) for size in sizes.split(",")]
        if min(shape) < 0 or not isinstance(dtype, torch.dtype):
            raise ValueError
    except ValueError:
        raise OptionError(
            f"--input {text}", hint="a shape is written 1,3,224,224; for other numbers than floats 8,128:int64"
        ) from None
    return torch.zeros(shape, dtype=dtype)


def _rank(text: str) -> Any:
    """A number, a fraction, a tuple of numbers or a word."""
    try:
        return tuple(int(one) for one in text.split(",")) if "," in text else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _override(text: str) -> tuple[str, dict[str, Any] | None]:
    """A pattern and what it changes; nothing after the pattern leaves its layers alone."""
    pattern, _, values = text.partition(":")
    if not values:
        return pattern, None
    settings = {}
    for part in values.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise OptionError(f"--override {shown(text)}", hint='as "layer4.*:form=tt,rank=0.05", or the pattern alone')
        settings[name.strip()] = value if name.strip() == "form" else _rank(value.strip())
    return pattern, settings
