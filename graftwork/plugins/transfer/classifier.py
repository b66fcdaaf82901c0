"""A simple model on deep features: scaling and logistic regression, saved with the trunk in one HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, WeightsError
from ...nn import Module
from ...zoo import create
from ...zoo.whole import shrink
from . import require_scikit_learn
from .features import BATCH, FeatureExtractor
from .heads import pack, unpack
from .protocol import Parameters
from .saving import load_parts, save_parts
from .training_data import threads

CANDIDATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # inverse regularisation strengths tried by cross-validation, ascending
KIND = "graftwork-image-classifier"
WRITER = "`graftwork transfer fit`"


class ImageClassifier(Parameters):
    """Learns classes of images from deep features; a scikit-learn classifier of pictures.

    model: a zoo model without top. model_name: its name in the zoo, needed to save. estimator: any scikit-learn classifier,
    used as it is; None for standard scaling and multinomial logistic regression, with C the inverse strength of its
    regularisation (None chooses by cross-validation on the training images; the choice is `C_`). layer, pooling, batch_size,
    cache and progress: as in FeatureExtractor. `classes` has the classes' names after `fit`.
    """

    def __init__(self, model: Module, model_name: str, C: float | None = None, progress: bool = False, estimator: Any = None,
                 layer: str | None = None, pooling: str = "avg", batch_size: int = BATCH,
                 cache: str | Path | bool | None = None):  # fmt: skip
        self.model, self.model_name, self.C, self.progress, self.estimator = model, model_name, C, progress, estimator
        self.layer, self.pooling, self.batch_size, self.cache = layer, pooling, batch_size, cache
        self.classes: list[str] = []
        self._compiled: dict[tuple, Any] = {}
        self.C_: float | None = None
        self.estimator_: Any = None
        self.mean = self.scale = self.weight = self.bias = np.zeros(0)
        self._check()

    def _check(self) -> None:
        if self.C is not None and not 0 < self.C < float("inf"):
            raise ConfigError(
                f"C={self.C}; expected a positive number (smaller: stronger regularisation), or None to choose one"
            )
        if self.estimator is not None and not (hasattr(self.estimator, "fit") and hasattr(self.estimator, "predict")):
            raise ConfigError(
                f"estimator={self.estimator!r}; expected a scikit-learn classifier, or None for logistic regression"
            )
        if self.estimator is not None and self.C is not None:
            raise ConfigError(f"C={self.C} belongs to the default logistic regression; set it on the estimator given instead")

    @property
    def extractor(self) -> FeatureExtractor:
        """What makes features of pictures; the network is compiled once."""
        extractor = FeatureExtractor(self.model, self.layer, self.pooling, self.batch_size, self.cache, self.progress)
        extractor._compiled = self._compiled
        return extractor

    @property
    def classes_(self) -> np.ndarray:
        """The class numbers, for scikit-learn."""
        self._require_fitted()
        return np.arange(len(self.classes))

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self.classes)

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), transformer_tags=None,
            classifier_tags=ClassifierTags(), input_tags=InputTags(two_d_array=False, string=True),
        )  # fmt: skip

    def fit(self, pictures: Any, labels: Any, classes: Sequence[str] | None = None) -> ImageClassifier:
        """Learn from images (or a folder of them) and their classes: numbers from 0, or names.

        classes: the names of the numbers. Raises DataError for less than two classes.
        """
        require_scikit_learn()
        encode_labels(labels, classes)  # before long work, not after it
        return self.fit_features(self.extractor.transform(pictures), labels, classes)

    def fit_features(self, features: np.ndarray, labels: Any, classes: Sequence[str] | None = None) -> ImageClassifier:
        """The same from features that were extracted before."""
        require_scikit_learn()
        targets, names = encode_labels(labels, classes, len(features))
        if not np.isfinite(features).all():
            raise DataError("the deep features are not finite; are the network's weights damaged, or of another network?")
        if self.estimator is not None:
            from sklearn.base import clone

            self.estimator_, self.classes = clone(self.estimator).fit(features, targets), names
            return self
        fewest = int(np.bincount(targets).min())
        best = self.C if self.C is not None else choose_strength(features, targets, fewest)
        pipeline = fitted_regression(best, features, targets)
        scaler, regression = pipeline[0], pipeline[1]
        self.classes, self.C_, self.mean, self.scale = names, best, scaler.mean_, scaler.scale_
        self.weight, self.bias = regression.coef_, regression.intercept_
        if len(names) == 2:  # scikit-learn keeps one row for two classes
            self.weight = np.concatenate([-self.weight, self.weight]) / 2
            self.bias = np.concatenate([-self.bias, self.bias]) / 2
        return self

    def decision(self, features: np.ndarray) -> np.ndarray:
        """Class scores (images, classes) before softmax. Raises DataError before `fit`, and for features of another width.

        Of an estimator of one's own: the logarithm of its probabilities. Raises ConfigError for one that gives none.
        """
        self._require_fitted()
        width = len(self.mean) if self.estimator_ is None else self.estimator_.n_features_in_
        if features.shape[1:] != (width,):
            raise DataError(f"features {features.shape} for a classifier of {width}; use its own network")
        if self.estimator_ is None:
            return (features - self.mean) / self.scale @ self.weight.T + self.bias
        if not hasattr(self.estimator_, "predict_proba"):
            raise ConfigError(
                f"{type(self.estimator_).__name__} gives no probabilities; use predict, or another estimator such as "
                "LogisticRegression"
            )
        return np.log(np.maximum(self.estimator_.predict_proba(features), np.finfo(np.float64).tiny))

    def predict_proba(self, pictures: Any) -> np.ndarray:
        """Class probabilities (images, classes). Raises DataError before `fit`."""
        self._require_fitted()
        return self.predict_proba_features(self.extractor.transform(pictures))

    def predict_proba_features(self, features: np.ndarray) -> np.ndarray:
        """The same from features that were extracted before."""
        scores = self.decision(features)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict(self, pictures: Any) -> np.ndarray:
        """Class numbers."""
        self._require_fitted()
        return self.predict_features(self.extractor.transform(pictures))

    def predict_features(self, features: np.ndarray) -> np.ndarray:
        """The same from features that were extracted before."""
        self._require_fitted()
        if self.estimator_ is not None and not hasattr(self.estimator_, "predict_proba"):
            return self.estimator_.predict(features)
        return self.decision(features).argmax(axis=1)

    def score(self, pictures: Any, labels: Any) -> float:
        """Share of images whose class is predicted right. Raises DataError for classes that were not in the training."""
        self._require_fitted()
        truth = self._known(labels)
        return float((self.predict(pictures) == truth).mean())

    def _known(self, labels: Any) -> np.ndarray:
        """Class numbers of labels (numbers or names), all of which were learned."""
        given = np.asarray(labels)
        known = np.array(self.classes) if given.dtype.kind in "US" else self.classes_
        unseen = np.unique(given[~np.isin(given, known)])
        if len(unseen):
            raise DataError(
                f"labels {', '.join(map(str, unseen.tolist()))} were not in the training; it had "
                f"{', '.join(self.classes)} (numbers 0 to {len(self.classes) - 1})"
            )
        return np.array([self.classes.index(n) for n in given]) if given.dtype.kind in "US" else given

    def save(self, path: str | Path, packed: bool = False) -> None:
        """Write trunk and classifier to one HDF5 file that `load` reads; it appears whole or not at all.

        packed: in few bytes where the trunk was pruned, clustered or rounded.
        The trunk stays exact, matrices of the classifier become float32.
        Raises ConfigError for an estimator that cannot be written as arrays (see heads.py).
        """
        self._require_fitted()
        info: dict[str, Any] = {
            "model": self.model_name, "classes": self.classes, "C": self.C_, "layer": self.layer, "pooling": self.pooling,
            "input_shape": list(self.model.input_shape), "resized": getattr(self.model, "resized", False),
        }  # fmt: skip
        if self.estimator_ is None:
            head = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}
        else:
            info["estimator"], head = pack(self.estimator_)
        if packed:
            head = {name: a.astype(np.float32) if a.dtype == np.float64 and a.ndim > 1 else a for name, a in head.items()}
        save_parts(path, KIND, {"trunk": self.model.state_dict(), "head": head}, info, ("trunk", "head") if packed else ())

    def _require_fitted(self) -> None:
        if not self.classes:
            raise DataError("this classifier has learned nothing yet; call fit(pictures, labels) first")

    @classmethod
    def load(cls, path: str | Path, progress: bool = False) -> ImageClassifier:
        """Read what `save` wrote. Raises WeightsError or CheckpointError for a missing, damaged, foreign or newer file."""
        arrays, info = load_parts(path, KIND, {"trunk": (), "head": ()}, writer=WRITER)
        check_contents(path, info)
        head = arrays["head"]
        if info.get("estimator") is None:
            _check_regression(path, head, info)
        model = load_trunk(path, arrays["trunk"], info)
        options = {"layer": info.get("layer"), "pooling": info.get("pooling", "avg"), "progress": progress}
        if info.get("estimator") is None:
            classifier = cls(model, info["model"], float(info["C"]), **options)
            classifier.C_ = classifier.C
            for name in HEAD:
                setattr(classifier, name, head[name])
        else:
            try:
                fitted = unpack(info["estimator"], head)
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}") from error
            classifier = cls(model, info["model"], estimator=fitted, **options)
            classifier.estimator_ = fitted
        classifier.classes = info["classes"]
        return classifier


def encode_labels(labels: Any, classes: Sequence[str] | None, images: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Class numbers (images,) and names, of numbers from 0 or of names. Raises DataError unless all classes have images."""
    targets = np.asarray(labels)
    if targets.dtype.kind in "US" and targets.ndim == 1:
        known = sorted(set(targets.tolist())) if classes is None else [str(c) for c in classes]
        unknown = sorted(set(targets.tolist()) - set(known))
        if unknown:
            raise DataError(f"labels {', '.join(map(str, unknown))} are not among the classes {', '.join(known)}")
        targets, classes = np.array([known.index(name) for name in targets.tolist()]), known
    found = np.unique(targets)
    count = len(targets) if images is None else images
    if len(found) < 2 or len(targets) != count or targets.ndim != 1:
        raise DataError(
            f"{count} images with {len(targets)} labels of {len(found)} classes; expected as many labels as images and at "
            "least two classes"
        )
    names = [str(c) for c in (classes if classes is not None else found)]
    if len(names) != len(found) or found[0] != 0 or found[-1] != len(found) - 1:
        raise DataError(f"labels {found.tolist()} for {len(names)} class names; expected numbers 0 to n - 1, all used")
    return targets.astype(np.int64), names


def load_trunk(path: str | Path, state: dict[str, np.ndarray], info: dict[str, Any]) -> Module:
    """The network of a saved model, with its weights. Raises WeightsError where they do not fit."""
    model = create(info["model"], include_top=False, pooling="avg", input_shape=tuple(info["input_shape"]))
    try:
        if info.get("resized") is True:
            shrink(model, {name: value.shape for name, value in state.items()}, path)
        model.load_state_dict(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: its network is not the {info['model']} of this version: {error}") from error
    return model


HEAD = ("mean", "scale", "weight", "bias")


def check_contents(path: str | Path, info: dict[str, Any]) -> None:
    """WeightsError unless the settings that all saved models of pictures share have sensible types and sizes."""
    classes: Any = info.get("classes")
    shape: Any = info.get("input_shape")
    sound = (
        isinstance(info.get("model"), str)
        and isinstance(classes, list) and len(classes) > 0 and all(isinstance(c, str) for c in classes)
        and isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and 0 < n <= 4096 for n in shape)
        and isinstance(info.get("layer"), (str, type(None))) and info.get("pooling", "avg") in ("avg", "max")
    )  # fmt: skip
    if not sound:
        raise WeightsError(f"{path} is damaged: its settings are incomplete; write it again with {WRITER}")


def _check_regression(path: str | Path, head: dict[str, np.ndarray], info: dict[str, Any]) -> None:
    """WeightsError unless the default classifier's arrays have the shapes that `save` gives them."""
    n = len(info["classes"])
    sound = isinstance(info.get("C"), (int, float)) and info["C"] > 0 and n > 1 and set(HEAD) <= set(head)
    sound = sound and head["mean"].ndim == 1
    if sound:
        width = len(head["mean"])
        wanted = dict(zip(HEAD, ((width,), (width,), (n, width), (n,)), strict=True))
        sound = all(head[k].shape == s and head[k].dtype.kind == "f" for k, s in wanted.items())
    if not sound:
        raise WeightsError(f"{path} is damaged: its classifier is incomplete; write it again with {WRITER}")


def logistic_regression(C: float):
    """Standard scaling and logistic regression as one scikit-learn pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def fitted_regression(C: float, features: np.ndarray, labels: np.ndarray):
    """`logistic_regression`, fitted."""
    with one_blas_thread():
        return logistic_regression(C).fit(features, labels)


def one_blas_thread():
    """A context for fitting regressions: their products are so small that BLAS's threads cost ten times what they save."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    return threadpool_limits(1, "blas")


def choose_strength(features: np.ndarray, labels: np.ndarray, fewest: int) -> float:
    """The candidate with the best accuracy in stratified cross-validation; with one image a class, a strong default.

    Folds are learned side by side, and within one each strength begins where the stronger regularisation before it ended.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    if fewest < 2:
        return 0.01

    def accuracies(part: tuple[np.ndarray, np.ndarray]) -> list[float]:
        learn, check = part
        scaler = StandardScaler().fit(features[learn])
        x, checks = scaler.transform(features[learn]), scaler.transform(features[check])
        model = LogisticRegression(max_iter=1000, warm_start=True)
        return [model.set_params(C=C).fit(x, labels[learn]).score(checks, labels[check]) for C in CANDIDATES]

    folds = StratifiedKFold(min(3, fewest), shuffle=True, random_state=0)
    with one_blas_thread(), ThreadPoolExecutor(threads()) as pool:
        found = list(pool.map(accuracies, folds.split(features, labels)))
    return CANDIDATES[int(np.mean(found, axis=0).argmax())]
