"""Losses as objects, for places that take one by configuration."""

from __future__ import annotations

from . import functional as F
from .modules.module import Module
from .tensor import Tensor


class CrossEntropyLoss(Module):
    """`functional.cross_entropy` with fixed options."""

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__()
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, self.label_smoothing, self.reduction)


class MSELoss(Module):
    """`functional.mse_loss` with a fixed reduction."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction, target, self.reduction)


class L1Loss(MSELoss):
    """`functional.l1_loss` with a fixed reduction."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(prediction, target, self.reduction)
