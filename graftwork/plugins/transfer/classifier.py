"""A simple model on deep features: scaling and logistic regression, saved with the trunk in one HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, ConfigError, DataError, WeightsError
from ...nn import Module
from ...nn.checkpoint import load as load_arrays
from ...nn.checkpoint import save as save_arrays
from ...zoo import create
from . import require_scikit_learn
from .features import FeatureExtractor

CANDIDATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # inverse regularisation strengths tried by cross-validation
KIND = "graftwork-image-classifier"


class ImageClassifier:
    """Learns classes of images from deep features.

    model: a zoo model without top. model_name: its name in the zoo, needed to save. C: inverse strength of the
    regularisation; None chooses by cross-validation on the training images. Standard scaling, then multinomial logistic
    regression (scikit-learn's).
    """

    def __init__(self, model: Module, model_name: str, C: float | None = None, progress: bool = False):
        if C is not None and not 0 < C < float("inf"):
            raise ConfigError(f"C={C}; expected a positive number (smaller: stronger regularisation), or None to choose one")
        self.model, self.model_name, self.C, self.progress = model, model_name, C, progress
        self.classes: list[str] = []
        self.mean = self.scale = self.weight = self.bias = np.zeros(0)

    @property
    def extractor(self) -> FeatureExtractor:
        return FeatureExtractor(self.model, progress=self.progress)

    def fit(self, pictures: Sequence[Any], labels: Any, classes: Sequence[str] | None = None) -> ImageClassifier:
        """Learn from images and class numbers. classes: the classes' names. Raises DataError for less than two classes."""
        require_scikit_learn()
        return self.fit_features(self.extractor.transform(pictures), labels, classes)

    def fit_features(self, features: np.ndarray, labels: Any, classes: Sequence[str] | None = None):
        """The same from features that were extracted before."""
        require_scikit_learn()
        targets = np.asarray(labels)
        found, counts = np.unique(targets, return_counts=True)
        if len(found) < 2 or len(targets) != len(features):
            raise DataError(
                f"{len(features)} images with {len(targets)} labels of {len(found)} classes; expected as many labels as "
                "images and at least two classes"
            )
        names = [str(c) for c in (classes if classes is not None else found)]
        if len(names) != len(found) or found[0] != 0 or found[-1] != len(found) - 1:
            raise DataError(
                f"labels {found.tolist()} for {len(names)} class names; expected numbers 0 to n - 1, all used"
            )
        if not np.isfinite(features).all():
            raise DataError("the deep features are not finite; are the network's weights damaged, or of another network?")
        best = self.C if self.C is not None else choose_strength(features, targets, int(counts.min()))
        pipeline = logistic_regression(best).fit(features, targets)
        scaler, regression = pipeline[0], pipeline[1]
        self.classes, self.C, self.mean, self.scale = names, best, scaler.mean_, scaler.scale_
        self.weight, self.bias = regression.coef_, regression.intercept_
        if len(found) == 2:  # scikit-learn keeps one row for two classes
            self.weight = np.concatenate([-self.weight, self.weight]) / 2
            self.bias = np.concatenate([-self.bias, self.bias]) / 2
        return self

    def decision(self, features: np.ndarray) -> np.ndarray:
        """Class scores (images, classes) before softmax. Raises DataError before `fit`, and for features of another width."""
        self._require_fitted()
        if features.shape[1:] != self.mean.shape:
            raise DataError(f"features {features.shape} for a classifier of {len(self.mean)}; use its own network")
        return (features - self.mean) / self.scale @ self.weight.T + self.bias

    def predict_proba(self, pictures: Sequence[Any]) -> np.ndarray:
        """Class probabilities (images, classes). Raises DataError before `fit`."""
        self._require_fitted()
        scores = self.decision(self.extractor.transform(pictures))
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict(self, pictures: Sequence[Any]) -> np.ndarray:
        """Class numbers."""
        return self.predict_proba(pictures).argmax(axis=1)

    def score(self, pictures: Sequence[Any], labels: Any) -> float:
        """Share of images whose class is predicted right."""
        return float((self.predict(pictures) == np.asarray(labels)).mean())

    def save(self, path: str | Path) -> None:
        """Write trunk and classifier to one HDF5 file that `load` reads; it appears whole or not at all."""
        self._require_fitted()
        info = {
            "kind": KIND, "model": self.model_name, "classes": self.classes, "C": self.C,
            "input_shape": list(self.model.input_shape),
        }  # fmt: skip
        head = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}
        save_arrays(path, {"trunk": self.model.state_dict(), "head": head}, info)

    def _require_fitted(self) -> None:
        if not self.classes:
            raise DataError("this classifier has learned nothing yet; call fit(pictures, labels) first")

    @classmethod
    def load(cls, path: str | Path, progress: bool = False) -> ImageClassifier:
        """Read what `save` wrote. Raises WeightsError or CheckpointError for a missing, damaged or foreign file."""
        try:
            arrays, info = load_arrays(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; a classifier is written by `graftwork transfer fit`") from error
        if info.get("kind") != KIND or not {"trunk", "head"} <= set(arrays):
            raise WeightsError(f"{path} is not a saved image classifier; make one with `graftwork transfer fit`")
        _check_contents(path, arrays["head"], info)
        model = create(info["model"], include_top=False, pooling="avg", input_shape=tuple(info["input_shape"]))
        try:
            model.load_state_dict(arrays["trunk"])
        except WeightsError as error:
            raise WeightsError(f"{path}: its network is not the {info['model']} of this version: {error}") from error
        classifier = cls(model, info["model"], float(info["C"]), progress)
        classifier.classes = info["classes"]
        for name in HEAD:
            setattr(classifier, name, arrays["head"][name])
        return classifier


HEAD = ("mean", "scale", "weight", "bias")


def _check_contents(path: str | Path, head: dict[str, np.ndarray], info: dict[str, Any]) -> None:
    """WeightsError unless a file's parts have the types and shapes that `save` gives them."""
    classes: Any = info.get("classes")
    shape: Any = info.get("input_shape")
    sound = (
        isinstance(info.get("model"), str)
        and isinstance(info.get("C"), (int, float)) and info["C"] > 0
        and isinstance(classes, list) and len(classes) > 1 and all(isinstance(c, str) for c in classes)
        and isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and 0 < n <= 4096 for n in shape)
        and set(HEAD) <= set(head) and head["mean"].ndim == 1
    )  # fmt: skip
    if sound:
        n, width = len(classes), len(head["mean"])
        wanted = dict(zip(HEAD, ((width,), (width,), (n, width), (n,)), strict=True))
        sound = all(head[k].shape == s and head[k].dtype.kind == "f" for k, s in wanted.items())
    if not sound:
        raise WeightsError(f"{path} is damaged: its classifier is incomplete; write it again with `graftwork transfer fit`")


def logistic_regression(C: float):
    """Standard scaling and logistic regression as one scikit-learn pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def choose_strength(features: np.ndarray, labels: np.ndarray, fewest: int) -> float:
    """The candidate with the best accuracy in stratified cross-validation; with one image a class, a strong default."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if fewest < 2:
        return 0.01
    folds = StratifiedKFold(min(3, fewest), shuffle=True, random_state=0)
    grid = {"logisticregression__C": CANDIDATES}
    return GridSearchCV(logistic_regression(1.0), grid, cv=folds).fit(features, labels).best_params_["logisticregression__C"]
