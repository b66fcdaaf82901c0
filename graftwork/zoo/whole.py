"""A network in one file, read back without saying what it is.

`save` keeps beside the weights which network of the zoo it is, with which options, and the shapes of one whose channels were
pruned. `load` builds it again; saved graphs and Keras models are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GraftworkError, ModelError, WeightsError
from ..nn import Module, init
from ..nn.graph_file import is_graph, load_graph
from ..nn.modules.resize import resize
from .hdf5 import read_model_config, read_text
from .keras import load_keras
from .registry import create
from .weights import load_weights, save_weights

DESCRIPTION = "graftwork_model"  # the root attribute with the network's name, options and shapes


def describe(model: Module) -> dict[str, Any]:
    """What `rebuild` needs, as JSON values. Raises ModelError for a model that the zoo did not make."""
    if not hasattr(model, "origin"):
        raise ModelError(
            f"{type(model).__name__} was not made by zoo.create, so that a file cannot say how to build it; save its weights "
            "with zoo.save_weights, or its graph with gw.compile(model).graph(x).save(path)"
        )
    name, options = model.origin
    found: dict[str, Any] = {"name": name, "options": dict(options)}
    if getattr(model, "resized", False):
        found["shapes"] = [list(value.shape) for _, value in _tensors(model)]
    if getattr(model, "labels", None) is not None:
        found["labels"] = [str(label) for label in model.labels]
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} was made with options that a file cannot hold: {error}") from error


def rebuild(found: Any, what: str | Path) -> Module:
    """A network as `describe` says, with arbitrary weights. Raises WeightsError naming `what` where that makes no sense."""
    try:
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(found["options"]).items()}
        name, shapes, labels = str(found["name"]), found.get("shapes"), found.get("labels")
        if "weights" in options or "new_head" in options:
            raise WeightsError(f"{what} names weights to load from elsewhere; refused")
        with init.values_follow():
            model = create(name, **{str(k): v for k, v in options.items()})
        if shapes is not None:
            shrink(model, dict(zip([n for n, _ in _tensors(model)], shapes, strict=True)), what)
        if labels is not None:
            model.labels = tuple(map(str, labels))
        return model
    except WeightsError:
        raise
    except (GraftworkError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{what} does not say soundly which network it holds: {error}") from error


def shrink(model: Module, shapes: Mapping[str, Sequence[int]], what: str | Path) -> None:
    """Give tensors the shapes that a file says, which may be smaller than the model's own and nothing else."""
    own = dict(_tensors(model))
    for name, shape in shapes.items():
        fits = name in own and len(shape) == own[name].ndim
        if not fits or not all(type(n) is int and 0 < n <= m for n, m in zip(shape, own[name].shape, strict=True)):
            expected = own[name].shape if name in own else "no such tensor"
            raise WeightsError(f"{what} says that {name} has shape {tuple(shape)}; expected at most {expected}")
    changed = {n: np.zeros(tuple(s), own[n].dtype) for n, s in shapes.items() if tuple(s) != own[n].shape}
    if changed:
        resize(model, changed)


def _tensors(model: Module) -> list[tuple[str, Any]]:
    return [*model.named_parameters(), *model.named_buffers()]


def save(model: Module, path: str | Path, layout: str | None = None, **options: Any) -> None:
    """Write a network of the zoo, with pruned channels or not, so that `load` needs nothing but the file.

    layout, options: as in `save_weights`; "packed" is small for weights that were pruned, clustered or rounded. Raises
    ModelError for a model that the zoo did not make.
    """
    save_weights(model, path, {DESCRIPTION: json.dumps(describe(model))}, layout=layout, **options)


def load(path: str | Path) -> Any:
    """What a file holds, ready to call: a network that `save` wrote (a Module in inference mode), a saved graph, or a Keras
    model.

    Raises WeightsError for a file of weights that does not say which network they are of, and whatever the readers of the
    formats raise for damage.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".keras":
        return load_keras(path)
    if is_graph(path):
        return load_graph(path)
    text = read_text(path, DESCRIPTION)
    if text is None:
        if read_model_config(path) is not None:
            return load_keras(path)
        raise WeightsError(
            f"{path} holds weights and does not say of which network; build it and load them: "
            f"zoo.create(NAME, weights={str(path)!r})"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its attribute {DESCRIPTION} is no sound JSON ({error}); the file is damaged") from error
    model = rebuild(found, path)
    load_weights(model, path)
    return model.eval()
