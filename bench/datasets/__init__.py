"""Labelled pictures to train on: scikit-learn's digits, which need no download, CIFAR-10 and MNIST from their files."""

from __future__ import annotations

from pathlib import Path

from datasets.cifar import cifar10
from datasets.handwriting import digits
from datasets.idx import mnist
from datasets.pictures import Split

__all__ = ["READERS", "Split", "cifar10", "digits", "load", "mnist"]

# The data sets that are read from a folder.
READERS = {"cifar10": cifar10, "mnist": mnist}


def load(name: str = "digits", folder: Path | None = None) -> Split:
    """The data set called `digits`, `cifar10` or `mnist`: its training and its test pictures.

    Raises:
        ValueError: the name is none of these, the folder is missing where one is needed, or a file is damaged.
        FileNotFoundError: the folder does not hold the files.
    """
    if name == "digits":
        return digits()
    if name not in READERS:
        raise ValueError(f"no data set is called {name!r}: there are 'digits', {', '.join(map(repr, READERS))}")
    if folder is None:
        raise ValueError(f"{name} is read from files: say in which folder they are")
    return READERS[name](folder)
