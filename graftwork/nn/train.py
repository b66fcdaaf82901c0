"""Trainer: the loop around model, loss, optimiser and data, with progress, checkpoints and hooks for plugins."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError
from . import checkpoint, rng
from . import functional as F
from .autograd import no_grad
from .compile import compile
from .data import DataLoader
from .metrics import Average
from .modules.module import Module
from .optim import Optimizer
from .precision import LossScale
from .schedule import Schedule
from .tensor import Tensor

KEPT = "plugin "  # before the name of a plugin: its group in a checkpoint


class Trainer:
    """Trains a model on batches of (input, target).

    loss(prediction, target) -> scalar Tensor; cross-entropy by default. schedule: stepped once an optimiser step.
    checkpoint_path: written atomically after each epoch; `resume()` goes on exactly from there.
    compile: run each step (forward, backward, update) as one static graph; its gradients are not kept.
    precision: "bf16" or "fp16" for compiled steps on a GPU (`nn.compile`). loss_scale: a LossScale, which "fp16" brings by
    itself; the step is two graphs then, and the update is left out where a gradient has overflowed (`skipped` counts such
    steps).
    monitor: the entry of the history whose best epoch is kept (`best`, `restore_best()`): the highest of an accuracy, the
    lowest of anything else. patience: stop after so many epochs without a better one. notes: what a checkpoint must have
    been made with for `resume()` to go on from it (JSON values). kept: arrays that plugins have in checkpoints, by plugin.
    progress: a rich progress bar on the terminal. history: one dict an epoch.
    main: whether this process shows progress and writes checkpoints; loader: what a fit trains on. Plugins may change both in
    fit_start, and take part through prepare_model, fit_start, reduce_gradients, step_end, epoch_end and fit_end.
    """

    def __init__(self, model: Module, optimizer: Optimizer, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
                 schedule: Schedule | None = None, checkpoint_path: str | Path | None = None, progress: bool = True,
                 plugins: Any = None, compile: bool = False, precision: str | None = None,
                 loss_scale: LossScale | None = None, monitor: str | None = None, patience: int | None = None,
                 notes: dict[str, Any] | None = None):  # fmt: skip
        if (precision is not None or loss_scale is not None) and not compile:
            raise ConfigError("Trainer: precision and loss_scale are for compiled steps; pass compile=True as well")
        if patience is not None and (patience < 1 or monitor is None):
            raise ConfigError(f"Trainer: patience={patience}, monitor={monitor!r}; expected at least 1 epoch, and something to "
                              'watch such as monitor="validation_loss"')  # fmt: skip
        self.model, self.optimizer, self.loss, self.schedule = model, optimizer, loss, schedule
        self.checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self.progress = progress
        self.history: list[dict] = []
        self.epoch = self.step = 0
        self.stop = False  # a plugin may set it in step_end
        self.monitor, self.patience, self.notes = monitor, patience, json.loads(json.dumps(notes or {}))
        self.best: dict[str, Any] | None = None  # {"epoch": ..., "value": ...} of the monitored entry
        self._best_state: dict[str, np.ndarray] = {}
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.main = True
        self.loader: DataLoader | None = None
        self._plugins, self.compile, self.precision = plugins, compile, precision
        self.loss_scale, self.skipped = loss_scale, 0
        self._static_step: Callable | None = None
        self._static_model: Callable | None = None
        self._gradients: Callable | None = None  # with a loss scale: the step's two graphs
        self._update: Callable | None = None

    @property
    def plugins(self):
        """The plugin manager; plugins load when the first trainer needs them. It knows nothing of ours: no cycle arises."""
        if self._plugins is None:
            from ..plugins.manager import manager

            self._plugins = manager()
            self._plugins.load()
        return self._plugins

    def fit(self, loader: DataLoader, epochs: int, validation: Iterable | None = None) -> list[dict]:
        """Train until `epochs` epochs are complete, counted from the beginning of the run. Returns the history."""
        if epochs < 1:
            raise ConfigError(f"fit: epochs={epochs}, expected at least 1")
        hook, self.loader = self.plugins.hook, loader
        self.prepare()
        hook.fit_start(trainer=self)
        try:
            loader = self.loader
            with _Progress(self.progress and self.main, len(loader) * max(epochs - self.epoch, 0)) as bar:
                while self.epoch < epochs and not self.stop and not self.exhausted:
                    loader.epoch = self.epoch
                    record = self._epoch(loader, bar)
                    hook.epoch_end(trainer=self, record=record)
                    if validation is not None:
                        record.update({f"validation_{k}": v for k, v in self.evaluate(validation).items()})
                    self.history.append(record)
                    self._watch(record)
                    if self.checkpoint_path is not None and self.main:
                        self.save(self.checkpoint_path)
        finally:
            hook.fit_end(trainer=self)
        return self.history

    def prepare(self) -> None:
        """Let plugins change the model, and make the static step; `fit` does so itself, `train_step` needs it before."""
        self.model = self.plugins.prepare_model(self.model, self)
        if self.compile:
            self._compile()

    def _epoch(self, loader, bar) -> dict:
        self.model.train()
        loss, hits, start = Average(), Average(), time.perf_counter()
        for x, target in loader:
            value, prediction = self.train_step(x, target)
            loss.add(value, len(x))
            _count_hits(hits, prediction, target)
            bar.advance(f"epoch {self.epoch + 1}  loss {loss.value:.4f}")
            if self.stop:
                break
        self.epoch += 1
        record = {"epoch": self.epoch, "loss": loss.value, "seconds": time.perf_counter() - start, "lr": self.optimizer.lr}
        return {**record, "accuracy": hits.value} if hits.count else record

    def train_step(self, x: Tensor, target: Tensor) -> tuple[float, Tensor]:
        """One forward and backward pass and update. Returns the loss and the prediction."""
        loss, prediction = self._static_step(x, target) if self._static_step else self._eager_step(x, target)
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        self.plugins.hook.step_end(trainer=self)
        return loss.item(), prediction

    def _eager_step(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        prediction = self.model(x)
        loss = self.loss(prediction, target)
        loss.backward()
        self._reduce()
        self.optimizer.step()
        return loss, prediction

    def _reduce(self) -> None:
        self.plugins.hook.reduce_gradients(parameters=list(self.model.parameters()), trainer=self)

    def _compile(self) -> None:
        if self.precision == "fp16" and self.loss_scale is None:
            self.loss_scale = LossScale(device=next(iter(self.model.parameters())).device)
        known = self._static_model is not None and self._static_model.target is self.model  # type: ignore[attr-defined]
        if not known:
            self._static_model = compile(self.model)  # evaluates in float32
        if self.loss_scale is None:
            if not known:
                step = _whole_step(self.model, self.optimizer, self.loss, _reduction(self))
                self._static_step = compile(step, self.precision)
        else:
            self._static_step = self._scaled_step
            self._gradients = compile(self._scaled_gradients, self.precision)
            self._update = compile(self._apply)

    def _scaled_step(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the scaled loss, and the update if they are all finite: the one look at a value in between."""
        assert self.loss_scale is not None  # `_compile` has made all three
        assert self._gradients is not None and self._update is not None
        loss, prediction, gradients, check = self._gradients(x, target)
        finite = math.isfinite(check.item())
        if finite:
            self._update(gradients)
        else:
            self.skipped += 1
        self.loss_scale.update(finite)
        return loss, prediction

    def _scaled_gradients(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor]:
        """What becomes the first graph; gradients by the parameter's number."""
        assert self.loss_scale is not None
        self.optimizer.zero_grad()
        prediction = self.model(x)
        loss = self.loss(prediction, target)
        self.loss_scale.scale(loss).backward()
        self._reduce()
        found = {i: p.grad for i, p in enumerate(self._trained()) if p.grad is not None}
        gradients, check = self.loss_scale.unscale(list(found.values()))
        self.optimizer.zero_grad()
        return loss, prediction, dict(zip(found, gradients, strict=True)), check

    def _apply(self, gradients: dict[int, Tensor]) -> None:
        """What becomes the second graph."""
        parameters = self._trained()
        for i, g in gradients.items():
            parameters[i].grad = g
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.groups for p in group["parameters"]]

    # -- the best epoch ----------------------------------------------------------------------------------------------
    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.patience is not None and self.best is not None and self.epoch - self.best["epoch"] >= self.patience

    def _watch(self, record: dict) -> None:
        if self.monitor is None:
            return
        if self.monitor not in record:
            raise ConfigError(f"Trainer: monitor={self.monitor!r} is not in the history, which has {', '.join(record)}")
        value, sign = record[self.monitor], 1 if self.monitor.endswith("accuracy") else -1
        if self.best is None or sign * value > sign * self.best["value"]:
            self.best, self._best_state = {"epoch": record["epoch"], "value": value}, self.model.state_dict()

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch. Raises ConfigError before there is one."""
        if self.best is None:
            raise ConfigError('Trainer: no best epoch is known; train with monitor="validation_accuracy" or the like')
        self.model.load_state_dict(self._best_state)

    def evaluate(self, batches: Iterable) -> dict[str, float]:
        """Mean loss and, for class labels, accuracy over batches, in inference mode."""
        was_training = self.model.training
        self.model.eval()
        loss, hits = Average(), Average()
        with no_grad():
            for x, target in batches:
                prediction = (self._static_model or self.model)(x)
                loss.add(self.loss(prediction, target).item(), len(x))
                _count_hits(hits, prediction, target)
        self.model.train(was_training)
        return {"loss": loss.value, **({"accuracy": hits.value} if hits.count else {})}

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write everything that `resume` needs; the file appears whole or not at all."""
        info = {
            "epoch": self.epoch, "step": self.step, "history": self.history, "random": rng.get_state(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "loss_scale": self.loss_scale.state_dict() if self.loss_scale else None,
            "best": self.best, "notes": self.notes,
        }  # fmt: skip
        arrays = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self._best_state}
        checkpoint.save(path, arrays | {KEPT + plugin: kept for plugin, kept in self.kept.items() if kept}, info)

    def resume(self, path: str | Path | None = None) -> bool:
        """Go on from a checkpoint (by default `checkpoint_path`; False if that does not exist yet).

        Raises CheckpointError if it is damaged or of another model or optimiser; nothing is changed then.
        """
        if path is None and (self.checkpoint_path is None or not self.checkpoint_path.exists()):
            return False
        source = path or self.checkpoint_path
        assert source is not None  # the line above returned otherwise
        arrays, info = checkpoint.load(source)
        if not {"model", "optimizer"} <= set(arrays) or (info.get("schedule") is None) != (self.schedule is None):
            raise CheckpointError("this checkpoint lacks parts of the run, or was made with another schedule")
        noted = info.get("notes", {})
        other = [name for name in {**self.notes, **noted} if self.notes.get(name) != noted.get(name)]
        if other:
            told = "; ".join(f"{name}: {noted.get(name)!r} there, {self.notes.get(name)!r} here" for name in other)
            raise CheckpointError(f"{source} belongs to another run ({told}); name another file, or delete it to start again")
        before = self.optimizer.state_dict()
        self.optimizer.load_state_dict(arrays["optimizer"])
        try:
            self.model.load_state_dict(arrays["model"])
        except ValueError as error:
            self.optimizer.load_state_dict(before)
            raise CheckpointError(f"this checkpoint is of another model: {error}") from error
        if self.schedule is not None:
            self.schedule.load_state_dict(info["schedule"])
        if self.loss_scale is not None and info.get("loss_scale") is not None:
            self.loss_scale.load_state_dict(info["loss_scale"])
        rng.set_state(info["random"])
        self.epoch, self.step, self.history = info["epoch"], info["step"], info["history"]
        self.best, self._best_state = info.get("best"), arrays.get("best", {})
        self.kept = {group.removeprefix(KEPT): kept for group, kept in arrays.items() if group.startswith(KEPT)}
        return True


def _reduction(trainer: Trainer) -> Callable[[], None]:
    """What plugins do to gradients, as a function of ours: `compile` takes it as it is, whatever the trainer counts."""

    def reduce() -> None:
        trainer._reduce()

    return reduce


def _whole_step(model: Module, optimizer: Optimizer, criterion: Callable, reduce: Callable[[], None]) -> Callable:
    """What becomes one graph, with what plugins do to the gradients; no gradient outlives it. A closure, so that `compile` sees
    what it depends on and captures again when a layer is frozen or let go."""

    def step(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        prediction = model(x)
        loss = criterion(prediction, target)
        loss.backward()
        reduce()
        optimizer.step()
        optimizer.zero_grad()
        return loss, prediction

    return step


def _count_hits(hits: Average, prediction: Tensor, target: Tensor) -> None:
    """Add a batch's accuracy where targets are class numbers."""
    if prediction.ndim == 2 and target.ndim == 1 and target.dtype.kind in "iu":
        hits.add(F.accuracy(prediction, target), len(target))


class _Progress:
    """A rich progress bar, or nothing at all."""

    def __init__(self, shown: bool, total: int):
        self._bar = None
        if shown and total:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
            )
            self._task = self._bar.add_task("training", total=total)

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=text)


def predict(model: Module, batches: Iterable) -> np.ndarray:
    """Outputs for all batches (a Tensor, or tuples that start with the input), in inference mode, as one array."""
    was_training = model.training
    model.eval()
    with no_grad():
        outputs = [model(b if isinstance(b, Tensor) else b[0]).numpy() for b in batches]
    model.train(was_training)
    return np.concatenate(outputs)
