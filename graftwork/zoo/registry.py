"""The table of models: names, how to build them, and what is known of their published weights."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, ModelError, ModelNotFound
from ..nn import Module, init


@dataclass(frozen=True)
class WeightsFile:
    """Where a model's weights are: `source` is a URL or a path inside the package, `hash` "md5:..." or "sha256:..." or None."""

    model: str
    name: str
    source: str
    hash: str | None = None
    size: int | None = None  # bytes

    @property
    def published(self) -> bool:
        return "://" in self.source

    @property
    def filename(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.source).path)).name


@dataclass(frozen=True)
class ModelEntry:
    """One model. `weights` maps a published or embedded name to where the file is (a path inside the package, or a URL).

    `info` is what else is known; of it, `hashes` ({name: "md5:..." or "sha256:..."}; also as `md5` or `sha256`, {name:
    digits}) and `sizes` ({name: bytes}) belong to the files, see `file`.
    """

    name: str
    factory: Callable[..., Module]
    summary: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def unknown(self, name: str) -> ModelError:
        known = ", ".join(map(repr, self.weights)) or "none"
        return ModelError(f"{self.name}: no weights named {name!r}; named ones: {known}; or give a path to an HDF5 file")

    def file(self, name: str) -> WeightsFile:
        """The record of one weights file. Raises ModelError for a name that the model does not have."""
        if name not in self.weights:
            raise self.unknown(name)
        found = self.info.get("hashes", {}).get(name)
        for algorithm in ("sha256", "md5"):
            if found is None and (digits := self.info.get(algorithm, {}).get(name)):
                found = f"{algorithm}:{digits}"
        return WeightsFile(self.name, name, self.weights[name], found, self.info.get("sizes", {}).get(name))


COMMON_OPTIONS = {"include_top", "pooling", "classes", "input_shape"}
_models: dict[str, ModelEntry] = {}


def register(name: str, factory: Callable[..., Module], summary: str = "", weights: dict[str, str] | None = None,
             **info: Any) -> None:  # fmt: skip
    """Add a model: `factory(include_top, pooling, classes, input_shape)` returns a Module. ConfigError if the name is taken.

    weights: {name: URL or path inside the package}; info: `hashes`, `sizes`, `licence`, `top1`, `top5`, ... (see `ModelEntry`).
    """
    if name in _models:
        raise ConfigError(f"a model named {name!r} is registered already; choose another name")
    _models[name] = ModelEntry(name, factory, summary, dict(weights or {}), info)


def unregister(name: str) -> None:
    """Take a model out again (plugins that are unloaded, tests)."""
    _models.pop(name, None)


def list_models() -> list[str]:
    """Names of all models, plugins' included, in alphabetical order."""
    _load_plugins()
    return sorted(_models)


def find(name: str) -> ModelEntry:
    """The entry of a model. Raises ModelNotFound with close matches."""
    if name not in _models:
        _load_plugins()
    if name not in _models:
        close = difflib.get_close_matches(str(name), _models, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(_models))}"
        raise ModelNotFound(f"no model named {name!r}; {hint} (`graftwork zoo list` shows all)")
    return _models[name]


def create(name: str, weights: str | Path | None = None, include_top: bool = True, pooling: str | None = None,
           classes: int | None = None, input_shape: tuple[int, int, int] | None = None, new_head: bool = False,
           **options: Any) -> Module:  # fmt: skip
    """Build a model of the zoo.

    weights: None (random), an embedded or published name ("glyphs", "imagenet"), or a path to an HDF5 file.
    include_top: with the classifier (its output is logits) or only the trunk. pooling: without the top, None for the
    feature map, "avg" or "max" for one vector an image. classes, input_shape: of the classifier and (height, width,
    channels) of images; the model's own by default. With one channel, kernels for three are summed (`grey`).
    new_head: load the trunk only and leave the classifier as it is initialised, for classes of your own:
    `create("resnet50", weights="imagenet", classes=7, new_head=True)`. options: what only this model knows, such as
    MobileNetV2's `alpha`.
    Raises ModelNotFound, ModelError for options that do not go together, WeightsError for a file that does not fit.
    """
    entry = find(name)
    if pooling not in (None, "avg", "max"):
        raise ModelError(f"pooling={pooling!r}; expected None, 'avg' or 'max'")
    if classes is not None and classes < 1:
        raise ModelError(f"classes={classes}; expected at least 1")
    if new_head and (weights is None or not include_top):
        raise ModelError("new_head=True puts a new classifier on a trained trunk: give weights=, and leave include_top=True")
    if new_head and "top" not in entry.info:
        raise ModelError(f"{name} does not say which layers are its classifier; register it with top=(...)")
    _check_options(entry, options)
    options |= {k: v for k, v in (("classes", classes), ("input_shape", input_shape)) if v is not None}
    with contextlib.nullcontext() if weights is None or new_head else init.values_follow():
        model = entry.factory(include_top=include_top, pooling=pooling, **options)
    if weights is not None:
        from .weights import load_weights

        keep = include_top and not new_head
        path = weights_path(entry, weights, keep)
        load_weights(model, path, skip=() if keep else tuple(entry.info.get("top", ())))
        if keep and str(weights) in entry.weights and "classes" in entry.info:
            model.labels = tuple(entry.info["classes"])
    model.origin = (name, tuple({"include_top": include_top, "pooling": pooling, **options}.items()))
    return model.eval()


def _check_options(entry: ModelEntry, options: dict[str, Any]) -> None:
    """ModelError for an option that the model's factory does not take."""
    parameters = inspect.signature(entry.factory).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    own = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY} - COMMON_OPTIONS
    for name in options:
        if name not in own:
            known = ", ".join(sorted(own)) or "none beside those that all models take"
            raise ModelError(f"{entry.name} has no option {name!r}; its own options: {known}")


def weights_path(entry: ModelEntry, weights: str | Path, include_top: bool = True) -> Path:
    """The file for a weights name, or the path itself; published files are fetched (see `fetch`).

    Without the top, the published file without it is taken where there is one, unless the whole one is here already.
    """
    if str(weights) in entry.weights:
        from .fetch import fetch, local

        file = entry.file(str(weights))
        if not file.published:
            return Path(__file__).parent / file.source
        smaller = f"{weights}_notop"
        if not include_top and smaller in entry.weights and local(file) is None:
            file = entry.file(smaller)
        return fetch(file)
    if Path(weights).suffix or Path(weights).exists():
        return Path(weights)
    raise entry.unknown(str(weights))


def _load_plugins() -> None:
    """Models may come from plugins, which load at first need. The manager knows nothing of ours, so no cycle arises."""
    from ..plugins.manager import manager

    manager().load()
