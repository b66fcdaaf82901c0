"""What `graftwork zoo` tells of models and weights files, as plain data and as the table of docs/zoo.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..nn.files import require_writable
from . import hdf5, registry
from .fetch import local
from .registry import ModelEntry
from .weights import load_weights, save_weights
from .writing import Form, write_layers

COLUMNS = ("model", "parameters", "input", "top-1", "top-5", "weights", "licence")


def describe(entry: ModelEntry) -> dict[str, Any]:
    """Name, summary, parameters, input, accuracies in per cent (None where unknown), licence and weights files of a model."""
    info = entry.info
    count, shape = info.get("parameters"), info.get("input_shape", ())
    if count is None or not shape:  # not declared, so the network is built to be asked
        model = entry.factory(include_top=True, pooling=None)
        count, shape = model.count_parameters(), getattr(model, "input_shape", ())
    files = {}
    for name in entry.weights:
        file = entry.file(name)
        here = local(file) if file.published else Path(__file__).parent / file.source
        files[name] = {"source": file.source, "hash": file.hash, "bytes": file.size, "path": str(here) if here else None}
    return {
        "name": entry.name, "summary": entry.summary, "parameters": count, "input": "x".join(map(str, shape)),
        "top1": info.get("top1"), "top5": info.get("top5"), "licence": info.get("licence"), "weights": files,
    }  # fmt: skip


def models() -> list[dict[str, Any]]:
    """`describe` of every model, in alphabetical order."""
    return [describe(registry.find(name)) for name in registry.list_models()]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def markdown(facts: Sequence[dict[str, Any]]) -> str:
    """The models as a Markdown table."""
    rows: list[Sequence[str]] = [COLUMNS, ["---", "---:", "---", "---:", "---:", "---", "---"]]
    for m in facts:
        weights = [w for w in m["weights"] if not w.endswith("_notop")]
        rows.append([f"`{m['name']}`", f"{m['parameters']:,}", m["input"], percent(m["top1"]), percent(m["top5"]),
                     ", ".join(f"`{w}`" for w in weights) or "-", m["licence"] or "-"])  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# -- weights files -------------------------------------------------------------------------------------------------------


def verify(path: str | Path, model: str | None = None) -> dict[str, Any]:
    """Layout, origin and contents of a weights file whose every tensor has been read.

    model: a name in the zoo; the weights must fit it. Raises WeightsError for what is wrong.
    """
    layout = hdf5.read_layout(path)
    backend, version = hdf5.read_origin(path)
    if model is not None:
        load_weights(registry.create(model), path)
    tensors = parameters = 0
    types: set[str] = set()
    for data in hdf5.read_stored(path):
        data.read()
        tensors, parameters = tensors + 1, parameters + data.size
        types.add(data.stored_dtype)
    md5, sha256 = _digests(Path(path))
    published = [
        f"{entry.name} {name}" for entry in map(registry.find, registry.list_models()) for name in entry.weights
        if entry.file(name).hash in (f"md5:{md5}", f"sha256:{sha256}")
    ]  # fmt: skip
    return {
        "file": str(path), "bytes": Path(path).stat().st_size, "layout": layout, "backend": backend, "keras_version": version,
        "tensors": tensors, "values": parameters, "dtypes": sorted(types), "md5": md5, "sha256": sha256,
        "published_as": published, "fits": model,
    }  # fmt: skip


def _digests(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def convert(source: str | Path, target: str | Path, model: str | None = None, layout: str | None = None,
            dtype: str = "float32", compression: str | None = None) -> dict[str, Any]:  # fmt: skip
    """Write a file's weights anew; the facts of both files. `layout` as in `save_weights`.

    Between the layouts, names and order of layers must be known: `model` is a name in the zoo. Raises WeightsError for a file
    that is damaged or does not fit the model, ConfigError if a model is needed, DataError if `target` cannot be written.
    """
    require_writable(target)
    if layout is None:
        layout = "weights.h5" if str(target).endswith(".weights.h5") else "legacy"
    if model is not None:
        network = registry.create(model)
        load_weights(network, source)
        save_weights(network, target, layout=layout, dtype=dtype, compression=compression)
    elif layout == "legacy" and hdf5.read_layout(source) != "weights.h5":
        write_layers(target, hdf5.read_layers(source), form=Form(dtype, compression))
    else:
        raise ConfigError(
            f"{source} is {hdf5.read_layout(source)}, {target} would be {layout}: give the model that the weights are of, "
            "--model NAME (in Python, load them into the model and use save_weights)"
        )
    found = {"layout": layout, "dtype": dtype, "compression": compression, "tensors": sum(1 for _ in hdf5.read_stored(target))}
    return found | {"bytes": Path(target).stat().st_size, "source_bytes": Path(source).stat().st_size}
