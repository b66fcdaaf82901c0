"""A training step of ResNet-20 beside PyTorch, from the same weights on the same batch, in one process.

    python -m bench.training                        # batch 128; writes bench/results/training.json
    python -m bench.training --batch 32 --seconds 5 # prints, and writes nothing

A step is the forward pass, cross-entropy, the backward pass and the update by SGD with momentum and weight decay; its loss is
read. Images are noise: no data set is needed, and times do not depend on values. Before anything is timed, every candidate's
losses over three steps are compared with those of our eager engine. How turns are taken is described at `common.compare`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F

from . import report
from .common import compare, use_threads, write
from .networks import Run, entry, prepare, require
from .resnet20 import BATCH, torch_twin

SEED, STEPS = 0, 3
RATE = 1e-3  # small, since hundreds of steps on one batch would drive the loss, and its gradients, to nothing
OPTIONS = {"lr": RATE, "momentum": 0.9, "weight_decay": 5e-4}
TOLERANCE = 1e-3  # of the largest loss; rectifiers near zero flip under float32's rounding, whoever computes them


@dataclass
class Case:
    """A batch of images (batch, 32, 32, 3) and their classes, and what initial weights are drawn from."""

    batch: int
    threads: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.x = rng.standard_normal((self.batch, 32, 32, 3)).astype(np.float32)
        self.classes = rng.integers(0, 10, self.batch)

    def model(self) -> nn.Module:
        """A network of its own for each candidate, always with the same weights."""
        gw.manual_seed(SEED)
        return zoo.create("resnet20").train()


# -- candidates: each makes a function that carries out one step and returns the loss --------------------------------------


def ours_eager(case: Case) -> Run:
    return _our_run(case, static=False)


def ours_compiled(case: Case) -> Run:
    return _our_run(case, static=True)


def _our_run(case: Case, static: bool) -> Run:
    model, x, classes = case.model(), gw.tensor(case.x), gw.tensor(case.classes)
    optimizer = nn.optim.SGD(model.parameters(), **OPTIONS)

    def step(x, classes):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = gw.compile(step) if static else step
    return lambda: run(x, classes).item()


def torch_eager(case: Case) -> Run:
    return _torch_run(case, channels_last=False)


def torch_channels_last(case: Case) -> Run:
    return _torch_run(case, channels_last=True)


def torch_compile(case: Case) -> Run:
    return _torch_run(case, channels_last=False, static=True)


def torch_compile_channels_last(case: Case) -> Run:
    return _torch_run(case, channels_last=True, static=True)


def _torch_run(case: Case, channels_last: bool, static: bool = False) -> Run:
    require("torch")
    import torch

    torch.set_num_threads(case.threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_twin(case.model()).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS, fused=True)  # the fastest that PyTorch has
    x = torch.from_numpy(case.x.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout)
    classes = torch.from_numpy(case.classes)
    forward = torch.compile(model) if static else model

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x), classes)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CANDIDATES = (ours_eager, ours_compiled, torch_eager, torch_channels_last, torch_compile, torch_compile_channels_last)


# -- the whole -----------------------------------------------------------------------------------------------------------


def losses(run: Run) -> np.ndarray:
    """Of the first steps; that they fall shows that the updates are made."""
    return np.array([run() for _ in range(STEPS)])


def measure(batch: int, threads: int, seconds: float) -> dict:
    runs, skipped, errors = prepare(Case(batch, threads), CANDIDATES, losses, TOLERANCE)
    compared = compare(runs, seconds)
    return {"threads": threads, "seconds": seconds, "networks": [entry("resnet20", batch, compared, skipped, errors)]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="a training step beside PyTorch")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seconds", type=float, default=60, help="for all candidates together (default 60)")
    parser.add_argument("--threads", type=int, default=2, help="of every candidate (default 2)")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    use_threads(options.threads)
    result = measure(options.batch, options.threads, options.seconds)
    found = result["networks"]
    print(report.table(found), f"\n  {report.fairness(found)}")
    for name, reason in found[0]["skipped"].items():
        print(f"  skipped {name}: {reason}")
    if options.batch == BATCH:
        print("wrote", write("training", result))
    return 1 if any(reason.startswith("WRONG") for reason in found[0]["skipped"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
