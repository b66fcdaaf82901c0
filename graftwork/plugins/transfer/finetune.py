"""Fine-tuning: train a trunk and a new head together on a handful of labelled images."""

from __future__ import annotations

import numpy as np

from ...nn import ArrayDataset, DataLoader, Linear, Module, Tensor, Trainer, no_grad
from ...nn import functional as F
from ...nn.optim import AdamW
from ...nn.schedule import OneCycleLR


class WithHead(Module):
    """A trunk's pooled features, standardised by fixed statistics, and a linear head."""

    def __init__(self, trunk: Module, features: int, classes: int):
        super().__init__()
        self.trunk, self.head = trunk, Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk.features(x))


def fine_tune(trunk: Module, images: np.ndarray, labels: np.ndarray, classes: int, epochs: int = 30,
              trunk_lr: float = 1e-3, head_lr: float = 1e-2, batch_size: int = 16, seed: int = 0, transform=None,
              label_smoothing: float = 0.1, freeze_statistics: bool = True) -> WithHead:  # fmt: skip
    """Train all layers with a smaller rate for the trunk, AdamW and one cycle.

    images: normalised input (n, height, width, channels). transform(rng, images, labels): augmentation a batch.
    freeze_statistics: batch norm keeps its running statistics, which a handful of images would spoil.
    """
    with no_grad():
        width = trunk.features(Tensor(images[:1])).shape[1]
    model = WithHead(trunk, width, classes)
    if freeze_statistics:
        _freeze_statistics(trunk)
    loader = DataLoader(ArrayDataset(images, labels, transform=transform), batch_size, shuffle=True, seed=seed)
    groups = [
        {"parameters": [p for p in trunk.parameters() if p.requires_grad], "lr": trunk_lr},
        {"parameters": list(model.head.parameters()), "lr": head_lr},
    ]
    optimizer = AdamW(groups, lr=head_lr)
    schedule = OneCycleLR(optimizer, total_steps=len(loader) * epochs)
    loss = lambda logits, target: F.cross_entropy(logits, target, label_smoothing)  # noqa: E731 - a fixed option
    Trainer(model, optimizer, loss, schedule, progress=False).fit(loader, epochs)
    model.eval()
    return model


def _freeze_statistics(trunk: Module) -> None:
    """Batch norm in inference mode throughout; its scale and shift still train."""
    for module in trunk.modules():
        if hasattr(module, "moving_mean"):
            module.__dict__["_frozen"] = True
