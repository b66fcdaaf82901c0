"""Images in: decoding, colour modes, orientation and size, by Pillow; and the value ranges that networks were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ShapeError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
IMAGENET_BGR_MEAN = np.array([103.939, 116.779, 123.68], np.float32)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def open_image(source: Any, channels: int = 3, name: str | Path | None = None):
    """A Pillow image in RGB (or grey for one channel) from a path, an open file, a Pillow image or a uint8 array.

    Turned upright by its EXIF orientation; transparency is laid on white; of an animation, the first frame. name: what errors
    call it, by default its path or its type. Raises DataError naming the file for anything that is not a readable image, is
    truncated, or is suspiciously large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = name or (source if isinstance(source, (str, Path)) else type(source).__name__)
    try:
        if isinstance(source, (str, Path)) or hasattr(source, "read"):
            with Image.open(source) as opened:
                opened.load()
                image = opened.copy() if getattr(opened, "n_frames", 1) > 1 else opened
        else:
            image = source if isinstance(source, Image.Image) else Image.fromarray(_pixels(source))
        return _to_mode(ImageOps.exif_transpose(image), "RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise DataError(f"no image at {name}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} cannot be read as an image ({reason}); is it damaged, truncated or something else?") from error


def _pixels(array: Any) -> np.ndarray:
    """A uint8 array (height, width), (height, width, 1), (..., 3) or (..., 4) as Pillow takes it."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(
            f"an image array of {array.dtype}{array.shape}; expected uint8 of (height, width), or (height, width, 1, 3 or 4)"
        )
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _to_mode(image, mode: str):
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode.startswith("I"):  # 16- and 32-bit grey would be clipped, not scaled
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(
            (values * (255.0 / max(values.max(), 65535.0 if values.max() > 255 else 255.0))).astype(np.uint8)
        )
    return image.convert(mode)


def to_array(source: Any, size: tuple[int, int] | None, channels: int = 3, name: str | Path | None = None) -> np.ndarray:
    """One image as uint8 (height, width, channels), stretched to `size` (height, width) bilinearly unless None."""
    from PIL import Image

    image = open_image(source, channels, name)
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def to_batch(images: Any, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Images as uint8 (batch, height, width, channels). One image or many: paths, Pillow images, uint8 arrays."""
    if isinstance(images, (str, Path)) or hasattr(images, "convert") or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    if not isinstance(images, (Sequence, np.ndarray)):
        images = list(images)
    if len(images) == 0:
        raise ShapeError("no images given, expected at least one")
    return np.stack([to_array(image, size, channels) for image in images])


def normalise(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Pixels (0 to 255) as float32 in the range a network was trained on.

    mode: "caffe" RGB to BGR minus the ImageNet mean; "tf" -1 to 1; "torch" ImageNet mean 0 and deviation 1;
    "unit" 0 to 1; "raw" 0 to 255. One channel takes the mean of what the colours take.
    """
    x = pixels.astype(np.float32)
    if x.shape[-1] == 1 and mode in ("caffe", "torch"):
        if mode == "caffe":
            return x - IMAGENET_BGR_MEAN.mean()
        return (x / np.float32(255) - IMAGENET_MEAN.mean()) / IMAGENET_DEVIATION.mean()
    if mode == "caffe":
        return x[..., ::-1] - IMAGENET_BGR_MEAN
    if mode == "tf":
        return x / np.float32(127.5) - 1
    if mode == "torch":
        return (x / np.float32(255) - IMAGENET_MEAN) / IMAGENET_DEVIATION
    if mode == "unit":
        return x / np.float32(255)
    if mode == "raw":
        return x
    raise ShapeError(f"unknown preprocessing {mode!r}; expected caffe, tf, torch, unit or raw")


def list_images(folder: str | Path) -> list[Path]:
    """All image files below a folder in sorted order; hidden files and links to folders are passed over."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one that holds images")
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise DataError(f"no images below {folder}; looked for {', '.join(sorted(EXTENSIONS))}")
    return found


def list_labelled(folder: str | Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """Images of a folder with one sub-folder a class: (paths, class numbers, class names in sorted order)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one with a sub-folder of images for each class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    by_class = {}
    for name in names:
        by_class[name] = sorted(
            p
            for p in (folder / name).rglob("*")
            if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()
        )
    empty = [name for name, paths in by_class.items() if not paths]
    if len(names) < 2 or len(empty) == len(names):
        raise DataError(f"{folder} has {len(names) - len(empty)} sub-folders with images; expected at least two, one a class")
    if empty:
        raise DataError(f"{folder}: no images in {', '.join(empty)}; add some or remove the folder")
    paths = [p for name in names for p in by_class[name]]
    labels = np.repeat(np.arange(len(names)), [len(by_class[name]) for name in names])
    return paths, labels, names
