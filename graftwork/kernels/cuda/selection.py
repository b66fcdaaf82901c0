"""Which method, which tile, how many splits: chosen from shapes, apart from the kernels that take them.

Every choice has a name, so that a measured one (`tuning.py`, by chip and driver, op, shape and dtype) wins over the rule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import tuning
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
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # that are tried when a product is tuned


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


def simt_product(b: Any, what: str, m: int, n: int, k: int, batch: int, dtype: Any) -> tuple[Tile, int]:
    """Tile and splits of a product. what: the kernel. b: the Builder, which knows the chip."""
    tile = simt_tile(m, n, batch, dtype.itemsize, b.processors)
    splits = simt_splits(tile, m, n, k, batch, b.processors)
    tiles = (SMALL,) if dtype.itemsize == 8 else (LARGE, TALL, SMALL)
    most = max(1, min(k // LEAST_DEPTH, 64))
    return _product(b, f"{what} {m}x{n}x{k} b{batch} {dtype.name}", tiles, most, tile, splits)


def mma_product(b: Any, what: str, m: int, n: int, k: int, batch: int, dtype: str, tiles: Any, tile: Any, splits: int) -> Any:
    """The same for mma.sync: `tiles` are those it has, `tile` and `splits` what the rule says."""
    return _product(b, f"{what} {m}x{n}x{k} b{batch} {dtype}", tiles, max(1, min(k // LEAST_DEPTH, 32)), tile, splits)


def _product(b: Any, key: str, tiles: Any, most: int, tile: Any, splits: int) -> Any:
    def named(t: Any, s: int) -> str:
        return f"{t.m}x{t.n} splits {s}"

    options = {named(t, s): (t, s) for t in tiles for s in SPLITS if s <= most}
    options[named(tile, splits)] = (tile, splits)
    return options[tuning.choose(b.chip, key, list(options), named(tile, splits))]


def winograd(b: Any, passed: str, batch: int, height: int, width: int, channels: int, outputs: int) -> bool:
    """Whether a 3 x 3 convolution (`passed`: which of forward and input gradient) goes by Winograd's method."""
    usual = "winograd" if winograd_pays(batch, height, width, channels, outputs) else "implicit"
    key = f"{passed} 3x3 {batch}x{height}x{width} {channels}-{outputs} float32"
    return tuning.choose(b.chip, key, ["winograd", "implicit"], usual) == "winograd"


def winograd_pays(batch: int, height: int, width: int, channels: int, outputs: int) -> bool:
    """The rule: F(4x4, 3x3) saves three quarters of the multiplications and moves about five times the bytes. So with many
    channels, where tiles of 4 x 4 fill the image, and enough of them for a product."""
    tiles = ceil_div(height, 4) * ceil_div(width, 4)
    return min(channels, outputs) >= 64 and 16 * tiles * 6 <= 10 * height * width and batch * tiles >= 64
