"""Deep features: what a pretrained trunk says of each image, as one vector."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, ModelError
from ...nn import Module, Tensor, compile, no_grad
from ...zoo import images
from .cache import FOLDER, HASH_BYTES, FeatureCache, describe
from .protocol import Parameters

BATCH = 32
CHUNK = 512  # rows that are written to the cache, and handed out by `stream`, at a time
AHEAD = 4  # batches that are decoded before the network asks for them


class FeatureExtractor(Parameters):
    """Images (paths, Pillow images or uint8 arrays) to deep features (images, values) by a zoo model's trunk.

    A scikit-learn transformer, without needing scikit-learn: `fit` learns nothing, `transform` extracts. Decoding runs in
    threads, ahead of the network, which is compiled to a static graph. A clone shares its model.
    layer: the layer to read, named as in `model.layers()`; None for the trunk's output. pooling: "avg" or "max" over
    positions. cache: a folder to keep features in (see cache.py), True for one beside the images, None for none.
    progress: a bar on the terminal. Raises ModelError for a model without `features` or such a layer, ConfigError for options.
    """

    def __init__(self, model: Module, layer: str | None = None, pooling: str = "avg", batch_size: int = BATCH,
                 cache: str | Path | bool | None = None, progress: bool = False):  # fmt: skip
        self.model, self.layer, self.pooling, self.batch_size = model, layer, pooling, batch_size
        self.cache, self.progress = cache, progress
        self._compiled: dict[tuple, Callable] = {}
        self._check()

    def _check(self) -> None:
        if not hasattr(self.model, "features") or not hasattr(self.model, "normalise"):
            raise ModelError(f"{type(self.model).__name__} has no deep features; expected an image model of the zoo")
        if self.layer is not None:
            self.model._layer(self.layer)
        if self.pooling not in ("avg", "max"):
            raise ConfigError(f"pooling={self.pooling!r}; expected 'avg' or 'max', which make one vector an image")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size!r}; expected a whole number of images, at least 1")

    # What scikit-learn asks of a transformer

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self):
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer", target_tags=TargetTags(required=False), transformer_tags=TransformerTags(),
            input_tags=InputTags(two_d_array=False, string=True), requires_fit=False,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"FeatureExtractor({type(self.model).__name__}, layer={self.layer!r}, pooling={self.pooling!r})"

    def fit(self, pictures: Any = None, labels: Any = None) -> FeatureExtractor:
        """Nothing is learned."""
        return self

    def fit_transform(self, pictures: Any, labels: Any = None) -> np.ndarray:
        """The same as `transform`."""
        return self.transform(pictures)

    def transform(self, pictures: Any) -> np.ndarray:
        """float32 features, one row an image, in the order given.

        pictures: a sequence of images, or a folder, whose images are taken in sorted order. Raises DataError for none, or an
        unreadable one; with a cache, what was computed before it is kept.
        """
        pictures = as_pictures(pictures)
        out, done = None, 0
        for block in self._blocks(pictures):
            if out is None:
                out = np.empty((len(pictures), block.shape[1]), np.float32)
            out[done : done + len(block)] = block
            done += len(block)
        assert out is not None  # there is at least one picture
        return out

    def stream(self, pictures: Any) -> Iterator[np.ndarray]:
        """The rows of `transform` in blocks, in order: memory does not grow with the number of images."""
        return self._blocks(as_pictures(pictures))

    # Computing

    def _blocks(self, pictures: Sequence[Any]) -> Iterator[np.ndarray]:
        self._check()
        if not self.cache:
            with _bar(self.progress, len(pictures)) as advance:
                for _, rows in self._computed(pictures, range(len(pictures)), advance):
                    yield rows
            return
        store = FeatureCache(cache_folder(self.cache, pictures), describe(self.model, self.layer, self.pooling))
        keys = self._hashes(pictures)
        _, first = np.unique(keys, return_index=True)
        first.sort()
        missing = first[store.rows(keys[first]) < 0]
        with _bar(self.progress, len(missing)) as advance:
            self._fill(store, keys, pictures, missing, advance)
        for start in range(0, len(keys), CHUNK):
            yield store.read(store.rows(keys[start : start + CHUNK]))

    def _fill(self, store: FeatureCache, keys: np.ndarray, pictures: Sequence[Any], missing: np.ndarray, advance) -> None:
        """Compute what is missing and append it in chunks; of work that is broken off, what is done is kept."""
        waiting: list[tuple[np.ndarray, np.ndarray]] = []

        def write() -> None:
            if waiting:
                store.append(np.concatenate([k for k, _ in waiting]), np.concatenate([f for _, f in waiting]))
                waiting.clear()

        try:
            for places, rows in self._computed(pictures, missing, advance, keys):
                if not np.isfinite(rows).all():
                    raise DataError("the deep features are not finite; are the network's weights damaged?")
                waiting.append((keys[places], rows))
                if sum(len(f) for _, f in waiting) >= CHUNK:
                    write()
        finally:
            write()

    def _computed(self, pictures: Sequence[Any], places: Any, advance: Callable[[int], None],
                  keys: np.ndarray | None = None) -> Iterator[tuple[Any, np.ndarray]]:  # fmt: skip
        """(places, features) a batch; images are decoded in threads while the network works."""
        height, width, channels = self.model.input_shape
        network = self._network()

        def decode(chosen) -> np.ndarray:
            size = (height, width)
            return np.stack([_pixels(pictures[i], size, channels, None if keys is None else keys[i]) for i in chosen])

        batches = [places[i : i + self.batch_size] for i in range(0, len(places), self.batch_size)]
        self.model.eval()
        for chosen, pixels in _ahead(decode, batches):
            count = len(pixels)
            if count < self.batch_size < len(places):  # a graph for the last few alone would cost more than it saves
                pixels = np.concatenate([pixels, np.zeros((self.batch_size - count, *pixels.shape[1:]), pixels.dtype)])
            with no_grad():
                rows = network(self.model.normalise(pixels)).numpy()[:count]
            advance(count)
            yield chosen, rows.reshape(count, -1).astype(np.float32, copy=False)

    def _network(self) -> Callable[[Tensor], Tensor]:
        """The compiled way from normalised input to features; kept, and shared with clones."""
        model, layer, pooling = self.model, self.layer, self.pooling
        key = (id(model), layer, pooling)  # the function holds the model, so the number is not given to another one
        if key not in self._compiled:

            def read(x: Tensor) -> Tensor:
                return model.features(x, pooling) if layer is None else model.features(x, pooling, [layer])[layer]

            self._compiled[key] = compile(read)
        return self._compiled[key]

    def _hashes(self, pictures: Sequence[Any]) -> np.ndarray:
        """SHA-256 of each image's content (n,), read in threads."""
        channels = self.model.input_shape[2]
        keys = np.empty(len(pictures), f"S{HASH_BYTES}")
        parts = [range(i, min(i + 64, len(pictures))) for i in range(0, len(pictures), 64)]
        for part, found in _ahead(lambda part: [_hash(pictures[i], channels)[0] for i in part], parts):
            keys[part.start : part.stop] = found
        return keys


def as_pictures(pictures: Any) -> Sequence[Any]:
    """A sequence of images from one that may also be a folder, a single path or an iterable. Raises DataError for none."""
    if isinstance(pictures, (str, Path)):
        pictures = images.list_images(pictures) if Path(pictures).is_dir() else [pictures]
    elif not isinstance(pictures, (Sequence, np.ndarray)):
        if not isinstance(pictures, Iterable):
            raise DataError(f"pictures of type {type(pictures).__name__}; expected a list of paths, images or arrays")
        pictures = list(pictures)
    if len(pictures) == 0:
        raise DataError("no images given; deep features need at least one")
    return pictures


def cache_folder(cache: str | Path | bool, pictures: Sequence[Any]) -> Path:
    """The folder named, or for True one beside the images: in the deepest folder that holds them all."""
    if not isinstance(cache, bool):
        return Path(cache)
    if not all(isinstance(p, (str, Path)) for p in pictures):
        raise ConfigError("cache=True keeps features beside image files, but images in memory were given; name a folder")
    return Path(os.path.commonpath([Path(p).absolute().parent for p in pictures])) / FOLDER


def _hash(picture: Any, channels: int) -> tuple[bytes, bytes | None]:
    """SHA-256 of a file's bytes, and these; of an image in memory, that of its upright pixels."""
    if isinstance(picture, (str, Path)):
        try:
            data = Path(picture).read_bytes()
        except OSError as error:
            raise DataError(f"{picture} cannot be read ({error.strerror or error}); is the path right?") from error
        return hashlib.sha256(data).digest(), data
    pixels = images.to_array(picture, None, channels)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest(), None


def _pixels(picture: Any, size: tuple[int, int], channels: int, key: bytes | None) -> np.ndarray:
    """An image at the network's size; with `key`, from the very bytes that have this hash."""
    if key is None:
        return images.to_array(picture, size, channels)
    digest, data = _hash(picture, channels)
    if digest.rstrip(b"\0") != key.rstrip(b"\0"):  # NumPy drops zeros at the end of what it keeps as bytes
        raise DataError(f"{picture} changed while it was read; try again when nothing writes to it")
    if data is None:
        return images.to_array(picture, size, channels)
    return images.to_array(io.BytesIO(data), size, channels, picture)


def _ahead(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) in order, computed in threads a few items ahead of whoever asks."""
    rest, waiting = iter(items), deque[tuple[Any, Future]]()
    pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 1))
    try:
        for item in rest:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= AHEAD:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of images done: it moves a rich progress bar, or does nothing."""
    if not shown:
        yield lambda count: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("Reading deep features", total=total)
        yield lambda count: progress.advance(task, count)


def short_name(path: str | Path) -> str:
    """The last two parts of a path, for tables."""
    return "/".join(Path(path).parts[-2:])
