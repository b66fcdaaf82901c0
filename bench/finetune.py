"""Fine-tuning ImageNet's SqueezeNet 1.1 on photographs, beside the same network in PyTorch.

    python -m bench.finetune PHOTOS WEIGHTS.h5 [--epochs 12] [--size 208] [--seeds 0 1 2] [--each N] [--alone]

PHOTOS has `train` and `validation` with a sub-folder a class. Both start from the same weights, see the same augmented batches
(made by our loader) and follow the same recipe: AdamW, one cycle, label smoothing, windows of 208x208 in 227x227. Epochs take
turns. Prints accuracies and the seconds of an epoch, and writes bench/results/finetune.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from graftwork import zoo
from graftwork.kernels.cpu.runtime import num_threads
from graftwork.plugins.transfer.finetune import Recipe, Run
from graftwork.zoo.images import list_labelled

from .common import foreign_seconds, use_threads, write


class Clock:
    """Seconds that passed, and of CPU time, while its blocks ran."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: Any) -> None:
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])

    def summary(self) -> dict[str, Any]:
        """The first block prepares; the others are epochs, of which the first captures or warms up."""
        epochs, cpu = self.wall[1:], self.cpu[1:]
        steady = slice(1, None) if len(epochs) > 1 else slice(None)
        return {
            "prepare_s": round(self.wall[0], 2), "epoch_s": round(float(np.median(epochs[steady])), 2),
            "first_epoch_s": round(epochs[0], 2), "epoch_cpu_s": round(float(np.median(cpu[steady])), 2),
            "total_s": round(sum(self.wall), 1),
        }  # fmt: skip


class Peer:
    """The same network, start, recipe and batches in PyTorch."""

    def __init__(self, run: Run):
        import torch

        from .peers import SqueezeNet, copy_layer

        self.torch, self.recipe, network = torch, run.recipe, run.network
        trunk = SqueezeNet()
        del trunk.conv10
        for path, module in network.trunk.named_modules():
            if module._parameters:
                copy_layer(module, trunk.get_submodule(path))
        head = torch.nn.Linear(*network.head.weight.shape)
        copy_layer(network.head, head)
        self.trunk, self.head = trunk.to(memory_format=torch.channels_last), head
        self.mean, self.scale = (torch.tensor(t.numpy().copy()) for t in (network.mean, network.scale))
        groups = [{"params": trunk.parameters(), "lr": run.recipe.trunk_lr}, {"params": head.parameters()}]
        self.optimizer = torch.optim.AdamW(groups, lr=run.recipe.head_lr, weight_decay=run.recipe.weight_decay)
        steps = len(run.loader) * run.recipe.epochs
        highest = [run.recipe.trunk_lr, run.recipe.head_lr]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, highest, steps, cycle_momentum=False)

    def forward(self, x: Any) -> Any:
        images = self.torch.from_numpy(x.numpy()).permute(0, 3, 1, 2)  # channels last, as our arrays lie
        return self.head((self.trunk.trunk(images).mean((2, 3)) - self.mean) * self.scale)

    def epoch(self, loader: Any) -> float:
        """Train one epoch; the mean loss."""
        losses = []
        for x, target in loader:
            self.optimizer.zero_grad()
            rows = self.torch.from_numpy(target.numpy())
            loss = -(rows * self.torch.log_softmax(self.forward(x), 1)).sum() / rows.sum()
            loss.backward()
            self.optimizer.step()
            if self.schedule.last_epoch < self.schedule.total_steps - 1:
                self.schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def accuracy(self, checks: Any) -> float:
        with self.torch.no_grad():
            hits = [self.forward(x).argmax(1).numpy() == labels.numpy() for x, labels in checks]
        return float(np.concatenate(hits).mean())


def measure(train: tuple, checks: tuple, classes: list[str], weights: Path, recipe: Recipe, alone: bool) -> dict[str, Any]:
    """One seed: histories, final and best accuracies, and times."""
    ours, theirs, busy, start = Clock(), Clock(), foreign_seconds(), time.perf_counter()
    trunk = zoo.create("squeezenet1_1", include_top=False, pooling="avg", weights=weights)
    with ours:
        run = Run(trunk, *train, classes, recipe)
        run.__enter__()
        checked, trainer = run.checks(*checks), run.new_trainer(True)
    curve: list[float] = []
    try:
        with theirs:
            peer = None if alone else Peer(run)
        for epoch in range(recipe.epochs):
            with ours:
                record = trainer.fit(run.loader, epoch + 1, checked)[-1]
            said = f"epoch {epoch + 1}: {record['validation_accuracy']:.4f} in {ours.wall[-1]:.1f} s"
            if peer is not None:
                run.loader.epoch = epoch
                with theirs:
                    peer.epoch(run.loader)
                    curve.append(peer.accuracy(checked))
                said += f"; PyTorch {curve[-1]:.4f} in {theirs.wall[-1]:.1f} s"
            print(said, flush=True)
    finally:
        run.__exit__()
    accuracies = [h["validation_accuracy"] for h in trainer.history]
    elsewhere = None
    if busy is not None and (after := foreign_seconds()) is not None:
        elsewhere = round((after - busy) / (time.perf_counter() - start), 2)
    result: dict[str, Any] = {
        "seed": recipe.seed, "cores_busy_elsewhere": elsewhere,
        "graftwork": {"final": accuracies[-1], "best": max(accuracies), "accuracies": accuracies, **ours.summary()},
    }  # fmt: skip
    if curve:
        result["torch"] = {"final": curve[-1], "best": max(curve), "accuracies": curve, **theirs.summary()}
        result["epoch_ratio"] = round(result["graftwork"]["epoch_s"] / result["torch"]["epoch_s"], 3)
        result["epoch_cpu_ratio"] = round(result["graftwork"]["epoch_cpu_s"] / result["torch"]["epoch_cpu_s"], 3)
    return result


def pick(folder: Path, each: int | None) -> tuple[tuple, list[str]]:
    """Pictures and class numbers; each: at most so many of a class."""
    paths, labels, classes = list_labelled(folder)
    chosen = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(len(classes))])
    return ([paths[i] for i in chosen], labels[chosen]), classes


def main() -> None:
    parser = argparse.ArgumentParser(description="fine-tuning beside PyTorch")
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=208, help="pixels in training; 12/11 of it in validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--each", type=int, default=None, help="at most so many photographs of a class: a trial, not kept")
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    arguments = parser.parse_args()
    use_threads(num_threads())
    if not arguments.alone:
        import torch

        torch.set_num_threads(num_threads())
    train, classes = pick(arguments.photos / "train", arguments.each)
    checks, _ = pick(arguments.photos / "validation", arguments.each)
    runs = []
    for seed in arguments.seeds:
        recipe = Recipe(epochs=arguments.epochs, size=(arguments.size, arguments.size), seed=seed)
        runs.append(measure(train, checks, classes, arguments.weights, recipe, arguments.alone))
    result: dict[str, Any] = {"photographs": len(train[0]), "validation": len(checks[0]), "epochs": arguments.epochs,
                              "size": arguments.size, "threads": num_threads(), "runs": runs}  # fmt: skip
    for name in ("graftwork", "torch")[: 1 if arguments.alone else 2]:
        finals = [r[name]["final"] for r in runs]
        result[name] = {"final_mean": float(np.mean(finals)), "final_deviation": float(np.std(finals)),
                        "epoch_s": float(np.median([r[name]["epoch_s"] for r in runs]))}  # fmt: skip
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))
    if arguments.each is None:
        print("wrote", write("finetune", result))


if __name__ == "__main__":
    main()
