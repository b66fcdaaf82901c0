"""Augmentation: new pictures from old ones, in NumPy and Pillow, so that it runs in threads beside the training step.

All randomness comes from the generator that is handed in. `DataLoader` makes one for each batch from the seed, the epoch and
the batch's number, so that a run repeats exactly whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """What is varied in training pictures.

    flip: mirror every second picture; not for digits or text.
    crop: pictures are decoded so many times larger than the network's input, and a random window of them is seen; 1 for none.
    area: instead, a window with a share of the picture's area between these two, scaled to the input ("random resized crop",
    Szegedy et al. 2014). stretch: its largest ratio of width to height.
    jitter: brightness, contrast and saturation vary by up to this share.
    mixup: pictures and targets are mixed in pairs with a weight from Beta(mixup, mixup) (Zhang et al. 2017); 0 for none.
    """

    flip: bool = True
    crop: float = 12 / 11
    area: tuple[float, float] | None = None
    stretch: float = 4 / 3
    jitter: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= 4 or not 1 <= self.stretch <= 4:
            raise ConfigError(f"Augmentation: crop={self.crop}, stretch={self.stretch}; expected numbers from 1 to 4")
        if self.area is not None and not (len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1):
            raise ConfigError(f"Augmentation: area={self.area}; expected two shares such as (0.5, 1.0)")
        if not 0 <= self.jitter < 1 or not self.mixup >= 0:
            raise ConfigError(
                f"Augmentation: jitter={self.jitter}, mixup={self.mixup}; expected 0 to below 1, and at least 0"
            )

    def pixels(self, rng: np.random.Generator, pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 (n, height, width, channels) varied and cut or scaled to `size` (height, width)."""
        if self.area is not None:
            pictures = resized_crop(rng, pictures, size, self.area, self.stretch)
        else:
            pictures = random_crop(rng, pictures, size)
        if self.flip:
            mirrored = rng.random(len(pictures)) < 0.5
            pictures[mirrored] = pictures[mirrored, :, ::-1]
        return colour_jitter(rng, pictures, self.jitter) if self.jitter else pictures

    def mix(self, rng: np.random.Generator, x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and target rows, each mixed with another one of the batch."""
        if not self.mixup:
            return x, target
        other = rng.permutation(len(x))
        share = rng.beta(self.mixup, self.mixup, len(x)).astype(np.float32)
        share = np.maximum(share, 1 - share)
        wide = share[:, None, None, None]
        return x * wide + x[other] * (1 - wide), target * share[:, None] + target[other] * (1 - share[:, None])


def random_crop(rng: np.random.Generator, pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A window of `size` at a random place of each picture, as a copy."""
    height, width = size
    tops = rng.integers(0, pictures.shape[1] - height + 1, len(pictures))
    lefts = rng.integers(0, pictures.shape[2] - width + 1, len(pictures))
    return np.stack([p[y : y + height, x : x + width] for p, y, x in zip(pictures, tops, lefts, strict=True)])


def resized_crop(rng: np.random.Generator, pictures: np.ndarray, size: tuple[int, int], area: tuple[float, float],
                 stretch: float) -> np.ndarray:  # fmt: skip
    """A random window of each picture, scaled to `size` bilinearly."""
    from PIL import Image

    height, width = pictures.shape[1:3]
    shares = np.sqrt(rng.uniform(*area, len(pictures)))
    ratios = np.exp(rng.uniform(-np.log(stretch), np.log(stretch), len(pictures)) / 2)
    places = rng.random((len(pictures), 2))
    result = np.empty((len(pictures), *size, pictures.shape[3]), np.uint8)
    for out, picture, share, ratio, (v, u) in zip(result, pictures, shares, ratios, places, strict=True):
        w, h = min(width * share * ratio, width), min(height * share / ratio, height)
        box = (u * (width - w), v * (height - h), u * (width - w) + w, v * (height - h) + h)
        image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        scaled = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
        out[:] = np.asarray(scaled).reshape(out.shape)
    return result


def colour_jitter(rng: np.random.Generator, pictures: np.ndarray, strength: float) -> np.ndarray:
    """Brightness, then contrast (about the mean grey), then saturation, each by a factor of its own a picture."""
    factors = rng.uniform(1 - strength, 1 + strength, (3, len(pictures), 1, 1, 1)).astype(np.float32)
    x = pictures.astype(np.float32) * factors[0]
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = (x - mean) * factors[1] + mean
    if x.shape[3] == 3:
        grey = (x @ GREY)[..., None]
        x = (x - grey) * factors[2] + grey
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
