"""ResNet-20 on CIFAR-10 beside PyTorch, from the same initial weights on the same batches.

    python -m bench.resnet20 CIFAR.h5 [--steps 100 | --epoch]

CIFAR.h5 holds `jpeg` (all files' bytes), `offset` and `label`; the last 5,000 images are kept for validation. Writes loss
curves, their difference, and the time of a step; and how far the gradients of the first batch lie apart in float64, and in
float32 from that: rectifiers that flip make losses diverge from the second step on, whoever computes them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F
from graftwork.zoo import images

from .common import alternate, write

BATCH, VALIDATION = 128, 5000


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images uint8 (n, 32, 32, 3) and labels."""
    import h5py

    with h5py.File(path) as file:
        data, offset, labels = file["jpeg"][()], file["offset"][()], file["label"][()]
    with ThreadPoolExecutor(2) as pool:
        pieces = (data[a:b].tobytes() for a, b in itertools.pairwise(offset))
        decoded = list(pool.map(lambda piece: images.to_array(_opened(piece), None), pieces))
    return np.stack(decoded), labels.astype(np.int64)


def _opened(piece: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(piece))


def torch_twin(model):
    """The same network in PyTorch, with the same weights."""
    import torch
    from torch import nn as tnn

    class Block(tnn.Module):
        def __init__(self, ours):
            super().__init__()
            self.conv1, self.bn1, self.conv2, self.bn2 = conv(ours.conv1), norm(ours.bn1), conv(ours.conv2), norm(ours.bn2)
            self.stride, self.extra = ours.stride, ours.extra

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.stride > 1:
                x = x[:, :, :: self.stride, :: self.stride]
            if self.extra:
                x = tnn.functional.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
            return torch.relu(y + x)

    def conv(ours):
        kh, kw, cin, cout = ours.weight.shape
        layer = tnn.Conv2d(cin, cout, (kh, kw), ours.stride, padding=kh // 2, bias=False)
        layer.weight.data = torch.tensor(ours.weight.numpy().transpose(3, 2, 0, 1).copy())
        return layer

    def norm(ours):
        return tnn.BatchNorm2d(ours.moving_mean.shape[0], eps=ours.epsilon, momentum=1 - ours.momentum)

    head = tnn.Linear(64, 10)
    head.weight.data = torch.tensor(model.classifier.weight.numpy().T.copy())
    head.bias.data = torch.tensor(model.classifier.bias.numpy().copy())
    blocks = [Block(b) for stage in (model.stage1, model.stage2, model.stage3) for b in stage._modules.values()]
    stem = [conv(model.conv1), norm(model.bn1), tnn.ReLU()]
    return tnn.Sequential(*stem, *blocks, tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), head)


class Pair:
    """Our network and its twin, stepped on the same batches."""

    def __init__(self, seed: int = 0):
        import torch

        gw.manual_seed(seed)
        self.model = zoo.create("resnet20").train()
        self.twin = torch_twin(self.model).to(memory_format=torch.channels_last).train()
        self.optimizer = nn.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.peer = torch.optim.SGD(self.twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def ours(self, x, t) -> float:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), t)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def theirs(self, x, t) -> float:
        import torch

        self.peer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.twin(x), t)
        loss.backward()
        self.peer.step()
        return loss.item()


def batches(model, pixels, labels, steps: int, seed: int = 0):
    """`steps` shuffled batches as our tensors and PyTorch's."""
    import torch

    order = np.random.default_rng(seed).permutation(len(pixels))
    for i in range(steps):
        part = order[i * BATCH : (i + 1) * BATCH]
        x, t = model.normalise(pixels[part]), labels[part]
        yield (x, gw.tensor(t)), (torch.tensor(x.numpy().transpose(0, 3, 1, 2).copy()), torch.tensor(t))


def measure(pixels, labels, steps: int) -> dict:
    """Curves, gradients and the time of a step, ours beside PyTorch's."""
    train = slice(0, -VALIDATION)
    pair, curves = Pair(), ([], [])
    for (x, t), (u, v) in batches(pair.model, pixels[train], labels[train], steps):
        curves[0].append(pair.ours(x, t))
        curves[1].append(pair.theirs(u.contiguous(memory_format=_channels_last()), v))
    ours, theirs = np.array(curves)
    times = alternate({"graftwork": lambda: pair.ours(x, t), "torch_channels_last": lambda: pair.theirs(u, v)}, 9)
    result = {
        "gradient_differences": compare_gradients(pixels[train], labels[train]),
        "steps": steps,
        "first_10_largest_difference": float(np.abs(ours - theirs)[:10].max()),
        "mean_loss_last_20": {"graftwork": float(ours[-20:].mean()), "torch": float(theirs[-20:].mean())},
        "mean_difference": float(np.abs(ours - theirs).mean()),
        "step_ms": {k: round(v * 1e3, 1) for k, v in times.items()},
        "step_ratio": round(times["graftwork"] / times["torch_channels_last"], 3),
        "losses": {"graftwork": ours.round(5).tolist(), "torch": theirs.round(5).tolist()},
    }
    return result


def gradients(pixels, labels, dtype: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of the first batch in our layout, ours and PyTorch's, parameter by parameter."""
    import torch

    pair = Pair()
    pair.model.astype(dtype)
    pair.twin.to(getattr(torch, dtype))
    (x, t), (u, v) = next(batches(pair.model, pixels, labels, 1))
    F.cross_entropy(pair.model(x.astype(dtype)), t).backward()
    torch.nn.functional.cross_entropy(pair.twin(u.to(getattr(torch, dtype))), v).backward()
    theirs = [p.grad.numpy() for p in pair.twin.parameters()]
    turned = [g.transpose(2, 3, 1, 0) if g.ndim == 4 else g.T for g in theirs]
    return [p.grad.numpy() for p in pair.model.parameters()], turned


def compare_gradients(pixels, labels) -> dict:
    """The largest relative difference (L2) of a parameter's gradient."""

    def worst(found, expected) -> float:
        pairs = zip(found, expected, strict=True)
        return float(max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs))

    (ours, theirs), (ours32, theirs32) = gradients(pixels, labels, "float64"), gradients(pixels, labels, "float32")
    return {
        "between_us_and_torch_in_float64": worst(ours, theirs),
        "graftwork_float32_from_float64": worst(ours32, ours),
        "torch_float32_from_float64": worst(theirs32, theirs),
    }


def _channels_last():
    import torch

    return torch.channels_last


def one_epoch(pixels, labels) -> dict:
    """One whole epoch through the Trainer, and the accuracy after it."""
    train, test = slice(0, -VALIDATION), slice(-VALIDATION, None)
    gw.manual_seed(0)
    model = zoo.create("resnet20")
    prepare = lambda rng, x, t: (model.normalise(x).numpy(), t)  # noqa: E731 - one line of preprocessing
    loader = nn.DataLoader(nn.ArrayDataset(pixels[train], labels[train], transform=prepare), BATCH, shuffle=True, workers=1)
    checks = nn.DataLoader(nn.ArrayDataset(pixels[test], labels[test], transform=prepare), 250)
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    trainer = nn.Trainer(model, optimizer, schedule=nn.schedule.OneCycleLR(optimizer, len(loader)), progress=False)
    start = time.perf_counter()
    record = trainer.fit(loader, 1, validation=checks)[-1]
    return {**record, "wall_s": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="ResNet-20 beside PyTorch")
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--epoch", action="store_true", help="train one whole epoch instead, by ourselves")
    arguments = parser.parse_args()
    pixels, labels = load(arguments.cifar)
    name = "resnet20_epoch" if arguments.epoch else "resnet20"
    result = one_epoch(pixels, labels) if arguments.epoch else measure(pixels, labels, arguments.steps)
    print(json.dumps({k: v for k, v in result.items() if k != "losses"}, indent=2))
    print("wrote", write(name, result))


if __name__ == "__main__":
    main()
