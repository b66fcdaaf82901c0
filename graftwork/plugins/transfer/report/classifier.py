"""The page about a classifier: figures, confusion, mistakes, similar pictures, a map, what it looks at, curves, times."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import DataError
from ....nn.files import require_writable
from ....zoo import images
from .. import require_scikit_learn
from ..evaluation import Evaluation
from ..features import FeatureExtractor
from ..neighbours import similar
from ..saliency import can_explain, grad_cam, overlay, trunk_of
from .page import Section, write_page
from .parts import cards, confusion_table, feature_map, figure, interval_chart, line_chart, picture_grid, table

SIDE = 112  # pixels of a picture's side in the page
MAPPED = 300  # pictures in the map


@dataclass(frozen=True)
class Extras:
    """What a page can show beside the classifier itself, if it was measured: see `experiments` and `advise`."""

    curve: Sequence[dict[str, Any]] = ()  # of `learning_curve`
    search: Any = None  # a Search
    networks: Sequence[Any] = ()  # of `compare_models`
    advice: Any = None


def report(path: str | Path, classifier: Any, pictures: Sequence[Any], labels: Any, title: str = "A grafted classifier",
           extras: Extras | None = None) -> Evaluation:  # fmt: skip
    """Measure a classifier (ImageClassifier or FineTuned) on labelled pictures and write the page about it.

    pictures: paths, Pillow images or uint8 arrays that it did not learn from. Needs scikit-learn. Returns what was measured.
    """
    require_scikit_learn()
    path, extras = require_writable(path), extras or Extras()
    if len(pictures) == 0 or len(pictures) != len(labels):
        raise DataError(f"{len(pictures)} pictures with {len(labels)} labels; expected one label each, and at least one")
    classifier.predict_proba(pictures[:1])  # what is compiled at first use is not its speed
    start = time.perf_counter()
    found = Evaluation(classifier.classes, np.asarray(labels), np.asarray(classifier.predict_proba(pictures)))
    seconds = (time.perf_counter() - start) / len(pictures)
    trunk = trunk_of(classifier)
    features = FeatureExtractor(trunk).transform(pictures)
    small = Thumbnails(pictures, trunk.input_shape[2])
    sections = [_figures(found, seconds, trunk), _by_class(found), _confusion(found, small)]
    sections += _mistakes(found, small) + _looked_at(classifier, found, pictures)
    sections += [_similar(found, features, small), _map(found, features, small)]
    sections += _curves(classifier, found, extras) + _measured(extras)
    sections.append(_sizes(classifier, trunk, seconds, len(pictures)))
    low, high = found.interval
    lead = (f"{found.accuracy:.1%} of {len(pictures):,} pictures of {len(found.classes)} classes are recognised; with 95 % "
            f"confidence that is {low:.1%} to {high:.1%} of pictures like these.")  # fmt: skip
    write_page(path, title, lead, sections)
    return found


class Thumbnails:
    """Pictures as small uint8 arrays whose sides keep their ratio, each decoded once, when it is first shown."""

    def __init__(self, pictures: Sequence[Any], channels: int):
        self.pictures, self.channels = pictures, channels
        self._made: dict[tuple[int, int], np.ndarray] = {}

    def get(self, index: int, side: int = SIDE) -> np.ndarray:
        key = int(index), side
        if key not in self._made:
            image = images.open_image(self.pictures[key[0]], self.channels)
            if max(image.size) > side:
                image.thumbnail((side, side))
            pixels = np.asarray(image)
            self._made[key] = pixels[..., None] if pixels.ndim == 2 else pixels
        return self._made[key]


def _figures(found: Evaluation, seconds: float, trunk: Any) -> Section:
    low, high = found.interval
    rows = [r for r in found.by_class() if r["f1"] is not None]
    body = cards([
        ("accuracy", f"{found.accuracy:.1%}", f"95 %: {low:.1%} to {high:.1%}"),
        ("macro F1", f"{np.mean([r['f1'] for r in rows]):.3f}", "mean over classes"),
        ("pictures", f"{len(found.truth):,}", f"{int((~found.right).sum())} wrong"),
        ("classes", str(len(found.classes)), ""),
        ("time", f"{1000 * seconds:.1f} ms", "a picture, decoding included"),
        ("parameters", f"{trunk.count_parameters():,}", f"{type(trunk).__name__} without its top"),
    ])  # fmt: skip
    text = "Measured on pictures that were put aside. The interval is Wilson's: 95 of 100 such intervals hold the true share."
    return Section("In figures", text, body)


def _by_class(found: Evaluation) -> Section:
    rows = found.by_class()
    shown = {r["class"]: (r["recall"], *r["interval"]) for r in rows if r["images"]}
    cells = [
        [r["class"], r["images"], _share(r["recall"]), _range(r["interval"]),
         _share(r["precision"]), _share(r["f1"])]
        for r in rows
    ]  # fmt: skip
    body = interval_chart(shown) + table(["class", "pictures", "recall", "95 % interval", "precision", "F1"], cells)
    return Section("Class by class", "Recall: the share of a class's pictures that are recognised. Precision: the share of "
                   "pictures called so that are. The whiskers are 95 % intervals.", body)  # fmt: skip


def _range(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _confusion(found: Evaluation, small: Thumbnails) -> Section:
    pairs = found.most_confused(5)
    rows, captions, names = [], [], []
    for truth, predicted, count in pairs:
        members = np.flatnonzero((found.truth == truth) & (found.predicted == predicted))[:6]
        rows.append([small.get(i) for i in members])
        captions.append([f"{found.probabilities[i, predicted]:.0%} sure" for i in members])
        names.append(f"{found.classes[truth]} taken for {found.classes[predicted]}, {count}")
    body = confusion_table(found.confusion, found.classes)
    if pairs:
        body += "<h3>Most confused</h3>" + picture_grid(rows, captions, "middle", names)
    return Section(
        "What is taken for what", "Green: right. Red: wrong. The stronger the colour, the larger the share of the row.", body
    )


def _mistakes(found: Evaluation, small: Thumbnails) -> list[Section]:
    wrong = found.confident_mistakes(16)
    if len(wrong) == 0:
        return []
    shown = []
    for i in wrong:
        truth, said = (html.escape(found.classes[c]) for c in (found.truth[i], found.predicted[i]))
        caption = f"<b>{said}</b> {found.probabilities[i].max():.0%}<br><i>{truth}</i>"
        shown.append(
            figure(small.get(i), f"{found.classes[found.truth[i]]}, taken for {found.classes[found.predicted[i]]}", caption)
        )
    text = ("The wrong answers that the classifier was surest of: what it said, how sure it was, and what the label says. "
            "Wrong labels are often found here.")  # fmt: skip
    return [Section("Most confident mistakes", text, f'<div class="strip large">{"".join(shown)}</div>')]


def _looked_at(classifier: Any, found: Evaluation, pictures: Sequence[Any]) -> list[Section]:
    """Grad-CAM of some right and some wrong pictures, where the model on top has gradients."""
    if not can_explain(classifier):
        return []
    sure = np.argsort(-found.probabilities.max(axis=1), kind="stable")
    first = [next((i for i in sure if found.right[i] and found.truth[i] == c), None) for c in range(len(found.classes))]
    rows, captions, names = [], [], []
    for name, chosen in (
        ("recognised", [i for i in first if i is not None][:7]),
        ("mistaken", list(found.confident_mistakes(7))),
    ):
        if not chosen:
            continue
        heat, pixels = grad_cam(classifier, [pictures[i] for i in chosen], found.predicted[chosen])
        rows.append([_reduced(overlay(p, h)) for p, h in zip(pixels, heat, strict=True)])
        captions.append(
            [f"{found.classes[found.predicted[i]]}?" if name == "mistaken" else found.classes[found.truth[i]] for i in chosen]
        )
        names.append(name)
    text = "Bright is what spoke for the answer given (Grad-CAM on the trunk's last feature map)."
    return [Section("What it looks at", text, picture_grid(rows, captions, "large", names))]


def _reduced(pixels: np.ndarray) -> np.ndarray:
    return images.to_array(pixels, (SIDE, SIDE), pixels.shape[2]) if pixels.shape[0] > SIDE else pixels


def _similar(found: Evaluation, features: np.ndarray, small: Thumbnails) -> Section:
    queries = [int(np.flatnonzero(found.truth == c)[0]) for c in range(len(found.classes)) if (found.truth == c).any()]
    indices, _ = similar(features, features[queries], k=min(8, len(features)))
    # a copy of the query may come first in its place: the query itself leads each row
    ordered = [[q, *(i for i in row if i != q)][: indices.shape[1]] for q, row in zip(queries, indices, strict=True)]
    rows = [[small.get(i) for i in row] for row in ordered]
    body = picture_grid(rows, [[found.classes[found.truth[i]] for i in row] for row in ordered], "middle")
    return Section("Similar pictures", "The first of each row is the question, the others are its nearest neighbours by deep "
                   "features (cosine). No label was used.", body)  # fmt: skip


def plane(features: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Features laid out in two dimensions (n, 2), and how: t-SNE of their 50 principal components, or PCA where few."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    unit = normalize(features)
    most = min(50, *unit.shape)
    if most < 2:
        return np.zeros((len(unit), 2)), "a point"
    if len(unit) < 30:
        return PCA(2, random_state=seed).fit_transform(unit), "PCA"
    reduced = PCA(most, random_state=seed).fit_transform(unit)
    return TSNE(2, perplexity=min(30, len(unit) / 4), init="pca", random_state=seed).fit_transform(reduced), "t-SNE"


def _map(found: Evaluation, features: np.ndarray, small: Thumbnails) -> Section:
    chosen = np.sort(np.random.default_rng(0).permutation(len(features))[:MAPPED])
    places, method = plane(features[chosen])
    pixels = [small.get(i, 40) for i in chosen]
    body = feature_map(places, pixels, [found.classes[found.truth[i]] for i in chosen])
    return Section("A map of the features", f"{len(chosen)} pictures; near each other is what the network finds alike "
                   f"({method}). Point at one for its class.", body)  # fmt: skip


def _curves(classifier: Any, found: Evaluation, extras: Extras) -> list[Section]:
    body = ""
    if extras.curve:
        points = [(r["labels"], r["accuracy"]) for r in extras.curve]
        body += "<h3>Accuracy by labels per class</h3>" + line_chart(
            {"accuracy": points}, "labels per class", "accuracy", len(points) > 1
        )
    history = getattr(classifier, "history", None) or []
    lines = {n.replace("_", " "): [(r["epoch"], r[n]) for r in history if n in r] for n in ("accuracy", "validation_accuracy")}
    lines = {n: p for n, p in lines.items() if p}
    if lines:
        body += "<h3>Fine-tuning</h3>" + line_chart(lines, "epoch", "accuracy")
    reliable = [(r["confidence"], r["accuracy"]) for r in found.calibration()]
    body += "<h3>Is it as sure as it should be?</h3><p>On the dotted line, it is right as often as it claims.</p>"
    body += line_chart({"measured": reliable}, "confidence", "accuracy", diagonal=True)
    return [Section("Curves", "How accuracy depends on what was given, and on how sure the classifier is.", body)]


def _measured(extras: Extras) -> list[Section]:
    """Advice, search and comparison, of those that there are."""
    sections = []
    if extras.advice is not None:
        reasons = "".join(f"<li>{html.escape(r)}</li>" for r in extras.advice.reasons)
        text = f"{extras.advice.quadrant}{' (trouble)' if extras.advice.trouble else ''}: {extras.advice.strategy}."
        sections.append(Section("The advice that was given", text, f"<ul>{reasons}</ul>"))
    if extras.search is not None:
        rows = [[r["method"], r.get("layer") or "last", r.get("C", r.get("trunk_lr", "")), f"{r['accuracy']:.3f}",
                 _share(r["deviation"])] for r in extras.search.rows]  # fmt: skip
        text = (f"Chosen by cross-validation on {extras.search.train_images} pictures; the best one was then measured once on "
                f"{extras.search.test_images} others: {extras.search.test:.3f}.")  # fmt: skip
        sections.append(Section("What was tried", text, table(["method", "layer", "C or rate", "accuracy", "deviation"], rows)))
    if extras.networks:
        rows = [[n.name, f"{n.accuracy:.3f}", _range(n.interval), f"{1000 * n.seconds:.1f} ms", f"{n.parameters:,}",
                 f"{n.bytes / 1e6:.1f} MB"] for n in extras.networks]  # fmt: skip
        sections.append(Section("Networks side by side", "The same split, a logistic regression on each network's features.",
                                table(["network", "accuracy", "95 %", "a picture", "parameters", "size"], rows)))  # fmt: skip
    return sections


def _sizes(classifier: Any, trunk: Any, seconds: float, count: int) -> Section:
    size = sum(value.nbytes for value in trunk.state_dict().values())
    height, width, channels = trunk.input_shape
    rows = [
        ["network", type(trunk).__name__], ["input", f"{height} x {width} x {channels}"],
        ["parameters of the trunk", f"{trunk.count_parameters():,}"], ["bytes of the trunk", f"{size:,}"],
        ["seconds for these pictures", f"{seconds * count:.2f}"], ["pictures a second", f"{1 / max(seconds, 1e-9):.0f}"],
        ["learned by", type(classifier).__name__],
    ]  # fmt: skip
    return Section(
        "Sizes and times",
        "Times are of this machine, decoding included, first-use compilation not.",
        table(["what", "value"], rows),
    )
