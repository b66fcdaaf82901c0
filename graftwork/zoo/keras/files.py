"""Whole Keras models in files: .h5, .keras (a zip), a folder with model.json and weights.h5. Content decides, not the suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ModelError
from ..hdf5 import parse_config, read_layers, read_model_config, read_origin
from .model import KerasModel, build_keras

CONFIG_CEILING = 64 << 20  # bytes of JSON


def load_keras(path: str | Path) -> KerasModel:
    """A whole Keras model: an .h5 or .hdf5 file, or a folder with model.json and weights.h5; ready for inference.

    Sequential and Functional models of Keras 1.2, 2 and 3. Raises ModelError for a configuration that is unsound or has
    layers that are not supported (each is named), WeightsError for files that are damaged or do not fit it.
    """
    path = Path(path)
    config, weights = _read_folder(path) if path.is_dir() else (read_model_config(path), path)
    if config is None:
        raise ModelError(
            f"{path} holds weights only, no model configuration; build the model (zoo.create) and use load_weights, or give "
            "a folder with model.json and weights.h5"
        )
    backend, version = read_origin(weights)
    backend, version = config.get("backend") or backend, config.get("keras_version") or version
    if backend == "theano":
        raise ModelError(f"{path} was saved under Theano, which flips kernels; load and save it under TensorFlow first")
    return build_keras(config, read_layers(weights), weights, version if isinstance(version, str) else None)


def save_keras(model: KerasModel, path: str | Path) -> None:
    raise ModelError("not yet")


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
