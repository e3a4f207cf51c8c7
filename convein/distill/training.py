"""The training loop: one stage after another, each over its epochs, with a checkpoint after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from convein.distill import checkpoint as checkpoints
from convein.distill.blocks import check_pair
from convein.distill.history import History
from convein.errors import OperandError, OptionError
from convein.layers.folding import unfolded


@dataclass(frozen=True, slots=True)
class Stage:
    """What is trained at one time.

    Attributes:
        name: as the history and the progress bar call it.
        module: the part of the student that is trained; all else of it is frozen and in eval mode.
        outputs: inputs to (the student's output, the teacher's output), which the loss compares.
        whose: begins the sentence about outputs that cannot be compared.
    """

    name: str
    module: nn.Module
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]]
    whose: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long each stage is trained, and with which learning rate: `lr / decay ** (epoch // every)`."""

    epochs: int
    lr: float
    decay: float
    every: int

    def __post_init__(self) -> None:
        for name in ("epochs", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r} is not a positive number of epochs")
        for name in ("lr", "decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise OptionError(f"{name}={value!r} is not a positive number")


@dataclass(frozen=True, slots=True)
class Run:
    """Everything about a run but its stages: the two models, what they see, and how the student learns."""

    method: str
    student: nn.Module
    teacher: nn.Module
    batches: Iterable[Any]
    schedule: Schedule
    optimizer: Callable[..., Optimizer] | None
    checkpoint: Path | None
    progress: bool
    device: torch.device

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise OptionError(
                f"batches is a {type(self.batches).__name__}, which gives its batches only once",
                hint="give what can be iterated again every epoch: a DataLoader, or a list",
            )
        if not isinstance(self.batches, Iterable) and not hasattr(self.batches, "__getitem__"):
            raise OptionError(f"batches is a {type(self.batches).__name__}, which cannot be iterated")
        if isinstance(self.optimizer, Optimizer) or not (self.optimizer is None or callable(self.optimizer)):
            raise OptionError(
                f"optimizer is a {type(self.optimizer).__name__}, and each block needs one of its own",
                hint="give a function of (parameters, lr): optimizer=functools.partial(torch.optim.SGD, momentum=0.9)",
            )


def train(run: Run, stages: Sequence[Stage]) -> History:
    """Trains the stages in order, from the last checkpoint on where there is one. Flags are as before at the end.

    Raises:
        OptionError: there is nothing to train, or the loss is no longer a number.
        OperandError: a batch has no tensor of inputs.
    """
    parameters = [[each for each in stage.module.parameters() if each.requires_grad] for stage in stages]
    if not any(parameters):
        raise OptionError("the student has no parameter that requires a gradient: there is nothing to train")
    identity = _identity(run, stages, _made(run, next(filter(None, parameters)))) if run.checkpoint else {}
    losses, optimizer_state = _resumed(run, identity, len(stages))
    epochs = run.schedule.epochs

    def save(optimizer_state: Any) -> None:
        if run.checkpoint:
            state = {"losses": losses, "student": run.student.state_dict(), "optimizer": optimizer_state}
            random = checkpoints.random_states(run.batches, run.device)
            checkpoints.write(run.checkpoint, identity, {**state, "random": random})

    if not any(losses):
        save(None)
    total, done = epochs * sum(map(bool, parameters)), sum(map(len, losses))
    flags = flags_kept(run.student), flags_kept(run.teacher)
    # A run that goes on is at the first call of layers that a run without a pause has called before.
    with flags[0], flags[1], unfolded(), _bar(run, total=total, initial=done, unit="epoch") as bar:
        run.teacher.eval()
        for stage, trained, past in zip(stages, parameters, losses):
            if not trained or len(past) == epochs:
                continue
            bar.set_description(stage.name)
            _focus(run.student, stage.module, trained)
            optimizer = _made(run, trained)
            rates = [group["lr"] for group in optimizer.param_groups]
            if past:
                optimizer.load_state_dict(optimizer_state)
            while len(past) < epochs:
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate / run.schedule.decay ** (len(past) // run.schedule.every)
                past.append(_epoch(run, stage, optimizer, len(past)))
                save(optimizer.state_dict())
                bar.set_postfix(loss=f"{past[-1]:.3e}", refresh=False)
                bar.update()
            optimizer.zero_grad()
    return History(tuple(stage.name for stage in stages), tuple(map(tuple, losses)))


def _identity(run: Run, stages: Sequence[Stage], optimizer: Optimizer) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that wrote the checkpoint."""
    schedule = run.schedule
    return {
        "method": run.method,
        "blocks": [stage.name for stage in stages],
        "epochs": schedule.epochs,
        "lr": schedule.lr,
        "decay": schedule.decay,
        "every": schedule.every,
        "optimizer": f"{type(optimizer).__name__} {optimizer.defaults}",
        "student": checkpoints.layout(run.student),
        "teacher": checkpoints.digest(run.teacher),
        "number of generators of the batches": len(checkpoints.generators(run.batches)),
    }


def _resumed(run: Run, identity: dict[str, Any], count: int) -> tuple[list[list[float]], Any]:
    """The losses so far and the optimiser's state; the student and all random numbers are put where they were."""
    state = checkpoints.read(run.checkpoint, identity) if run.checkpoint else None
    if state is None:
        return [[] for _ in range(count)], None
    run.student.load_state_dict(state["student"])
    checkpoints.restore_random_states(state["random"], run.batches, run.device)
    return state["losses"], state["optimizer"]


def _made(run: Run, parameters: list[nn.Parameter]) -> Optimizer:
    made = (run.optimizer or Adam)(parameters, lr=run.schedule.lr)
    if not isinstance(made, Optimizer):
        raise OptionError(f"optimizer(parameters, lr) returned a {type(made).__name__}, not a torch.optim.Optimizer")
    return made


def _focus(student: nn.Module, module: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Only the module learns, and only its BatchNorm follows the batches."""
    student.eval().requires_grad_(False)
    module.train()
    for parameter in trained:
        parameter.requires_grad_(True)


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Puts every `training` and every `requires_grad` of a model back, whatever happens inside."""
    training = [(module, module.training) for module in model.modules()]
    requiring = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, flag in training:  # parents first, because `train` sets the children too
            module.train(flag)
        for parameter, flag in requiring:
            parameter.requires_grad_(flag)


def _bar(run: Run, *iterable: Iterable[Any], **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(*iterable, **options, disable=not run.progress)


def _epoch(run: Run, stage: Stage, optimizer: Optimizer, epoch: int) -> float:
    """One pass over the batches; the mean squared error of all entries that it compared."""
    losses: list[tuple[Tensor, int]] = []  # read at the end: reading one of them waits for the device
    for batch in _bar(run, run.batches, desc=stage.name, unit="batch", leave=False):
        output, target = stage.outputs(inputs_of(batch).to(run.device))
        check_pair(stage.whose, output, target)
        loss = F.mse_loss(output, target)
        if not loss.requires_grad:
            raise OptionError(
                f"{stage.whose}the student returns a tensor that depends on no parameter of {stage.name!r}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append((loss.detach(), output.numel()))
    entries = sum(count for _, count in losses)
    if not entries:
        raise OptionError(f"batches gave nothing in epoch {epoch + 1} of {stage.name!r}")
    mean = sum(loss.item() * count for loss, count in losses) / entries
    if not math.isfinite(mean):
        raise OptionError(
            f"the loss of {stage.name!r} is {mean} in epoch {epoch + 1}, with lr={run.schedule.lr}",
            hint="give a smaller lr, and look for inputs that are not finite",
        )
    return mean


def inputs_of(batch: Any) -> Tensor:
    """The inputs in a batch: itself, or the first of a tuple or list, whose other parts (labels) are ignored.

    Raises:
        OperandError: it has no such tensor.
    """
    found = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(found, Tensor):
        return found
    kind = type(batch).__name__
    if isinstance(batch, dict):
        kind = f"dict with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, tuple | list):
        kind = f"{kind} that begins with a {type(found).__name__}" if batch else f"{kind} of nothing"
    raise OperandError(
        f"a batch is a {kind}, and the inputs are to be a tensor or the first tensor of a tuple or list",
        hint="let the loader give (inputs, labels), for instance by its collate_fn",
    )
