"""Which way of learning suits these pictures and this network: the table of two questions, measured.

How much data is there, and how near is it to what the network has seen (the four corners of the usual advice, as in Stanford's
CS231n notes on transfer learning):

                  same domain                              different domain
    less data     features, a simple model on top          trouble
    more data     fine-tune                                fine-tune

The first question is counted. The second is answered by what can be measured without the source's pictures: how much better
neighbours in the network's features know the classes than neighbours in pixels do, and how far the pictures' statistics
within the network are from those that its weights hold (the running ones of batch normalisation) or from reference pictures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...nn import Module, no_grad
from ...nn.modules.module import listen
from ...zoo import images
from .experiments import split
from .features import FeatureExtractor

# Labels a class that count as more. With 5, features did as well as fine-tuning (`graftwork demo`); with 300, on photographs,
# fine-tuning did better. This is a choice between the two; `python -m bench.advise` measures where it lies for other data.
MORE = 50
CLOSED = 0.2  # share of the pixels' errors that features must avoid to count as knowing the domain
FAR = 1.0  # standard deviations between the statistics of these pictures and of the source's
PROBE = 600  # pictures that are looked at
SIDE = 16  # pixels of the side of the pictures that the raw probe compares
STEP_COST = 3.0  # a training step's time over that of a forward pass: the backward pass is two products for one
STRATEGIES = ("features", "head", "few", "all", "gradual")


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    data: "less" or "more"; domain: "same" or "different"; strategy: "features" or one of `fine_tune`'s; trouble: little can be
    expected without more pictures; reasons: sentences; seconds: expected for learning from all pictures on this machine;
    measured: the figures behind it; options: of `fine_tune`.
    """

    data: str
    domain: str
    strategy: str
    trouble: bool
    reasons: tuple[str, ...]
    seconds: float
    measured: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def quadrant(self) -> str:
        return f"{self.data} data, {self.domain} domain"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "reasons": list(self.reasons), "quadrant": self.quadrant}

    def __str__(self) -> str:
        head = (
            f"{self.quadrant}{': trouble' if self.trouble else ''}. Strategy: {self.strategy}, about {duration(self.seconds)}."
        )
        return "\n".join([head, *(f"- {reason}" for reason in self.reasons)])


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "8 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def advise(model: Module, pictures: Sequence[Any], labels: Any, reference: Sequence[Any] | None = None,
           budget: float | None = None, epochs: int = 12, seed: int = 0, progress: bool = False) -> Advice:  # fmt: skip
    """Measure pictures and network, and say how to learn.

    model: of the zoo, with weights, without top. labels: class numbers. reference: pictures like those that the weights were
    trained on, for networks whose weights hold no statistics; their classes are not needed. budget: seconds that fine-tuning
    may take; beyond them, features are advised. epochs: of fine-tuning. At most 600 pictures are looked at.
    Raises DataError for labels that do not fit, or with fewer than two classes or two pictures in each of them.
    """
    labels = np.asarray(labels)
    found, counts = np.unique(labels, return_counts=True)
    if labels.ndim != 1 or len(labels) != len(pictures) or len(found) < 2 or counts.max() < 2:
        raise DataError(
            f"{len(pictures)} pictures with {len(labels)} labels of {len(found)} classes; expected as many labels as pictures, "
            "at least two classes, and two pictures in one of them"
        )
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget={budget}; expected seconds above 0, or None")
    chosen = probe_sample(labels, PROBE, seed)
    looked = [pictures[i] for i in chosen]
    extractor = FeatureExtractor(model, progress=progress)
    extractor.transform(looked[:1])  # what is compiled at first use is not the network's speed
    start = time.perf_counter()
    features = extractor.transform(looked)
    forward = (time.perf_counter() - start) / len(looked)
    known = neighbour_accuracy(features, labels[chosen])
    pixels = neighbour_accuracy(raw_pixels(looked, model.input_shape[2]), labels[chosen])
    measured = {
        "images": len(labels), "classes": len(found), "per_class": float(np.median(counts)), "fewest": int(counts.min()),
        "most": int(counts.max()), "features_accuracy": known, "pixels_accuracy": pixels,
        "closed": (known - pixels) / max(1 - pixels, 1 / len(chosen)),
        "distance": domain_distance(model, looked, features, reference),
        "forward_seconds": forward, "probed": len(chosen),
    }  # fmt: skip
    return decide(measured, budget, epochs)


def decide(measured: dict[str, Any], budget: float | None = None, epochs: int = 12) -> Advice:
    """The table itself: from the figures that `advise` measures to its advice."""
    data = "more" if measured["per_class"] >= MORE else "less"
    domain, reasons = _domain(measured)
    reasons = [_amount(measured, data), *reasons]
    once = measured["images"] * measured["forward_seconds"]
    tuning = once * STEP_COST * epochs
    trouble = data == "less" and domain == "different"
    strategy = "all" if data == "more" else "features"
    if trouble:
        reasons.append(
            "this is the corner of trouble: too few pictures to teach the network a domain it does not know. More labels help "
            "most, or a network that was trained on something nearer; what is done now is the cheap, safe thing"
        )
    elif strategy == "features":
        reasons.append("a simple model on the network's features learns from few labels without forgetting anything")
    else:
        reasons.append("there is enough to train all layers" + (
            " for the new domain, from weights that are a better start than none" if domain == "different"
            else ", at a small rate, and gain over fixed features"
        ))  # fmt: skip
    if measured["most"] > 5 * max(measured["fewest"], 1):
        reasons.append(
            f"classes are uneven ({measured['fewest']} to {measured['most']} pictures): look at the figures by class, not at "
            "accuracy alone"
        )
    if strategy == "all" and budget is not None and tuning > budget:
        reasons.append(f"fine-tuning would take about {duration(tuning)}, more than the {duration(budget)} allowed")
        strategy = "features"
    options: dict[str, Any] = {} if strategy == "features" else {"epochs": epochs}
    if strategy != "features" and measured["most"] > 5 * max(measured["fewest"], 1):
        options["balance"] = "weights"
    return Advice(
        data, domain, strategy, trouble, tuple(reasons), once if strategy == "features" else tuning, measured, options
    )


def _amount(measured: dict[str, Any], data: str) -> str:
    return (
        f"{measured['images']} pictures of {measured['classes']} classes, {measured['per_class']:g} in a middling one: "
        f"{'at least' if data == 'more' else 'less than'} the {MORE} a class from which training the trunk is worth trying"
    )


def _domain(measured: dict[str, Any]) -> tuple[str, list[str]]:
    """Same or different, with a sentence a measurement. Features that know the classes outweigh statistics that differ."""
    closed, distance = measured["closed"], measured["distance"]
    knows = closed >= CLOSED
    reasons = [
        f"a nearest neighbour by the network's features is of the same class in {measured['features_accuracy']:.0%} of cases, "
        f"by pixels in {measured['pixels_accuracy']:.0%}: "
        + (f"the network avoids {closed:.0%} of the errors, so it knows what matters here" if knows else
           f"the network avoids {max(closed, 0):.0%} of the errors, so it knows little of what matters here")
    ]  # fmt: skip
    if distance is None:
        reasons.append("the weights hold no statistics of what they were trained on (no batch normalisation) and no reference "
                       "was given, so the neighbours alone decide")  # fmt: skip
        return ("same" if knows else "different"), reasons
    far = distance >= FAR
    reasons.append(f"inside the network the pictures are {distance:.2f} standard deviations from what it was trained on "
                   f"({'far' if far else 'near'}; the limit is {FAR:g})")  # fmt: skip
    return ("same" if knows and (not far or closed >= 2 * CLOSED) else "different"), reasons


def probe_sample(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Indices of at most `most` images, as evenly from the classes as they allow."""
    rng = np.random.default_rng(seed)
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = rng.permutation(len(members))
    return np.sort(np.lexsort((rng.random(len(labels)), ranks))[:most])


def neighbour_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose nearest other row (by cosine) has their label, each class counting alike."""
    unit = values.astype(np.float32) / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    right = labels[likeness.argmax(axis=1)] == labels
    shared = [c for c in np.unique(labels) if (labels == c).sum() > 1]
    return float(np.mean([right[labels == c].mean() for c in shared]))


def raw_pixels(pictures: Sequence[Any], channels: int) -> np.ndarray:
    """16x16 pixels of each picture as a row about its own mean: what likeness is without a network."""
    rows = images.to_batch(pictures, (SIDE, SIDE), channels).reshape(len(pictures), -1).astype(np.float32)
    return rows - rows.mean(axis=1, keepdims=True)


def domain_distance(
    model: Module, pictures: Sequence[Any], features: np.ndarray, reference: Sequence[Any] | None = None
) -> float | None:
    """How far pictures are from the network's source, in standard deviations of the source, or None where nothing tells.

    With reference pictures, by the features of both; otherwise by the running statistics of batch normalisation. Per value, the
    2-Wasserstein distance between two normal distributions, sqrt(difference of means² + difference of deviations²), each in the
    source's deviations; the median over values, which a few dead ones do not move.
    """
    if reference is not None:
        source = FeatureExtractor(model).transform(reference)
        deviation = source.std(axis=0)
        alive = deviation > 1e-6 * max(float(np.abs(source).max()), 1e-30)
        shift = ((features - source.mean(axis=0)) / np.where(alive, deviation, 1))[:, alive]
        return _wasserstein(shift.mean(axis=0), shift.std(axis=0))
    norms = [m for m in model.modules() if hasattr(m, "moving_mean") and hasattr(m, "moving_variance")]
    if not norms:
        return None
    late = norms[len(norms) // 2 :]
    model.eval()
    with no_grad(), listen(late) as heard:
        model.features(model.preprocess(list(pictures[:32])))
        outputs = [heard(norm) for norm in late]
    return float(np.median([_normalised_shift(n, y.numpy()) for n, y in zip(late, outputs, strict=True) if y is not None]))


def _wasserstein(mean: np.ndarray, deviation: np.ndarray) -> float:
    return float(np.median(np.sqrt(mean**2 + (deviation - 1) ** 2)))


def _normalised_shift(norm: Any, output: np.ndarray) -> float:
    """The distance at one normalisation: its output, without scale and shift, has mean 0 and deviation 1 on the source."""
    values = output.reshape(-1, output.shape[-1])
    gamma, beta = (getattr(norm, n).numpy() if hasattr(norm, n) else np.float32(d) for n, d in (("gamma", 1), ("beta", 0)))
    alive = np.broadcast_to(np.abs(gamma) > 1e-4, values.shape[1:])
    plain = ((values - beta) / np.where(alive, gamma, 1))[:, alive]
    return _wasserstein(plain.mean(axis=0), plain.std(axis=0))


def fit(model: Module, pictures: Sequence[Any], labels: Any, classes: Sequence[str], model_name: str,
        strategy: str | int | Advice = "auto", validation: tuple[Any, Any] | None = None, C: float | None = None,
        progress: bool = False, cache: str | Path | bool | None = None, **options: Any) -> Any:  # fmt: skip
    """Learn classes in the way asked for, or advised: an `ImageClassifier` or a `FineTuned`, which are used alike.

    strategy: "auto" (ask `advise`), an Advice, "features", or one of `fine_tune`'s: "head", "few", "all", "gradual", a number
    of layers. validation: (pictures, labels) for fine-tuning to choose its best epoch by; a tenth of the pictures is put aside
    for it where none are given. C: of the features' logistic regression. cache: where to keep features, see FeatureExtractor.
    options: of `fine_tune`; they outweigh the advice's. The result's `advice` is what was followed, or None.
    """
    from .classifier import ImageClassifier
    from .finetune import fine_tune

    known_strategy = isinstance(strategy, (Advice, int)) or strategy in ("auto", *STRATEGIES)
    if not known_strategy or isinstance(strategy, bool):
        raise ConfigError(f"strategy={strategy!r}; expected auto, {', '.join(STRATEGIES)}, or a number of layers")
    labels = np.asarray(labels)
    if strategy == "auto":
        strategy = advise(model, pictures, labels, progress=progress)
    advice = strategy if isinstance(strategy, Advice) else None
    way: Any = advice.strategy if advice is not None else strategy
    if way == "features":
        if options:
            raise ConfigError(f"{', '.join(options)}: options of fine-tuning, but the strategy is features; leave them out")
        result: Any = ImageClassifier(model, model_name, C, progress, cache=cache).fit(pictures, labels, classes)
    elif C is not None and advice is None:
        raise ConfigError(f"C={C} is for a model on features, but the strategy is {way!r}; leave it out, or use features")
    else:
        settings = {**(advice.options if advice is not None else {}), **options}
        if validation is None and np.unique(labels, return_counts=True)[1].min() >= 10:
            train, kept = split(labels, 0.1)
            validation = [pictures[i] for i in kept], labels[kept]
            pictures, labels = [pictures[i] for i in train], labels[train]
        result = fine_tune(model, pictures, labels, classes, validation=validation, model_name=model_name, strategy=way,
                           progress=progress, **settings)  # fmt: skip
    result.advice = advice
    return result


def load(path: Any, progress: bool = False, device: str = "cpu") -> Any:
    """A classifier that `save` of either kind wrote, on a device. Raises WeightsError or CheckpointError for anything else."""
    from ...nn.checkpoint import load as load_arrays
    from .classifier import ImageClassifier
    from .finetune import KIND, FineTuned

    tuned = load_arrays(path)[1].get("kind") == KIND
    classifier: Any = FineTuned.load(path) if tuned else ImageClassifier.load(path, progress)
    classifier.model.to(device)
    return classifier
