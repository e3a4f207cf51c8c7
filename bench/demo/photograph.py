"""A photograph through four one-dimensional filters in one expression, checked against scipy.ndimage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image

import convein

EXPRESSION = "hwc,h,h,w,w->hwc|hw"
FOLDER = Path(__file__).parent / "pictures"
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

Array = np.ndarray


def filters() -> tuple[Array, Array]:
    """A Gaussian of 13 entries and the central difference."""
    places = np.arange(-6, 7)
    gaussian = np.exp(-0.5 * (places / 1.5) ** 2)
    return gaussian / gaussian.sum(), np.array([-0.5, 0.0, 0.5])


def by_scipy(image: Array, padding_mode: str) -> Array:
    """The same picture by scipy, in double precision, one axis after the other.

    With zeros outside, each axis is filtered once, by its two filters merged: the border is the whole expression's, not
    each filter's. Around a circle there is no border, and the four filters follow each other.
    """
    gaussian, difference = filters()
    image = image.astype(np.float64)
    if padding_mode == "zeros":
        steps = [(axis, np.convolve(gaussian, difference)) for axis in (0, 1)]
    else:
        steps = [(axis, filter_) for axis in (0, 1) for filter_ in (gaussian, difference)]
    mode = {"zeros": "constant", "circular": "wrap"}[padding_mode]
    for axis, filter_ in steps:
        image = ndimage.correlate1d(image, filter_, axis=axis, mode=mode)
    return image


def save(image: Array, name: str) -> Path:
    """Write an array of 0..1 as a PNG."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / name
    Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8)).save(path)
    return path


def main() -> bool:
    """Filter, compare, write both pictures; true when scipy gives the same."""
    photograph = load_sample_image("china.jpg") / 255.0
    gaussian, difference = filters()
    print(f"Photograph {photograph.shape} by {EXPRESSION}: a Gaussian and a difference along h, and again along w\n")
    good = True
    for dtype, tolerance in TOLERANCE.items():
        operands = [array.astype(dtype) for array in (photograph, gaussian, difference, gaussian, difference)]
        for padding_mode in ("zeros", "circular"):
            ours = convein.conv_einsum(EXPRESSION, *operands, padding_mode=padding_mode)
            theirs = by_scipy(operands[0], padding_mode)
            error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            good &= error <= tolerance
            verdict = "at most" if error <= tolerance else "MORE THAN"
            print(f"  {dtype}, {padding_mode:8}  differs from scipy.ndimage by {error:.1e}: {verdict} {tolerance}")
    before, after = save(photograph, "before.png"), save(0.5 + 12 * ours, "after.png")
    print(f"\nPictures: {before} and {after.name}")
    return good
