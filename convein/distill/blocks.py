"""The blocks that a student and its teacher have in common, and what comes out of them in a run of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convein.errors import OptionError, ShapeError

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class _Reached(BaseException):
    """Ends a run of a model at a block; not an Exception, so that no `except` of the model's own catches it."""

    def __init__(self, output: Any) -> None:
        self.output = output


def common_blocks(student: nn.Module, teacher: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the teacher's children, with those of an nn.Sequential or nn.ModuleList in its place.

    Such a container is taken apart only where the student has one with the same children: a layer of the teacher may be
    several in the student.
    """
    theirs = dict(student.named_children())
    for name, child in teacher.named_children():
        same = theirs.get(name)
        if isinstance(child, _CONTAINERS) and isinstance(same, _CONTAINERS) and _names(child) == _names(same):
            yield from common_blocks(same, child, f"{prefix}{name}.")
        else:
            yield prefix + name


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def chosen_blocks(student: nn.Module, teacher: nn.Module, blocks: Sequence[str] | None) -> tuple[str, ...]:
    """The names to train in order: those given, or all that the two models have in common.

    Raises:
        OptionError: no names, one twice, one that either model does not have, or a string instead of a list.
    """
    if isinstance(blocks, str):
        raise OptionError(f"blocks is the text {blocks!r}", hint=f"give a list of names: blocks=[{blocks!r}]")
    names = tuple(common_blocks(student, teacher) if blocks is None else blocks)
    if not names:
        raise OptionError("there are no blocks to train", hint="name them: blocks=['conv1', 'layer1', 'fc']")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise OptionError(f"block {name!r} is named twice in blocks={list(names)}")
        for whose, model in (("student", student), ("teacher", teacher)):
            known = [known for known, _ in model.named_modules() if known]
            if name not in known:
                close = get_close_matches(str(name), known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'no modules'}"
                raise OptionError(f"the {whose} has no block {name!r}, and both models must have it", hint=hint)
    return names


def output_of(model: nn.Module, block: str, inputs: Tensor) -> Any:
    """What a block returns at its first call in a run of its model; nothing after that call is computed."""

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = model.get_submodule(block).register_forward_hook(stop)
    try:
        model(inputs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise OptionError(f"block {block!r} is called for the first batch, and not for a later one")


def check_blocks(student: nn.Module, teacher: nn.Module, blocks: Sequence[str], inputs: Tensor) -> None:
    """Runs both models on one batch, before any hour is spent on the first block.

    Raises:
        OptionError: a block is not called, or the blocks are not in the order in which they finish.
        ShapeError: a block of the student does not return the shape of the teacher's.
    """
    device = [inputs.device] if inputs.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=device):
        found = [
            _outputs(model, blocks, inputs, whose) for whose, model in (("student", student), ("teacher", teacher))
        ]
    for block, ours, theirs in zip(blocks, *found):
        check_pair(f"block {block!r}: ", ours, theirs)


def _outputs(model: nn.Module, blocks: Sequence[str], inputs: Tensor, whose: str) -> list[Any]:
    found: dict[str, Any] = {}

    def remember(_module: nn.Module, _args: Any, output: Any, block: str) -> None:
        # Shapes are all that is asked for, and every block's output at once may be more than the memory.
        found.setdefault(block, output.to("meta") if isinstance(output, Tensor) else output)

    handles = [model.get_submodule(block).register_forward_hook(partial(remember, block=block)) for block in blocks]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for block in blocks:
        if block not in found:
            raise OptionError(
                f"block {block!r} of the {whose} is not called when the model runs",
                hint="leave it out of blocks=, or name the modules inside it that are called",
            )
    if list(found) != list(blocks):
        raise OptionError(
            f"the blocks of the {whose} run in another order than they are named in: blocks={list(blocks)}",
            hint=f"name them from the bottom up: blocks={list(found)}",
        )
    return list(found.values())


def check_pair(what: str, output: Any, target: Any) -> None:
    """Refuses a pair that has no squared error; `what` says whose outputs they are, as in `block 'fc': `."""
    for whose, value in (("student", output), ("teacher", target)):
        if not isinstance(value, Tensor):
            raise OptionError(
                f"{what}the {whose} returns a {type(value).__name__}, and only tensors can be compared",
                hint="distil modules that return one tensor, or wrap the model in one that picks it",
            )
    if output.shape != target.shape:
        ours, theirs = tuple(output.shape), tuple(target.shape)
        raise ShapeError(f"{what}the student returns a tensor of shape {ours}, and the teacher one of {theirs}")
