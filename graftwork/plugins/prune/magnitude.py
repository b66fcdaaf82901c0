"""Unstructured pruning by magnitude (Han et al. 2015), and its cubic schedule during training (Zhu and Gupta 2017)."""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from ...nn.modules.module import Module, Parameter, assign
from ..hookspecs import hookimpl

SCOPES = ("global", "layer")


def weights(model: Module) -> dict[str, Parameter]:
    """What is pruned: parameters of two dimensions and more. Biases and scales cost little and matter much."""
    found = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    if not found:
        raise ConfigError(f"prune: {type(model).__name__} has no parameter of two dimensions or more; nothing to prune")
    return found


def sparsity(model: Module) -> float:
    """The share of zeros among the weights that pruning looks at."""
    found = weights(model).values()
    return 1 - sum(np.count_nonzero(p.numpy()) for p in found) / sum(p.size for p in found)


def magnitude_masks(model: Module, amount: float, scope: str = "global") -> dict[str, np.ndarray]:
    """True for the weights to keep, by the parameter's name. The model is left as it is.

    amount: the share to prune, at least 0 and below 1, rounded to whole weights. scope: "global" compares all weights with
    each other, "layer" prunes the same share of each parameter. Raises ConfigError for other options and for weights that are
    not finite.
    """
    if not 0 <= amount < 1:
        raise ConfigError(f"prune: amount={amount}; expected a share of at least 0 and below 1")
    if scope not in SCOPES:
        raise ConfigError(f"prune: scope={scope!r}; expected 'global' or 'layer'")
    sizes = {name: np.abs(p.numpy()) for name, p in weights(model).items()}
    broken = [name for name, size in sizes.items() if not np.isfinite(size).all()]
    if broken:
        raise ConfigError(f"prune: {', '.join(broken)} holds NaN or infinity, which have no magnitude to compare")
    if scope == "layer":
        return {name: _keep(size.ravel(), amount).reshape(size.shape) for name, size in sizes.items()}
    kept = _keep(np.concatenate([size.ravel() for size in sizes.values()]), amount)
    parts = np.split(kept, np.cumsum([size.size for size in sizes.values()])[:-1])
    return {name: part.reshape(size.shape) for part, (name, size) in zip(parts, sizes.items(), strict=True)}


def _keep(sizes: np.ndarray, amount: float) -> np.ndarray:
    """True for all but the smallest `amount` of them; ties go by place, so that the count is exact."""
    keep = np.ones(sizes.size, bool)
    keep[np.argsort(sizes, kind="stable")[: round(amount * sizes.size)]] = False
    return keep


class MagnitudePruner:
    """Prunes a model's weights and keeps them at zero while it trains; register it as a plugin for the fit.

    amount and scope as in `magnitude_masks`. start, end: steps of the trainer between which the share of zeros grows from 0 to
    `amount` along 1 - (1 - t)^3; by default all is pruned at once. every: steps between two growths.
    What is pruned stays pruned.
    """

    def __init__(self, model: Module, amount: float, scope: str = "global", start: int = 0, end: int = 0, every: int = 1):
        if not 0 <= start <= end or every < 1:
            raise ConfigError(f"prune: start={start}, end={end}, every={every}; expected 0 <= start <= end and every >= 1")
        self.model, self.amount, self.scope = model, amount, scope
        self.start, self.end, self.every = start, end, every
        self.masks = magnitude_masks(model, 0.0, scope)
        magnitude_masks(model, amount, scope)  # complain now, not in the middle of a training
        if end == 0:
            self.prune(amount)

    def share(self, step: int) -> float:
        """The share of zeros that the schedule asks for after `step` steps."""
        if step >= self.end:
            return self.amount
        done = max(step - self.start, 0) / (self.end - self.start) if self.end > self.start else 0.0
        return self.amount * (1 - (1 - done) ** 3)

    def prune(self, amount: float) -> None:
        """Zero the smallest `amount` of the weights; those that are zero already are among them."""
        self.apply()
        self.masks = magnitude_masks(self.model, amount, self.scope)
        self.apply()

    def apply(self) -> None:
        """Set what the masks do not keep to zero."""
        for name, parameter in weights(self.model).items():
            mask = self.masks[name]
            if not mask.all():
                assign(parameter, np.where(mask, parameter.numpy(), 0))

    @hookimpl
    def step_end(self, trainer) -> None:
        """After every update: grow where the schedule says so, and undo what the update did to pruned weights."""
        step = trainer.step
        if self.end and self.start <= step <= self.end and ((step - self.start) % self.every == 0 or step == self.end):
            self.prune(self.share(step))
        else:
            self.apply()
