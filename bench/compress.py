"""What compression costs and saves: files of 8 bits, a classifier of photographs, a network with half the arithmetic.

    python -m bench.compress --cifar cifar10.h5 [--epochs 6]

Each part that is asked for replaces its entry in bench/results/compress.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.plugins.prune import prune_channels
from graftwork.plugins.transfer.evaluation import wilson

from .common import RESULTS, write
from .resnet20 import BATCH, VALIDATION, load

RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4  # of the fine-tuning after pruning; half the rate that the network was trained with


def share(right: np.ndarray) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson)."""
    return {"accuracy": float(right.mean()), "interval": list(wilson(int(right.sum()), len(right))), "images": len(right)}


def channels(cifar: Path, epochs: int, checkpoint: Path | None = None, target: float = 0.5) -> dict[str, Any]:
    """The embedded ResNet-20 with half the multiplications, fine-tuned; accuracy on the images that no training saw."""
    from scripts.cifar10.train import augment, classify  # the recipe that its weights were made with

    pixels, labels = load(cifar)
    seen, kept = slice(0, -VALIDATION), slice(-VALIDATION, None)
    gw.manual_seed(0)
    model = zoo.create("resnet20", weights="cifar10")
    before = classify(model, pixels[kept]) == labels[kept]
    small, report = prune_channels(model, gw.tensor(np.zeros((1, 32, 32, 3), np.float32)), target_macs=target)
    at_once = classify(small, pixels[kept]) == labels[kept]
    prepare = lambda rng, x, t: (model.normalise(augment(rng, x)).numpy(), t)  # noqa: E731 - two lines of preprocessing
    dataset = nn.ArrayDataset(pixels[seen], labels[seen], transform=prepare)
    loader = nn.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, workers=1, seed=0)
    optimizer = nn.optim.SGD(small.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    schedule = nn.schedule.OneCycleLR(optimizer, epochs * len(loader), rise=0.1)
    trainer = nn.Trainer(small, optimizer, schedule=schedule, compile=True, progress=False, checkpoint_path=checkpoint)
    if checkpoint is not None:
        trainer.resume()
    for epoch in range(trainer.epoch + 1, epochs + 1):
        print(json.dumps(trainer.fit(loader, epoch)[-1]), flush=True)
    after = classify(small.eval(), pixels[kept]) == labels[kept]
    return {
        "network": "resnet20", "epochs": epochs, "macs": report.macs, "macs_left": report.macs[1] / report.macs[0],
        "parameters": report.parameters, "before": share(before), "pruned": share(at_once), "fine_tuned": share(after),
        "points_lost": 100 * float(before.mean() - after.mean()), "history": trainer.history,
    }  # fmt: skip


def keep(part: str, found: dict[str, Any]) -> None:
    """Replace one part of the results."""
    path = RESULTS / "compress.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("machine", None)
    print(json.dumps({k: v for k, v in found.items() if k != "history"}, indent=2))
    print("wrote", write("compress", {**known, part: found}))


def main() -> None:
    parser = argparse.ArgumentParser(description="compression: sizes, accuracy, arithmetic")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as HDF5: prune half of ResNet-20's multiplications")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning after the pruning of channels")
    parser.add_argument("--checkpoint", type=Path, help="where that fine-tuning goes on after an interruption")
    arguments = parser.parse_args()
    if arguments.cifar:
        keep("channels", channels(arguments.cifar, arguments.epochs, arguments.checkpoint))


if __name__ == "__main__":
    main()
