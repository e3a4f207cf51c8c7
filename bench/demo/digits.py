"""Handwritten digits: the network of expressions learns to read them, beside its two rivals."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import convein
from networks import LAYERS, Network

EPOCHS = 24
TIMED_EPOCHS = 3
SLOW_EPOCHS = 1  # in which the slow order takes part too
BATCH = 64
ACCURACY = 0.97
KINDS = ("searched", "left to right", "dense")
TESTED = ("searched", "dense")

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def load() -> Split:
    """Training and test pictures (n, 1, 8, 8) in 0..1 and their labels, always the same split."""
    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return pictures[train], labels[train], pictures[test], labels[test]


def batches(pictures: Tensor, labels: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches in an order that depends on the epoch only."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
    for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
        yield pictures[rows], labels[rows]


def trainer(network: Network, steps: int) -> Callable[[Tensor, Tensor], None]:
    """One step of training, with a learning rate that falls to zero over all of them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(pictures: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(pictures), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()

    return step


@torch.no_grad()
def accuracy(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of the pictures whose highest score is the label's."""
    network.eval()
    right: float = (network(pictures).argmax(1) == labels).float().mean().item()
    network.train()
    return right


def show_plan() -> None:
    """The plan of the CP layer, and the multiplications of a training step of every layer in both orders."""
    cp, size = LAYERS[1], 8
    shapes = [(BATCH, cp.dense[1], size, size), *cp.factors]
    _, info = convein.contract_path(cp.expression, *shapes, grad=True)
    print(f"The plan of the {cp.name} layer\n\n{info}\n")
    print("Multiplications of one forward pass of a batch, by layer")
    print(f"  {'layer':14}{'searched order':>16}{'left to right':>16}{'ratio':>8}")
    for layer in LAYERS[1:]:
        shapes = [(BATCH, layer.dense[1], size, size), *layer.factors]
        best = convein.contract_path(layer.expression, *shapes, cost="flops")[1].macs
        naive = convein.contract_path(layer.expression, *shapes, optimize="left-to-right")[1].macs
        print(f"  {layer.name:14}{best:16.3e}{naive:16.3e}{naive / best:8.1f}")
        size //= layer.stride
    print("The ratio is 1.0 where the order in which the string names the factors is already the cheapest.")


def train(networks: dict[str, Network], pictures: Tensor, labels: Tensor) -> dict[str, float]:
    """Train in turns, epoch by epoch; the median seconds of each network's timed epochs."""
    steps = {kind: trainer(network, EPOCHS * (len(labels) // BATCH)) for kind, network in networks.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in networks}
    turns = [(epoch, kind) for epoch in range(EPOCHS) for kind in (KINDS if epoch < SLOW_EPOCHS else TESTED)]
    with tqdm(turns, unit="epoch") as bar:
        for epoch, kind in bar:
            bar.set_description(f"{kind:13} {epoch + 1:2} of {EPOCHS if kind in TESTED else SLOW_EPOCHS:2}")
            start = time.perf_counter()
            for batch in batches(pictures, labels, epoch):
                steps[kind](*batch)
            seconds[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(spent[:TIMED_EPOCHS]) for kind, spent in seconds.items()}


def main() -> bool:
    """Train all three, print how they did; true when the network of expressions reads well enough."""
    train_x, train_y, test_x, test_y = load()
    print(f"Digits: {len(train_y)} pictures to learn from, {len(test_y)} to be tested on\n")
    show_plan()
    print()
    networks = {kind: Network(kind) for kind in KINDS}
    seconds = train(networks, train_x, train_y)
    scores = {kind: accuracy(networks[kind], test_x, test_y) for kind in TESTED}
    print(f"\n  {'network':14}{'parameters':>12}{'s an epoch':>12}{'accuracy':>10}")
    for kind, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        score = f"{scores[kind]:10.1%}" if kind in scores else "  timed for one epoch only"
        print(f"  {kind:14}{count:12}{seconds[kind]:12.3f}{score}")
    print("Layers this tiny take mostly the fixed cost of each call of torch, and a factorised layer makes more calls:")
    print("an eighth of the dense network's parameters is not an eighth of its time.")
    good = scores["searched"] >= ACCURACY
    print(
        f"\nThe network of expressions reads {scores['searched']:.2%} ({'at least' if good else 'NOT'} {ACCURACY:.0%})"
    )
    return good
