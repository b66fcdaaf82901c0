"""What is compressed: a classifier of the transfer plugin or a network of the zoo, seen alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, ModelError
from ...nn import Module, Tensor, compile, no_grad
from ...nn import functional as F
from ...zoo import images
from ...zoo.whole import save as save_network
from ..prune import ChannelReport, prune_channels
from ..transfer.classifier import ImageClassifier
from ..transfer.finetune import FineTuned

BATCH = 32


class Subject:
    """network: the Module whose weights are compressed. run: from normalised inputs to class scores (n, classes), as a function
    of one tensor that can be captured, or None where part of it is no network. classes: names. size: (height, width) of
    pictures."""

    def __init__(self, model: Any):
        self._adopt(model)

    def _adopt(self, model: Any) -> None:
        self.model = model
        self.network: Module
        self.run: Callable[[Tensor], Tensor] | None
        if isinstance(model, ImageClassifier):
            self.network = self.image_model = model.model
            self.run = self._with_regression if model.estimator_ is None else None
            self.classes, self.size = list(model.classes), tuple(model.model.input_shape[:2])
        elif isinstance(model, FineTuned):
            self.network, self.image_model = model.model, model.model.trunk
            self.run, self.classes = self.network, list(model.classes)
            self.size = model.recipe.whole_size(self.image_model)
        elif isinstance(model, Module) and hasattr(model, "preprocess"):
            if not getattr(model, "include_top", False) or getattr(model, "labels", None) is None:
                raise ModelError(
                    f"compress: {type(model).__name__} does not say which classes its outputs are; take a network with its top "
                    "and weights that come with names, or a classifier of `graftwork transfer fit`"
                )
            self.network = self.image_model = self.run = model
            self.classes, self.size = [str(n) for n in model.labels], tuple(model.input_shape[:2])
        else:
            raise ModelError(f"compress: {type(model).__name__} is neither a classifier of pictures nor a network of the zoo")
        self.network.eval()
        self._static = compile(self._features if isinstance(model, ImageClassifier) else self.network)

    def _features(self, x: Tensor) -> Tensor:
        model = self.model
        found = model.model.features(x, model.pooling, None if model.layer is None else [model.layer])
        return found if model.layer is None else found[model.layer]

    def _with_regression(self, x: Tensor) -> Tensor:
        """Features, scaling and regression as one network; the scaling goes into the regression's weights."""
        weight, bias = self._regression()
        return F.linear(self._features(x), weight, bias)

    def _regression(self) -> tuple[Tensor, Tensor]:
        model = self.model
        weight = (model.weight / model.scale).astype(np.float32)
        bias = (model.bias - (model.weight / model.scale) @ model.mean).astype(np.float32)
        return Tensor(np.ascontiguousarray(weight.T)), Tensor(bias)

    def pixels(self, pictures: Sequence[Any]) -> np.ndarray:
        """uint8 (n, height, width, channels)."""
        return images.to_batch(list(pictures), self.size, self.image_model.input_shape[2])

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """What the network takes, float32."""
        return self.image_model.normalise(pixels).numpy()

    def scores(self, pixels: np.ndarray, run: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """Class scores (n, classes) of pictures; run: another network in the place of the subject's own."""
        found = []
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            short = BATCH - len(part)
            if short and len(pixels) > BATCH:  # a graph for the last few alone would cost more than it saves
                part = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
            with no_grad():
                rows = (self._static if run is None else run)(Tensor(self.inputs(part))).numpy()
            if run is None and isinstance(self.model, ImageClassifier):
                rows = self.model.decision(rows)
            found.append(rows[: len(pixels) - start])
        return np.concatenate(found)

    def prune(self, share: float, pixels: np.ndarray) -> ChannelReport:
        """Take out channels until at most this share of the network's multiplications is left; pictures say how to fit what
        reads them. Raises ConfigError where features are read within the network, for those channels would go, too."""
        if isinstance(self.model, ImageClassifier) and self.model.layer is not None:
            raise ConfigError(f"compress: the classifier reads layer {self.model.layer!r} within its network; leave --macs out")
        small, report = prune_channels(
            self.image_model, Tensor(self.inputs(pixels)), target_macs=share, reconstruct=True
        )  # fmt: skip
        if isinstance(self.model, ImageClassifier):
            self.model.model = small
        elif isinstance(self.model, FineTuned):
            self.model.model.trunk = small
        self._adopt(small if isinstance(self.model, Module) else self.model)
        return report

    @property
    def fits(self) -> bool:
        """Whether a classifier on top can learn anew, without the network."""
        return isinstance(self.model, ImageClassifier)

    def refit(self, pictures: Sequence[Any], labels: np.ndarray) -> None:
        """Learn the classifier on top anew, from what the compressed network says of pictures; only if it `fits`."""
        self.model.C = self.model.C_ if self.model.estimator_ is None else None
        self.model.fit(pictures, labels, self.classes)

    def save(self, path: str | Path, packed: bool) -> None:
        """Write it as it is now, in the form that its kind is loaded from."""
        if isinstance(self.model, Module):
            save_network(self.model, path, layout="packed" if packed else "legacy")
        else:
            self.model.save(path, packed=packed)


def load_subject(model: str | Path, weights: str | None = None) -> Subject:
    """The subject that a classifier's file, a network's file (`zoo.save`) or a name in the zoo stands for.

    weights: of a name in the zoo; those that ship with the package by default. Raises ConfigError for weights beside a file,
    and what the readers of files raise.
    """
    from ...zoo import create, find, load
    from ...zoo.registry import list_models
    from ..transfer.advise import load as load_classifier

    path = Path(model)
    if path.is_file():
        if weights is not None:
            raise ConfigError(f"compress: {path} is a file and has its own weights; leave --weights {weights} out")
        return Subject(load_classifier(path) if _is_checkpoint(path) else load(path))
    if str(model) not in list_models():
        raise DataError(f"compress: {model} is neither a file nor a network of the zoo; `graftwork zoo list` shows those")
    embedded = [name for name, source in find(str(model)).weights.items() if "://" not in source]
    if weights is None and not embedded:
        raise ModelError(f"no weights for {model} ship with the package; give a file or a name with --weights")
    return Subject(create(str(model), weights=weights or embedded[0]))


def _is_checkpoint(path: Path) -> bool:
    import h5py

    if not h5py.is_hdf5(path):
        raise DataError(f"compress: {path} is no HDF5 file; expected a saved classifier or a network that zoo.save wrote")
    with h5py.File(path, "r") as file:
        return "graftwork_checkpoint" in file.attrs
