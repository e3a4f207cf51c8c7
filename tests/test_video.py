"""Predicting videos: the network, roll-outs with scheduled sampling, the schedule, moving digits, the example."""

from __future__ import annotations

import copy
import gzip
import io
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convein.errors import OptionError, ShapeError
from convein.layers import ConvLSTMCell, ConvTTLSTM, FramePredictor
from convein.layers.sampling import SamplingSchedule, draw_forced, frame_loss, train_step
from convein.metering import LiveMemory
from datasets.moving import digit_pictures, moving_digits, reflected, scaled
from video import command, costs, experiment
from video.experiment import KINDS, Experiment, Quality
from video.picture import framed

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def small(**given: Any) -> FramePredictor:
    usual: dict[str, Any] = {"order": 2, "steps": 2, "ranks": 2, "kernel_size": 3, "dtype": DOUBLE}
    if given.get("cell") is ConvLSTMCell:
        usual = {"kernel_size": 3, "dtype": DOUBLE}
    return FramePredictor(2, (3, 4, 2), (2, 1, 1), **{"skip": 1, **usual, **given})


def frames(count: int = 4, batch: int = 2) -> Tensor:
    return torch.rand(batch, count, 2, 6, 5, dtype=DOUBLE)


def same(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# The network


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 2_687_281), ({"steps": 5}, 3_263_281), ({"cell": ConvLSTMCell}, 3_973_201)],
    ids=["Conv-TT-LSTM", "five steps", "ConvLSTM"],
)
def test_published_numbers_of_parameters(options: dict[str, Any], count: int) -> None:
    model = FramePredictor(**options, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert [cell.in_channels for cell in model.cells] == [1, 32, 32, 32, 48, 48, 48, 48, 48, 80, 32, 32]
    assert model.head.shape == (1, 32 + 48)


def written_out(model: FramePredictor, given: Tensor, future: int, truth: Tensor | None, forced: Tensor) -> Tensor:
    """Frame by frame, one cell after the other."""
    states: list[Any] = [None] * len(model.cells)
    outputs: list[Tensor] = []
    for t in range(given.shape[1] + future - 1):
        if t < given.shape[1]:
            x = given[:, t]
        else:
            x = outputs[-1].clone()
            for b in range(len(x)):
                if truth is not None and forced[b, t - given.shape[1]]:
                    x[b] = truth[b, t - given.shape[1]]
        ends, place = [], 0
        for block in model.blocks:
            for cell in block:
                x, states[place] = cell(x, states[place])
                place += 1
            ends.append(x)
            if model.skip is not None and len(ends) > model.skip:
                x = torch.cat((x, ends[-1 - model.skip]), 1)
        x = F.conv2d(x, model.head[..., None, None], model.head_bias)
        outputs.append(x.sigmoid() if model.sigmoid else x)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("options", [{}, {"skip": 2, "sigmoid": True}, {"skip": None, "cell": ConvLSTMCell}], ids=str)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_roll_out_is_one_frame_after_the_other(options: dict[str, Any], checkpoint: bool) -> None:
    model = small(checkpoint=checkpoint, **options)
    video = frames(7).requires_grad_()
    given, truth = video[:, :3], video[:, 3:]
    forced = torch.tensor([[True, False, True], [False, True, True]])
    cases = [
        (model(given, 4), None, forced),
        (model(given, 4, truth=truth, forced=forced), truth, forced),
        (model(given, 4, truth=truth), truth, torch.ones_like(forced)),
        (model(video, 1), None, forced),
    ]
    for value, known, mask in cases:
        future = 1 if value.shape[1] == 7 else 4
        expected = written_out(model, video if future == 1 else given, future, known, mask)
        same(value, expected)
        weight, leaves = torch.randn_like(value), [video, *model.parameters()]
        same(*(torch.autograd.grad((one * weight).sum(), leaves) for one in (value, expected)))


def test_teacher_forcing_is_the_prediction_of_known_frames() -> None:
    model, video = small(), frames(6)
    same(model(video[:, :2], 4, truth=video[:, 2:]), model(video[:, :5]))
    assert model(video[:, :1], 3).shape == (2, 3, 2, 6, 5)


def test_checkpoints_of_a_network_keep_the_square_root() -> None:
    model = small(checkpoint=True).float()

    def kept(count: int) -> int:
        video = torch.rand(1, count, 2, 8, 8)
        with LiveMemory() as memory:
            predicted = model(video)
            return memory.live - 2 * predicted.nbytes  # the frames and those in one tensor

    assert kept(64) <= 2.2 * kept(16)
    model.checkpoint = False
    assert kept(64) > 3.5 * kept(16)


def test_copies_state_dicts_and_graphs() -> None:
    model, video = small().float(), frames(3).float()
    value = model(video, 2)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(other) == repr(model)
        assert torch.equal(other(video, 2), value)
        other.reset_parameters()
        assert not torch.equal(other(video, 2), value)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(video, 2), value)
    tiny = FramePredictor(2, (2, 2), 1, skip=1, cell=ConvLSTMCell, kernel_size=3)
    compiled = torch.compile(tiny, backend="aot_eager", fullgraph=True)
    given, truth, forced = video[:, :1], video[:, 1:], torch.tensor([[True], [False]])
    values = [run(given, 2, truth=truth, forced=forced) for run in (compiled, tiny)]
    same(*values, 1e-5)
    same(*(torch.autograd.grad(one.square().sum(), [*tiny.parameters()]) for one in values), 1e-4)
    program = torch.export.export(tiny, (given, 2), dynamic_shapes=({0: torch.export.Dim("batch")}, None))
    more = frames(1, 5).float()
    same(program.module()(more, 2), tiny(more, 2), 1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: small(skip=0), OptionError, "skip=0 is no size"),
        (lambda: FramePredictor(1, (2, 2), (1, 1, 1)), OptionError, r"layers=\(1, 1, 1\) for 2 blocks"),
        (lambda: FramePredictor(1, ()), OptionError, "for 0 blocks"),
        (lambda: FramePredictor(1, 8), OptionError, "hidden_channels=8 of the blocks\n\none number for each block"),  # type: ignore[arg-type]
        (lambda: FramePredictor(1, (2, 2), skip=5), OptionError, "skip=5 of 2 blocks: none is so many"),
        (lambda: FramePredictor(1, (2, 2), skip=2), OptionError, "skip=2 of 2 blocks: none is so many"),
        (lambda: small(cell=ConvTTLSTM), OptionError, "cell= makes ConvTTLSTM, which is no cell"),
        (lambda: small(checkpoint=-1), OptionError, "checkpoint=-1"),
        (lambda: small()(frames(), 0), OptionError, "future=0 is no size"),
        (lambda: small()(frames()[:, :, :1]), ShapeError, r"the frames are \(2, 4, 1, 6, 5\)"),
        (lambda: small()(frames()[:, :0]), ShapeError, r"the frames are \(2, 0, 2, 6, 5\)"),
        (lambda: small()(frames(), 3, truth=frames(1)), ShapeError, r"the true frames are \(2, 1, 2, 6, 5\)"),
        (
            lambda: small()(frames(), 3, truth=frames(2), forced=torch.ones(2, 2)),
            ShapeError,
            r"forced is \(2, 2\) of torch\.float32",
        ),
        (lambda: small()(frames(), 2, forced=torch.ones(2, 1) > 0), OptionError, "forced= says where"),
        (lambda: draw_forced(2, 3, 1.5), OptionError, r"ratio=1\.5 is no probability"),
        (lambda: frame_loss(frames(4), frames(3)), ShapeError, "true frames for"),
        (lambda: frame_loss(frames(4), frames(4, 1)), ShapeError, "true frames for"),
        (lambda: train_step(small(), optimizer(), frames(3), 3), OptionError, "inputs=3 of 3 frames"),
        (lambda: SamplingSchedule(optimizer(), patience=0), OptionError, "patience=0"),
        (lambda: SamplingSchedule(optimizer(), ratio_decay=0), OptionError, "ratio_decay=0"),
        (lambda: SamplingSchedule(optimizer()).load_state_dict({"lr": 1}), OptionError, "this state has lr"),
    ],
)
def test_what_does_not_fit(call: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call()


# Training


def optimizer(rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


def test_the_loss_and_the_draw() -> None:
    predicted, true = frames(3), frames(5)
    difference = (predicted - true[:, 2:]).numpy()
    assert float(frame_loss(predicted, true)) == pytest.approx(np.abs(difference).mean() + (difference**2).mean())
    assert draw_forced(3, 4, 1.0).all()
    assert not draw_forced(3, 4, 0.0).any()
    draws = [draw_forced(200, 50, 0.3, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert float(draws[0].double().mean()) == pytest.approx(0.3, abs=0.02)


def test_a_step_of_training_is_clipped_and_learns() -> None:
    model, video = small(), frames(6)
    start = copy.deepcopy(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    generator = torch.Generator().manual_seed(0)
    loss = train_step(model, sgd, video, 3, 0.5, clip=0.01, generator=generator)
    forced = draw_forced(2, 2, 0.5, generator=torch.Generator().manual_seed(0))
    model_before = small()
    model_before.load_state_dict(start)
    same(loss, frame_loss(model_before(video[:, :3], 3, truth=video[:, 3:], forced=forced), video).detach())
    moved = sum(float((p - start[name]).square().sum()) for name, p in model.state_dict().items())
    assert moved**0.5 == pytest.approx(0.01, rel=1e-3)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    losses = [float(train_step(model, adam, video, 3, ratio, clip=None)) for ratio in (1.0, 0.5, 0.0) * 10]
    assert losses[-1] < 0.8 * losses[0]


def test_the_schedule_waits_for_two_plateaus() -> None:
    sgd = optimizer(8.0)
    schedule = SamplingSchedule(sgd, patience=3, ratio_decay=0.3, rate_decay=0.5, rate_epochs=2)
    found = []
    for loss in (5.0, 4.0, 4.0, 4.5, 4.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0):
        schedule.step(loss)
        found.append((round(schedule.ratio, 6), sgd.param_groups[0]["lr"]))
    assert found == [
        (1.0, 8.0),
        (1.0, 8.0),
        (1.0, 8.0),
        (1.0, 8.0),
        (0.7, 8.0),  # three epochs without a loss below 4
        (0.4, 8.0),  # 3 is better: the second plateau is counted from here
        (0.1, 8.0),
        (0.0, 8.0),
        (0.0, 8.0),  # three epochs without a loss below 3
        (0.0, 4.0),
        (0.0, 4.0),
    ]
    assert (schedule.epoch, schedule.best, schedule.plateaus) == (11, 1.0, 2)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_schedule_goes_on_where_it_was(stop: int) -> None:
    losses = [5.0, 4.0, 4.0, 4.5, 4.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0, 2.0]
    options: dict[str, Any] = {"patience": 3, "ratio_decay": 0.3, "rate_decay": 0.5, "rate_epochs": 2}
    whole = SamplingSchedule(optimizer(8.0), **options)
    first, second = SamplingSchedule(optimizer(8.0), **options), SamplingSchedule(optimizer(8.0))
    for loss in losses:
        whole.step(loss)
    for loss in losses[:stop]:
        first.step(loss)
    file = io.BytesIO()
    torch.save([first.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(of_optimizer)
    for loss in losses[stop:]:
        second.step(loss)
    assert second.state_dict() == whole.state_dict()
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] < 8


# Moving digits


def test_videos_are_the_same_for_a_seed_and_move_at_their_speed() -> None:
    dot = torch.ones(1, 4, 4)
    one, two, three = (moving_digits(dot, 20, 12, digits=1, speed=s, seed=n) for s, n in ((1, 3), (1, 3), (3, 4)))
    assert one.shape == (20, 12, 1, 64, 64)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert one.sum((2, 3, 4)).unique().tolist() == [16]  # never cut off at a wall
    rows = torch.arange(64.0)
    for video, speed in ((one, 1), (three, 3)):
        places = torch.stack([(video.sum(axis) @ rows).squeeze(2) / 16 for axis in (3, 4)], -1)
        steps = places.diff(dim=1)
        straight = (steps[:, 1:] - steps[:, :-1]).abs().amax(-1) <= 2  # not at a wall; rounded to pixels
        assert straight.double().mean() > 0.3
        length = steps[:, 1:].norm(dim=-1)[straight]
        assert float(length.mean()) == pytest.approx(speed * 6, rel=0.05)  # a tenth of the way of 60
    assert reflected(np.array([0.2, 1.25, 2.5, -0.25, 3.0])) == pytest.approx([0.2, 0.75, 0.5, 0.25, 1.0])


def test_videos_of_several_digits_and_speeds() -> None:
    train, test = digit_pictures()
    assert (train.shape, test.shape) == ((1347, 28, 28), (450, 28, 28))
    video = moving_digits(train, 3, 5, digits=3, speed=(1, 3), seed=0)
    assert 0 <= float(video.min()) < float(video.max()) <= 1
    overlap = moving_digits(torch.stack([torch.full((9, 9), 0.5), torch.ones(9, 9)]), 5, 5, digits=4, size=12)
    assert set(overlap.unique().tolist()) <= {0.0, 0.5, 1.0}
    still = moving_digits(train, 2, 3, speed=0.0)
    assert torch.equal(still[:, 0], still[:, 2])


@pytest.mark.parametrize(
    "arguments", [{"size": 20}, {"speed": (2, 1)}, {"speed": -1}, {"pictures": torch.ones(0, 4, 4)}], ids=str
)
def test_videos_that_cannot_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pictures of|speed="):
        moving_digits(**{"pictures": torch.ones(2, 28, 28), "videos": 1, **arguments})


def test_digits_of_mnist_files(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("t10k", 2)):
        content = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes(range(1, 1 + count)) * 784
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(b"")
    train, test = digit_pictures(folder=tmp_path)
    assert (train.shape, test.shape) == ((3, 28, 28), (2, 28, 28))
    assert float(train.max()) == pytest.approx(3 / 255)
    assert digit_pictures(14, tmp_path)[0].shape == (3, 14, 14)
    with pytest.raises(FileNotFoundError, match="does not hold MNIST"):
        digit_pictures(folder=tmp_path / "elsewhere")
    same(scaled(torch.full((1, 1, 8, 8), 0.5), 28), torch.full((1, 28, 28), 0.5), 1e-6)


# The example

TINY = Experiment(videos=4, held_back=4, batch=2, epochs=1, hidden=(2,), kernel=3, order=2, steps=2, rank=1, future=2)


def test_quality_is_what_the_formulas_say() -> None:
    true = torch.rand(2, 3, 1, 12, 12)
    predicted = true + 0.1 * torch.randn_like(true)
    found = experiment.quality(predicted, true)
    errors = (predicted.clamp(0, 1) - true).square().mean((2, 3, 4))
    assert found.mse == pytest.approx(float(errors.mean()), rel=1e-5)
    assert found.psnr == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-4)
    assert 0.5 < found.ssim < 1
    assert experiment.quality(true[:1], true[:1]).ssim == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_always_comes_to_the_same(kind: str) -> None:
    ticks: list[None] = []
    first, second = (experiment.attempt(TINY, kind, 0, lambda: ticks.append(None)) for _ in range(2))
    assert len(ticks) == 2
    assert (first.next, first.all) == (second.next, second.all)
    assert torch.equal(first.strip, second.strip)
    assert first.strip.shape == (4, 2, 16, 16)
    other = experiment.attempt(TINY, kind, 1, lambda: None)
    assert other.all != first.all


def test_what_is_predicted_does_not_see_the_truth() -> None:
    model, videos = TINY.network(KINDS[0], 0), TINY.split()[1]
    hidden = videos.clone()
    hidden[:, TINY.inputs :] = 7
    value = experiment.predict(model, TINY, videos)
    assert torch.equal(experiment.predict(model, TINY, hidden), value)
    assert value.shape == (4, 2, 1, 16, 16)


def test_costs_and_tables_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds: list[None] = []
    spent = costs.costs(TINY, 1, lambda: rounds.append(None))
    assert len(rounds) == 1
    outcomes = {kind: [experiment.attempt(TINY, kind, seed, lambda: None) for seed in range(2)] for kind in KINDS}
    for kind in KINDS:
        model = TINY.network(kind, 0)
        assert spent[kind].parameters == sum(parameter.numel() for parameter in model.parameters())
        assert 0 < spent[kind].checkpointed < spent[kind].kept
    lines = command.table(TINY, outcomes, spent)
    assert [line.split("  ")[0] for line in lines[1:]] == [*KINDS, "last frame repeated"]
    better, worse = (
        experiment.Outcome(Quality(0.1, 1, 1), Quality(mse, 1, 1), torch.zeros(1, 1, 1, 1)) for mse in (0.1, 0.2)
    )
    assert "100e-3, below" not in command.claim({KINDS[0]: [worse], KINDS[1]: [better]}, spent)
    assert "NOT below" in command.claim({KINDS[0]: [worse], KINDS[1]: [better]}, spent)
    assert "lower with 1 of 1" in command.claim({KINDS[0]: [better], KINDS[1]: [worse]}, spent)
    for _ in range(2):
        command.keep(TINY, outcomes, spent, {"date": "today"}, tmp_path)
    assert "rows appended" in capsys.readouterr().out
    content = (tmp_path / "video.csv").read_text().splitlines()
    assert len(content) == 9
    assert all(line.count(",") == content[0].count(",") for line in content)
    assert (tmp_path / "video.png").read_bytes().startswith(b"\x89PNG")
    assert framed(torch.zeros(3, 4, 4)).shape == (4, 14)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def alone(experiment_: Experiment, seeds: int) -> Any:
        found = {kind: [experiment.attempt(experiment_, kind, s, lambda: None) for s in range(seeds)] for kind in KINDS}
        return found, costs.costs(experiment_, 1, lambda: None)

    monkeypatch.setattr(command, "run", alone)
    small_numbers = "--videos 4 --held-back 2 --batch 2 --epochs 1 --hidden 2 --kernel 3 --future 2 --seeds 1 --dry"
    assert command.main(small_numbers.split()) == 0
    shown = capsys.readouterr().out
    assert "1 moving digit(s) in frames of 16 x 16: 6 frames are given, 2 predicted." in shown
    assert "below ConvLSTM's" in shown
    for words, sentence in (("--digit 20", "pictures of"), ("--steps 1", "steps=1 stored"), ("--folder x", "x does")):
        with pytest.raises(SystemExit, match=sentence):
            command.main(words.split())
    for words in ("--seeds 0", "--batch 0"):
        with pytest.raises(SystemExit):
            command.parse(words.split())
    capsys.readouterr()
