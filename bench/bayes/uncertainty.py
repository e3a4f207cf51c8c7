"""What probabilities are worth: negative log-likelihood, error, calibration; and the networks that give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes.training import BAYESIAN, KINDS, MEMBER, NORMAL, SCALED, Job, Settings, fresh, pictures
from convein.layers import bqn
from convein.layers.bqn.binary import Ensemble

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Pictures whose highest probability lies in one interval.

    Attributes:
        share: of all pictures.
        confidence: the mean of their highest probabilities.
        accuracy: the share of them that are classified right.
    """

    share: float
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Score:
    """One way to classify, on the pictures that were held back.

    Attributes:
        name: what the tables call it.
        nll: mean negative log-likelihood in nats.
        error: in percent.
        ece: expected calibration error in percent, over 15 intervals.
        bins: the intervals that hold pictures.
        bound: the mean of the bound of theorem 5.2, of an analytic network.
    """

    name: str
    nll: float
    error: float
    ece: float
    bins: tuple[Bin, ...]
    bound: float | None = None


def score(
    name: str, probabilities: Tensor, labels: Tensor, *, losses: Tensor | None = None, bound: float | None = None
) -> Score:
    """What the probabilities (n, classes) of pictures with these labels are worth.

    Args:
        name: what the tables call it.
        probabilities: of the classes.
        labels: the right classes.
        losses: negative log-likelihoods, where logits tell them more exactly than probabilities do; those are counted
            as at least 1e-6.
        bound: on the negative log-likelihood.
    """
    confidence, chosen = probabilities.max(-1)
    right = (chosen == labels).to(confidence.dtype)
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins = []
    for number in torch.unique(place).tolist():
        inside = place == number
        share = inside.to(confidence.dtype).mean()
        bins.append(Bin(float(share), float(confidence[inside].mean()), float(right[inside].mean())))
    ece = sum(one.share * abs(one.confidence - one.accuracy) for one in bins)
    nll = float((bqn.negative_log_likelihood(probabilities, labels) if losses is None else losses).mean())
    return Score(name, nll, 100 * float(1 - right.mean()), 100 * ece, tuple(bins), bound)


@torch.no_grad()
def scores(
    trained: Mapping[Job, Mapping[str, Tensor]], settings: Settings, samples: int
) -> tuple[list[Score], dict[str, int]]:
    """All ways to classify, and how many bytes the likeliest network takes in how it is written.

    Args:
        trained: state_dicts.
        settings: of the run.
        samples: draws of the weights.
    """
    _, (inputs, labels) = pictures(settings.validation)
    found: list[Score] = []
    networks = {job: _loaded(job, state, settings.width) for job, state in trained.items()}
    by_kind: dict[str, list[nn.Sequential]] = {kind: [] for kind in KINDS}
    for job, network in networks.items():
        by_kind[job.kind].append(network)
    (bayesian,) = by_kind[BAYESIAN]
    *body, head = bayesian
    logits = nn.Sequential(*body)(inputs)
    found.append(score("BQN, analytic", head(logits), labels, bound=float(head(logits, labels).mean())))
    torch.manual_seed(0)
    found.append(score(f"BQN, {samples} samples", bqn.monte_carlo(bayesian, inputs, samples), labels))
    likeliest = bqn.to_plain(bayesian)
    found.append(score("BQN, MAP", likeliest(inputs), labels))
    for kind, scale in ((MEMBER, ""), (SCALED, ", learned scale")):
        members = by_kind[kind]
        logits = Ensemble(members)(inputs)
        losses = F.cross_entropy(logits, labels, reduction="none")
        found.append(score(f"E-QNN of {len(members)}{scale}", logits.softmax(-1), labels, losses=losses))
    for network in by_kind[NORMAL]:
        torch.manual_seed(0)
        drawn = torch.stack([network(inputs).softmax(-1) for _ in range(samples)])
        found.append(score(f"Gaussian BNN, {samples} samples", drawn.mean(0), labels))
    return found, sizes(bayesian, likeliest)


def sizes(bayesian: nn.Module, likeliest: nn.Module) -> dict[str, int]:
    """Bytes of the log-probabilities, and of the likeliest network's weights as float32 and packed."""
    quantised = [layer for layer in likeliest.modules() if isinstance(layer, nn.Linear)]
    weights: Sequence[Tensor] = [one for layer in quantised for one in layer.parameters()]
    packed = bqn.pack({str(number): one for number, one in enumerate(weights)})
    learned = [one for name, one in bayesian.named_parameters() if "theta" in name]
    return {
        "learned": sum(one.numel() * one.element_size() for one in learned),
        "float32": sum(one.numel() * one.element_size() for one in weights),
        "packed": sum(one["bits"].numel() for one in packed.values()),
    }


def _loaded(job: Job, state: Mapping[str, Tensor], width: int) -> nn.Sequential:
    network = fresh(job.kind, width)
    network.load_state_dict(dict(state))
    return network.eval()
