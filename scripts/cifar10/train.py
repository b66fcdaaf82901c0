"""Train ResNet-20 on CIFAR-10 and write the weights that ship with the package, their log and their provenance.

    python scripts/cifar10/train.py CIFAR.h5 --checkpoint run.h5

CIFAR.h5 holds `jpeg` (all files' bytes), `offset`, `label` and the attribute `classes`. The last 5,000 images take no part in
training; they are evaluated once, at the end. An interrupted run goes on from its checkpoint at the last whole
epoch, with the same results; the same seed gives the same weights on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import graftwork as gw
from bench.common import machine
from bench.resnet20 import BATCH, VALIDATION, load
from graftwork import nn, zoo
from graftwork.kernels.cpu.runtime import set_num_threads
from graftwork.nn.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4  # of stochastic gradient descent; the weight decay is on all parameters
WARM_UP, DESCENT = 2, 0.9  # epochs; share of all steps
PADDING = 4  # pixels, as He et al. 2015
SIDE = 32
GREY = 127
ERASED = 8  # pixels, the side of a square that is hidden in half of the images


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
    """Images uint8 (n, 32, 32, 3), each shifted by up to 4 pixels (edges mirrored), half of them flipped, half partly erased."""
    n = len(pixels)
    padded = np.pad(pixels, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * PADDING + 1, (2, n, 1))
    flipped = rng.random((n, 1)) < 0.5
    along = np.arange(SIDE)
    rows, columns = top + along, left + np.where(flipped, along[::-1], along)
    return erase(rng, padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]])


def erase(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """A grey square of 8 pixels at a random place in half of the images (after Zhong et al. 2017, arXiv:1708.04896), in place."""
    n = len(pixels)
    top, left = rng.integers(0, SIDE - ERASED + 1, (2, n, 1))
    along = np.arange(SIDE)
    rows, columns = (((along >= start) & (along < start + ERASED)) for start in (top, left))
    pixels[(rng.random(n) < 0.5)[:, None, None] & rows[:, :, None] & columns[:, None, :]] = GREY
    return pixels


class Halves(nn.Trainer):
    """Two threads, each with half of every batch from the forward pass to the gradients, meet once a step for the update.

    Both halves use the same parameters and each normalises by statistics of its own; the first one's running statistics are kept.
    Where cores are shared, this waits far less than two threads that meet at every kernel. Results do not depend on timing.
    """

    def __init__(self, model: nn.Module, optimizer: nn.optim.Optimizer, **options):
        super().__init__(model, optimizer, progress=False, **options)
        self.shared = list(model.parameters())
        self.halves = [gw.compile(self._half(m)) for m in (model, twin(model))]
        self.threads = ThreadPoolExecutor(len(self.halves))

    def _half(self, model: nn.Module):
        def half(x, target):
            prediction = model(x)
            loss = self.loss(prediction, target)
            return loss, prediction, nn.grad(loss, self.shared)

        return half

    def train_step(self, x: gw.Tensor, target: gw.Tensor) -> tuple[float, gw.Tensor]:
        """One update. Returns the mean loss and the predictions."""
        parts = zip(*(np.split(array.numpy(), len(self.halves)) for array in (x, target)), strict=True)
        jobs = [(half, *map(gw.tensor, part)) for half, part in zip(self.halves, parts, strict=True)]
        if all(half.captures for half in self.halves):
            results = [future.result() for future in [self.threads.submit(*job) for job in jobs]]
        else:  # one capture at a time
            results = [half(*arguments) for half, *arguments in jobs]
        losses, predictions, gradients = zip(*results, strict=True)
        for parameter, *found in zip(self.shared, *gradients, strict=True):
            parameter.grad = gw.tensor(sum(g.numpy() for g in found) / np.float32(len(found)))
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return float(np.mean([loss.item() for loss in losses])), gw.tensor(np.concatenate([p.numpy() for p in predictions]))


def twin(model: nn.Module) -> nn.Module:
    """Another network with the same parameters and statistics of its own."""
    other = zoo.create("resnet20").train()
    modules = dict(other.named_modules())
    for path, parameter in model.named_parameters():
        owner, _, name = path.rpartition(".")
        setattr(modules[owner], name, parameter)
    return other


def train(pixels: np.ndarray, labels: np.ndarray, seed: int, epochs: int, checkpoint: Path) -> nn.Trainer:
    """The trainer after `epochs` epochs, with its model and history."""
    gw.manual_seed(seed)
    set_num_threads(1)  # in each of the trainer's own threads
    model = zoo.create("resnet20").train()
    prepare = lambda rng, x, t: (model.normalise(augment(rng, x)).numpy(), t)  # noqa: E731 - two lines of preprocessing
    dataset = nn.ArrayDataset(pixels, labels, transform=prepare)
    loader = nn.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, workers=1, seed=seed)
    optimizer = nn.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    steps = epochs * len(loader)
    schedule = Trapezoid(optimizer, steps, min(WARM_UP * len(loader), steps), max(1, round(DESCENT * steps)))
    trainer = Halves(model, optimizer, schedule=schedule, checkpoint_path=checkpoint)
    if trainer.resume():
        print(f"going on from {checkpoint} after epoch {trainer.epoch}", flush=True)
    for epoch in range(trainer.epoch + 1, epochs + 1):
        print(line(trainer.fit(loader, epoch)[-1]), flush=True)
    return trainer


def line(record: dict) -> str:
    """One epoch in the log."""
    return json.dumps({name: round(value, 5) for name, value in record.items()})


def class_names(path: Path) -> list[str]:
    """The classes' names in the order of their numbers."""
    import h5py

    with h5py.File(path) as file:
        return [str(name) for name in file.attrs["classes"]]


def classify(model, pixels: np.ndarray) -> np.ndarray:
    """The number of the likeliest class of each image as it is (no augmentation)."""
    batches = (model.normalise(pixels[i : i + 250]) for i in range(0, len(pixels), 250))
    return nn.predict(model, batches).argmax(axis=1)


def summary(right: np.ndarray) -> dict:
    """Accuracy with its 95 % interval (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return {"accuracy": round(float(right.mean()), 4), "interval": [round(interval.low, 4), round(interval.high, 4)]}


def store(model, path: Path, classes: list[str]) -> None:
    """The weights in float16: half the size. `model` is in float16 afterwards."""
    zoo.save_weights(model.astype(np.float16), path, {"classes": classes})


def write_log(path: Path, history: list[dict], result: dict) -> None:
    """The whole run, whether or not it was interrupted: one line an epoch, and what came out."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line(record) + "\n" for record in history) + json.dumps(result) + "\n")


def write_provenance(path: Path, arguments, history: list[dict], result: dict) -> None:
    """Beside the weights: how they came about, from which data, under which licence, and how good they are."""
    about, (low, high) = machine(), result["float16"]["interval"]
    per_class = "\n".join(f"| {name} | {value:.3f} |" for name, value in result["by_class"].items())
    digest = hashlib.sha256(arguments.cifar.read_bytes()).hexdigest()
    text = f"""# ResNet-20's embedded weights for CIFAR-10

Trained by Graftwork itself with `python scripts/cifar10/train.py cifar10-train.h5 --seed {arguments.seed} --epochs {arguments.epochs}`
on {result["trained_on"]:,} of CIFAR-10's 50,000 training images, and evaluated at the end on the {VALIDATION:,} others, which took no part in
training. Three recipes were tried and looked at on the same images: 30 epochs with a rate of 0.2 gave 0.876, 36 epochs of this
recipe without erasing 0.882; this is the third. With its running statistics measured anew on unvaried images it gave 0.896 and was left
as it is. So its figure owes a little to those looks. The number of epochs was set by the time at
hand; the weights are those after the last step. CIFAR-10's test images were not used at all.

| | accuracy on the {VALIDATION:,} images kept aside | 95 % interval (Wilson) |
|---|---|---|
| as stored, in float16 | {result["float16"]["accuracy"]:.4f} | {low:.4f} to {high:.4f} |
| as trained, in float32 | {result["float32"]["accuracy"]:.4f} | {result["float32"]["interval"][0]:.4f} to {result["float32"]["interval"][1]:.4f} |

The file holds float16, converted to float32 when it is loaded: {result["differing"]} of the {VALIDATION:,} images get another
class than with the weights as trained. For comparison, He et al. 2015 (arXiv:1512.03385, table 6) report 91.25 % on the test
images after 64,000 steps with 45,000 images; this run took {result["steps"]:,} steps.

Accuracy by class, in the order of the outputs:

| class | accuracy |
|---|---|
{per_class}

## Recipe

{arguments.epochs} epochs of {result["steps"] // arguments.epochs} steps with {BATCH} images; a random shift by up to {PADDING} pixels (edges mirrored),
a horizontal flip half of the time, a grey square of {ERASED} pixels half of the time; pixels divided by 255, then minus (0.485, 0.456, 0.406), by (0.229, 0.224, 0.225). Stochastic
gradient descent with Nesterov momentum {MOMENTUM}, weight decay {DECAY} on all parameters, learning rate from 0 to {RATE} in {WARM_UP} epochs,
level, and in a straight line to 0 over the last {DESCENT:.0%} of the steps. Cross-entropy, no label smoothing. Two threads compute the
gradients of half a batch each, with batch statistics of their own, and the update is made from the mean.
Training accuracy in the last epoch, on varied images: {history[-1]["accuracy"]:.4f}. Every epoch stands in
`scripts/cifar10/train.log`.

{sum(r["seconds"] for r in history) / 60:.0f} minutes on {about["cores"]} cores of {about["cpu"]} (wall time, other work included: no measure of speed).
Python {about["python"]}, NumPy {about["numpy"]}, Numba {about["numba"]}. The same command gives the same weights on one machine, interrupted or not.

## Data and licence

CIFAR-10: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), collected by Krizhevsky, Nair and Hinton
from the 80 Million Tiny Images dataset. The images come without a licence of their own and are used for research; the
80 Million Tiny Images dataset was withdrawn by its authors in 2020 for offensive content in some of its categories. Take these weights as
**for research use**: the project's licence covers the code and whatever rights the project has in the weights, not the images.

The file read was JPEG versions of the training images in a shuffled order: datasets `jpeg` (all files' bytes), `offset`, `label`,
attribute `classes`; sha256 {digest}.
"""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def finish(trainer: nn.Trainer, pixels: np.ndarray, labels: np.ndarray, classes: list[str], arguments) -> dict:
    """Write weights, log and provenance; evaluate on images that were kept aside. Returns the results."""
    set_num_threads(os.cpu_count() or 1)
    model = trainer.model.eval()
    trained = classify(model, pixels)
    store(model, arguments.output, classes)
    stored = classify(zoo.create("resnet20", weights=arguments.output), pixels)
    result = {
        "seed": arguments.seed, "steps": trainer.step, "trained_on": arguments.images, "kept_aside": len(labels),
        "float32": summary(trained == labels), "float16": summary(stored == labels), "differing": int((trained != stored).sum()), "bytes": arguments.output.stat().st_size,
        "by_class": {name: round(float((stored == labels)[labels == i].mean()), 4) for i, name in enumerate(classes)},
    }  # fmt: skip
    write_log(arguments.log, trainer.history, result)
    write_provenance(arguments.output.with_suffix(".md"), arguments, trainer.history, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "graftwork" / "zoo" / "resnet20_cifar10.h5")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_suffix(".log"))
    parser.add_argument("--checkpoint", type=Path, default=Path("resnet20-run.h5"), help="written after each epoch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--images", type=int, default=None, help="train on the first so many only, to try the script out")
    arguments = parser.parse_args()
    pixels, labels = load(arguments.cifar)
    most = len(pixels) - VALIDATION
    arguments.images = most if arguments.images is None else arguments.images
    if not BATCH <= arguments.images <= most:
        parser.error(f"--images {arguments.images}; expected {BATCH} to {most:,}, since the last {VALIDATION:,} are kept aside")
    seen, kept = slice(0, arguments.images), slice(-VALIDATION, None)
    trainer = train(pixels[seen], labels[seen], arguments.seed, arguments.epochs, arguments.checkpoint)
    print(json.dumps(finish(trainer, pixels[kept], labels[kept], class_names(arguments.cifar), arguments)))


if __name__ == "__main__":
    main()
