"""Ranks that use up a budget: forms are compared at equal parameters, and equal ranks leave too much of it."""

from __future__ import annotations

from torch import nn

from convein.layers.factorised import Factorised
from convein.layers.forms import Factorisation, factorise
from convein.layers.ranks import largest, solve

# A reshaped form, and the form that it is of the channels taken apart.
PAIRS = {"rcp": "cp", "rtk": "tucker", "rtt": "tt", "rtr": "tr"}
RESHAPED = {plain: reshaped for reshaped, plain in PAIRS.items()}


def filled(made: Factorisation, ranks: dict[str, int], budget: float) -> dict[str, int]:
    """Larger ranks with at most `budget` parameters: the smallest that can grows by one, repeatedly, to twice itself.

    Where a rank stands in a power, as in the core of a reshaped Tucker form, equal ranks go from a tenth of the budget
    to several times as much in one step. Bonds that are as large as the mode they stand for stay.
    """
    caps = {bond: min(most, 2 * ranks[bond]) for bond, most in largest(made).items()}
    ranks = dict(ranks)

    def fits(bond: str) -> bool:
        larger = {**ranks, bond: ranks[bond] + 1}
        return bond not in made.kept and larger[bond] <= caps[bond] and made.count(larger) <= budget

    while growing := [bond for bond in made.bonds if fits(bond)]:
        ranks[min(growing, key=ranks.__getitem__)] += 1
    return ranks


def filled_ranks(layer: Factorised, form: str, fraction: float) -> dict[str, int]:
    """Those of a form of the layer's weight, with at most this fraction of its parameters.

    A form that has a reshaped one gets no more parameters than that one gets.
    """
    made, budget = factorise(form, layer.dense, layer.factors), fraction * layer.dense.parameters
    if form in RESHAPED:
        partner = factorise(RESHAPED[form], layer.dense, layer.factors)
        budget = partner.count(filled_ranks(layer, RESHAPED[form], fraction))
    return filled(made, solve(made, layer.dense, budget / layer.dense.parameters, None), budget)


def overrides(model: nn.Module, fraction: float) -> dict[str, dict[str, tuple[int, ...]]]:
    """For `convein.tensorize`: the filled ranks of every factorised layer of a model, by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Factorised)}
    return {name: {"rank": tuple(filled_ranks(layer, layer.form, fraction).values())} for name, layer in layers.items()}
