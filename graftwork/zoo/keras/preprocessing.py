"""Preprocessing layers; augmentations are the identity, as they are in Keras's inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...nn import Module, Tensor, tensor
from ...nn import functional as F
from .activations import pointwise
from .config import Built, Function, LayerConfig, Shape, known, one, one_input, same_mask, spatial, variables
from .table import layer


def _floats(x: Tensor) -> Tensor:
    return x if x.dtype.kind == "f" else x.astype("float32")


def _constant(value: np.ndarray, like: Tensor) -> Tensor:
    return tensor(value.astype(like.dtype), device=like.device)


def _numbers(c: LayerConfig, key: str, value: Any, count: int | None = None) -> np.ndarray:
    """A flat list of numbers from a number or nested lists of them."""
    if isinstance(value, dict):
        value = value.get("value")
    flat: list[Any] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += reversed(item)
        else:
            flat.append(LayerConfig(c.kind, c.name, {key: item}, c.keras).number(key))
    if not flat or (count is not None and len(flat) not in (1, count)):
        raise c.error(f"{key} has {len(flat)} values, expected one or {count}")
    return np.array(flat)


@layer("Rescaling")
def rescaling(c: LayerConfig, shapes: list[Shape]) -> Built:
    """scale * x + offset; both are a number or one for each channel."""
    shape = one_input(c, shapes)
    scale = _numbers(c, "scale", c.get("scale"), shape[-1])
    offset = _numbers(c, "offset", c.get("offset", 0.0), shape[-1])

    def rescale(x: Tensor) -> Tensor:
        x = _floats(x)
        return x * _constant(scale, x) + _constant(offset, x)

    return pointwise(rescale, f"* {scale} + {offset}", shape)


class Normalization(Module):
    """(x - mean) / sqrt(variance), with statistics that were collected from data (buffers), in the given shape."""

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...], invert: bool, count: bool):
        super().__init__()
        self.shape, self.invert = shape, invert
        self.register_buffer("mean", Tensor(np.zeros(sizes, np.float32)))
        self.register_buffer("variance", Tensor(np.ones(sizes, np.float32)))
        if count:
            self.register_buffer("count", Tensor(np.zeros((), np.int64)))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = (self._buffers[n].reshape(self.shape) for n in ("mean", "variance"))
        return _normalise(_floats(x), mean, variance, self.invert)


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, invert: bool) -> Tensor:
    deviation = F.maximum(F.sqrt(variance), _constant(np.asarray(1e-7), x))
    return mean + x * deviation if invert else (x - mean) / deviation


@layer("Normalization")
def normalization(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    axes = [] if c.values.get("axis", -1) in (None, []) else c.axes("axis", -1, len(shape))
    sizes = tuple(known(c, shape[a], "sizes that are normalised") for a in axes)
    broadcast = tuple(n if i in axes else 1 for i, n in enumerate(shape))
    invert = c.flag("invert", False)
    if c.get("mean", None) is None:
        names = ("mean", "variance", "count")
        weights = variables(("mean", sizes), ("variance", sizes), ("count", ()), frozen=names)
        return one(lambda: Normalization(sizes, broadcast, invert, True), shape, weights, masks=same_mask)  # type: ignore[arg-type]
    count = int(np.prod(sizes)) if sizes else 1
    mean, variance = (_numbers(c, k, c.get(k), count) for k in ("mean", "variance"))
    if count != 1:
        mean, variance = (np.broadcast_to(v, (count,)).reshape([n or 1 for n in broadcast]) for v in (mean, variance))
    if (variance < 0).any():
        raise c.error("variance has negative values")

    def forward(x: Tensor) -> Tensor:
        x = _floats(x)
        return _normalise(x, _constant(mean, x), _constant(variance, x), invert)

    return pointwise(forward, "normalise", shape)


@layer("Resizing")
def resizing(c: LayerConfig, shapes: list[Shape]) -> Built:
    _, channels = spatial(c, shapes, 2)
    height, width = c.integer("height"), c.integer("width")
    method = c.choice("interpolation", "bilinear", ("bilinear", "nearest"))
    crop = c.flag("crop_to_aspect_ratio", False)
    if c.flag("pad_to_aspect_ratio", False) or c.flag("antialias", False):
        raise c.error("pad_to_aspect_ratio and antialias are not supported")

    def forward(x: Tensor) -> Tensor:
        x = _floats(x)
        return F.resize(_to_ratio(x, height, width) if crop else x, (height, width), method)

    return one(lambda: Function(forward, f"to {height}x{width}, {method}"), (shapes[0][0], height, width, channels))


def _to_ratio(x: Tensor, height: int, width: int) -> Tensor:
    """The largest centred part of the images that has the target's ratio of sides, rounded as Keras does."""
    tall, wide = x.shape[1:3]
    h = max(min(tall, int(wide * height / width)), 1)
    w = max(min(wide, int(tall * width / height)), 1)
    top, left = (tall - h) // 2, (wide - w) // 2
    return x[:, top : top + h, left : left + w]


@layer("CenterCrop")
def center_crop(c: LayerConfig, shapes: list[Shape]) -> Built:
    """The middle of images that are large enough; others are cropped to the ratio of sides and resized."""
    _, channels = spatial(c, shapes, 2)
    height, width = c.integer("height"), c.integer("width")

    def forward(x: Tensor) -> Tensor:
        x = _floats(x)
        top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
        if top >= 0 and left >= 0:
            return x[:, top : top + height, left : left + width]
        return F.resize(_to_ratio(x, height, width), (height, width), "bilinear")

    return one(lambda: Function(forward, f"centre {height}x{width}"), (shapes[0][0], height, width, channels))


@layer("CategoryEncoding")
def category_encoding(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    depth = c.integer("num_tokens" if "num_tokens" in c.values else "max_tokens")
    mode = c.choice("output_mode", "multi_hot", ("multi_hot", "one_hot", "count", "binary"))
    if c.flag("sparse", False):
        raise c.error("sparse outputs are not supported")
    if mode == "one_hot":
        last = shape[-1] == 1 and len(shape) > 1
        output = (*(shape[:-1] if last else shape), depth)
    else:
        output = (*shape[:-1], depth) if len(shape) > 1 else (shape[0], depth)

    def forward(x: Tensor) -> Tensor:
        index = x if x.dtype.kind in "iu" else x.astype("int64")
        if mode == "one_hot":
            return F.one_hot(F.squeeze(index, -1) if last else index, depth)
        found = F.one_hot(index if index.ndim > 1 else F.expand_dims(index, -1), depth)
        return F.sum(found, -2) if mode == "count" else F.max(found, -2)

    return one(lambda: Function(forward, f"{mode} of {depth}"), output)


@layer(
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomContrast", "RandomBrightness", "RandomTranslation", "RandomWidth",
    "RandomHeight", "RandomShear", "RandomSharpness", "RandomSaturation", "RandomHue", "RandomGrayscale", "RandomErasing",
    "RandomGaussianBlur", "RandomInvert", "RandomPosterization", "RandomColorJitter", "RandomColorDegeneration",
    "RandomPerspective", "RandomElasticTransform", "RandAugment", "AugMix",
)  # fmt: skip
def augmentation(c: LayerConfig, shapes: list[Shape]) -> Built:
    return pointwise(_floats, "identity (an augmentation)", one_input(c, shapes))


