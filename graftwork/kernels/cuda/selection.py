"""Which tile, how many splits: numbers chosen from shapes, apart from the kernels that take them."""

from __future__ import annotations

from typing import NamedTuple

from .launch import ceil_div


class Tile(NamedTuple):
    """Rows, columns and depth of a block's tile, and the part of it that a thread computes; 256 threads."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int


LARGE, TALL, SMALL = Tile(128, 128, 8, 8, 8), Tile(128, 64, 16, 8, 4), Tile(64, 64, 16, 4, 4)
LEAST_DEPTH = 128  # steps of a split's sum, so that adding the partial sums up stays a small part


def simt_tile(m: int, n: int, batch: int, itemsize: int, processors: int) -> Tile:
    """The largest tile that gives every multiprocessor a block; the smallest where none does, and for float64."""
    if itemsize == 8:
        return SMALL
    for tile in (LARGE, TALL):
        if n > tile.n // 2 and ceil_div(m, tile.m) * ceil_div(n, tile.n) * batch >= processors:
            return tile
    return SMALL


def simt_splits(tile: Tile, m: int, n: int, k: int, batch: int, processors: int) -> int:
    """Into how many parts k is cut: as many as fill the device twice, each of at least LEAST_DEPTH steps."""
    blocks = ceil_div(m, tile.m) * ceil_div(n, tile.n) * batch
    if blocks * 2 > processors:
        return 1
    return max(1, min(2 * processors // blocks, k // LEAST_DEPTH, 64))


def winograd_pays(batch: int, height: int, width: int, channels: int, outputs: int) -> bool:
    """Whether a 3 x 3 convolution goes by F(4x4, 3x3), which saves three quarters of the multiplications and moves about
    five times the bytes: with many channels, where tiles of 4 x 4 fill the image, and enough of them for a product."""
    tiles = ceil_div(height, 4) * ceil_div(width, 4)
    return min(channels, outputs) >= 64 and 16 * tiles * 6 <= 10 * height * width and batch * tiles >= 64
