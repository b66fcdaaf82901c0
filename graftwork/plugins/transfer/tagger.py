"""Tags of pictures: any number of them a picture, from deep features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, WeightsError
from ...nn import Module
from . import require_scikit_learn
from .classifier import check_contents, load_trunk
from .features import BATCH, FeatureExtractor
from .protocol import Parameters
from .saving import load_parts, save_parts

KIND = "graftwork-tagger"
PARTS = ("mean", "scale", "coef", "intercept")


class Tagger(Parameters):
    """Learns which of many tags a picture has: a regression a tag on deep features (taghead.py).

    C, threshold: of that head. The other arguments are those of ImageClassifier. `classes` has the tags after `fit`.
    """

    def __init__(self, model: Module, model_name: str, C: float = 0.1, threshold: float = 0.5, progress: bool = False,
                 layer: str | None = None, pooling: str = "avg", batch_size: int = BATCH,
                 cache: str | Path | bool | None = None):  # fmt: skip
        self.model, self.model_name, self.C, self.threshold, self.progress = model, model_name, C, threshold, progress
        self.layer, self.pooling, self.batch_size, self.cache = layer, pooling, batch_size, cache
        self.classes: list[str] = []
        self._compiled: dict[tuple, Any] = {}
        self.head_: Any = None
        self._check()

    def _check(self) -> None:
        if not 0 < self.C < float("inf"):
            raise ConfigError(f"C={self.C}; expected a positive number (smaller: stronger regularisation)")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold={self.threshold}; expected a probability between 0 and 1")

    @property
    def extractor(self) -> FeatureExtractor:
        """What makes features of pictures."""
        extractor = FeatureExtractor(self.model, self.layer, self.pooling, self.batch_size, self.cache, self.progress)
        extractor._compiled = self._compiled
        return extractor

    def fit(self, pictures: Any, tags: Sequence[Iterable[str]], classes: Sequence[str] | None = None) -> Tagger:
        """Learn from pictures and the tags of each, of which there may be none. classes: all tags; found if None."""
        require_scikit_learn()
        encode_tags(tags, classes)  # before long work, not after it
        return self.fit_features(self.extractor.transform(pictures), tags, classes)

    def fit_features(self, features: np.ndarray, tags: Sequence[Iterable[str]], classes: Sequence[str] | None = None) -> Tagger:
        """The same from features that were extracted before."""
        require_scikit_learn()
        from .taghead import TagHead

        indicators, names = encode_tags(tags, classes)
        if len(indicators) != len(features):
            raise DataError(f"{len(features)} images with the tags of {len(indicators)}; expected a list of tags for each")
        self.head_, self.classes = TagHead(self.C, self.threshold).fit(features, indicators), names
        return self

    def predict_proba(self, pictures: Any) -> np.ndarray:
        """The probability of each tag (images, tags), in the order of `classes`. Raises DataError before `fit`."""
        self._require_fitted()
        return self.head_.predict_proba(self.extractor.transform(pictures))

    def predict(self, pictures: Any) -> list[list[str]]:
        """The tags of each picture whose probability reaches the threshold, likeliest first."""
        found = []
        for row in self.predict_proba(pictures):
            found.append([self.classes[i] for i in np.argsort(-row, kind="stable") if row[i] >= self.threshold])
        return found

    def save(self, path: str | Path) -> None:
        """Write trunk and head to one HDF5 file that `load` reads; it appears whole or not at all."""
        self._require_fitted()
        info = {
            "model": self.model_name, "classes": self.classes, "C": self.C, "threshold": self.threshold, "layer": self.layer,
            "pooling": self.pooling, "input_shape": list(self.model.input_shape),
            "resized": getattr(self.model, "resized", False),
        }  # fmt: skip
        head = {part: getattr(self.head_, f"{part}_") for part in PARTS}
        save_parts(path, KIND, {"trunk": self.model.state_dict(), "head": head}, info)

    @classmethod
    def load(cls, path: str | Path, progress: bool = False) -> Tagger:
        """Read what `save` wrote. Raises WeightsError or CheckpointError for a missing, damaged, foreign or newer file."""
        require_scikit_learn()
        from .taghead import TagHead

        arrays, info = load_parts(path, KIND, {"trunk": (), "head": PARTS}, ("C", "threshold", "layer", "pooling"))
        check_contents(path, info)
        parts, tags = arrays["head"], len(info["classes"])
        width = parts["mean"].size
        wanted = dict(zip(PARTS, ((width,), (width,), (tags, width), (tags,)), strict=True))
        if any(parts[p].shape != shape or parts[p].dtype.kind != "f" for p, shape in wanted.items()):
            raise WeightsError(f"{path} is damaged: its parts do not fit {tags} tags; save the tagger again")
        tagger = cls(load_trunk(path, arrays["trunk"], info), info["model"], info["C"], info["threshold"], progress,
                     info["layer"], info["pooling"])  # fmt: skip
        head = TagHead(info["C"], info["threshold"])
        for part in PARTS:
            setattr(head, f"{part}_", parts[part])
        head.multilabel_, head.classes_, head.n_features_in_ = True, np.arange(tags), width
        tagger.head_, tagger.classes = head, info["classes"]
        return tagger

    def _require_fitted(self) -> None:
        if not self.classes:
            raise DataError("this tagger has learned nothing yet; call fit(pictures, tags) first")


def encode_tags(tags: Sequence[Iterable[str]], classes: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """An indicator matrix (images, tags) and the tags' names. Raises DataError for texts in place of lists, or unknown tags."""
    given = list(tags)
    wrong = next((t for t in given if isinstance(t, (str, bytes)) or not isinstance(t, Iterable)), None)
    if wrong is not None:
        raise DataError(f"the tags of an image are {wrong!r}; expected a list of texts, which may be empty")
    sets = [{str(t) for t in one} for one in given]
    used = sorted(set().union(*sets))
    names = used if classes is None else [str(c) for c in classes]
    unknown = sorted(set(used) - set(names))
    if unknown or not names:
        raise DataError(f"tags {', '.join(unknown)} are not among {', '.join(names)}" if unknown else "no image has any tag")
    return np.array([[int(name in one) for name in names] for one in sets], np.int64).reshape(len(sets), len(names)), names
