"""Fitted scikit-learn models as arrays and settings, and back: what a file holds instead of a pickle.

A file names a class of the table here and gives values for its attributes; it can name nothing else, and nothing in it runs.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

from ...errors import ConfigError, WeightsError

LINEAR = ("coef_", "intercept_", "classes_")
NAIVE = ("feature_log_prob_", "class_log_prior_", "feature_count_", "class_count_", "classes_")
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {  # class: its module, and the fitted attributes that predicting needs
    "LogisticRegression": ("sklearn.linear_model", LINEAR),
    "RidgeClassifier": ("sklearn.linear_model", LINEAR),
    "SGDClassifier": ("sklearn.linear_model", LINEAR),
    "Perceptron": ("sklearn.linear_model", LINEAR),
    "LinearSVC": ("sklearn.svm", LINEAR),
    "LinearDiscriminantAnalysis": ("sklearn.discriminant_analysis", LINEAR),
    "GaussianNB": ("sklearn.naive_bayes", ("theta_", "var_", "class_prior_", "class_count_", "classes_", "epsilon_")),
    "BernoulliNB": ("sklearn.naive_bayes", NAIVE),
    "MultinomialNB": ("sklearn.naive_bayes", NAIVE),
    "MLPClassifier": (
        "sklearn.neural_network", ("coefs_", "intercepts_", "n_layers_", "n_outputs_", "out_activation_", "classes_"),
    ),
    "KNeighborsClassifier": ("sklearn.neighbors", ()),
    "StandardScaler": ("sklearn.preprocessing", ("mean_", "var_", "scale_")),
    "MinMaxScaler": ("sklearn.preprocessing", ("min_", "scale_", "data_min_", "data_max_")),
    "Normalizer": ("sklearn.preprocessing", ()),
    "PCA": (
        "sklearn.decomposition", ("components_", "mean_", "explained_variance_", "explained_variance_ratio_", "n_components_"),
    ),
}  # fmt: skip


def pack(estimator: Any, prefix: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(settings, arrays) of a fitted model or pipeline. Raises ConfigError for one that cannot be saved this way."""
    name = type(estimator).__name__
    arrays: dict[str, np.ndarray] = {}
    if name == "Pipeline" and type(estimator).__module__.startswith("sklearn."):
        steps = []
        for i, (label, step) in enumerate(estimator.steps):
            settings, more = pack(step, f"{prefix}{i}.")
            steps.append([label, settings])
            arrays |= more
        return {"class": name, "steps": steps}, arrays
    if name not in MODELS or type(estimator) is not _class(name):
        raise ConfigError(f"a fitted {name} cannot be saved; those that can: {', '.join(MODELS)}, and pipelines of them")
    settings = {"class": name, "params": _plain(name, estimator.get_params(deep=False)), "width": int(estimator.n_features_in_)}
    scalars: dict[str, Any] = {}
    lists: dict[str, int] = {}
    for attribute, value in _fitted(estimator, name).items():
        if isinstance(value, list):
            lists[attribute] = len(value)
            arrays |= {f"{prefix}{attribute}{i}": np.asarray(v) for i, v in enumerate(value)}
        elif isinstance(value, np.ndarray):
            arrays[prefix + attribute] = value
        else:
            scalars[attribute] = value.item() if isinstance(value, np.generic) else value
    return {**settings, "scalars": scalars, "lists": lists}, arrays


def unpack(settings: Any, arrays: dict[str, np.ndarray], prefix: str = "") -> Any:
    """The model that `pack` described. Raises WeightsError for settings or arrays that no fitted model has."""
    try:
        if settings["class"] == "Pipeline":
            from sklearn.pipeline import Pipeline

            return Pipeline([(str(n), unpack(s, arrays, f"{prefix}{i}.")) for i, (n, s) in enumerate(settings["steps"])])
        name = settings["class"]
        if name not in MODELS:
            raise WeightsError(f"a model of the class {name!r} is unknown here; known are {', '.join(MODELS)}")
        estimator = _class(name)(**settings["params"])
        values = dict(settings["scalars"])
        for attribute, count in settings["lists"].items():
            values[attribute] = [arrays[f"{prefix}{attribute}{i}"] for i in range(count)]
        wanted = _attributes(name)
        values |= {a: arrays[prefix + a] for a in wanted if a not in values}
        if set(values) != set(wanted) or any(a.dtype.kind not in "fiu" for a in values.values() if isinstance(a, np.ndarray)):
            raise WeightsError(f"a saved {name} has {', '.join(sorted(values))}; expected numbers for {', '.join(wanted)}")
        return _restored(estimator, name, values, int(settings["width"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"the saved model is damaged ({error}); save it again") from error


def _class(name: str) -> Any:
    return getattr(importlib.import_module(MODELS[name][0]), name)


def _attributes(name: str) -> tuple[str, ...]:
    return ("rows", "labels") if name == "KNeighborsClassifier" else MODELS[name][1]


def _fitted(estimator: Any, name: str) -> dict[str, Any]:
    """Fitted values by name; of k-NN what it was fitted on, from which it is fitted again."""
    if name == "KNeighborsClassifier":
        return {"rows": estimator._fit_X, "labels": estimator.classes_[estimator._y]}
    return {attribute: getattr(estimator, attribute) for attribute in MODELS[name][1]}


def _restored(estimator: Any, name: str, values: dict[str, Any], width: int) -> Any:
    if name == "KNeighborsClassifier":
        return estimator.fit(values["rows"], values["labels"])
    if name in ("RidgeClassifier", "MLPClassifier"):
        from sklearn.preprocessing import LabelBinarizer

        low = -1 if name == "RidgeClassifier" else 0
        estimator._label_binarizer = LabelBinarizer(neg_label=low).fit(values["classes_"])
    for attribute, value in values.items():
        if not isinstance(getattr(type(estimator), attribute, None), property):  # which follows from other attributes
            setattr(estimator, attribute, value)
    estimator.n_features_in_ = width
    return estimator


def _plain(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as JSON keeps them. Raises ConfigError for a value that would not come back."""
    found = {}
    for key, value in params.items():
        value = value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else value
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ConfigError(f"{name}({key}={value!r}) cannot be saved: a setting must be a number, a text, a list or None")
        found[key] = value
    return found
