"""Scores of a Lipschitz network -> radii within which its answer cannot change, and a loss that asks for them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from convein.errors import OptionError, ShapeError


def certified_radius(scores: Tensor, labels: Tensor, lipschitz: float = 1.0) -> Tensor:
    """The distance in the Euclidean norm below which every input near by gets its label, too.

    The difference of two scores of an L-Lipschitz network changes by at most sqrt(2) L times the distance; so it is the
    margin over sqrt(2) L, and 0 where another score is higher.

    Args:
        scores: (batch, classes).
        labels: (batch,), of integers.
        lipschitz: L, of the whole network, the division of the input by a standard deviation included.

    Returns:
        (batch,).

    Raises:
        OptionError: a constant that is none.
        ShapeError: not one label for each row of scores.
    """
    _check_positive("lipschitz", lipschitz)
    _check_labels(scores, labels)
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -math.inf)
    margins: Tensor = (own - others.amax(1, keepdim=True)).squeeze(1)
    return margins.clamp_min(0) / (math.sqrt(2) * lipschitz)


def certified_accuracy(scores: Tensor, labels: Tensor, radius: float, lipschitz: float = 1.0) -> float:
    """The fraction of inputs with the right answer everywhere within a radius; with radius 0, the accuracy.

    Raises:
        OptionError: a radius below 0, or a constant that is none.
        ShapeError: not one label for each row of scores.
    """
    if not radius >= 0:
        raise OptionError(f"radius={radius!r}", hint="a number from 0")
    _check_labels(scores, labels)
    if radius == 0:
        return float((scores.argmax(1) == labels).double().mean())
    return float((certified_radius(scores, labels, lipschitz) > radius).double().mean())


def margin_loss(scores: Tensor, labels: Tensor, radius: float, *, lipschitz: float = 1.0, norm: float = 2.0) -> Tensor:
    """The mean hinge loss of the margins that certify a radius: 0 if all are certified.

    Args:
        scores: (batch, classes).
        labels: (batch,).
        radius: to be certified; in training, larger than what is wanted later.
        lipschitz: as for `certified_radius`.
        norm: p, of which the margin is radius * 2^((p - 1) / p) * lipschitz: sqrt(2) for the Euclidean norm. The
            published training has 1.

    Returns:
        A scalar.
    """
    _check_positive("radius", radius)
    _check_positive("lipschitz", lipschitz)
    if not norm >= 1:
        raise OptionError(f"norm={norm!r} is no norm", hint="a number from 1: 2 for the Euclidean norm")
    return F.multi_margin_loss(scores, labels, margin=radius * 2 ** (1 - 1 / norm) * lipschitz)


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"labels of {tuple(labels.shape)} for scores of {tuple(scores.shape)}",
            hint="scores (batch, classes) and one label for each row",
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r}", hint="a number above 0")
