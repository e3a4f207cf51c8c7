"""CIFAR-10 as its author publishes it: batches that Python pickled, or the binary version.

Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.pickles import unpickle
from datasets.pictures import Labelled, Split, labelled, locate, standardised

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
CHANNELS, SIDE = 3, 32
PIXELS = CHANNELS * SIDE * SIDE

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
# Beside the files themselves: the folders that the two archives unpack to.
LAYOUTS = tuple(
    tuple(f"{folder}{batch}{suffix}" for batch in BATCHES)
    for suffix, unpacked in (("", "cifar-10-batches-py/"), (".bin", "cifar-10-batches-bin/"))
    for folder in ("", unpacked)
)


def cifar10(folder: Path) -> Split:
    """50,000 training and 10,000 test pictures (n, 3, 32, 32), standardised by channel, with their labels.

    Args:
        folder: holds the six files of the Python or of the binary version, or the folder that an archive unpacks to.

    Raises:
        FileNotFoundError: neither version is complete.
        ValueError: a file is damaged.
    """
    paths = locate(Path(folder), LAYOUTS, "CIFAR-10", ADDRESS)
    batches = [_binary(path) if path.suffix == ".bin" else _pickled(path) for path in paths]
    pictures, labels = zip(*batches[:-1])
    return standardised((torch.cat(pictures), torch.cat(labels)), batches[-1])


def _pickled(path: Path) -> Labelled:
    content = unpickle(path)
    pictures, labels = content.get("data"), content.get("labels")
    if not isinstance(pictures, np.ndarray) or pictures.ndim != 2 or pictures.shape[1] != PIXELS:
        raise ValueError(f"{path} has no array of {PIXELS:,} bytes for each picture under 'data'")
    if not isinstance(labels, list):
        raise ValueError(f"{path} has no list under 'labels'")
    return labelled(_shaped(pictures), labels, path)


def _binary(path: Path) -> Labelled:
    content = np.fromfile(path, np.uint8)
    pictures, rest = divmod(len(content), 1 + PIXELS)
    if rest:
        raise ValueError(
            f"{path} is cut short: of its {len(content):,} bytes, {rest:,} are left after {pictures:,} pictures of "
            f"{1 + PIXELS:,} bytes, label and pixels"
        )
    records = content.reshape(pictures, 1 + PIXELS)
    return labelled(_shaped(records[:, 1:]), records[:, 0].tolist(), path)


def _shaped(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pictures.reshape(-1, CHANNELS, SIDE, SIDE)
