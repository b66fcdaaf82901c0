"""Writing weights as HDF5 files: Keras's legacy layout, Keras 3's `.weights.h5`, and packed, which Keras does not know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, GraftworkError, WeightsError
from ..nn import packing
from ..nn.files import atomic_path
from .weights_h5 import LayerSpec, counted, place

ATTRIBUTE_LIMIT = 64512  # bytes: an HDF5 object header holds 64 KiB, Keras leaves 1 KiB for what goes with the values
LAYOUT_VERSION = "2.15.0"  # the Keras whose legacy layout this is; older numbers make Keras convert what it reads
Entries = Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """How floating-point tensors are stored. dtype: "float32" (as they are), "float16", "bfloat16". compression: None,
    "gzip"."""

    dtype: str = "float32"
    compression: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f'dtype={self.dtype!r}; expected "float32", "float16" or "bfloat16"')
        if self.compression not in (None, "gzip"):
            raise ConfigError(f'compression={self.compression!r}; expected "gzip" or None')

    def create(self, group: Any, name: str, value: np.ndarray) -> None:
        """Write a tensor under a name in a group. WeightsError if the type cannot hold its values."""
        array = self._convert(np.asarray(value), name)
        options = {"compression": "gzip", "shuffle": True} if self.compression and array.size and array.ndim else {}
        data = group.create_dataset(name, data=np.ascontiguousarray(array).reshape(array.shape), **options)
        if array.dtype.kind == "V":
            data.attrs["dtype"] = "bfloat16"  # what Keras 3 looks for

    def _convert(self, array: np.ndarray, name: str) -> np.ndarray:
        if array.dtype.kind != "f" or self.dtype == "float32":
            return array
        with np.errstate(over="ignore"):
            half = to_bfloat16(array) if self.dtype == "bfloat16" else array.astype(np.float16)
        wide = half if self.dtype == "float16" else from_bfloat16(half)
        if np.any(np.isinf(wide) & np.isfinite(array)):
            raise WeightsError(
                f"{name}: values up to {np.abs(array[np.isfinite(array)]).max():.3g} are beyond {self.dtype}; "
                "save as float32" + (" or bfloat16" if self.dtype == "float16" else "")
            )
        return half


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values as two opaque bytes each, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).reshape(np.shape(array)).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    halves = np.where(np.isnan(array), bits >> np.uint32(16) | np.uint32(64), rounded)
    return halves.astype(np.uint16).view("V2")


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 values of two opaque bytes each; exact."""
    return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


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


def write_layers(path: str | Path, layers: Mapping[str, Entries], attributes: Mapping[str, Any] | None = None,
                 form: Form | None = None) -> None:  # fmt: skip
    """Write a weights file in Keras's legacy layout; it appears whole or not at all.

    layers: as `read_layers` returns them. attributes: more root attributes, such as a model's name or its classes.
    Raises WeightsError for names or values that HDF5 cannot hold, ConfigError for bfloat16, which this layout does not know,
    DataError for a folder that cannot be written to.
    """
    form = form or Form()
    if form.dtype == "bfloat16":
        raise ConfigError('Keras reads bfloat16 from its newer layout only; save it with layout="weights.h5", or as float16')
    with atomic_h5(path) as file:
        write_legacy(file, layers, form)
        _write_attributes(file, attributes)


def write_legacy(root: Any, layers: Mapping[str, Entries], form: Form | None = None) -> None:
    """The legacy layout into an open group: a file's root, or `model_weights` of a whole model."""
    form = form or Form()
    _write_names(root, "layer_names", list(layers))
    _write_attributes(root, {"backend": "tensorflow", "keras_version": LAYOUT_VERSION})
    for layer, entries in layers.items():
        with _about(root.file.filename, layer):
            group = root.require_group(layer)
            _write_names(group, "weight_names", [name for name, _ in entries])
            for name, value in entries:
                form.create(group, name, value)


def write_weights_h5(path: str | Path, layers: Sequence[tuple[LayerSpec, Entries]], attributes: Mapping[str, Any] | None = None,
                     form: Form | None = None) -> None:  # fmt: skip
    """Write a weights file in Keras 3's layout; it appears whole or not at all. Keras wants its name to end in ".weights.h5".

    layers: all layers that have tensors, in Keras's order, with their tensors named by place ("0", "cell/1") as `read_layers`
    gives them. attributes: more root attributes. Raises WeightsError for names or values that HDF5 cannot hold, DataError for a
    folder that cannot be written to.
    """
    form = form or Form()
    with atomic_h5(path) as file:
        for (layer, entries), key in zip(layers, counted([layer.kind for layer, _ in layers]), strict=True):
            with _about(path, layer.name):
                group = file.create_group(f"layers/{key}")
                group.create_group("vars").attrs["name"] = layer.name
                for name, value in entries:
                    form.create(group, place(layer, name), value)
        _write_attributes(file, attributes)


def write_packed(path: str | Path, layers: Mapping[str, Entries], attributes: Mapping[str, Any] | None = None) -> None:
    """Write all tensors packed together (`nn/packing.py`): exact, and small where they were pruned, clustered or rounded. Keras
    does not read such files. Raises DataError for a folder that cannot be written to."""
    with atomic_h5(path) as file:
        arrays = {f"{layer}\n{name}": value for layer, entries in layers.items() for name, value in entries}
        packing.write_streams(file.create_group("packed"), packing.pack(arrays))
        _write_attributes(file, {"graftwork_packed": packing.FORMAT, **(attributes or {})})


@contextlib.contextmanager
def _about(path: str | Path, layer: str) -> Iterator[None]:
    """What h5py says of values and names that it cannot write, as a WeightsError that names the layer."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise WeightsError(f"{path}: layer {layer!r} cannot be written ({error}); nothing was saved") from error


def _write_attributes(group: Any, attributes: Mapping[str, Any] | None) -> None:
    for name, value in (attributes or {}).items():
        group.attrs[name] = value.encode("utf-8") if isinstance(value, str) else value
