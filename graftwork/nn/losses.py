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


class SoftCrossEntropyLoss(Module):
    """Cross-entropy with target rows (batch, classes) of any weight, divided by the weight of all of them.

    Label smoothing, mixed images and weights of classes are all a matter of these rows; a row of zeros counts for nothing.
    Class numbers (batch,) are taken as well, for validation: plain cross-entropy.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 1:
            return F.cross_entropy(logits, target)
        return -(target * F.log_softmax(logits)).sum() / target.sum()


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
