"""The networks of `bench.quantized_accuracy` that see CIFAR-10: a narrow MobileNetV2, trained here, and its data.

    python -m bench.quantized_cifar CIFAR.h5 mobilenet.h5 [--epochs 4] [--images 20000]

trains it with one thread and writes its weights. The last 5,000 images take no part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.kernels.cpu.runtime import set_num_threads
from graftwork.zoo.mobilenet_v2 import MobileNetV2

from .resnet20 import VALIDATION, load

BATCH, RATE, DECAY = 64, 0.004, 0.01


def narrow_mobilenet() -> MobileNetV2:
    """MobileNetV2 of half the width for 32x32 images: no stride in the first convolution, so that 2x2 positions remain."""
    model = MobileNetV2(classes=10, input_shape=(32, 32, 3), alpha=0.5)
    model.Conv1.stride = (1, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm):
            module.momentum = 0.9  # few steps
    return model


def flipped(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Every second image mirrored, at random."""
    turned = rng.random(len(pixels)) < 0.5
    return np.where(turned[:, None, None, None], pixels[:, :, ::-1], pixels)


def loader(model, pixels: np.ndarray, labels: np.ndarray, seed: int = 0) -> nn.DataLoader:
    """Shuffled, mirrored batches of `pixels` (uint8) as `model` wants them."""
    prepare = lambda rng, x, t: (model.normalise(flipped(rng, x)).numpy(), t)  # noqa: E731 - two lines of preprocessing
    return nn.DataLoader(nn.ArrayDataset(pixels, labels, transform=prepare), BATCH, shuffle=True, drop_last=True, seed=seed)


def accuracy(network, model, pixels: np.ndarray, labels: np.ndarray, batch: int = 250) -> float:
    """Share of right answers of `network`, a function of what `model` makes of pixels."""
    hits = 0
    with gw.no_grad():
        for start in range(0, len(pixels), batch):
            logits = network(model.normalise(pixels[start : start + batch])).numpy()
            hits += int((logits.argmax(1) == labels[start : start + batch]).sum())
    return hits / len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=20000, help="of the 45,000 to train on (default 20,000: a few minutes)")
    given = parser.parse_args()
    gw.manual_seed(0)
    set_num_threads(1)
    pixels, labels = load(given.cifar)
    model = narrow_mobilenet()
    count = min(given.images, len(pixels) - VALIDATION)
    batches = loader(model, pixels[:count], labels[:count])
    optimizer = nn.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = nn.schedule.OneCycleLR(optimizer, given.epochs * len(batches))
    trainer = nn.Trainer(model, optimizer, schedule=schedule, progress=False, compile=True)
    start = time.process_time()
    for epoch in range(1, given.epochs + 1):
        record = trainer.fit(batches, epoch)[-1]
        zoo.save_weights(model.eval(), given.weights)
        print(f"epoch {epoch}: {record}, {time.process_time() - start:.0f} s of CPU time", flush=True)
    held = gw.compile(model.eval())
    print(f"accuracy on images kept aside: {accuracy(held, model, pixels[-VALIDATION:], labels[-VALIDATION:]):.4f}")


if __name__ == "__main__":
    main()
