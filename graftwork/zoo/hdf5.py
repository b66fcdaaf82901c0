"""Weights in HDF5 files, in the layouts that Keras has written since its first version.

Legacy: a file holds the attribute `layer_names`; each layer is a group with the attribute `weight_names`, and a tensor is
at group plus weight name. Whole models keep the same below the group `model_weights`, and their configuration as JSON in
the attribute `model_config`. Attributes that do not fit into one object header are split into `name0`, `name1`, ... Keras
3's `.weights.h5` is described in `weights_h5`. A packed file of ours has the attribute `graftwork_packed`. Content
decides which it is, never the suffix.

A file is data from a stranger: names come from the attributes only, links lead nowhere but to objects of the same file,
sizes are checked before memory is taken, and whatever is wrong with it is a WeightsError. The HDF5 library is not used here
(see `hdf5_format`); `writing` uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import ModelError, WeightsError
from ..nn import packing
from . import weights_h5
from .hdf5_foreign import rewritten
from .hdf5_format import SIGNATURE, Damaged, Dataset, Group, Reader, Unusual, check_sizes
from .weights_h5 import LayerSpec
from .writing import from_bfloat16

Source = str | Path | bytes  # a path, or a file's whole content
Result = TypeVar("Result")


class StoredArray:
    """An array that is still in its file: `shape` and `dtype` are known, `read` gets the values.

    dtype is what `read` gives: bfloat16 is widened to float32, byte order is the machine's. The file stays open as long as
    one of its arrays is held, and must not be changed meanwhile.
    """

    def __init__(self, data: Dataset):
        self._data = data
        self._wide = data.dtype.kind == "V"  # bfloat16
        self.shape, self.stored = data.shape, data.stored
        self.dtype = np.dtype(np.float32) if self._wide else np.dtype(data.dtype).newbyteorder("=")  # type: ignore[arg-type]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return self._data.nbytes // self._data.dtype.itemsize

    @property
    def packed(self) -> bool:
        """Whether values pass through filters, which may find them damaged."""
        return self._data.layout == "chunked"

    @property
    def stored_dtype(self) -> str:
        """Name of the type in the file, such as "bfloat16"."""
        return "bfloat16" if self._wide else self.dtype.name

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The values; into `out`, an array of this shape, which may have another dtype. Raises WeightsError if damaged."""
        try:
            if self._wide:
                values = self._data.read()
                return _into(from_bfloat16(values), out)
            if out is not None and out.dtype == self.dtype and out.flags.c_contiguous and out.flags.writeable:
                return self._data.read(out)
            return _into(self._data.read(), out)
        except (Damaged, OSError, MemoryError) as error:
            raise self._data.reader.damaged(error) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the values are still in their file; reading them makes a new array")
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)


def _into(values: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out


Layers = dict[str, list[tuple[str, np.ndarray]]]
LazyLayers = dict[str, list[tuple[str, StoredArray]]]  # of a packed file: `packing.Packed`, which is read alike
PACKED = "graftwork_packed"  # the attribute of a file whose tensors are packed together (`nn/packing.py`)


# -- opening ---------------------------------------------------------------------------------------------------------


def with_file(source: Source, action: Callable[[Group], Result]) -> Result:
    """`action` on the first group of an HDF5 file. Whatever the file makes go wrong becomes a WeightsError.

    Files that `hdf5_format` does not know are rewritten by a child process, and `action` begins anew on the copy.
    """
    name = "these bytes" if isinstance(source, bytes) else str(source)
    _check_source(source)
    try:
        return _act(Reader(source), action)
    except Unusual:
        with rewritten(source, name) as plain:
            # where open files cannot be removed, the copy is read as a whole
            reader = Reader(plain.read_bytes() if os.name == "nt" else plain, name)
            try:
                return _act(reader, action)
            except Unusual as error:
                raise reader.damaged(f"{error} is not supported") from error
    except OSError as error:
        raise WeightsError(f"{name} cannot be opened: {error.strerror or error}") from error


def _act(reader: Reader, action: Callable[[Group], Result]) -> Result:
    try:
        return action(reader.open())
    except (Damaged, RecursionError, MemoryError, struct.error) as error:
        raise reader.damaged(str(error) or type(error).__name__) from error


def _check_source(source: Source) -> None:
    """WeightsError that says what a source is, if it does not begin like HDF5."""
    if isinstance(source, bytes):
        _check_start("these bytes", source[: len(SIGNATURE)], len(source), source[512:520])
        return
    path = Path(source)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, expected an HDF5 file; name the file in it")
    if not path.exists():
        raise WeightsError(f"no weights file at {path}; check the path")
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file, expected an HDF5 file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(SIGNATURE))
            file.seek(512)
            _check_start(path, start, path.stat().st_size, file.read(len(SIGNATURE)))
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error.strerror or error}") from error


def _check_start(name: str | Path, start: bytes, size: int, behind: bytes) -> None:
    if size == 0:
        raise WeightsError(f"{name} is empty; copy or download it again")
    if start.startswith(b"PK"):
        raise WeightsError(f"{name} is a zip archive (a .keras file?), expected HDF5; read it with load_keras")
    if start.startswith(b"version "):
        raise WeightsError(f"{name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if start != SIGNATURE and behind == SIGNATURE:
        raise WeightsError(f"{name} starts with a user block, which no weights file has; save the weights again")
    if start != SIGNATURE:
        raise WeightsError(f"{name} is not an HDF5 file ({size:,} bytes, starting with {start!r})")


# -- objects and attributes --------------------------------------------------------------------------------------------


def _follow(group: Group, name: str) -> Group | Dataset:
    """The object at a name with slashes, by hard links only."""
    found: Group | Dataset | None = group
    for part in filter(None, name.split("/")):
        found = found.child(part) if isinstance(found, Group) else None
        if found is None:
            raise WeightsError(
                f"{group.reader.name}: {group.name} names {name!r}, but there is no such object; the file is damaged"
            )
    return found  # type: ignore[return-value]


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    raise WeightsError(f"{where} holds {value!r:.60}, expected text in UTF-8; the file is damaged")


def _names(group: Group, name: str) -> list[str]:
    """A list of strings kept in one attribute, or split over `name0`, `name1`, ..."""
    where = f"{group.reader.name}: attribute {name!r} of {group.name}"
    if name in group.attrs:
        parts = [group.attribute(name)]
    else:
        parts = []
        while f"{name}{len(parts)}" in group.attrs:
            parts.append(group.attribute(f"{name}{len(parts)}"))
        if not parts:
            raise WeightsError(f"{where} is missing; expected weights in Keras's HDF5 layout")
    return [_text(value, where) for part in parts for value in _each(part)]


def _each(part: Any) -> list[Any]:
    """The values of an attribute, which may be an array of numbers in a damaged file."""
    if isinstance(part, np.ndarray):
        return part.ravel().tolist()
    return part if isinstance(part, list) else [part]


def _optional_text(group: Group, name: str) -> str | None:
    if name not in group.attrs:
        return None
    return _text(group.attribute(name), f"{group.reader.name}: attribute {name!r}")


# -- reading -----------------------------------------------------------------------------------------------------------


def _legacy_root(file: Group) -> Group | None:
    """The group with the layers: the file itself, or `model_weights` of a whole model; None if there are no such layers."""
    for root in (file, file.child("model_weights") if "model_weights" in file.links else None):
        if isinstance(root, Group) and ("layer_names" in root.attrs or "layer_names0" in root.attrs):
            return root
    return None


def layout_of(file: Group) -> str:
    """"legacy", "whole model", "weights.h5" or "packed". WeightsError for HDF5 of another kind."""
    if PACKED in file.attrs:
        return "packed"
    root = _legacy_root(file)
    if root is not None:
        return "legacy" if root is file else "whole model"
    if any(key in file.links for key in (*weights_h5.CONTAINERS, "vars")) or weights_h5.read_tree(file).holds_tensors():
        return "weights.h5"
    raise WeightsError(
        f"{file.reader.name} is HDF5 but holds no Keras weights: there is no attribute 'layer_names' and no group 'layers'"
    )


def _legacy(root: Group) -> dict[str, weights_h5.Entries]:
    found: dict[str, weights_h5.Entries] = {}
    for layer in _names(root, "layer_names"):
        if layer in found:
            raise WeightsError(f"{root.reader.name}: two layers are named {layer!r}; the file is damaged")
        group = _follow(root, layer)
        found[layer] = [(name, _dataset(group, name)) for name in _names(group, "weight_names")]  # type: ignore[arg-type]
    return found


def _packed(file: Group) -> dict[str, list[tuple[str, packing.Packed]]]:
    """Layers of a file that `writing.write_packed` wrote."""
    version, group = np.asarray(file.attribute(PACKED)), file.child("packed") if "packed" in file.links else None
    if version.dtype.kind not in "iu" or version.shape != () or not isinstance(group, Group):
        raise WeightsError(f"{file.reader.name} says that it is packed and holds no packed tensors; the file is damaged")
    if int(version) > packing.FORMAT:
        raise WeightsError(f"{file.reader.name} is packed in format {version}, this version reads {packing.FORMAT}; upgrade")
    streams = {name: _dataset(group, name) for name in group.links}
    check_sizes(file.reader, list(streams.values()))
    found: dict[str, list[tuple[str, packing.Packed]]] = {}
    for name, packed in packing.entries(packing.read_streams(lambda name: streams[name].read(), streams)).items():
        layer, _, weight = name.partition("\n")
        found.setdefault(layer, []).append((weight, packed))
    return found


def _dataset(group: Group, name: str) -> Dataset:
    data = _follow(group, name)
    if not isinstance(data, Dataset):
        raise WeightsError(f"{group.reader.name}: {name!r} is not a dataset; the file is damaged")
    return data


def _check_numbers(file: Group, found: Mapping[str, weights_h5.Entries]) -> None:
    """Every tensor must be an array of numbers of its own, and all together of a sensible size."""
    datasets = [data for entries in found.values() for _, data in entries]
    for data in datasets:
        brain = data.dtype.kind == "V" and "dtype" in data.attrs and data.attribute("dtype") == b"bfloat16"
        if data.dtype.kind not in "fiub" and not brain:
            raise WeightsError(f"{file.reader.name}: {data.name!r} holds {data.dtype}, expected an array of numbers")
    check_sizes(file.reader, datasets)


def read_lazy(source: Source, layers: Sequence[LayerSpec] | None = None,
              order: Callable[[], Sequence[LayerSpec]] | None = None) -> LazyLayers:  # fmt: skip
    """As `read_layers`, but with values that are read when they are asked for: {layer: [(weight name, StoredArray), ...]}.

    order: gives the layers in Keras's order, if `layers` may be in another one; it is called only where numbers count.
    """

    def action(file: Group) -> LazyLayers:
        layout = layout_of(file)
        if layout == "packed":
            return _packed(file)  # type: ignore[return-value]
        if layout == "weights.h5":
            tree = weights_h5.read_tree(file)
            found = weights_h5.by_name(tree, file.reader.name) if layers is None else weights_h5.arrange(tree, layers, order)
        else:
            found = _legacy(_legacy_root(file))  # type: ignore[arg-type]
        _check_numbers(file, found)
        return {layer: [(name, StoredArray(data)) for name, data in entries] for layer, entries in found.items()}

    return with_file(source, action)


def read_layers(source: Source, layers: Sequence[LayerSpec] | None = None) -> Layers:
    """All tensors by layer, in the file's order: {layer name: [(weight name, array), ...]}.

    source: a path, or the bytes of a file (a member of a .keras archive). Layers without weights keep an empty list. Legacy
    weights, whole models and .weights.h5 are read. layers: the model's layers in its order, which a .weights.h5 file
    needs if it does not keep their names; its weights are named by their place ("0", "cell/1"). Raises WeightsError for
    anything but a sound file in one of these layouts.
    """
    lazy = read_lazy(source, layers)
    return {layer: [(name, data.read()) for name, data in entries] for layer, entries in lazy.items()}


def read_stored(source: Source) -> list[Any]:
    """Every tensor of a file, whatever its layout, without names; values are read when they are asked for."""

    def action(file: Group) -> list[Any]:
        if PACKED in file.attrs:
            return [packed for entries in _packed(file).values() for _, packed in entries]
        root = _legacy_root(file)
        found = {"": weights_h5.every(weights_h5.read_tree(file))} if root is None else _legacy(root)
        _check_numbers(file, found)
        return [StoredArray(data) for entries in found.values() for _, data in entries]

    return with_file(source, action)


def read_origin(source: Source) -> tuple[str | None, str | None]:
    """(backend, Keras version) that a file says it was written by; Keras 1 and .weights.h5 say neither."""

    def action(file: Group) -> tuple[str | None, str | None]:
        groups = [file, *filter(None, [_legacy_root(file)])]
        backend, version = (
            next(filter(None, (_optional_text(g, name) for g in groups)), None) for name in ("backend", "keras_version")
        )
        return backend, version

    return with_file(source, action)


def read_layout(source: Source) -> str:
    """ "legacy", "whole model", "weights.h5" or "packed"; WeightsError for a file that is none of them."""
    return with_file(source, layout_of)


def read_text(source: Source, name: str) -> str | None:
    """A root attribute of text, or None if the file has none of this name."""
    return with_file(source, lambda file: _optional_text(file, name))


def read_model_config(source: Source) -> dict[str, Any] | None:
    """The configuration in a whole-model file, or None in a file of weights only. Raises ModelError if it is not JSON."""
    text = read_text(source, "model_config")
    return None if text is None else parse_config(text, source if not isinstance(source, bytes) else "these bytes")


def parse_config(text: str | bytes, path: str | Path) -> dict[str, Any]:
    """A model configuration from JSON; nothing in it is ever run. Raises ModelError naming the file."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the model configuration is not sound JSON ({error}); save the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: the model configuration is a {type(config).__name__}, expected a JSON object")
    return config
