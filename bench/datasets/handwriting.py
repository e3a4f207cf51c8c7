"""scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from datasets.pictures import Labelled, Split, standardised


def digits() -> Split:
    """1,347 training and 450 test pictures (n, 1, 8, 8), standardised, with their labels; always the same split.

    Every digit has the same share of both.
    """
    return standardised(*labelled_digits())


def labelled_digits() -> tuple[Labelled, Labelled]:
    """The same training and test pictures as they come: from 0 to 16."""
    source = load_digits()
    pictures = torch.tensor(source.images).unsqueeze(1)
    labels = torch.tensor(source.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=source.target)
    return (pictures[train], labels[train]), (pictures[test], labels[test])
