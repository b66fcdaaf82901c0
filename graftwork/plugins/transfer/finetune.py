"""Fine-tuning: train a new head, and as many layers of the trunk as asked for, on labelled pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...errors import ConfigError, DataError, ModelError, WeightsError
from ...nn import DataLoader, Linear, Module, SoftCrossEntropyLoss, Tensor, Trainer, compile, no_grad, tensor
from ...nn import functional as F
from ...nn.checkpoint import load as load_arrays
from ...nn.checkpoint import save as save_arrays
from ...nn.optim import AdamW
from ...nn.rng import seeded
from ...nn.schedule import OneCycleLR
from ...zoo import create
from ...zoo.whole import shrink
from .augment import Augmentation
from .strategy import as_before, layers_of, rates, stages, train_last
from .training_data import BALANCES, PictureSet, TrainingLoader, TrainingSet, check_labels, decode, targets, threads

KIND, FORMAT = "graftwork-fine-tuned", 1
PHOTOGRAPHS = Augmentation()
WHOLE = Augmentation(flip=False, crop=1.0)


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    strategy: "head", "few", "all", "gradual", or a number of layers below the head (see `strategy.stages`). epochs, batch_size.
    trunk_lr, head_lr: the highest rates of AdamW in one cycle. layer_decay: each layer's rate over that of the layer above it.
    weight_decay, label_smoothing, dropout: the last one before the head.
    balance: None, "weights" (a rare class's pictures count for more) or "sampling" (they are seen more often).
    freeze_statistics: batch norm keeps its running statistics throughout, which a handful of pictures would spoil; its scale
    and shift still train.
    standardise: features are brought to mean 0 and deviation 1 before the head, by fixed statistics of the training pictures,
    and the head starts at zero; for trained trunks.
    size: (height, width) of what the network sees in training, the model's own if None. augment: None for none.
    patience: stop after so many epochs without a better validation accuracy. seed: of everything random.
    compile: the step as one static graph.
    """

    strategy: str | int = "all"
    epochs: int = 12
    batch_size: int = 32
    trunk_lr: float = 2e-4
    head_lr: float = 2e-3
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    dropout: float = 0.0
    balance: str | None = None
    freeze_statistics: bool = True
    standardise: bool = True
    size: tuple[int, int] | None = None
    augment: Augmentation | None = PHOTOGRAPHS
    patience: int | None = None
    seed: int = 0
    compile: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.seed < 0:
            raise ConfigError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, seed={self.seed}; expected at least 1, 1 and 0"
            )
        if not (self.trunk_lr > 0 and self.head_lr > 0 and 0 < self.layer_decay <= 1):
            raise ConfigError(
                f"trunk_lr={self.trunk_lr}, head_lr={self.head_lr}, layer_decay={self.layer_decay}; expected positive rates, "
                "and a decay above 0 and at most 1"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.dropout < 1 and self.weight_decay >= 0):
            raise ConfigError(
                f"label_smoothing={self.label_smoothing}, dropout={self.dropout}, weight_decay={self.weight_decay}; expected 0 "
                "to below 1 twice, and at least 0"
            )
        if self.balance not in BALANCES:
            raise ConfigError(f"balance={self.balance!r}; expected None, 'weights' or 'sampling'")

    def training_size(self, model: Module) -> tuple[int, int]:
        """What the network sees in training."""
        return tuple(self.size or model.input_shape[:2])  # type: ignore[return-value]

    def whole_size(self, model: Module) -> tuple[int, int]:
        """The size at which pictures are decoded, and seen whole in inference."""
        height, width = self.training_size(model)
        crop = 1.0 if self.augment is None else self.augment.crop
        return round(height * crop), round(width * crop)


class WithHead(Module):
    """A trunk's pooled features, standardised by fixed statistics, dropout, and a linear head: logits (batch, classes)."""

    def __init__(self, trunk: Module, features: int, classes: int, dropout: float = 0.0):
        super().__init__()
        self.trunk, self.head, self.dropout = trunk, Linear(features, classes), dropout
        self.register_buffer("mean", Tensor(np.zeros(features, np.float32)))
        self.register_buffer("scale", Tensor(np.ones(features, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        features = (self.trunk.features(x) - self.mean) * self.scale
        return self.head(F.dropout(features, self.dropout, self.training))


class FineTuned:
    """A fine-tuned network: what `fine_tune` returns and `FineTuned.load` reads.

    model: a Module from inputs to logits. classes: their names. history: one dict an epoch. best: the epoch with the best
    validation accuracy, whose weights these are; None without validation pictures.
    """

    def __init__(self, model: WithHead, classes: Sequence[str], recipe: Recipe, model_name: str | None = None,
                 history: Sequence[dict] = (), best: dict | None = None):  # fmt: skip
        self.model, self.classes, self.recipe, self.model_name = model, list(classes), recipe, model_name
        self.history, self.best = list(history), best
        self._static = compile(model)

    def logits(self, pictures: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """Class scores (pictures, classes) before softmax, for paths, Pillow images or uint8 arrays."""
        trunk = self.model.trunk
        whole = PictureSet(pictures, trunk, self.recipe.whole_size(trunk))
        self.model.eval()
        with no_grad():
            loader = DataLoader(whole, batch_size, workers=threads(), device=trunk.device)
            return np.concatenate([self._static(x).numpy() for (x,) in loader])

    def predict_proba(self, pictures: Sequence[Any]) -> np.ndarray:
        """Class probabilities (pictures, classes) as float32; rows sum to 1."""
        scores = self.logits(pictures)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict(self, pictures: Sequence[Any]) -> np.ndarray:
        """Class numbers."""
        return self.logits(pictures).argmax(axis=1)

    def score(self, pictures: Sequence[Any], labels: Any) -> float:
        """Share of pictures whose class is predicted right."""
        return float((self.predict(pictures) == np.asarray(labels)).mean())

    def save(self, path: str | Path, packed: bool = False) -> None:
        """Write network, head, classes, recipe and history to one HDF5 file; it appears whole or not at all.

        packed: exactly, in few bytes where the network was pruned, clustered or rounded.
        Raises ConfigError if the network's name in the zoo is not known: give `fine_tune` a `model_name`.
        """
        if self.model_name is None:
            raise ConfigError('this network cannot be built again without its name in the zoo; set model_name="squeezenet1_1" '
                              "or the like before saving")  # fmt: skip
        info = {
            "kind": KIND, "format": FORMAT, "graftwork": __version__, "model": self.model_name, "classes": self.classes,
            "input_shape": list(self.model.trunk.input_shape), "features": self.model.head.weight.shape[0],
            "recipe": dataclasses.asdict(self.recipe), "history": self.history, "best": self.best,
            "resized": getattr(self.model.trunk, "resized", False),
        }  # fmt: skip
        save_arrays(path, {"model": self.model.state_dict()}, info, ("model",) if packed else ())

    @classmethod
    def load(cls, path: str | Path) -> FineTuned:
        """Read what `save` wrote. Raises CheckpointError or WeightsError for a missing, damaged, foreign or newer file."""
        arrays, info = load_arrays(path)
        if info.get("kind") != KIND or "model" not in arrays:
            raise WeightsError(f"{path} is not a fine-tuned network; write one with FineTuned.save")
        if not isinstance(info.get("format"), int) or info["format"] > FORMAT:
            raise WeightsError(
                f"{path} has format {info.get('format')!r}, written by Graftwork {info.get('graftwork')}; this version reads "
                f"formats up to {FORMAT}: upgrade"
            )
        try:
            recipe = _recipe_from(info["recipe"])
            trunk = create(info["model"], include_top=False, pooling="avg", input_shape=tuple(info["input_shape"]))
            if info.get("resized") is True:
                shapes = {name: value.shape for name, value in arrays["model"].items()}
                shrink(trunk, {n.removeprefix("trunk."): s for n, s in shapes.items() if n.startswith("trunk.")}, path)
            model = WithHead(trunk, int(info["features"]), len(info["classes"]), recipe.dropout)
            model.eval()
            model.load_state_dict(arrays["model"])
            return cls(model, info["classes"], recipe, info["model"], info["history"], info["best"])
        except (LookupError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} is damaged, or of another version of its network: {error}") from error


def fine_tune(model: Module, pictures: Any, labels: Any, classes: int | Sequence[str], *,
              validation: tuple[Any, Any] | None = None, recipe: Recipe | None = None, model_name: str | None = None,
              checkpoint: str | Path | None = None, transform: Any = None, workers: int = 1, progress: bool = False,
              **options: Any) -> FineTuned:  # fmt: skip
    """Train a new head, and the trunk as the strategy says, on labelled pictures. The trunk is trained in place.

    model: a zoo model without top. pictures: paths, Pillow images or uint8 arrays, which are augmented; or normalised float
    inputs (n, height, width, channels), which are not. classes: their number or names. validation: (pictures, labels), measured
    after each epoch; the best epoch's weights are returned. recipe: how; `options` are single entries of it, such as epochs=5.
    checkpoint: a file written after each epoch; if it exists already, training goes on from it, exactly as it would have
    gone on. transform(rng, inputs, labels) -> (inputs, labels): augmentation of the caller's, on normalised inputs.
    workers: threads that augment. Raises DataError for labels or pictures that do not fit, ConfigError for a recipe that makes
    no sense, CheckpointError for a checkpoint of another run.
    """
    run = Run(model, pictures, labels, classes, change(recipe, options), transform, workers)
    with run:
        run.train(validation, checkpoint, progress)
    run.network.eval()
    return FineTuned(run.network, run.classes, run.recipe, model_name, run.trainer.history, run.trainer.best)


def change(recipe: Recipe | None, options: dict[str, Any]) -> Recipe:
    """A recipe with some entries changed. Raises ConfigError for an entry that it does not have."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(f"no option {', '.join(unknown)}; a recipe has {', '.join(known)}")
    return dataclasses.replace(recipe or Recipe(), **options)


class Run:
    """Everything a training run consists of, built from a recipe. As a context manager it leaves the caller's randomness, and
    what was frozen in the trunk, as they were."""

    def __init__(self, trunk: Module, pictures: Any, labels: Any, classes: int | Sequence[str], recipe: Recipe,
                 transform: Any = None, workers: int = 1):  # fmt: skip
        if not (hasattr(trunk, "features") and hasattr(trunk, "normalise")):
            raise ModelError(f"{type(trunk).__name__} has no deep features; expected an image model of the zoo")
        self.trunk, self.recipe = trunk, recipe
        self.labels, self.classes = check_labels(labels, len(pictures), classes)
        self.stages = stages(recipe.strategy, len(layers_of(trunk)), recipe.epochs)
        self.pixels = self._pixels(pictures)
        ready = self.pixels.dtype != np.uint8
        augment = dataclasses.replace(WHOLE, mixup=recipe.augment.mixup if recipe.augment else 0.0)
        if recipe.augment is not None and not ready:
            augment = recipe.augment
        rows = targets(self.labels, len(self.classes), recipe.label_smoothing, recipe.balance)
        data = TrainingSet(self.pixels, self.labels, rows, trunk, recipe.training_size(trunk), augment, transform)
        self.loader = TrainingLoader(data, recipe.batch_size, recipe.seed, workers, recipe.balance == "sampling")

    def _pixels(self, pictures: Any) -> np.ndarray:
        if isinstance(pictures, np.ndarray) and pictures.dtype.kind == "f":
            if pictures.ndim != 4:
                raise DataError(f"inputs {list(pictures.shape)}; expected (n, height, width, channels), or pictures")
            return pictures
        return decode(pictures, self.recipe.whole_size(self.trunk), self.trunk.input_shape[2])

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            stack.enter_context(seeded(self.recipe.seed))
            stack.enter_context(as_before(self.trunk))
            self._build()
            self._exit = stack.pop_all()  # nothing went wrong: undone when the run ends
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    def _build(self) -> None:
        recipe, trunk = self.recipe, self.trunk
        trunk.eval()
        with no_grad():
            width = trunk.features(self._inputs(slice(0, 1))).shape[1]
        self.network = WithHead(trunk, width, len(self.classes), recipe.dropout)
        self.network.to(trunk.device)
        if recipe.standardise:
            self._standardise()
        most = max(count for count, _ in self.stages)
        groups = [*rates(trunk, most, recipe.trunk_lr, recipe.layer_decay),
                  {"parameters": list(self.network.head.parameters()), "lr": recipe.head_lr}]  # fmt: skip
        train_last(trunk, self.stages[0][0], recipe.freeze_statistics)
        self.optimizer = AdamW(groups, lr=recipe.head_lr, weight_decay=recipe.weight_decay)

    def _inputs(self, part: slice) -> Tensor:
        """Normalised inputs of training pictures, whole."""
        return inputs(self.trunk, self.pixels[part])

    def _standardise(self) -> None:
        """Fixed statistics of the training pictures' features, and a head of zeros. A feature that hardly ever speaks is not
        blown up: deviations count as a tenth of their mean at least."""
        step, features = self.recipe.batch_size, compile(self.trunk.features)
        with no_grad():
            starts = range(0, len(self.pixels), step)
            found = np.concatenate([features(self._inputs(slice(i, i + step))).numpy() for i in starts])
        deviation = found.std(axis=0)
        scale = 1 / np.maximum(np.maximum(deviation, 0.1 * deviation.mean()), 1e-6)
        state = self.network.state_dict()
        state |= {"mean": found.mean(axis=0), "scale": scale}
        state |= {k: np.zeros_like(v) for k, v in state.items() if k.startswith("head.")}
        self.network.load_state_dict(state)

    def train(self, validation: tuple[Any, Any] | None, checkpoint: str | Path | None, progress: bool) -> None:
        """Train by stages, and leave the network with the best epoch's weights."""
        checks = None if validation is None else self.checks(*validation)
        self.trainer = self.new_trainer(validation is not None, checkpoint, progress)
        self.trainer.resume()
        for count, until in self.stages:
            if self.trainer.epoch < until and not self.trainer.exhausted:
                train_last(self.trunk, count, self.recipe.freeze_statistics)
                self.trainer.fit(self.loader, until, checks)
        if self.trainer.best is not None:
            self.trainer.restore_best()

    def new_trainer(self, checked: bool, checkpoint: str | Path | None = None, progress: bool = False) -> Trainer:
        """A trainer for this run's network; checked: it keeps the epoch with the best validation accuracy."""
        recipe, steps = self.recipe, max(len(self.loader) * self.recipe.epochs, 2)
        return Trainer(
            self.network, self.optimizer, SoftCrossEntropyLoss(), OneCycleLR(self.optimizer, steps), checkpoint, progress,
            compile=recipe.compile, monitor="validation_accuracy" if checked else None,
            patience=recipe.patience if checked else None, notes=self._notes(),
        )  # fmt: skip

    def checks(self, pictures: Any, labels: Any) -> Checks:
        """Validation pictures, decoded once, as batches."""
        numbers, _ = check_labels(labels, len(pictures), self.classes)
        return Checks(self, self._pixels(pictures), numbers)

    def _notes(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be of the same run."""
        notes = {f"recipe.{k}": v for k, v in dataclasses.asdict(self.recipe).items()}
        return notes | {"classes": self.classes, "pictures": len(self.pixels)}


class Checks:
    """Validation pictures as batches, again and again."""

    def __init__(self, run: Run, pixels: np.ndarray, labels: np.ndarray):
        self.run, self.pixels, self.labels = run, pixels, labels

    def __iter__(self):
        step = self.run.recipe.batch_size
        for i in range(0, len(self.pixels), step):
            x = inputs(self.run.trunk, self.pixels[i : i + step])
            yield x, tensor(self.labels[i : i + step], device=x.device)


def inputs(trunk: Any, pixels: np.ndarray) -> Tensor:
    """A batch where the network is: uint8 pixels are normalised, float inputs are taken as they are."""
    return trunk.normalise(pixels) if pixels.dtype == np.uint8 else tensor(pixels, device=trunk.device)


def _recipe_from(entries: dict[str, Any]) -> Recipe:
    """A recipe from what JSON made of it."""
    augment, size = entries.get("augment"), entries.get("size")
    if augment is not None:
        area = augment["area"]
        augment = Augmentation(**{**augment, "area": None if area is None else tuple(area)})
    return Recipe(**{**entries, "augment": augment, "size": None if size is None else tuple(size)})
