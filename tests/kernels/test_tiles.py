"""Which tiles kernels offer on a GPU, and which comes first. Whether they fit on the chip, compiling says."""

from __future__ import annotations

import pytest
import torch
from convein.kernels import depthwise_pointwise, dual_product, product_reduce, strips
from convein.kernels.strips import Tile


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (strips, depthwise_pointwise, dual_product, product_reduce):
        monkeypatch.setattr(module, "INTERPRETED", False)


def offered(images: int, size: tuple[int, int], channels: int = 64, reach: tuple[int, int] = (2, 2)):
    return strips.configurations((channels,) * 4, reach, False, torch.bfloat16, images, size)


def test_few_tiles_are_offered_each_once() -> None:
    everything = [offered(128, (56, 56)), offered(1, (7, 7)), offered(128, (56, 56), 16)]
    everything += [depthwise_pointwise.configurations(25088, t) for t in (1, 10, 64, 100, 256, 512, 2000)]
    for dtype in (torch.float16, torch.float32):
        everything += [dual_product.configurations(2**15, t, dtype) for t in (1, 32, 64, 100, 128, 300)]
    everything.append(product_reduce.configurations())
    for tiles in everything:
        assert 0 < len(tiles) == len(set(tiles)) <= 6


def test_small_images_are_cut_into_small_strips() -> None:
    assert offered(128, (56, 56))[0].high == 4
    first = offered(4, (14, 14))[0].fitted((14, 14))
    assert (first.high, first.wide) < (4, 14)


def test_strips_of_one_size_cover_an_image() -> None:
    tile = Tile(16, 4, 14, 8)
    assert tile.fitted((7, 7)) == Tile(16, 4, 7, 8)
    assert tile.fitted((6, 15)) == Tile(16, 3, 8, 8)
    assert tile.fitted((56, 28)) == tile
    assert tile.fitted((0, 0)) == Tile(16, 1, 1, 8)


def test_no_tile_is_offered_for_a_ring_that_does_not_fit() -> None:
    assert offered(128, (56, 56), 128, (2, 60)) == ()


@pytest.mark.parametrize("t", [16, 64, 100, 256, 512])
def test_one_program_makes_all_outputs_of_many_pixels(t) -> None:
    assert depthwise_pointwise.configurations(2**20, t)[0].outputs >= t
    for dtype in (torch.bfloat16, torch.float32):
        assert dual_product.configurations(2**20, t, dtype)[0].outputs >= min(t, 128)


def test_pixels_are_spread_over_the_gpu() -> None:
    assert depthwise_pointwise.configurations(2**20, 256)[0].pixels == 128
    assert depthwise_pointwise.configurations(128 * 14 * 14, 256)[0].pixels == 64


def test_interpreted_kernels_have_one_small_tile(monkeypatch) -> None:
    for module in (strips, depthwise_pointwise, dual_product, product_reduce):
        monkeypatch.setattr(module, "INTERPRETED", True)
    assert len(offered(128, (56, 56))) == len(depthwise_pointwise.configurations(25088, 256)) == 1
    assert len(dual_product.configurations(25088, 256, torch.bfloat16)) == len(product_reduce.configurations()) == 1
