"""Weights in HDF5 files, in the layout that Keras has written since its first version.

A file holds the attribute `layer_names`; each layer is a group with the attribute `weight_names`, and a tensor is at group
plus weight name. Whole models keep the same below the group `model_weights`, and their configuration as JSON in the
attribute `model_config`. Attributes that do not fit into one object header are split into `name0`, `name1`, ...

A file is data from a stranger: names come from the attributes only, links lead nowhere but to objects of the same file,
sizes are checked before memory is taken, and whatever is wrong with it is a WeightsError.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GraftworkError, ModelError, WeightsError
from ..nn.files import atomic_path

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ATTRIBUTE_LIMIT = 64512  # bytes: an HDF5 object header holds 64 KiB, Keras leaves 1 KiB for what goes with the values
ATTRIBUTE_CEILING = 1 << 26  # no honest file has more in one attribute
HEAP_SIGNATURE, HEAP_HEADER = b"GCOL\x01", 16  # a global heap and its entries both begin with 16 bytes of header
HEAP_CEILING = 1_000_000  # entries; a weights file has some dozens
BOMB_BYTES, BOMB_RATIO = 4 << 30, 1000
LAYOUT_VERSION = "2.15.0"  # the Keras whose layout this is; older numbers make Keras convert what it reads
Layers = dict[str, list[tuple[str, np.ndarray]]]

# What h5py and the HDF5 library raise on damaged files.
DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, AttributeError)


# -- opening ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_weights(path: str | Path) -> Iterator[Any]:
    """An HDF5 file open for reading. Whatever the file makes go wrong inside the block becomes a WeightsError."""
    path = Path(path)
    size = _check_file(path)
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except GraftworkError:
        raise
    except DAMAGE as error:
        reason = str(error).strip("'\" ") or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read ({size:,} bytes; {reason}); it is damaged or truncated: copy or download it again"
        ) from error


def _check_file(path: Path) -> int:
    """The size of a file that begins like HDF5, or WeightsError that says what it is instead."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, expected an HDF5 file; name the file in it")
    if not path.exists():
        raise WeightsError(f"no weights file at {path}; check the path")
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file, expected an HDF5 file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(SIGNATURE))
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error.strerror or error}") from error
    if size == 0:
        raise WeightsError(f"{path} is empty; copy or download it again")
    if start.startswith(b"PK"):
        raise WeightsError(f"{path} is a zip archive (a .keras file?), expected HDF5; save the model as .h5")
    if start.startswith(b"version "):
        raise WeightsError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if start != SIGNATURE and _has_user_block(path, size):
        raise WeightsError(f"{path} starts with a user block, which no weights file has; save the weights again")
    if start != SIGNATURE:
        raise WeightsError(f"{path} is not an HDF5 file ({size:,} bytes, starting with {start!r})")
    return size


def _has_user_block(path: Path, size: int) -> bool:
    """Whether HDF5's signature stands where it may after foreign bytes: at 512, 1024, 2048, ..."""
    offset = 512
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset *= 2
    return False


def _check_heaps(file: Any) -> None:
    """Walk the global heaps, which hold strings of variable length, before the library does.

    It steps from entry to entry by the sizes that stand there, and an entry of size 0 keeps it busy for ever. Heaps are
    looked for by their signature wherever it stands, since a file can point anywhere.
    """
    damaged = WeightsError(f"{file.filename} cannot be read (its heap of strings is inconsistent); it is damaged")
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise damaged
    steps = 0
    with open(file.filename, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(HEAP_SIGNATURE)
        while at >= 0:
            if at + HEAP_HEADER > len(data):
                raise damaged
            end, position = at + int.from_bytes(data[at + 8 : at + 16], "little"), at + HEAP_HEADER
            if end > len(data):
                raise damaged
            while end - position >= HEAP_HEADER:
                used = any(data[position : position + 2])  # entry 0 is the free space, and counts its own header
                size = int.from_bytes(data[position + 8 : position + 16], "little")
                step = HEAP_HEADER + -(-size // 8) * 8 if used else size
                steps += 1
                if step < HEAP_HEADER or step > end - position or steps > HEAP_CEILING:
                    raise damaged
                position += step
            at = data.find(HEAP_SIGNATURE, at + 1)


# -- objects and attributes --------------------------------------------------------------------------------------------


def follow(group: Any, name: str) -> Any:
    """The object at a name with slashes, by hard links only: soft, external and user-defined links are refused."""
    import h5py

    file = group.file.filename
    found = group
    for part in filter(None, name.split("/")):
        key = part.encode()
        if part == "." or not isinstance(found, h5py.Group) or not found.id.links.exists(key):
            raise WeightsError(f"{file}: {group.name} names {name!r}, but there is no such object; the file is damaged")
        if found.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise WeightsError(f"{file}: {name!r} is a soft or external link; refused, save the weights as plain datasets")
        found = found[part]
    return found


def _has(group: Any, name: str) -> bool:
    return bool(group.id.links.exists(name.encode()))


def _attribute(group: Any, name: str) -> Any:
    """An attribute's value, once its declared size is known to be sensible."""
    declared = group.attrs.get_id(name)
    if math.prod(declared.shape) * declared.dtype.itemsize > ATTRIBUTE_CEILING:
        raise WeightsError(f"{group.file.filename}: attribute {name!r} of {group.name} claims an absurd size; refused")
    if declared.dtype.kind == "O":
        _check_heaps(group.file)
    return group.attrs[name]


def _text(value: Any, where: str) -> str:
    """A string that can be encoded, from the str or bytes that an attribute holds."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
            return str(value)
    except UnicodeError:
        pass
    raise WeightsError(f"{where} holds {value!r:.60}, expected text in UTF-8; the file is damaged")


def _names(group: Any, name: str) -> list[str]:
    """A list of strings kept in one attribute, or split over `name0`, `name1`, ..."""
    where = f"{group.file.filename}: attribute {name!r} of {group.name}"
    if name in group.attrs:
        parts = [_attribute(group, name)]
    else:
        parts = []
        while f"{name}{len(parts)}" in group.attrs:
            parts.append(_attribute(group, f"{name}{len(parts)}"))
        if not parts:
            raise WeightsError(f"{where} is missing; expected weights in Keras's HDF5 layout")
    return [_text(value, where) for part in parts for value in np.ravel(np.asarray(part)).tolist()]


def _optional_text(group: Any, name: str) -> str | None:
    if name not in group.attrs:
        return None
    return _text(_attribute(group, name), f"{group.file.filename}: attribute {name!r}")


# -- reading -----------------------------------------------------------------------------------------------------------


def _weights_root(file: Any) -> Any:
    """The group with the layers: the file itself, or `model_weights` of a whole model. Content decides, not the suffix."""
    for root in (file, follow(file, "model_weights") if _has(file, "model_weights") else None):
        if root is not None and ("layer_names" in root.attrs or "layer_names0" in root.attrs):
            return root
    if _has(file, "_layer_checkpoint_dependencies") or _has(file, "layers"):
        raise WeightsError(f"{file.filename} has the layout of Keras 3's .weights.h5; save the weights as a legacy .h5 file")
    raise WeightsError(f"{file.filename} is HDF5 but holds no Keras weights: there is no attribute 'layer_names'")


def _dataset(group: Any, name: str) -> Any:
    """The dataset at a name, if it is one that only holds plain numbers of its own."""
    import h5py

    data = follow(group, name)
    where = f"{group.file.filename}: {name!r}"
    if not isinstance(data, h5py.Dataset):
        raise WeightsError(f"{where} is not a dataset; the file is damaged")
    if data.external or data.is_virtual:
        raise WeightsError(f"{where} takes its values from other files; refused, save the weights as plain datasets")
    if data.shape is None or data.dtype.kind not in "fiub":
        raise WeightsError(f"{where} holds {data.dtype}, expected an array of numbers")
    return data


def _check_sizes(file: Any, datasets: Sequence[Any], stored_in_file: int) -> None:
    """Refuse shape bombs: gigabytes declared, next to nothing stored, in one tensor or in all together."""
    total = 0
    for data in datasets:
        declared, stored = math.prod(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
        total += declared
        if declared > BOMB_BYTES and declared > BOMB_RATIO * stored:
            raise WeightsError(
                f"{file.filename}: {data.name!r} declares {data.shape}, {declared:,} bytes, and stores {stored:,}; refused"
            )
    if total > BOMB_BYTES and total > BOMB_RATIO * stored_in_file:
        raise WeightsError(f"{file.filename} declares {total:,} bytes of tensors and has {stored_in_file:,}; refused")


def _values(data: Any) -> np.ndarray:
    array = np.asarray(data[()])
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_layers(path: str | Path) -> Layers:
    """All tensors by layer, in the file's order: {layer name: [(weight name, array), ...]}.

    Layers without weights keep an empty list. Whole-model files are read as well as weights files. Raises WeightsError
    for anything but a sound file in Keras's legacy layout.
    """
    with open_weights(path) as file:
        root = _weights_root(file)
        found: dict[str, list[tuple[str, Any]]] = {}
        for layer in _names(root, "layer_names"):
            if layer in found:
                raise WeightsError(f"{path}: two layers are named {layer!r}; the file is damaged")
            group = follow(root, layer)
            found[layer] = [(name, _dataset(group, name)) for name in _names(group, "weight_names")]
        _check_sizes(file, [data for entries in found.values() for _, data in entries], Path(path).stat().st_size)
        return {layer: [(name, _values(data)) for name, data in entries] for layer, entries in found.items()}


def read_origin(path: str | Path) -> tuple[str | None, str | None]:
    """(backend, Keras version) that a file says it was written by; Keras 1 wrote neither."""
    with open_weights(path) as file:
        groups = [file, *([follow(file, "model_weights")] if _has(file, "model_weights") else [])]
        backend, version = (
            next(filter(None, (_optional_text(g, name) for g in groups)), None) for name in ("backend", "keras_version")
        )
        return backend, version


def read_model_config(path: str | Path) -> dict[str, Any] | None:
    """The configuration in a whole-model file, or None in a file of weights only. Raises ModelError if it is not JSON."""
    with open_weights(path) as file:
        text = _optional_text(file, "model_config")
    return None if text is None else parse_config(text, path)


def parse_config(text: str | bytes, path: str | Path) -> dict[str, Any]:
    """A model configuration from JSON; nothing in it is ever run. Raises ModelError naming the file."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the model configuration is not sound JSON ({error}); save the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: the model configuration is a {type(config).__name__}, expected a JSON object")
    return config


# -- writing -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_h5(path: str | Path) -> Iterator[Any]:
    """An HDF5 file open for writing that appears at `path` whole, when the block ends, or not at all."""
    import h5py

    with atomic_path(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                yield file
        except GraftworkError:
            raise
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} could not be written: {error}; is the disk full?") from error


def _write_names(group: Any, name: str, values: Sequence[str]) -> None:
    """A list of strings as Keras writes it: fixed-size bytes, in as many attributes as the header's limit asks for."""
    encoded = [v.encode("utf-8") for v in values]
    too_long = [v for v in encoded if len(v) > ATTRIBUTE_LIMIT or b"\0" in v]
    if too_long:
        raise WeightsError(f"cannot write the name {too_long[0]!r:.60}: it has a NUL byte or is over {ATTRIBUTE_LIMIT} bytes")
    array = np.array(encoded) if encoded else np.zeros(0)  # an empty list is float64 in Keras's files, too
    if array.nbytes <= ATTRIBUTE_LIMIT:
        group.attrs[name] = array
        return
    per_part = ATTRIBUTE_LIMIT // array.itemsize
    for i, start in enumerate(range(0, len(array), per_part)):
        group.attrs[f"{name}{i}"] = array[start : start + per_part]


def write_layers(path: str | Path, layers: Mapping[str, Sequence[tuple[str, np.ndarray]]],
                 attributes: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Write a weights file that Keras reads back; it appears whole or not at all.

    layers: as `read_layers` returns them. attributes: more root attributes, such as a model's name or its classes.
    Raises WeightsError for names or values that HDF5 cannot hold, DataError for a folder that cannot be written to.
    """
    with atomic_h5(path) as file:
        _write_names(file, "layer_names", list(layers))
        for name, value in {"backend": "tensorflow", "keras_version": LAYOUT_VERSION, **(attributes or {})}.items():
            file.attrs[name] = value.encode("utf-8") if isinstance(value, str) else value
        for layer, entries in layers.items():
            try:
                group = file.require_group(layer)
                _write_names(group, "weight_names", [name for name, _ in entries])
                for name, value in entries:
                    group.create_dataset(name, data=np.ascontiguousarray(value).reshape(np.shape(value)))
            except (ValueError, TypeError) as error:
                if isinstance(error, GraftworkError):
                    raise
                raise WeightsError(f"{path}: layer {layer!r} cannot be written ({error}); nothing was saved") from error
