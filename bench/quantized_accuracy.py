"""What 8 bits cost in accuracy, on pictures that no part of training or calibration has seen.

    python -m bench.quantized_accuracy --cifar CIFAR.h5 [--mobilenet W.h5]     # see bench.quantized_cifar for W.h5
    python -m bench.quantized_accuracy --photos FOLDER --squeezenet W.h5 [--cache FOLDER]

CIFAR-10: the embedded ResNet-20, or a narrow MobileNetV2, on the last 5,000 images. Photos (a folder `train` and one
`validation`, a sub-folder for each class): SqueezeNet 1.1's features under a logistic regression that was fitted to float32
features; then the same after quantisation-aware training, in which the network in 8 bits learns to give the float32 logits of
training pictures again (no labels). Each part replaces its entry in bench/results/quantized_accuracy.json.
Accuracies are shares; `lost` is float32 minus 8 bits, in points; `agree` is the share of equal answers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F
from graftwork.nn.files import atomic_path
from graftwork.plugins.quantize import QuantizedModel, convert, prepare_qat, quantize

from .common import RESULTS, machine, use_threads
from .quantized_cifar import narrow_mobilenet
from .resnet20 import VALIDATION, load

CALIBRATION, BATCH = 512, 250  # of CIFAR-10's images
PHOTOS, QAT_PHOTOS, QAT_BATCH, RATE = 128, 1024, 16, 1e-4  # for calibration; for training in 8 bits
OPTIONS: dict[str, dict[str, Any]] = {
    "minmax": {}, "percentile": {"observer": "percentile"}, "mse": {"observer": "mse"},
    "bias corrected": {"correct_bias": True}, "equalised": {"equalize": True}, "dynamic": {"mode": "dynamic"},
    "weight_only": {"mode": "weight_only"},
}  # fmt: skip


def compared(exact: np.ndarray, found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy of answers in 8 bits beside those of float32."""
    right = float((found == truth).mean())
    lost = 100 * (float((exact == truth).mean()) - right)
    return {"accuracy": right, "lost": round(lost, 4), "agree": float((exact == found).mean())}


def cifar(model: Any, pixels: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """float32 and every option on the last images, calibrated with the first ones."""
    known = [model.normalise(pixels[i : i + 64]) for i in range(0, CALIBRATION, 64)]
    kept, truth = pixels[-VALIDATION:], labels[-VALIDATION:]

    def answers(network) -> np.ndarray:
        with gw.no_grad():
            parts = [network(model.normalise(kept[i : i + BATCH])).numpy().argmax(1) for i in range(0, len(kept), BATCH)]
        return np.concatenate(parts)

    exact = answers(gw.compile(model))
    row: dict[str, Any] = {"images": len(kept), "float32": float((exact == truth).mean())}
    for name, options in OPTIONS.items():
        row[name] = compared(exact, answers(quantize(model, known, **options)), truth)
        print(f"  {name}: {row[name]}", flush=True)
    return row


class Whole(nn.Module):
    """A trunk and the logistic regression of an ImageClassifier (its scaling taken into the weights) as one network."""

    def __init__(self, trunk: nn.Module, classifier: Any):
        super().__init__()
        self.trunk = trunk
        weight = classifier.weight / classifier.scale
        self.head = nn.Linear(weight.shape[1], len(weight))
        self.head.weight.data[...] = weight.T
        self.head.bias.data[...] = classifier.bias - weight @ classifier.mean

    def forward(self, x):
        return self.head(self.trunk(x))


def photos(folder: Path, weights: Path, cache: Path | None, training: int) -> None:
    """SqueezeNet's features and a logistic regression, in float32, in 8 bits, and in 8 bits after training."""
    from graftwork.plugins.transfer import ImageClassifier
    from graftwork.zoo.images import list_labelled

    trunk = zoo.create("squeezenet1_1", weights=str(weights), include_top=False, pooling="avg").eval()
    classifier = ImageClassifier(trunk, "squeezenet1_1", cache=cache)
    paths, labels, classes = list_labelled(folder / "train")
    features = classifier.extractor.transform(paths)
    classifier.fit_features(features, labels, classes)
    checks, truth, _ = list_labelled(folder / "validation")
    exact = classifier.predict_features(classifier.extractor.transform(checks))
    row: dict[str, Any] = {"images": len(checks), "C": classifier.C_, "float32": float((exact == truth).mean())}
    print(f"  float32: {row['float32']}", flush=True)
    network = Whole(trunk, classifier).eval()
    batches = [trunk.preprocess(checks[i : i + 32]) for i in range(0, len(checks), 32)]
    order = np.random.default_rng(0).permutation(len(paths))
    known = [trunk.preprocess([paths[i] for i in order[s : s + 32]]) for s in range(0, PHOTOS, 32)]

    def answers(model: Any) -> np.ndarray:
        with gw.no_grad():
            return np.concatenate([model(x).numpy().argmax(1) for x in batches])

    def note(name: str, model: Any, **more: Any) -> None:
        row[name] = compared(exact, answers(model), truth) | more
        print(f"  {name}: {row[name]}", flush=True)
        keep("photos", row)

    plain = quantize(network, known)
    note("minmax", plain)
    chosen = order[PHOTOS : PHOTOS + training]
    logits = classifier.decision(features[chosen]).astype(np.float32)
    start = quantize(network, known, correct_bias=True)
    note("bias corrected", start)
    note("trained in 8 bits", distilled(start, trunk, [paths[i] for i in chosen], logits), photos=len(chosen))
    for name, options in OPTIONS.items():
        if name not in row:
            note(name, quantize(network, known, **options))


class Pictures:
    """Pictures that are decoded when their batch comes up, with the logits that they should have."""

    def __init__(self, trunk: Any, paths: list, logits: np.ndarray):
        self.trunk, self.paths, self.logits = trunk, paths, logits

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple:
        return self.trunk.preprocess(self.paths[index]).numpy()[0], self.logits[index]


def distilled(quantised: QuantizedModel, trunk: Any, paths: list, logits: np.ndarray) -> QuantizedModel:
    """The network in 8 bits after one epoch in which it learns to give `logits`."""
    fake = prepare_qat(quantised)
    loader = nn.DataLoader(Pictures(trunk, paths, logits), QAT_BATCH, shuffle=True, drop_last=True, seed=0)
    optimizer = nn.optim.Adam(fake.parameters(), lr=RATE)
    schedule = nn.schedule.CosineLR(optimizer, len(loader))
    loss = lambda found, wanted: F.mean(F.square(found - wanted))  # noqa: E731
    trainer = nn.Trainer(fake, optimizer, loss, schedule, progress=False, compile=True)
    print(f"  training in 8 bits: {trainer.fit(loader, 1)[-1]}", flush=True)
    return convert(fake)


def keep(name: str, row: dict[str, Any]) -> None:
    """Replace one part of the results."""
    path = RESULTS / "quantized_accuracy.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= {"machine": machine(), name: row}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--mobilenet", type=Path, help="weights from bench.quantized_cifar, to measure instead of ResNet-20")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--squeezenet", type=Path)
    parser.add_argument("--cache", type=Path, help="keep the photos' features here")
    parser.add_argument("--train-photos", type=int, default=QAT_PHOTOS, help="for training in 8 bits (default %(default)s)")
    given = parser.parse_args()
    use_threads(1)  # cores may be shared; no times are taken
    gw.manual_seed(0)
    if given.photos:
        print("photos", flush=True)
        photos(given.photos, given.squeezenet, given.cache, given.train_photos)
    if given.cifar:
        pixels, labels = load(given.cifar)
        if given.mobilenet:
            name, model = "narrow_mobilenet_v2", narrow_mobilenet()
            zoo.load_weights(model, given.mobilenet)
        else:
            name, model = "resnet20", zoo.create("resnet20", weights="cifar10")
        print(name, flush=True)
        keep(name, cifar(model.eval(), pixels, labels))


if __name__ == "__main__":
    main()
