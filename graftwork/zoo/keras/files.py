"""Whole Keras models in files: .h5, .keras (a zip), a folder with model.json and weights.h5. Content decides, not the name."""

from __future__ import annotations

import json
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ...errors import ModelError, WeightsError
from ...nn.files import atomic_path
from ..hdf5 import parse_config, read_layers, read_model_config, read_origin
from ..writing import LAYOUT_VERSION, atomic_h5, write_legacy, write_weights_h5
from .model import KerasModel, Plan, fill, plan_keras

CONFIG_CEILING = 64 << 20  # bytes of JSON
WEIGHTS_CEILING = 16 << 30  # bytes of a member that is read into memory
PACKED_BYTES, PACKED_RATIO = 64 << 20, 100  # more than so many bytes, and so many times what is stored, is a bomb
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"  # members of a .keras archive
# What zipfile and zlib raise on damaged archives.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, LookupError,
          MemoryError, OverflowError)  # fmt: skip


def load_keras(path: str | Path) -> KerasModel:
    """A whole Keras model, ready for inference: an .h5 or .keras file, or a folder with model.json and weights.h5.

    Sequential and Functional models of Keras 1.2, 2 and 3, models within models included. What kind of file it is decides its
    content, not its name. Nothing in it is run; layer classes of your own come from `register_keras_layer` or from plugins.
    Raises ModelError for a configuration that is unsound or has layers that are not supported (each is named), WeightsError for
    files that are damaged or do not fit it.
    """
    path = Path(path)
    if path.is_dir():
        config, weights = _read_folder(path)
    elif _is_zip(path):
        return _load_archive(path)
    else:
        found = read_model_config(path)
        if found is None:
            raise ModelError(
                f"{path} holds weights only, no model configuration; build the model (zoo.create) and use load_weights, or "
                "give a folder with model.json and weights.h5"
            )
        config, weights = found, path
    backend, version = read_origin(weights)
    backend, version = config.get("backend") or backend, config.get("keras_version") or version
    if backend == "theano":
        raise ModelError(f"{path} was saved under Theano, which flips kernels; load and save it under TensorFlow first")
    version = version if isinstance(version, str) else None
    return _fill(plan_keras(config, version), weights, weights, config, version)


def _fill(plan: Plan, source: Path | bytes, name: Path, config: dict[str, Any], version: str | None) -> KerasModel:
    """The model with the tensors of a file in any of Keras's layouts."""
    return fill(plan, plan.file_order(read_layers(source, plan.specs())), name, config, version)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    text, weights = folder / "model.json", folder / "weights.h5"
    for file in (text, weights):
        if not file.is_file():
            raise ModelError(f"{folder} has no {file.name}; expected a folder with model.json and weights.h5")
    try:
        if text.stat().st_size > CONFIG_CEILING:
            raise ModelError(f"{text} is over {CONFIG_CEILING >> 20} MiB; that is no model configuration")
        content = text.read_bytes()
    except OSError as error:
        raise ModelError(f"{text} cannot be read: {error.strerror or error}") from error
    return parse_config(content, text), weights


# -- .keras archives ---------------------------------------------------------------------------------------------------


def _is_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:
        return False  # the reader of HDF5 says what is wrong with it


def _load_archive(path: Path) -> KerasModel:
    """A .keras archive. Only its three members are read, into memory: no path in it is ever followed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            config = parse_config(_member(archive, members[CONFIG], CONFIG_CEILING, path), f"{path}/{CONFIG}")
            about = parse_config(_member(archive, members[METADATA], CONFIG_CEILING, path), f"{path}/{METADATA}")
            version = about.get("keras_version")
            version = version if isinstance(version, str) else None
            plan = plan_keras(config, version)  # before the weights: most files that are refused are so for their layers
            content = _member(archive, members[WEIGHTS], WEIGHTS_CEILING, path)
    except (ModelError, WeightsError):
        raise
    except DAMAGE as error:
        raise WeightsError(f"{path} is a damaged .keras archive ({error}); copy or download it again") from error
    return _fill(plan, content, path / WEIGHTS, config, version)


def archive_weights(path: Path) -> bytes | None:
    """The weights file within a .keras archive, for a network whose layers are known; None for a file that is no archive."""
    if not _is_zip(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return _member(archive, _members(archive, path)[WEIGHTS], WEIGHTS_CEILING, path)
    except WeightsError:
        raise
    except DAMAGE as error:
        raise WeightsError(f"{path} is a damaged .keras archive ({error}); copy or download it again") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members that a model has, each once."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in found:
            raise WeightsError(f"{path}: the archive holds {info.filename!r:.60} twice; refused")
        if info.filename in (CONFIG, METADATA, WEIGHTS):
            found[info.filename] = info
    missing = [name for name in (CONFIG, METADATA, WEIGHTS) if name not in found]
    if missing:
        raise WeightsError(f"{path} is a zip archive without {' and '.join(missing)}; expected a .keras file")
    return found


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, ceiling: int, path: Path) -> bytes:
    """A member's bytes, once its size is known to be sensible; zipfile reads no more than is declared, and checks the sum."""
    name = f"{path}: {info.filename!r}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError(f"{name} is encrypted or packed in a way that Keras does not use; refused")
    if info.file_size > ceiling or (info.file_size > PACKED_BYTES and info.file_size > PACKED_RATIO * info.compress_size):
        raise WeightsError(f"{name} declares {info.file_size:,} bytes and stores {info.compress_size:,}; refused")
    if info.compress_size > path.stat().st_size or (not info.compress_type and info.compress_size != info.file_size):
        raise WeightsError(f"{name} declares {info.file_size:,} bytes, which its archive does not hold; it is damaged")
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise WeightsError(f"{name} has {len(content):,} bytes and declares {info.file_size:,}; it is damaged")
    return content


# -- writing -----------------------------------------------------------------------------------------------------------


def save_keras(model: KerasModel, path: str | Path) -> None:
    """Write a model that `load_keras` made as a whole model that Keras loads: .keras if the path says so, .h5 otherwise.

    The configuration is the one it was loaded with, so a model of Keras 1 is written for Keras 1. Raises ModelError for other
    models (`save_weights` writes their weights) and for a .keras file of a configuration that is not Keras 3's own form,
    WeightsError and DataError for a file that cannot be written.
    """
    path = Path(path)
    if not isinstance(model, KerasModel) or model.config is None:
        raise ModelError(
            f"a {type(model).__name__} has no Keras configuration; save_keras writes what load_keras made, save_weights "
            "the weights of any model"
        )
    if path.suffix == ".keras":
        _save_archive(model, model.config, path)
        return
    about = {
        "model_config": json.dumps(model.config), "backend": "tensorflow", "keras_version": model.version or LAYOUT_VERSION
    }  # fmt: skip
    with atomic_h5(path) as file:
        for name, text in about.items():
            file.attrs[name] = text  # of variable length: it may be longer than an object header
        write_legacy(file.create_group("model_weights"), _legacy_layers(model))


def _legacy_layers(model: KerasModel) -> dict[str, list[Any]]:
    """All layers in the configuration's order, those without weights too, as Keras pairs them by order."""
    slots = model.file_slots()
    names = [name for name, x in model.plan.graph.layers.items() if not _made_up(model, name)]
    return {
        name: [(f"{name}/{s.name}:0", s.tensor.numpy().reshape(s.shape)) for s in slots.get(name, ())] for name in names
    }


def _made_up(model: KerasModel, name: str) -> bool:
    """Whether a layer stands in no configuration: the input of a Sequential model that only says its shape."""
    graph = model.plan.graph
    return name in graph.inputs and set(graph.layers[name].config) == {"batch_input_shape"}


def _save_archive(model: KerasModel, config: dict[str, Any], path: Path) -> None:
    if "module" not in config:
        raise ModelError(
            f"{path}: the model's configuration is of an .h5 file, and .keras archives spell theirs differently; save it as "
            ".h5, or load and save it in Keras"
        )
    about = {"keras_version": model.version or LAYOUT_VERSION, "date_saved": ""}
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        weights = Path(folder) / WEIGHTS
        write_weights_h5(weights, model.file_entries())
        try:
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.writestr(METADATA, json.dumps(about))
                archive.writestr(CONFIG, json.dumps(config))
                archive.write(weights, WEIGHTS)
        except OSError as error:
            raise WeightsError(f"{path} could not be written: {error}; is the disk full?") from error
