"""Pruning: small weights become zero, at once or step by step during training; or whole channels go.

    pruner = MagnitudePruner(model, 0.8, start=100, end=1000)
    with plugins.registered(pruner, "pruner"):
        trainer.fit(loader, epochs)

    small, report = prune_channels(model, example, target_macs=0.5)
"""

from __future__ import annotations

from .channels import ChannelReport, Pruned, prune_channels
from .magnitude import MagnitudePruner, magnitude_masks, sparsity

__all__ = ["ChannelReport", "MagnitudePruner", "Pruned", "magnitude_masks", "prune_channels", "sparsity"]
