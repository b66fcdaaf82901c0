"""A learning-rate finder: the loss while the rate grows from step to step (Smith 2015, "Cyclical learning rates")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, MissingDependency
from ...nn import Module, SoftCrossEntropyLoss, Trainer
from ...nn.files import atomic_path, require_writable
from ...nn.optim import Optimizer
from ...nn.schedule import Schedule
from .finetune import Recipe, Run, change

DIVERGED = 4.0  # times the lowest loss: the search ends


class Exponential(Schedule):
    """The rate grows by the same factor every step, until it is `growth` times the initial one."""

    def __init__(self, optimizer: Optimizer, steps: int, growth: float):
        self.steps, self.growth = steps, growth
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        return self.growth ** (step / max(self.steps - 1, 1))


@dataclass(frozen=True)
class RateCurve:
    """Losses by rate. rates: of the head, growing; the trunk's keep the recipe's ratio to them. losses: smoothed."""

    rates: np.ndarray
    losses: np.ndarray
    trunk_share: float

    @property
    def head_lr(self) -> float:
        """The rate at which the loss falls fastest, before it is lowest; where it never falls, a tenth of the lowest loss's."""
        lowest = int(self.losses.argmin())
        if lowest < 2:
            return float(self.rates[lowest] / 10)
        slopes = np.gradient(self.losses[: lowest + 1], np.log(self.rates[: lowest + 1]))
        return float(self.rates[int(slopes.argmin())])

    @property
    def trunk_lr(self) -> float:
        return self.head_lr * self.trunk_share

    def plot(self, path: str | Path) -> None:
        """Draw the curve into a picture file (.png, .svg, .pdf). Raises MissingDependency without matplotlib."""
        if find_spec("matplotlib") is None:
            raise MissingDependency("a plot needs matplotlib, which is not installed: pip install 'graftwork[plot]'")
        from matplotlib.figure import Figure

        path = require_writable(path)
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="learning rate of the head", ylabel="loss (smoothed)")
        axes.plot(self.rates, self.losses, color="#2a6f97")
        axes.axvline(self.head_lr, color="#bc4749", linestyle="--", label=f"steepest fall: {self.head_lr:.2g}")
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=144)


def find_rates(model: Module, pictures: Any, labels: Any, classes: int | Sequence[str], *, low: float = 1e-5, high: float = 1.0,
               steps: int = 60, recipe: Recipe | None = None, transform: Any = None, workers: int = 1,
               **options: Any) -> RateCurve:  # fmt: skip
    """Train for at most `steps` steps while the head's rate grows from `low` to `high`; the trunk is then as it was before.

    Arguments are those of `fine_tune`; the trunk's rate keeps the recipe's ratio to the head's. Ends early once the loss is
    four times its lowest, or not finite. Raises ConfigError for a range or a number of steps that makes no sense.
    """
    if not 0 < low < high or steps < 5:
        raise ConfigError(f"low={low}, high={high}, steps={steps}; expected 0 < low < high and at least 5 steps")
    chosen = change(recipe, options)
    share = chosen.trunk_lr / chosen.head_lr
    chosen = change(chosen, {"head_lr": low, "trunk_lr": low * share})
    before = model.state_dict()
    try:
        with Run(model, pictures, labels, classes, chosen, transform, workers) as run:
            rates, losses = _search(run, steps, high / low)
    finally:
        model.load_state_dict(before)
        model.eval()
    return RateCurve(np.array(rates) * low, smooth(losses), share)


def _search(run: Run, steps: int, growth: float) -> tuple[list[float], list[float]]:
    """Rates, as multiples of the lowest one, and the loss of each step."""
    schedule = Exponential(run.optimizer, steps, growth)
    trainer = Trainer(run.network, run.optimizer, SoftCrossEntropyLoss(), progress=False, compile=run.recipe.compile)
    trainer.prepare()
    run.network.train()
    rates: list[float] = []
    losses: list[float] = []
    while len(losses) < steps:
        for x, target in run.loader:
            rates.append(schedule.factor(len(losses)))
            losses.append(trainer.train_step(x, target)[0])
            schedule.step()
            if len(losses) == steps or not np.isfinite(losses[-1]) or smooth(losses)[-1] > DIVERGED * smooth(losses).min():
                finite = int(np.isfinite(losses).sum())
                return rates[:finite], losses[:finite]
    return rates, losses


def smooth(losses: Sequence[float], memory: float = 0.8) -> np.ndarray:
    """A running mean that forgets by `memory` a step, corrected for its start."""
    mean, result = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = memory * mean + (1 - memory) * loss
        result.append(mean / (1 - memory**i))
    return np.array(result)
