"""Several tags at once from feature arrays: one scaled logistic regression a tag."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

CERTAIN = 30.0  # the score of a tag that all training rows have, or that none has: a probability of 1 - 1e-13


class TagHead(ClassifierMixin, BaseEstimator):
    """Standard scaling and a logistic regression a tag; scikit-learn's conventions of multi-label classification.

    C: inverse strength of the regularisation. threshold: the probability from which a tag is given. class_weight: "balanced"
    counts rare tags as much as frequent ones, None counts rows. Targets are an indicator matrix (rows, tags); a vector of
    classes is learned one against the rest, and the likeliest class predicted.
    """

    def __init__(self, C: float = 0.1, threshold: float = 0.5, class_weight: str | None = None):
        self.C, self.threshold, self.class_weight = C, threshold, class_weight

    def fit(self, X, y) -> TagHead:
        """Learn from rows (n, values) and their tags (n, tags) of 0 and 1, or classes (n,)."""
        X, y = validate_data(self, X, y, multi_output=True, dtype=np.float64)
        check_classification_targets(y)
        self.multilabel_ = type_of_target(y) == "multilabel-indicator"
        if not self.multilabel_:
            y = y.ravel()
        self.classes_ = np.arange(y.shape[1]) if self.multilabel_ else np.unique(y)
        if len(self.classes_) < 2 and not self.multilabel_:
            raise ValueError(f"y has 1 class, {self.classes_[0]!r}; a classifier can't train when only one class is present")
        columns = y if self.multilabel_ else y[:, None] == self.classes_
        scaler = StandardScaler().fit(X)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        rows = scaler.transform(X)
        self.coef_ = np.zeros((columns.shape[1], X.shape[1]))
        self.intercept_ = np.zeros(columns.shape[1])
        for i, column in enumerate(np.asarray(columns, bool).T):
            if column.all() or not column.any():
                self.intercept_[i] = CERTAIN if column.all() else -CERTAIN
                continue
            model = LogisticRegression(C=self.C, class_weight=self.class_weight, max_iter=1000).fit(rows, column)
            self.coef_[i], self.intercept_[i] = model.coef_[0], model.intercept_[0]
        return self

    def decision_function(self, X) -> np.ndarray:
        """Scores (n, tags), positive for likely ones; of two classes, (n,) for the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = (X - self.mean_) / self.scale_ @ self.coef_.T + self.intercept_
        return scores[:, 1] if not self.multilabel_ and len(self.classes_) == 2 else scores

    def predict_proba(self, X) -> np.ndarray:
        """Probabilities (n, tags), each tag by itself; of classes, they add up to 1."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
        probabilities = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
        if self.multilabel_:
            return probabilities
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    def predict(self, X) -> np.ndarray:
        """An indicator matrix (n, tags), or classes (n,)."""
        probabilities = self.predict_proba(X)
        if self.multilabel_:
            return (probabilities >= self.threshold).astype(np.int64)
        return self.classes_[probabilities.argmax(axis=1)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = False
        return tags
