"""Orthogonal matrices -> the taps of an orthogonal convolution (J. Su, 2022, algorithm 1), projectors never formed.

With [a, b] * [c, d] = [ac, ad + bc, bd] for the product of two sequences of matrices, and P = U U^T, the taps along one
axis are L_n * ... * L_1 * [Q] * R_1 * ... * R_n with R = [P, I - P] and L = [I - P, P]: every factor delays one part of
the channels, and all singular values are one at every frequency. A convolution in two dimensions is one along each.

Stacks of taps are (taps, s, t), with groups (g, taps, s, t): the many products by a factor on the left, along the
second axis, then read and write whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convein.pipeline import conv_einsum


def axis_taps(start: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The taps along one axis.

    Args:
        start: Q, (..., c, c), with one batch dimension (groups) or none.
        factors: the bases U (..., c, n) in the order in which taps grow: right 1, left 1, right 2, left 2, ...; an even
            number of taps has one more on the right.

    Returns:
        (..., taps, c, c), transposed, in the order of a cross-correlation: one tap more than there are factors.
    """
    taps = start.mT.unsqueeze(-3)
    for right, left in zip(factors[::2], factors[1::2]):
        taps = _grown(taps, right, left)
    return _delayed(taps, factors[-1]) if len(factors) % 2 else taps


def separable_taps(rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The taps along both axes.

    One Q is enough for both: the one of the second axis may be moved through all factors to its right, which turns
    their subspaces, U to Q U. So the second axis has none here.

    Args:
        rows: (..., h, c, c), the taps along the first axis, which is applied first.
        factors: of the second axis, as for `axis_taps`.

    Returns:
        (..., w, h, c, c).
    """
    if not factors:
        return rows.unsqueeze(-4)
    if len(factors) > 2:
        one = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device).expand(*factors[0].shape[:-2], -1, -1)
        # W[t,s,h,w] = sum_r columns[w][t,r] rows[h][r,s].
        return _contracted("hsr,wrt->whst", rows, axis_taps(one, factors))
    right = factors[0]
    inner = _contracted("hst,tn->hsn", rows, right)
    if len(factors) == 1:
        first = _contracted("hsn,tn->hst", inner, right)
        return torch.stack([first, rows - first], -4)
    left = factors[1]
    # L * R without a Q between them is [(I - Pl) Pr, ..., Pl (I - Pr)], and all three add up to I.
    between = _contracted("tn,tm->nm", left, right)
    without_left = right - _contracted("tn,nm->tm", left, between)
    without_right = left - _contracted("tm,nm->tn", right, between)
    first = _contracted("hsn,tn->hst", inner, without_left)
    last = _contracted("hsn,tn->hst", _contracted("hst,tn->hsn", rows, without_right), left)
    return torch.stack([first, rows - first - last, last], -4)


def _grown(taps: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """L * taps * R."""
    from_right = _contracted("hst,sn->hnt", taps, right)
    from_both = _contracted("hnt,tm->hnm", from_right, left)
    from_left = _contracted("hst,tm->hsm", taps, left) - _contracted("hnm,sn->hsm", from_both, right)
    first = _contracted("hnt,sn->hst", from_right - _contracted("hnm,tm->hnt", from_both, left), right)
    last = _contracted("hsm,tm->hst", from_left, left)
    middle = taps - first - last
    if taps.shape[-3] == 1:
        return torch.cat([first, middle, last], -3)
    return _at(0, first, 2) + _at(1, middle, 2) + _at(2, last, 2)


def _delayed(taps: Tensor, right: Tensor) -> Tensor:
    """Taps * R."""
    first = _contracted("hnt,sn->hst", _contracted("hst,sn->hnt", taps, right), right)
    return _at(0, first, 1) + _at(1, taps - first, 1)


def _at(place: int, taps: Tensor, more: int) -> Tensor:
    """The taps, that many places later, with zeros up to `more` places."""
    return torch.nn.functional.pad(taps, (0, 0, 0, 0, place, more - place))


def _contracted(text: str, left: Tensor, right: Tensor) -> Tensor:
    """The pair's contraction, the groups in front of everything if there are any."""
    if left.dim() > text.index(","):
        text = "g" + text.replace(",", ",g").replace("->", "->g")
    value: Tensor = conv_einsum(text, left, right)
    return value
