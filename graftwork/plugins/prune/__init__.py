"""Magnitude pruning: small weights become zero, at once or step by step during training.

    pruner = MagnitudePruner(model, 0.8, start=100, end=1000)
    with plugins.registered(pruner, "pruner"):
        trainer.fit(loader, epochs)
"""

from __future__ import annotations

from .magnitude import MagnitudePruner, magnitude_masks, sparsity

__all__ = ["MagnitudePruner", "magnitude_masks", "sparsity"]
