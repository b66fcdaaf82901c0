"""What compression costs and saves: files of 8 bits, a classifier of photographs, a network with half the arithmetic.

    python -m bench.compress --sizes
    python -m bench.compress --photos clothing --weights squeezenet_weights.h5 [--classifier clothes.h5]
    python -m bench.compress --cifar cifar10.h5 [--epochs 20]

`photos` has `train` and `validation` with a sub-folder for each class. Each part that is asked for replaces its entry in
bench/results/compress.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.plugins.compress import compress, load_subject
from graftwork.plugins.prune import prune_channels
from graftwork.plugins.quantize import quantize
from graftwork.plugins.transfer import ImageClassifier, load_folder
from graftwork.plugins.transfer.evaluation import wilson

from .common import RESULTS, write
from .resnet20 import BATCH, VALIDATION, load

RATE, MOMENTUM, DECAY = 0.02, 0.9, 5e-4  # of the fine-tuning after pruning; the highest rate is a fifth of training's
SEEN = 256  # training images that layers are fitted to after pruning
NETWORKS = ("resnet50", "vgg16", "mobilenet_v2", "squeezenet1_1")


def share(right: np.ndarray) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson)."""
    return {"accuracy": float(right.mean()), "interval": list(wilson(int(right.sum()), len(right))), "images": len(right)}


def channels(cifar: Path, epochs: int, rate: float = RATE, checkpoint: Path | None = None,
             target: float = 0.5) -> dict[str, Any]:  # fmt: skip
    """The embedded ResNet-20 with half the multiplications, fine-tuned; accuracy on the images that no training saw."""
    from scripts.cifar10.train import augment, classify  # the recipe that its weights were made with

    pixels, labels = load(cifar)
    seen, kept = slice(0, -VALIDATION), slice(-VALIDATION, None)
    gw.manual_seed(0)
    model = zoo.create("resnet20", weights="cifar10")
    before = classify(model, pixels[kept]) == labels[kept]
    small, report = prune_channels(model, model.normalise(pixels[:SEEN]), target_macs=target, reconstruct=True)
    at_once = classify(small, pixels[kept]) == labels[kept]
    prepare = lambda rng, x, t: (model.normalise(augment(rng, x)).numpy(), t)  # noqa: E731 - two lines of preprocessing
    dataset = nn.ArrayDataset(pixels[seen], labels[seen], transform=prepare)
    loader = nn.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, workers=1, seed=0)
    optimizer = nn.optim.SGD(small.parameters(), lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    schedule = nn.schedule.OneCycleLR(optimizer, epochs * len(loader), rise=0.1)
    trainer = nn.Trainer(small, optimizer, schedule=schedule, compile=True, progress=False, checkpoint_path=checkpoint)
    if checkpoint is not None:
        trainer.resume()
    for epoch in range(trainer.epoch + 1, epochs + 1):
        print(json.dumps(trainer.fit(loader, epoch)[-1]), flush=True)
    after = classify(small.eval(), pixels[kept]) == labels[kept]
    return {
        "network": "resnet20", "epochs": epochs, "rate": rate, "macs": report.macs,
        "macs_left": report.macs[1] / report.macs[0],
        "parameters": report.parameters, "before": share(before), "pruned": share(at_once), "fine_tuned": share(after),
        "points_lost": 100 * float(before.mean() - after.mean()), "history": trainer.history,
    }  # fmt: skip


def sizes() -> dict[str, Any]:
    """Files of networks in 8 bits (graphs that run without model code) over those of their float32 weights; random weights."""
    found = {}
    for name in NETWORKS:
        gw.manual_seed(0)
        model = zoo.create(name)
        x = np.random.default_rng(0).random((1, *model.input_shape), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            paths = {form: Path(folder) / form for form in ("float32", "int8", "int8_packed")}
            zoo.save_weights(model, paths["float32"])
            graph = quantize(model, [x]).graph(gw.tensor(x))
            graph.save(paths["int8"])
            graph.save(paths["int8_packed"], packed=True)
            bytes_ = {form: path.stat().st_size for form, path in paths.items()}
        ratios = {form: round(size / bytes_["float32"], 4) for form, size in bytes_.items()}
        found[name] = {"parameters": model.count_parameters(), "bytes": bytes_, "of_float32": ratios}
        print(name, ratios, flush=True)
    return found


def clothing(photos: Path, weights: str, classifier: Path | None, budget: float) -> dict[str, Any]:
    """The classifier of photographs on SqueezeNet 1.1 (features, logistic regression), compressed within `budget` points."""
    from graftwork.plugins.compress.commands import read

    with tempfile.TemporaryDirectory() as folder:
        if classifier is None:
            classifier = Path(folder) / "clothes.h5"
            trunk = zoo.create("squeezenet1_1", weights=weights, include_top=False, pooling="avg")
            data = load_folder(photos / "train", check=False)
            ImageClassifier(trunk, "squeezenet1_1", C=0.01).fit(data.paths, data.labels, data.classes).save(classifier)
        subject, small = load_subject(classifier), Path(folder) / "small.h5"
        found = compress(subject, read(photos, subject.classes, 2000), budget, small, say=lambda text: print(text, flush=True))
        again = ImageClassifier.load(small)
        checked = load_folder(photos / "validation", check=False, classes=again.classes)
        right = again.predict(checked.paths) == checked.labels
    return {**found.to_dict(), "loaded_again": share(right)}


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
    parser.add_argument("--epochs", type=int, default=20, help="of fine-tuning after the pruning of channels")
    parser.add_argument("--rate", type=float, default=RATE, help="the highest learning rate of it")
    parser.add_argument("--checkpoint", type=Path, help="where that fine-tuning goes on after an interruption")
    parser.add_argument("--sizes", action="store_true", help="files of 8 bits")
    parser.add_argument("--photos", type=Path, help="labelled photographs: compress a classifier of them")
    parser.add_argument("--weights", help="of SqueezeNet 1.1, trained on ImageNet, without top")
    parser.add_argument("--classifier", type=Path, help="what `graftwork transfer fit -C 0.01` made of them, to save time")
    parser.add_argument("--budget", type=float, default=1.0, help="points of accuracy that the classifier may lose")
    arguments = parser.parse_args()
    if arguments.sizes:
        keep("sizes", sizes())
    if arguments.photos:
        keep("clothing", clothing(arguments.photos, arguments.weights, arguments.classifier, arguments.budget))
    if arguments.cifar:
        keep("channels", channels(arguments.cifar, arguments.epochs, arguments.rate, arguments.checkpoint))


if __name__ == "__main__":
    main()
