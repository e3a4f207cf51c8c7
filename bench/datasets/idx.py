"""MNIST, and whatever else comes in its idx files, such as Fashion-MNIST.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits", whose page describes the format: two zeros, the
type of the entries (8: bytes), the number of dimensions, their sizes as 32-bit integers, highest byte first, entries.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.pictures import Labelled, Split, labelled, locate, standardised

ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
UNSIGNED_BYTES = 8

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Beside the files themselves: the folder in which torchvision keeps them.
LAYOUTS = tuple(
    tuple(f"{folder}{file}{suffix}" for file in FILES) for folder in ("", "MNIST/raw/") for suffix in ("", ".gz")
)


def mnist(folder: Path) -> Split:
    """60,000 training and 10,000 test pictures (n, 1, 28, 28), standardised, with their labels.

    Args:
        folder: holds the four files, all of them plain or all of them as .gz.

    Raises:
        FileNotFoundError: some of the files are not there.
        ValueError: a file is damaged.
    """
    paths = locate(Path(folder), LAYOUTS, "MNIST", ADDRESS)
    return standardised(_pair(*paths[:2]), _pair(*paths[2:]))


def _pair(pictures: Path, labels: Path) -> Labelled:
    return labelled(read_idx(pictures, 3)[:, np.newaxis], read_idx(labels, 1).tolist(), pictures)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in an idx file, which is compressed if its name ends in .gz.

    Raises:
        ValueError: the file is not compressed as its name says, holds something else, or is shorter or longer than its
            header says.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise ValueError(
            f"{path} starts with {content[:4].hex(' ') or 'nothing'}, and an idx file of bytes with {dimensions} "
            f"dimensions with 00 00 08 {dimensions:02x} and their sizes"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if math.prod(shape) != len(content) - header:
        sizes = " x ".join(map(str, shape))
        raise ValueError(f"{path} says that it holds {sizes} bytes, and holds {len(content) - header:,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
