"""Distillation: equal to loops written out by hand, nothing else touched, and bit for bit the same after a kill."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convein
from convein import distill

quiet = functools.partial(distill.sequential, progress=False)
quiet_end_to_end = functools.partial(distill.end_to_end, progress=False)
METHODS = {"sequential": quiet, "end_to_end": quiet_end_to_end}


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, width, bias=False), nn.Linear(width, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(self.down(x)))


class Net(nn.Module):
    """Three blocks with code between them; `stem` and `body` end in BatchNorm, `pool` has nothing to train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = Block(5, width)
        self.body = Block(6, width)
        self.pool = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(self.pool(x + torch.tanh(self.body(x))))


BLOCKS = ["stem", "body", "pool", "head"]


def models(seed: int = 0) -> tuple[Net, Net]:
    """A student that the seed decides, and always the same teacher, which has seen some batches."""
    torch.manual_seed(99)
    teacher = Net(6)
    for batch in data(8):
        teacher(batch)
    torch.manual_seed(seed)
    return Net(2), teacher


def data(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4 + (index == 0), 5, generator=generator) for index in range(count)]


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: nn.Module | dict[str, Tensor], expected: nn.Module | dict[str, Tensor]) -> None:
    found, expected = (each.state_dict() if isinstance(each, nn.Module) else each for each in (found, expected))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in model.modules()], [each.requires_grad for each in model.parameters()]


def mean_square(pairs: list[tuple[float, int]]) -> float:
    return sum(loss * count for loss, count in pairs) / sum(count for _, count in pairs)


def end_to_end_by_hand(student: Net, teacher: Net, epochs: int, lr: float, decay: float, every: int) -> list[float]:
    student.train()
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    losses = []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr / decay ** (epoch // every)
        pairs = []
        for x in data():
            with torch.no_grad():
                target = teacher(x)
            loss = ((student(x) - target) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pairs.append((loss.item(), target.numel()))
        losses.append(mean_square(pairs))
    return losses


def sequential_by_hand(student: Net, teacher: Net, epochs: int, lr: float, decay: float, every: int) -> list[Any]:
    """Every block apart, with the code between the blocks written out a second time."""
    student.eval()
    teacher.eval()
    losses: list[Any] = []
    for name in ("stem", "body", "head"):
        block: nn.Module = getattr(student, name)
        block.train()
        optimizer = torch.optim.Adam(block.parameters(), lr=lr)
        losses.append([])
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = lr / decay ** (epoch // every)
            pairs = []
            for x in data():
                with torch.no_grad():
                    fed, target = fed_to(student, name, x), getattr(teacher, name)(fed_to(teacher, name, x))
                loss = ((block(fed) - target) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                pairs.append((loss.item(), target.numel()))
            losses[-1].append(mean_square(pairs))
        block.eval()
    return losses


def fed_to(net: Net, name: str, x: Tensor) -> Tensor:
    if name == "stem":
        return x
    x = F.relu(net.stem(x))
    return x if name == "body" else net.pool(x + torch.tanh(net.body(x)))


def test_end_to_end_is_the_loop_written_out() -> None:
    student, teacher = models()
    by_hand, _ = models()
    by_hand.load_state_dict(student.state_dict())
    torch.manual_seed(3)  # dropout draws
    losses = end_to_end_by_hand(by_hand, teacher, epochs=5, lr=1e-2, decay=4, every=2)
    torch.manual_seed(3)
    history = quiet_end_to_end(student, teacher, data(), epochs=5, lr=1e-2, decay=4, every=2)
    assert_same(student, by_hand)
    assert history.blocks == ("student",)
    assert history.losses[0] == pytest.approx(losses, rel=1e-6)


def test_sequential_is_the_loop_written_out() -> None:
    student, teacher = models()
    by_hand, _ = models()
    losses = sequential_by_hand(by_hand, teacher, epochs=4, lr=1e-2, decay=4, every=2)
    history = quiet(student, teacher, data(), blocks=BLOCKS, epochs=4, lr=1e-2, decay=4, every=2)
    assert_same(student, by_hand)
    assert history.blocks == tuple(BLOCKS)
    assert [len(each) for each in history.losses] == [4, 4, 0, 4]
    for found, expected in zip([each for each in history.losses if each], losses):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_by_default_the_rate_is_a_thousandth_and_a_tenth_of_it_after_fifty_epochs(method: str) -> None:
    (student, teacher), (by_hand, _) = models(), models()
    torch.manual_seed(3)
    if method == "sequential":
        sequential_by_hand(by_hand, teacher, epochs=51, lr=1e-3, decay=10, every=50)
    else:
        end_to_end_by_hand(by_hand, teacher, epochs=51, lr=1e-3, decay=10, every=50)
    torch.manual_seed(3)
    METHODS[method](student, teacher, data(), epochs=51, **({"blocks": BLOCKS} if method == "sequential" else {}))
    assert_same(student, by_hand)


def test_sequential_trains_only_the_block_in_turn() -> None:
    student, teacher = models()
    before = copied(student)
    quiet(student, teacher, data(), blocks=["body"], epochs=2)
    for name, tensor in student.state_dict().items():
        if name.startswith("body"):
            assert not torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, before[name]), name


def test_earlier_blocks_stay_as_they_were_trained() -> None:
    (first, teacher), (both, _) = models(), models()
    quiet(first, teacher, data(), blocks=["stem"], epochs=2)
    quiet(both, teacher, data(), blocks=["stem", "body"], epochs=2)
    assert_same(first.stem, both.stem)


def test_nothing_after_the_block_is_computed() -> None:
    student, teacher = models()
    calls: list[str] = []
    for whose, model in (("student", student), ("teacher", teacher)):
        for name in BLOCKS:
            note = lambda *_, key=f"{whose} {name}": calls.append(key)
            getattr(model, name).register_forward_pre_hook(note)
    quiet(student, teacher, data(), blocks=["stem", "body"], epochs=2)
    batches, whole = 2 * 3, 1  # the whole model runs once for each: blocks are checked before the first step
    for whose in ("student", "teacher"):
        counts = {name: calls.count(f"{whose} {name}") for name in BLOCKS}
        assert counts == {"stem": 2 * batches + whole, "body": batches + whole, "pool": whole, "head": whole}


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_left_as_it_was_and_so_are_all_flags(method: str) -> None:
    student, teacher = models()
    teacher.train()
    teacher.body.eval()
    teacher.stem.down.requires_grad_(False)
    student.pool.eval()
    student.stem.down.requires_grad_(False)
    before, frozen = copied(teacher), student.stem.down.weight.clone()
    was = flags(student), flags(teacher)
    METHODS[method](student, teacher, data(), epochs=2)
    assert_same(teacher, before)
    assert torch.equal(student.stem.down.weight, frozen)
    assert (flags(student), flags(teacher)) == was
    assert all(parameter.grad is None for model in (student, teacher) for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_flags_are_put_back_after_an_error_too(method: str) -> None:
    student, teacher = models()
    teacher.train()
    was = flags(student), flags(teacher)
    with pytest.raises(convein.OperandError):
        METHODS[method](student, teacher, [*data(), {"x": 1}], epochs=2)
    assert (flags(student), flags(teacher)) == was


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_ignored(method: str) -> None:
    (bare, teacher), (pairs, _), (lists, _), (loader, _) = (models() for _ in range(4))
    forms = {bare: data(), pairs: [(x, "label", None) for x in data()], lists: [[x] for x in data()]}
    inputs = TensorDataset(torch.cat(data()), torch.arange(13))
    order = [[*range(5)], [*range(5, 9)], [*range(9, 13)]]
    for student, batches in {**forms, loader: DataLoader(inputs, batch_sampler=order)}.items():
        torch.manual_seed(1)
        if student is loader:  # a DataLoader draws a seed for its workers, and dropout comes after it
            student.pool.p = bare.pool.p = 0
            bare.load_state_dict(models()[0].state_dict())
            METHODS[method](bare, teacher, data(), epochs=2)
        METHODS[method](student, teacher, batches, epochs=2)
        assert_same(student, bare)


def test_any_optimizer_made_for_each_block() -> None:
    (student, teacher), (by_hand, _) = models(), models()
    made: list[torch.optim.Optimizer] = []

    def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=lr, momentum=0.5))
        return made[-1]

    quiet(student, teacher, data(1), blocks=["stem", "head"], epochs=1, optimizer=sgd, lr=0.1)
    assert [len(optimizer.param_groups[0]["params"]) for optimizer in made] == [5, 2]
    (x,) = data(1)
    teacher.eval()
    for name in ("stem", "head"):  # one step of steepest descent each
        block = getattr(by_hand.eval(), name).train()
        fed, target = fed_to(by_hand, name, x).detach(), getattr(teacher, name)(fed_to(teacher, name, x)).detach()
        gradients = torch.autograd.grad(F.mse_loss(block(fed), target), tuple(block.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(block.parameters(), gradients):
                parameter.sub_(gradient, alpha=0.1)
    assert_same(student, by_hand)


def test_without_names_the_blocks_are_the_common_children() -> None:
    class Deep(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.first = nn.Linear(5, 5)
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True)), inner])
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return self.last(x)

    student, teacher = Deep(nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 5))), Deep(nn.Linear(5, 5))
    history = quiet(student, teacher, data(), epochs=1)
    assert history.blocks == ("first", "layers.0.0", "layers.0.1", "layers.1", "last")
    assert [len(losses) for losses in history.losses] == [1, 1, 0, 1, 1]


def test_a_student_learns_what_its_teacher_knows() -> None:
    student, teacher = models()
    history = quiet(student, teacher, data(8), epochs=60, lr=1e-2)
    assert all(losses[-1] < losses[0] / 2 for losses in history.losses if losses)


def test_a_history_prints_as_a_table() -> None:
    history = distill.History(("stem", "pool"), ((0.5, 0.125, 0.25), ()))
    assert str(history).splitlines() == [
        "block  epochs  first loss   last loss  least loss",
        "stem        3   5.000e-01   2.500e-01   1.250e-01",
        "pool        0  nothing to train",
    ]
    with pytest.raises(FrozenInstanceError):
        history.blocks = ()


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    distill.sequential(*models(), data(), blocks=["stem", "pool", "head"], epochs=2)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "head" in shown
    quiet(*models(), data(), epochs=1)
    assert not capsys.readouterr().err


class Stopping:
    """Batches that every kind of random number goes into, and that stop or kill when the n-th epoch is half through."""

    def __init__(self, epoch: int | None = None, stop: Callable[[], None] = lambda: None) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.epochs, self.last, self.stop = 0, epoch, stop

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        self.epochs += 1
        for index, x in enumerate(data()):
            if self.epochs == self.last and index == 1:
                self.stop()
            drawn = torch.randn(x.shape, generator=self.generator) + torch.rand(x.shape)
            yield (x + 0.1 * drawn + 0.1 * random.random() + 0.1 * float(np.random.rand()),)  # noqa: NPY002 - as old transforms do


class StoppedError(Exception):
    pass


def stop() -> None:
    raise StoppedError


def distilled(method: str, batches: Any, seed: int = 0, **options: Any) -> tuple[Net, distill.History]:
    student, teacher = models(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    options = {"epochs": 3, "lr": 1e-2, "every": 2, **options}
    return student, METHODS[method](student, teacher, batches, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epoch", [1, 2, 4, 6])
def test_a_run_that_stopped_goes_on_bit_for_bit(method: str, epoch: int, tmp_path: Path) -> None:
    expected, whole = distilled(method, Stopping())
    if epoch > 3 and method == "end_to_end":
        epoch = 3
    with pytest.raises(StoppedError):
        distilled(method, Stopping(epoch, stop), checkpoint=tmp_path / "new" / "run.pt")
    batches = Stopping()
    student, history = distilled(method, batches, seed=1, checkpoint=tmp_path / "new" / "run.pt")
    assert batches.epochs == sum(map(len, whole.losses)) - (epoch - 1)
    assert_same(student, expected)
    assert history == whole
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.pt"]


@pytest.mark.parametrize("method", METHODS)
def test_factorised_layers_go_on_bit_for_bit(method: str, tmp_path: Path) -> None:
    """In eval mode they fold at the second call of a shape, which another run makes at another time."""

    def run(batches: Any, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        teacher = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)))
        student, _ = convein.tensorize(teacher, "tucker", 0.2, skip=())
        METHODS[method](student, teacher, batches, epochs=2, progress=False, **options)
        return student

    images = [torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    class Loader:
        def __init__(self, last: int) -> None:
            self.last = last

        def __iter__(self) -> Iterator[Tensor]:
            for x in images:
                self.last -= 1
                if not self.last:
                    stop()
                yield x

    expected = run(images)
    with pytest.raises(StoppedError):
        run(Loader(3 * (3 if method == "sequential" else 1) + 2), checkpoint=tmp_path / "a")
    assert_same(run(images, checkpoint=tmp_path / "a"), expected)


def test_a_run_goes_on_with_the_very_objects_that_an_error_left(tmp_path: Path) -> None:
    expected, whole = distilled("sequential", Stopping())
    batches = Stopping(2, stop)
    student, teacher = models()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    run = functools.partial(quiet, student, teacher, batches, epochs=3, lr=1e-2, every=2, checkpoint=tmp_path / "a")
    with pytest.raises(StoppedError):
        run()
    assert run() == whole
    assert_same(student, expected)


def test_a_model_that_draws_in_eval_mode_too_goes_on(tmp_path: Path) -> None:
    """Blocks are checked at the start of each process: that run of the models must draw nothing."""

    def run(batches: Any, **options: Any) -> Net:
        student, teacher = models()
        teacher.register_forward_pre_hook(lambda _, args: F.dropout(args[0], training=True))
        quiet(student, teacher, batches, blocks=BLOCKS, epochs=2, **options)
        return student

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = run(Stopping())
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with pytest.raises(StoppedError):
        run(Stopping(2, stop), checkpoint=tmp_path / "a")
    random.seed(1)
    assert_same(run(Stopping(), checkpoint=tmp_path / "a"), expected)


def test_a_shuffling_loader_goes_on_with_its_order(tmp_path: Path) -> None:
    dataset = TensorDataset(torch.cat(data(6)), torch.arange(25))

    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(11)
        return DataLoader(dataset, batch_size=5, shuffle=True, generator=generator)

    expected, whole = distilled("sequential", loader())
    student, teacher = models()
    calls: list[int] = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1) if len(calls) < 14 else stop())
    with pytest.raises(StoppedError):
        quiet(student, teacher, loader(), epochs=3, lr=1e-2, every=2, checkpoint=tmp_path / "a")
    student, history = distilled("sequential", loader(), seed=1, checkpoint=tmp_path / "a")
    assert history == whole
    assert_same(student, expected)


def test_a_finished_run_is_loaded(tmp_path: Path) -> None:
    expected, whole = distilled("end_to_end", Stopping(), checkpoint=str(tmp_path / "a"))
    batches = Stopping()
    student, history = distilled("end_to_end", batches, seed=1, checkpoint=str(tmp_path / "a"))
    assert (history, batches.epochs) == (whole, 0)
    assert_same(student, expected)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_distill
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
{when}
test_distill.distilled({method!r}, batches, checkpoint={path!r})
"""
IN_THE_LOADER = "batches = test_distill.Stopping(3, kill)"
WHILE_WRITING = """
batches, written = test_distill.Stopping(), []
def fsync(file):
    written.append(file)
    if len(written) == 3:
        os.ftruncate(file, 1000)
        kill()
os.fsync = fsync
"""


@pytest.mark.parametrize("when", [IN_THE_LOADER, WHILE_WRITING], ids=["in the loader", "while writing"])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_process_is_continued_by_another(method: str, when: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    code = KILLED.format(tests=str(Path(__file__).parent), when=when, method=method, path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(Path(convein.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    expected, whole = distilled(method, Stopping())
    batches = Stopping()
    student, history = distilled(method, batches, seed=1, checkpoint=path)
    assert batches.epochs == sum(map(len, whole.losses)) - (2 if when is IN_THE_LOADER else 1)
    assert_same(student, expected)
    assert history == whole


def test_a_checkpoint_is_data_only(tmp_path: Path) -> None:
    distilled("sequential", Stopping(), checkpoint=tmp_path / "a")
    state = torch.load(tmp_path / "a", weights_only=True)
    student, _ = models(1)
    student.load_state_dict(state["student"])
    assert_same(student, distilled("sequential", Stopping())[0])


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"lr": 0.5}, "its lr is 0.01, and this run's is 0.5"),
    "decay": ({"decay": 2}, "its decay is 10.0, and this run's is 2"),
    "every": ({"every": 3}, "its every is 2, and this run's is 3"),
    "epochs": ({"epochs": 4}, "its epochs is 3, and this run's is 4"),
    "blocks": ({"blocks": ["stem"]}, "its blocks is ['stem', 'body', 'pool', 'head'], and this run's is ['stem']"),
}


@pytest.mark.parametrize("changed", OTHER_RUNS)
def test_a_checkpoint_of_other_settings_is_refused(changed: str, tmp_path: Path) -> None:
    options, text = OTHER_RUNS[changed]
    distilled("sequential", Stopping(), blocks=BLOCKS, checkpoint=tmp_path / "a")
    with pytest.raises(convein.OptionError, match=re.escape(text)):
        distilled("sequential", Stopping(), **{"blocks": BLOCKS, **options}, checkpoint=tmp_path / "a")


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    distilled("sequential", Stopping(), checkpoint=tmp_path / "a")
    with pytest.raises(convein.OptionError, match=r"its optimizer is Adam .*, and this run's is SGD"):
        distilled("sequential", Stopping(), optimizer=torch.optim.SGD, checkpoint=tmp_path / "a")


def test_a_checkpoint_of_another_method_student_or_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    distilled("end_to_end", Stopping(), checkpoint=path)
    before = path.read_bytes()
    run = functools.partial(quiet_end_to_end, epochs=3, lr=1e-2, every=2, checkpoint=path)
    with pytest.raises(convein.OptionError, match=r"its method is end_to_end, and this run's is sequential"):
        distilled("sequential", Stopping(), checkpoint=path)
    _, teacher = models()
    has = r"its student has stem.down.weight: torch.float32 \(2, 5\) trained, and this run's torch.float32 "
    with pytest.raises(convein.OptionError, match=has + r"\(3, 5\) trained"):
        run(Net(3), teacher, Stopping())
    student, _ = models()
    student.stem.down.requires_grad_(False)
    with pytest.raises(convein.OptionError, match=has + r"\(2, 5\), |" + has + r"\(2, 5\)\n"):
        run(student, teacher, Stopping())
    with torch.no_grad():
        teacher.head.bias[0] += 1
    with pytest.raises(convein.OptionError, match=r"its teacher is \w{16}, and this run's is \w{16}"):
        run(models()[0], teacher, Stopping())
    with pytest.raises(convein.OptionError, match="number of generators of the batches is 1, and this run's is 0"):
        run(*models(), data())
    assert path.read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    wrote, unread = "that this version of distill did not write", r"that torch\.load cannot read"
    (tmp_path / "text").write_bytes(b"epoch 3")
    (tmp_path / "empty").touch()
    torch.save({"student": {}}, tmp_path / "weights")
    torch.save(nn.Linear(1, 1), tmp_path / "module")
    for name, text in {"text": wrote, "empty": wrote, "weights": wrote, "module": unread}.items():
        content = (tmp_path / name).read_bytes()
        with pytest.raises(convein.OptionError, match=text):
            distilled("end_to_end", data(), checkpoint=tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


class Tuple(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    student, teacher = models()
    frozen = Net(2).requires_grad_(False)
    wide = Net(2)
    wide.head = nn.Linear(6, 4)
    shares = Net(2)
    shares.head = teacher.head
    call, whole = functools.partial(quiet, student, teacher), functools.partial(quiet_end_to_end, student, teacher)
    return {
        "a dict": (
            lambda: call([{"image": data()[0], "label": 1}], epochs=1),
            (
                "a batch is a dict with the keys 'image', 'label', and the inputs are to be a tensor or the "
                "first tensor of "
                "a tuple or list\n\nlet the loader give (inputs, labels), for instance by its collate_fn"
            ),
        ),
        "a list of text": (lambda: whole([["x"]], epochs=1), "a batch is a list that begins with a str, and "),
        "an empty tuple": (lambda: whole([()], epochs=1), "a batch is a tuple of nothing, and the inputs"),
        "an array": (lambda: whole([np.ones(3)], epochs=1), "a batch is a ndarray, and the inputs"),
        "an iterator": (
            lambda: whole((x for x in data()), epochs=1),
            (
                "batches is a generator, which gives its batches only once\n\n"
                "give what can be iterated again every epoch: "
                "a DataLoader, or a list"
            ),
        ),
        "a number": (lambda: whole(3, epochs=1), "batches is a int, which cannot be iterated"),
        "no batches": (lambda: call([], epochs=1), "batches gave nothing in epoch 1 of 'stem'"),
        "an unknown block": (
            lambda: call(data(), epochs=1, blocks=["stem", "boby"]),
            "the student has no block 'boby', and both models must have it\n\ndid you mean 'body'?",
        ),
        "a block of the student's only": (
            lambda: quiet(nn.Sequential(nn.Linear(5, 3)), nn.Linear(5, 3), data(), epochs=1, blocks=["0"]),
            "the teacher has no block '0', and both models must have it\n\nit has no modules",
        ),
        "text for blocks": (
            lambda: call(data(), epochs=1, blocks="stem"),
            "blocks is the text 'stem'\n\ngive a list of names: blocks=['stem']",
        ),
        "no blocks": (lambda: call(data(), epochs=1, blocks=[]), "there are no blocks to train"),
        "a block twice": (
            lambda: call(data(), epochs=1, blocks=["stem", "stem"]),
            "block 'stem' is named twice in blocks=['stem', 'stem']",
        ),
        "wrong order": (
            lambda: call(data(), epochs=1, blocks=["head", "stem"]),
            (
                "the blocks of the student run in another order than they are named in: blocks=['head', 'stem']\n\n"
                "name them from the bottom up: blocks=['stem', 'head']"
            ),
        ),
        "not called": (
            lambda: quiet(Unused(), Unused(), data(), epochs=1),
            (
                "block 'spare' of the student is not called when the model runs\n\n"
                "leave it out of blocks=, or name the "
                "modules inside it that are called"
            ),
        ),
        "shapes of a block": (
            lambda: quiet(wide, teacher, data(), epochs=1),
            "block 'head': the student returns a tensor of shape (5, 4), and the teacher one of (5, 3)",
        ),
        "shapes": (
            lambda: quiet_end_to_end(wide, teacher, data(), epochs=1),
            "the student returns a tensor of shape (5, 4), and the teacher one of (5, 3)",
        ),
        "no tensor": (
            lambda: quiet_end_to_end(student, Tuple(6), data(), epochs=1),
            (
                "the teacher returns a tuple, and only tensors can be compared\n\n"
                "distil modules that return one tensor, or "
                "wrap the model in one that picks it"
            ),
        ),
        "nothing to train": (
            lambda: quiet(frozen, teacher, data(), epochs=1),
            "the student has no parameter that requires a gradient: there is nothing to train",
        ),
        "shared weights": (
            lambda: quiet(shares, teacher, data(), epochs=1),
            (
                "'head.weight' of the student is the teacher's own tensor, which training would change\n\n"
                "copy it first: "
                "student = copy.deepcopy(student)"
            ),
        ),
        "an optimizer": (
            lambda: whole(data(), epochs=1, optimizer=torch.optim.SGD(student.parameters(), lr=1)),
            (
                "optimizer is a SGD, and each block needs one of its own\n\ngive a function of (parameters, lr): "
                "optimizer=functools.partial(torch.optim.SGD, momentum=0.9)"
            ),
        ),
        "no optimizer": (
            lambda: whole(data(), epochs=1, optimizer=lambda parameters, lr: "adam"),
            "optimizer(parameters, lr) returned a str, not a torch.optim.Optimizer",
        ),
        "a loss that explodes": (
            lambda: quiet_end_to_end(Net(2), teacher, [data()[0] * torch.inf], epochs=1),
            (
                "the loss of 'student' is nan in epoch 1, with lr=0.001\n\n"
                "give a smaller lr, and look for inputs that are "
                "not finite"
            ),
        ),
        "no gradient": (
            lambda: quiet_end_to_end(Detached(2), teacher, data(), epochs=1),
            "the student returns a tensor that depends on no parameter of 'student'",
        ),
        "a moody model": (
            lambda: quiet(Moody(), Moody(), [torch.ones(2, 5), -torch.ones(2, 5)], epochs=1, blocks=["layer"]),
            "block 'layer' is called for the first batch, and not for a later one",
        ),
        "another device": (
            lambda: quiet(Net(2).to("meta"), teacher, data(), epochs=1),
            "the student is on meta and the teacher on cpu\n\ngive device='meta'",
        ),
        "no module": (lambda: quiet(student, F.relu, data(), epochs=1), "the teacher is a function, not a torch.nn."),
        "no epochs": (lambda: whole(data(), epochs=0), "epochs=0 is not a positive number of epochs"),
        "half an epoch": (lambda: whole(data(), epochs=1, every=0.5), "every=0.5 is not a positive number of epochs"),
        "lr": (lambda: whole(data(), epochs=1, lr=-1), "lr=-1 is not a positive number"),
        "decay": (lambda: whole(data(), epochs=1, decay=None), "decay=None is not a positive number"),
    }


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize("mistake", refusals())
def test_a_mistake_gets_a_sentence(mistake: str) -> None:
    call, text = refusals()[mistake]
    with pytest.raises(convein.ConveinError) as caught:
        call()
    assert str(caught.value).startswith(text)


def test_a_model_that_catches_every_exception_stops_at_its_block_too() -> None:
    class Careful(Unused):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.spare(self.used(x)[:, [0, 1, 2, 0, 1]])
            except Exception:  # noqa: BLE001 - the point of the test
                return x

    history = quiet(Careful(), Careful(), data(), epochs=1)
    assert [len(losses) for losses in history.losses] == [1, 1]


def test_models_are_moved_on_request() -> None:
    class Moving(Net):
        def to(self, device: Any) -> Any:
            moved.append((self, device))
            return self

    moved: list[Any] = []
    student, teacher = Moving(2), Moving(6)
    quiet(student, teacher, data(), epochs=1)
    assert not moved
    quiet(student, teacher, data(), epochs=1, device="cpu")
    assert moved == [(student, "cpu"), (teacher, "cpu")]
