"""Losses over class indices."""

from __future__ import annotations

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, fixed, hot, operator


def _loss(c: Call, log_probabilities: Tensor) -> Tensor:
    """Negative log likelihood. log_probabilities: (batch, ..., classes); input 1: (batch, ...) class indices."""
    target, weight = c.x(1), c.optional(2)
    reduction, ignored = c.choice("reduction", "mean", ("none", "sum", "mean")), c.attr("ignore_index")
    classes = log_probabilities.shape[-1]
    share = hot(target, classes).astype(log_probabilities.dtype)
    share = share if weight is None else share * weight
    if ignored is not None:
        kept = F.not_equal(target, fixed(target, ignored))
        share = share * F.expand_dims(kept.astype(share.dtype), target.ndim)
    losses = -F.sum(F.where(share > 0.0, share * log_probabilities, fixed(share, 0)), -1)
    if reduction == "none":
        return losses
    total = F.sum(losses)
    return total if reduction == "sum" else total / F.sum(share)


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(c: Call) -> Tensor:
    return _loss(c, c.image())


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(c: Call) -> tuple[Tensor, Tensor]:
    scores = F.log_softmax(c.image(), -1)
    plain = F.transpose(scores, (0, scores.ndim - 1, *range(1, scores.ndim - 1)))
    return _loss(c, scores), plain


