"""Deep features kept on disk: HDF5 files of a few hundred rows each, found by what was computed of which image.

A cache is a folder. In it every set of weights, preprocessing, layer and pooling has a folder of its own, named by the hash
of all that, and there each block of rows is one file that appears whole or not at all: whatever interrupts the work, what was
written stays. Rows are looked up by the hash of the image's content, so a file may move, and one that changed is new.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from ...nn import Module
from ...nn.files import atomic_path

FORMAT = 1
HASH_BYTES = 32  # SHA-256
FOLDER = ".graftwork-features"  # beside the images; hidden, so that no listing of images or classes takes it for one


class CacheWarning(UserWarning):
    """Cached features that are damaged or of another network, and are computed again."""


class Block(NamedTuple):
    """Where the rows of one file lie: they are read by mapping this part of it into memory."""

    path: Path
    offset: int
    shape: tuple[int, int]


def describe(model: Module, layer: str | None, pooling: str) -> dict[str, Any]:
    """All that the features of an image depend on, apart from the image; weights by their hash."""
    weights = hashlib.sha256()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        array = np.ascontiguousarray(value.numpy())
        weights.update(f"{name} {array.dtype} {array.shape} ".encode())
        weights.update(array.tobytes())
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}", "weights": weights.hexdigest(),
        "preprocessing": getattr(model, "preprocessing", None), "input_shape": [int(n) for n in model.input_shape],
        "layer": layer, "pooling": pooling, "format": FORMAT,
    }  # fmt: skip


class FeatureCache:
    """The rows of one description in a cache folder. Raises DataError for a folder that cannot be written."""

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        self.about = json.dumps(about, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(self.about.encode()).hexdigest()[:24]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot keep features in {folder}: {error.strerror or error}; name a folder that can be written (cache=...)"
            ) from error
        self._blocks: list[Block] = []
        self._keys: list[np.ndarray] = []  # of each block
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # all keys in order, and the rows they belong to
        for path in sorted(self.folder.glob("[!.]*.h5")):
            self._open(path)

    def _open(self, path: Path) -> None:
        """Take a block's file in; one that is damaged or not of this network is removed, with a warning."""
        try:
            block, keys = read_block(path, self.about)
        except DataError as error:
            warnings.warn(f"{error}; its features are computed again", CacheWarning, stacklevel=6)
            path.unlink(missing_ok=True)
            return
        self._blocks.append(block)
        self._keys.append(keys)
        self._sorted = None

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers (n,) of image hashes, -1 for those that are not here."""
        if not self._keys:
            return np.full(len(keys), -1)
        if self._sorted is None:
            every = np.concatenate(self._keys)
            order = np.argsort(every, kind="stable")
            self._sorted = every[order], order
        ordered, order = self._sorted
        places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
        return np.where(ordered[places] == keys, order[places], -1)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 features (n, values) of row numbers, copied out of the mapped files."""
        starts = np.cumsum([0, *map(len, self._keys)])
        owners = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty((len(rows), self._blocks[owners[0]].shape[1]), np.float32)
        for number in np.unique(owners):
            block, mine = self._blocks[number], owners == number
            mapped = np.memmap(block.path, "<f4", "r", block.offset, block.shape)
            out[mine] = mapped[rows[mine] - starts[number]]
        return out

    def append(self, keys: np.ndarray, features: np.ndarray) -> None:
        """Write rows as a block of their own. keys: (n,) image hashes; features: (n, values)."""
        import h5py

        path = self.folder / f"{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}.h5"
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["graftwork_features"], file.attrs["about"] = FORMAT, self.about
            file["keys"] = keys.view(np.uint8).reshape(len(keys), HASH_BYTES)
            file["features"] = features.astype("<f4", copy=False)
        self._open(path)


def read_block(path: Path, about: str) -> tuple[Block, np.ndarray]:
    """Where a block's features lie, and its image hashes (n,). Raises DataError for a damaged or foreign file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("about") != about:
                raise DataError(f"{path} holds features of another network, layer or version")
            if any(not isinstance(file.get(name, getlink=True), h5py.HardLink) for name in ("keys", "features")):
                raise DataError(f"{path} is damaged: its parts are missing or linked from elsewhere")
            keys, features = file["keys"], file["features"]
            offset, (rows, width) = features.id.get_offset(), features.shape
            sound = (
                offset is not None and features.dtype == np.dtype("<f4") and not features.external and not features.is_virtual
                and keys.shape == (rows, HASH_BYTES) and keys.dtype == np.uint8
                and offset + 4 * rows * width <= path.stat().st_size
            )  # fmt: skip
            if not sound:
                raise DataError(f"{path} is damaged: its features are incomplete")
            hashes = np.ascontiguousarray(keys[()]).view(f"S{HASH_BYTES}")[:, 0]
            return Block(path, offset, (rows, width)), hashes
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({error})") from error
