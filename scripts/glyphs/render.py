"""Characters as training images: rendered once per font, then distorted anew for every batch.

Classes are the digits and the Latin letters, with the letters whose two cases have one shape merged, as in EMNIST's
balanced split (Cohen et al. 2017). Images are 32x32, light ink on dark ground, 0 to 1.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
MERGED = "cijklmopsuvwxyz"  # lower-case letters that share their capital's class
BASE, SIZE = 48, 32
CLASS_NAMES = [c for c in CHARACTERS if c not in MERGED]
CLASS_OF = np.array([CLASS_NAMES.index(c.upper() if c in MERGED else c) for c in CHARACTERS])


def render_font(path: Path) -> np.ndarray | None:
    """All characters of a font as uint8 (characters, 48, 48), cropped and centred; None if it lacks some."""
    try:
        font = ImageFont.truetype(str(path), 64)
        missing = _draw(font, "\uffff")
        images = [_draw(font, c) for c in CHARACTERS]
    except (OSError, ValueError):
        return None
    absent = [i is None or (missing is not None and np.array_equal(i, missing)) for i in images]
    same = np.array_equal(images[CHARACTERS.index("b")], images[CHARACTERS.index("d")]) if not any(absent) else True
    return None if any(absent) or same else np.stack([_centre(i) for i in images])


def _draw(font, character: str) -> np.ndarray | None:
    """One character's ink, cropped; None if it has none."""
    image = Image.new("L", (160, 160))
    ImageDraw.Draw(image).text((48, 32), character, fill=255, font=font)
    box = image.getbbox()
    return None if box is None else np.asarray(image.crop(box))


def _centre(ink: np.ndarray) -> np.ndarray:
    """Ink scaled to fit 40 pixels, in the middle of 48."""
    image = Image.fromarray(ink)
    scale = 40 / max(image.size)
    image = image.resize((max(round(image.width * scale), 2), max(round(image.height * scale), 2)), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (BASE, BASE))
    canvas.paste(image, ((BASE - image.width) // 2, (BASE - image.height) // 2))
    return np.asarray(canvas)


def thicknesses(glyphs: np.ndarray) -> np.ndarray:
    """Glyphs thinner, as they are, and bolder: (3, characters, 48, 48)."""
    def filtered(kind):
        return np.stack([np.asarray(Image.fromarray(g).filter(kind)) for g in glyphs])

    return np.stack([filtered(ImageFilter.MinFilter(3)), glyphs, filtered(ImageFilter.MaxFilter(3))])


class GlyphDataset:
    """Distorted characters for `DataLoader`: `batch(indices, rng)` draws fonts and distortions anew each time.

    length: entries that count as an epoch. distort=False gives every character of every font once, undistorted.
    """

    def __init__(self, glyphs: np.ndarray, length: int, distort: bool = True):
        """glyphs: uint8 (fonts, 3, characters, 48, 48)."""
        self.glyphs, self.distort = glyphs, distort
        self.length = length if distort else glyphs.shape[0] * glyphs.shape[2]

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        fonts, _, characters = self.glyphs.shape[:3]
        n = len(indices)
        if self.distort:
            font, character = rng.integers(fonts, size=n), rng.integers(characters, size=n)
            thickness = rng.choice(3, n, p=(0.25, 0.4, 0.35))
        else:
            font, character, thickness = indices // characters, indices % characters, np.ones(n, int)
        images = self.glyphs[font, thickness, character].astype(np.float32) / 255
        images = warp(images, rng, self.distort)
        if self.distort:
            images = degrade(images, rng)
        return images[..., None], CLASS_OF[character].astype(np.int64)


def warp(images: np.ndarray, rng: np.random.Generator, distort: bool) -> np.ndarray:
    """(n, 48, 48) to (n, 32, 32) through a random affine map and a smooth random field (Simard et al. 2003)."""
    n = len(images)
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1  # -1 to 1 over the output
    y, x = (np.broadcast_to(a, (n, SIZE, SIZE)) for a in np.meshgrid(axis, axis, indexing="ij"))
    if distort:
        angle, shear = rng.normal(0, 0.18, n), rng.normal(0, 0.2, n)
        zoom = rng.uniform(0.8, 1.15, (2, n))
        shift = rng.normal(0, 0.06, (2, n))
        cos, sin = np.cos(angle), np.sin(angle)
        field = smooth_field(rng, n) * rng.uniform(0, 0.14, n)[:, None, None, None]
        column = [a[:, None, None] for a in (cos, sin, shear, *zoom, *shift)]
        u = column[3] * (column[0] * x + (column[2] - column[1]) * y) + column[5] + field[:, 0]
        v = column[4] * (column[1] * x + column[0] * y) + column[6] + field[:, 1]
    else:
        u, v = x, y
    return sample(images, v * (BASE / 2) + BASE / 2 - 0.5, u * (BASE / 2) + BASE / 2 - 0.5)


def smooth_field(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random displacements (n, 2, 32, 32): a coarse 5x5 grid, interpolated."""
    coarse = rng.standard_normal((n, 2, 5, 5)).astype(np.float32)
    return interpolation(5, SIZE) @ coarse @ interpolation(5, SIZE).T


def interpolation(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) of bilinear resizing with half-pixel centres."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(position.astype(int), source - 2)
    weight = (position - low).astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] = 1 - weight
    matrix[np.arange(target), low + 1] += weight
    return matrix


def sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of (n, h, w) images at fractional positions; zero outside."""
    n, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(n, -1)
    rows, columns = np.clip(rows + 1, 0, height + 0.999), np.clip(columns + 1, 0, width + 0.999)
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    dy, dx = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    corner = (top * (width + 2) + left).reshape(n, -1)

    def at(offset: int) -> np.ndarray:
        return np.take_along_axis(padded, corner + offset, axis=1).reshape(rows.shape)

    upper = at(0) * (1 - dx) + at(1) * dx
    return upper * (1 - dy) + (at(width + 2) * (1 - dx) + at(width + 3) * dx) * dy


def degrade(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images at 8x8 and 17 levels, as scanned digits come; then contrast and noise for all."""
    n = len(images)
    coarse = images.reshape(n, 8, 4, 8, 4).mean(axis=(2, 4))
    sharpened = np.clip(coarse * rng.uniform(1.0, 1.8, (n, 1, 1)), 0, 1)
    coarse = np.round(sharpened * 16).astype(np.float32) / 16
    up = interpolation(8, SIZE)
    images = np.where(rng.random((n, 1, 1)) < 0.5, up @ coarse @ up.T, images)
    images = images * rng.uniform(0.7, 1.0, (n, 1, 1)) + rng.normal(0, 1, images.shape) * rng.uniform(0, 0.05, (n, 1, 1))
    return np.clip(images, 0, 1).astype(np.float32)
