"""What all data sets share: files that are found or asked for, pictures that are standardised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 10

Split = tuple[TensorDataset, TensorDataset]
Labelled = tuple[Tensor, Tensor]


def locate(folder: Path, layouts: Sequence[Sequence[str]], data: str, address: str) -> list[Path]:
    """The files of the first layout that `folder` holds completely.

    Args:
        folder: where to look.
        layouts: for every layout its files, relative to the folder.
        data: what the files are, for the error.
        address: where the public finds them.

    Raises:
        FileNotFoundError: no layout is complete; the sentence names the files that are missing from each.
    """
    absent = []
    for names in layouts:
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return [folder / name for name in names]
        partly = f"{', '.join(missing)} ({len(missing)} of {len(names)} missing)"
        absent.append(partly if len(missing) < len(names) else ", ".join(names))
    looked = "\n  or ".join(absent)
    raise FileNotFoundError(
        f"{folder} does not hold {data}; looked for\n     {looked}\nGet the files from {address} and unpack them there"
    )


def labelled(pictures: NDArray[np.uint8], labels: Sequence[object], source: Path) -> Labelled:
    """Pictures (n, c, h, w) and their labels (n,), as read from `source`, as tensors.

    Raises:
        ValueError: no pictures, another number of labels, or a label that is not one of the ten.
    """
    if len(pictures) == 0:
        raise ValueError(f"{source} holds no pictures")
    if len(pictures) != len(labels):
        raise ValueError(f"{source} holds {len(pictures):,} pictures, and there are {len(labels):,} labels for them")
    for label in labels:
        if label not in range(CLASSES):
            raise ValueError(f"{source} has the label {label!r}, and labels are 0 to {CLASSES - 1}: it is damaged")
    return torch.tensor(pictures), torch.tensor(labels)


def standardised(train: Labelled, test: Labelled) -> Split:
    """Pictures as float32 less the mean of their channel, over its standard deviation, both of the training pictures.

    A channel that is constant is only centred.
    """
    pictures = train[0].float()
    deviation, mean = torch.std_mean(pictures, dim=(0, 2, 3), correction=0, keepdim=True)
    deviation = deviation.where(deviation > 0, 1)
    return (
        TensorDataset(pictures.sub_(mean).div_(deviation), train[1]),
        TensorDataset(test[0].float().sub_(mean).div_(deviation), test[1]),
    )
