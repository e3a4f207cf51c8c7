"""Videos of handwritten digits that move straight on and bounce off the walls.

N. Srivastava, E. Mansimov, R. Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs", ICML 2015,
with digits of any pictures and, as J. Su, W. Byeon et al. test, at several speeds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datasets.handwriting import labelled_digits
from datasets.idx import ADDRESS, LAYOUTS, read_idx
from datasets.pictures import locate

# At speed 1, the part of the way from wall to wall that a digit moves between two frames.
STEP = 0.1

Speed = float | tuple[float, float]


def moving_digits(
    pictures: Tensor,
    videos: int,
    frames: int = 20,
    *,
    digits: int = 2,
    size: int = 64,
    speed: Speed = 1.0,
    seed: int = 0,
) -> Tensor:
    """Videos (videos, frames, 1, size, size) of numbers from 0 to 1; the same for the same arguments.

    Every digit is one of the pictures, starts anywhere in any direction, and keeps its speed. Where digits overlap, the
    brighter one is seen.

    Args:
        pictures: (n, high, wide), from 0 to 1.
        videos: how many.
        frames: of each.
        digits: in each.
        size: of a frame.
        speed: 1 crosses a tenth of the way between the walls with each frame; a pair: anything in between.
        seed: of all that is drawn.

    Raises:
        ValueError: the pictures are larger than a frame, or there are none; a speed below 0.
    """
    count, high, wide = pictures.shape
    low, up = (speed, speed) if isinstance(speed, (int, float)) else speed
    if not count or max(high, wide) > size:
        raise ValueError(f"{count} pictures of {high} x {wide} for frames of {size} x {size}")
    if not 0 <= low <= up:
        raise ValueError(f"speed={speed!r}: from 0, the lower one first")
    draw = np.random.default_rng(seed)
    chosen = draw.integers(count, size=(videos, digits))
    start = draw.random((videos, digits, 1, 2))
    angle = draw.uniform(0, 2 * math.pi, (videos, digits, 1))
    pace = STEP * draw.uniform(low, up, (videos, digits, 1, 1))
    direction = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    places = reflected(start + pace * direction * np.arange(frames)[:, np.newaxis])
    corners = np.rint(places * (size - high, size - wide)).astype(np.int64)
    source = pictures.float().numpy()
    canvas = np.zeros((videos, frames, size, size), np.float32)
    video, frame = np.arange(videos)[:, None, None, None], np.arange(frames)[:, None, None]
    for digit in range(digits):
        top, left = corners[:, digit, :, 0, None, None], corners[:, digit, :, 1, None, None]
        where = video, frame, top + np.arange(high)[:, None], left + np.arange(wide)
        canvas[where] = np.maximum(canvas[where], source[chosen[:, digit]][:, np.newaxis])
    return torch.from_numpy(canvas).unsqueeze(2)


def reflected(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places on a line as they are between walls at 0 and 1."""
    folded: NDArray[np.float64] = 1 - np.abs(1 - np.mod(places, 2))
    return folded


def digit_pictures(size: int = 28, folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """Training and test pictures of single digits (n, size, size), from 0 to 1.

    Args:
        size: to which they are scaled.
        folder: where the idx files of MNIST are; without one, scikit-learn's digits.

    Raises:
        FileNotFoundError: the folder does not hold the files.
        ValueError: a file is damaged.
    """
    if folder is None:
        (train, _), (test, _) = labelled_digits()
        return scaled(train.float() / 16, size), scaled(test.float() / 16, size)
    paths = locate(Path(folder), LAYOUTS, "MNIST", ADDRESS)
    read = [torch.tensor(read_idx(path, 3)).unsqueeze(1).float() / 255 for path in (paths[0], paths[2])]
    return scaled(read[0], size), scaled(read[1], size)


def scaled(pictures: Tensor, size: int) -> Tensor:
    """Pictures (n, 1, high, wide) from 0 to 1 as (n, size, size)."""
    if tuple(pictures.shape[2:]) == (size, size):
        return pictures.squeeze(1)
    return F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1).squeeze(1)
