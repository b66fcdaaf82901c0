"""Train ResNet-20 on CIFAR-10 and write the weights that ship with the package, their log and their provenance.

    python scripts/cifar10/train.py CIFAR.h5 --checkpoint run.h5

CIFAR.h5 holds `jpeg` (all files' bytes), `offset`, `label` and the attribute `classes`. The last 5,000 images take no part in
training nor in any choice; they are evaluated once, at the end. An interrupted run goes on from its checkpoint at the last whole
epoch, with the same results; the same seed gives the same weights on one machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import graftwork as gw
from bench.resnet20 import BATCH, VALIDATION, load
from graftwork import nn, zoo

RATE, MOMENTUM, DECAY = 0.2, 0.9, 5e-4  # of stochastic gradient descent; the weight decay is on all parameters
WARM_UP, DESCENT = 2, 0.5  # epochs; share of all steps
PADDING = 4  # pixels, as He et al. 2015
SIDE = 32


class Trapezoid(nn.schedule.Schedule):
    """Up in a straight line for `rise` steps, level, and down to nothing over the last `fall` of `total` steps.

    Until the descent begins, runs of different lengths are the same (Haegele et al. 2024, arXiv:2405.18392).
    """

    def __init__(self, optimizer: nn.optim.Optimizer, total: int, rise: int, fall: int):
        self.total, self.rise, self.fall = total, rise, fall
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        return max(0.0, min(1.0, (step + 1) / self.rise, (self.total - step) / self.fall))


def augment(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Images uint8 (n, 32, 32, 3), each shifted by up to 4 pixels either way (edges mirrored) and flipped half of the time."""
    n = len(pixels)
    padded = np.pad(pixels, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * PADDING + 1, (2, n, 1))
    flipped = rng.random((n, 1)) < 0.5
    along = np.arange(SIDE)
    rows, columns = top + along, left + np.where(flipped, along[::-1], along)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(pixels: np.ndarray, labels: np.ndarray, seed: int, epochs: int, checkpoint: Path) -> nn.Trainer:
    """The trainer after `epochs` epochs, with its model and history."""
    gw.manual_seed(seed)
    model = zoo.create("resnet20").train()
    prepare = lambda rng, x, t: (model.normalise(augment(rng, x)).numpy(), t)  # noqa: E731 - two lines of preprocessing
    dataset = nn.ArrayDataset(pixels, labels, transform=prepare)
    loader = nn.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, workers=1, seed=seed)
    optimizer = nn.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    steps = epochs * len(loader)
    schedule = Trapezoid(optimizer, steps, min(WARM_UP * len(loader), steps), max(1, round(DESCENT * steps)))
    trainer = nn.Trainer(model, optimizer, schedule=schedule, checkpoint_path=checkpoint, progress=False, compile=True)
    if trainer.resume():
        print(f"going on from {checkpoint} after epoch {trainer.epoch}", flush=True)
    for epoch in range(trainer.epoch + 1, epochs + 1):
        print(line(trainer.fit(loader, epoch)[-1]), flush=True)
    return trainer


def line(record: dict) -> str:
    """One epoch in the log."""
    return json.dumps({name: round(value, 5) for name, value in record.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "graftwork" / "zoo" / "resnet20_cifar10.h5")
    parser.add_argument("--checkpoint", type=Path, default=Path("resnet20-run.h5"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    pixels, labels = load(arguments.cifar)
    train(pixels[:-VALIDATION], labels[:-VALIDATION], arguments.seed, arguments.epochs, arguments.checkpoint)


if __name__ == "__main__":
    main()
