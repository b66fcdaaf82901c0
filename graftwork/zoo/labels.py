"""Probabilities as names: `decode_predictions`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, ShapeError
from .fetch import fetch
from .registry import WeightsFile

# ImageNet's 1000 classes in the order of all published weights: {"0": ["n01440764", "tench"], ...}
IMAGENET = WeightsFile(
    "imagenet", "class names", "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "md5:c2c37ea517e94d9795004a39431a14cb",
)  # fmt: skip


class Prediction(NamedTuple):
    """One class for one image. id: ImageNet's WordNet number ("n02123045"), or the class's number as text."""

    id: str
    label: str
    probability: float


def decode_predictions(probabilities: Any, top: int = 5,
                       labels: Sequence[str] | str | Path | None = None) -> list[list[Prediction]]:  # fmt: skip
    """The `top` most probable classes of each image, the most probable first.

    probabilities: (images, classes), as `model.predict` gives, or (classes,) for one image. labels: a name for each class
    (`model.labels` of networks whose weights come with names), or the path of a file like Keras's
    imagenet_class_index.json; without it 1000 classes are ImageNet's, whose file is looked for where weights are (the folder
    GRAFTWORK_WEIGHTS, the cache) and fetched if it is in neither. Raises FetchError that names the file and where to put it,
    DataError for a file or a list that does not fit, ShapeError for probabilities that do not.
    """
    values = np.asarray(probabilities.numpy() if hasattr(probabilities, "numpy") else probabilities)
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] == 0:
        raise ShapeError(f"decode_predictions: probabilities have shape {values.shape}, expected (images, classes)")
    if top < 1:
        raise ShapeError(f"decode_predictions: top={top}, expected at least 1")
    names = _names(labels, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(names[i][0], names[i][1], float(row[i])) for i in best] for row, best in zip(values, order, strict=True)
    ]


def _names(labels: Sequence[str] | str | Path | None, classes: int) -> list[tuple[str, str]]:
    """(id, label) of each class."""
    if labels is None and classes != 1000:
        raise DataError(f"decode_predictions: {classes} classes, not ImageNet's 1000; give their names in labels=")
    if labels is None or isinstance(labels, (str, Path)):
        path = fetch(IMAGENET) if labels is None else Path(labels)
        names = _read(path)
    else:
        path, names = None, [(str(i), str(label)) for i, label in enumerate(labels)]
    if len(names) != classes:
        raise DataError(f"decode_predictions: {len(names)} labels{f' in {path}' if path else ''} for {classes} classes")
    return names


def _read(path: Path) -> list[tuple[str, str]]:
    """The file's classes in the order of their numbers."""
    expected = '{"0": ["n01440764", "tench"], "1": ...}'
    try:
        table = json.loads(path.read_text("utf-8"))
        return [(str(id), str(label)) for id, label in (table[str(i)] for i in range(len(table)))]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a file of class names like {expected}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path} is no list of class names; expected JSON like {expected}") from error
