"""The two methods: end to end, by the models' outputs; and sequentially, block after block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convein.distill.blocks import check_blocks, chosen_blocks, output_of
from convein.distill.history import History
from convein.distill.training import Run, Schedule, Stage, flags_kept, train
from convein.errors import OptionError


def end_to_end(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int,
    lr: float = 1e-3,
    decay: float = 10.0,
    every: int = 50,
    optimizer: Callable[..., Optimizer] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> History:
    """Trains a student, in place, to give the outputs of its teacher: E2E-KD.

    The loss is the mean over all entries of `(student(inputs) - teacher(inputs)) ** 2`: take models that return logits.
    All parameters of the student that require a gradient learn together. The teacher runs in eval mode and is not
    changed; the student is in training mode meanwhile. Every `training` and `requires_grad` is put back at the end.

    Args:
        student: learns. Begin with `convein.tensorize(teacher, ..., decompose=True)` rather than with random weights.
        teacher: a trained model that returns a tensor of the same shape.
        batches: a DataLoader, or anything that can be iterated every epoch: batches are tensors, or tuples and lists
            that begin with one; what else they hold (labels) is ignored.
        epochs: how often the batches are gone through.
        lr: the learning rate of the first epochs.
        decay: divides the learning rate each time that `every` epochs have passed.
        every: see `decay`.
        optimizer: a function of `(parameters, lr=lr)` such as `torch.optim.SGD` or a functools.partial of it; Adam.
        checkpoint: a file that is written before the first and after every epoch, in one step. The same call, made
            again after a kill with any student of the same shapes, continues from it, and on a CPU comes to the same
            bits as if nothing had happened; after the last epoch it loads the trained student. It holds the random
            states of torch, Python, numpy and of a DataLoader's generators (not of its workers, if they persist).
        progress: show progress bars.
        device: move both models there first; None takes the student's. Inputs follow.

    Returns:
        The loss of every epoch, under the name `"student"`.

    Raises:
        OptionError: an option has a value that it cannot have, the checkpoint is of another run, or there is nothing to
            train or to compare.
        OperandError: a batch has no tensor of inputs.
        ShapeError: the outputs have different shapes.

    Source: J. Su, "Spectral Methods for Neural Network Designs", University of Maryland, 2022, chapter 2.
    """
    place = _placed(student, teacher, device)
    path = None if checkpoint is None else Path(checkpoint)
    schedule = Schedule(epochs, lr, decay, every)
    run = Run("end_to_end", student, teacher, batches, schedule, optimizer, path, progress, place)

    def outputs(inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = teacher(inputs)
        return student(inputs), target

    return train(run, [Stage("student", student, outputs, "")])


def sequential(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int,
    blocks: Sequence[str] | None = None,
    lr: float = 1e-3,
    decay: float = 10.0,
    every: int = 50,
    optimizer: Callable[..., Optimizer] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> History:
    """Trains a student, in place, block by block from the bottom up: Seq-KD.

    A block is fed with the student's own activations, from the blocks that are already trained, and learns to return
    what the teacher's block of the same name returns where the teacher is fed with its own: the loss is the mean of
    the squared difference. Nothing after the block is computed. All else of the student is frozen meanwhile and, like
    the teacher, in eval mode, so that only the BatchNorm of the block in turn follows the batches. A block with no
    parameter that requires a gradient is passed over; parameters in no block stay as they are. What lies between the
    blocks may be any code.

    Args:
        student: learns. Begin with `convein.tensorize(teacher, ..., decompose=True)` rather than with random weights.
        teacher: a trained model that has modules of the same names which return the same shapes.
        batches: as `end_to_end` takes them.
        epochs: how often the batches are gone through for each block.
        blocks: names of modules (`"layer1.0"`) that both models have, in the order in which they run; the output of a
            block's first call counts. None takes the children of the models, with the children of an nn.Sequential or
            nn.ModuleList in its place: of a ResNet its residual blocks and what comes before and after them.
        lr: the learning rate of the first epochs of each block.
        decay: divides the learning rate each time that a block was trained for `every` epochs.
        every: see `decay`.
        optimizer: makes an optimiser for each block, as in `end_to_end`.
        checkpoint: as in `end_to_end`; the run goes on within the block where it was.
        progress: show progress bars.
        device: move both models there first; None takes the student's. Inputs follow.

    Returns:
        The loss of every epoch of every block.

    Raises:
        OptionError: an option has a value that it cannot have, the checkpoint is of another run, a block is unknown,
            not called or out of order, or there is nothing to train or to compare.
        OperandError: a batch has no tensor of inputs.
        ShapeError: a block's outputs in the two models have different shapes.

    Source: J. Su, "Spectral Methods for Neural Network Designs", University of Maryland, 2022, chapter 2.
    """
    place = _placed(student, teacher, device)
    names = chosen_blocks(student, teacher, blocks)
    path = None if checkpoint is None else Path(checkpoint)
    schedule = Schedule(epochs, lr, decay, every)
    run = Run("sequential", student, teacher, batches, schedule, optimizer, path, progress, place)
    unchecked = [[name for name in names if _learns(student.get_submodule(name))]]

    def stage(name: str) -> Stage:
        def outputs(inputs: Tensor) -> tuple[Tensor, Tensor]:
            if unchecked:
                with flags_kept(student):
                    check_blocks(student.eval(), teacher, unchecked.pop(), inputs)
            with torch.no_grad():
                target = output_of(teacher, name, inputs)
            return output_of(student, name, inputs), target

        return Stage(name, student.get_submodule(name), outputs, f"block {name!r}: ")

    return train(run, [stage(name) for name in names])


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _placed(student: nn.Module, teacher: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device that both models are on; they must not share what the student's training would change."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise OptionError(f"the {name} is a {type(model).__name__}, not a torch.nn.Module")
    theirs = {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        if id(tensor) in theirs:
            raise OptionError(
                f"{name!r} of the student is the teacher's own tensor, which training would change",
                hint="copy it first: student = copy.deepcopy(student)",
            )
    if device is not None:
        student.to(device)
        teacher.to(device)
    ours = [tensor.device for tensor in (*student.parameters(), *student.buffers())]
    others = [tensor.device for tensor in (*teacher.parameters(), *teacher.buffers())]
    if ours and others and ours[0] != others[0]:
        raise OptionError(
            f"the student is on {ours[0]} and the teacher on {others[0]}", hint=f"give device={str(ours[0])!r}"
        )
    return ours[0] if ours else torch.device("cpu")
