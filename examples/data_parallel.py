"""ResNet-20 on made-up pictures, by as many ranks as it is started with.

    python examples/data_parallel.py                              # alone
    graftwork launch -n 4 examples/data_parallel.py               # four ranks, the same training
    graftwork launch -n 2 examples/data_parallel.py --check       # compares with one process; ends with a line of JSON

In that line `max_rel_diff` is between the ranks and one process, `max_rel_diff_of_order` between two runs of one process of
which one has the pictures of every batch in reverse order: what rounding alone makes of the same training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F
from graftwork.plugins import data_parallel as dp


def pictures(count: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one brighter corner or edge a class: (count, 32, 32, 3) and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    x = rng.standard_normal((count, 32, 32, 3))
    for i, label in enumerate(labels):
        x[i, (label // 4) * 10 : (label // 4) * 10 + 10, (label % 4) * 8 : (label % 4) * 8 + 8] += 1.0
    return x.astype(dtype), labels


def build(dtype: str) -> tuple[nn.Module, nn.optim.Optimizer]:
    gw.manual_seed(0)
    model = zoo.create("resnet20").train()
    if dtype != "float32":
        for module in model.modules():
            for name, p in list(module._parameters.items()):
                setattr(module, name, nn.Parameter(p.numpy().astype(dtype)))
            for name, b in list(module._buffers.items()):
                module.register_buffer(name, gw.tensor(b.numpy().astype(dtype)))
    return model, nn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def train(loader: nn.DataLoader, options: argparse.Namespace) -> nn.Module:
    model, optimizer = build(options.dtype)
    trainer = nn.Trainer(model, optimizer, compile=options.compile, checkpoint_path=options.checkpoint)
    if trainer.resume():
        dp.start().log(f"goes on after epoch {trainer.epoch}, step {trainer.step}")
    trainer.fit(loader, options.epochs)
    return model


def alone(loader: nn.DataLoader, options: argparse.Namespace, reverse: bool = False) -> nn.Module:
    """The same steps by this process, without a trainer: what several ranks are compared with. reverse: every batch the other
    way round, which in exact arithmetic is the same training."""
    model, optimizer = build(options.dtype)
    for epoch in range(options.epochs):
        loader.epoch = epoch
        for x, target in loader:
            if reverse:
                x, target = (gw.tensor(t.numpy()[::-1].copy()) for t in (x, target))
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    return model


def furthest(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of two models' parameters and statistics, relative to the largest value of the tensor."""
    mine, other = a.state_dict(), b.state_dict()
    return max(float(np.abs(mine[n] - other[n]).max() / max(np.abs(other[n]).max(), 1e-30)) for n in mine)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="of all ranks together")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint")
    parser.add_argument("--check", action="store_true", help="compare with one process, and all ranks with each other")
    options = parser.parse_args()
    group = dp.start()
    x, labels = pictures(options.images, options.dtype)

    def loader() -> nn.DataLoader:
        return nn.DataLoader(nn.ArrayDataset(x, labels), options.batch, shuffle=True, seed=1)

    start = time.perf_counter()
    model = train(loader(), options)
    seconds = time.perf_counter() - start
    if not options.check:
        group.log(f"{options.images * options.epochs / seconds:.1f} images a second, compiling included")
        return
    own = hashlib.sha256(b"".join(v.tobytes() for v in model.state_dict().values())).hexdigest()
    digests = group.comm.gather(own, "the check")
    if group.main:
        expected = alone(loader(), options)
        of_order = furthest(alone(loader(), options, reverse=True), expected)
        print(json.dumps({
            "ranks": group.size, "steps": options.epochs * -(-options.images // options.batch), "dtype": options.dtype,
            "max_rel_diff": furthest(model, expected), "max_rel_diff_of_order": of_order,
            "bitwise_equal": all(d == digests[0] for d in digests),
            "images_per_s": round(options.images * options.epochs / seconds, 2),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
