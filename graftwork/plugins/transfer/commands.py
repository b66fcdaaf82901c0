"""The commands `graftwork transfer fit|predict|evaluate|similar`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np


@click.group()
def transfer() -> None:
    """Learn new classes from a folder of pictures with a pretrained network."""


@transfer.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", "model_name", default="squeezenet1_1", show_default=True, help="A network of the zoo.")
@click.option("--weights", default=None, help="A weights name of the network, or an HDF5 file.")
@click.option("-C", "strength", type=float, default=None, help="Inverse regularisation; chosen by cross-validation if absent.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write (.h5).")
def fit(folder: Path, model_name: str, weights: str | None, strength: float | None, output: Path) -> None:
    """Learn the classes of FOLDER, which has a sub-folder of pictures for each.

    If it holds `train` and `validation`, those are used: the first to learn, the second to measure.
    """
    from rich.console import Console

    from ...nn.files import require_writable
    from ...zoo import create, find
    from ...zoo.images import list_labelled
    from .classifier import ImageClassifier

    console, start = Console(), time.perf_counter()
    require_writable(output)
    train = folder / "train" if (folder / "train").is_dir() else folder
    paths, labels, classes = list_labelled(train)
    if weights is None and (embedded := [n for n, s in find(model_name).weights.items() if "://" not in s]):
        weights = embedded[0]
    if weights is None:
        raise click.UsageError(f"{model_name} has no embedded weights; give a file with --weights")
    model = create(model_name, weights=weights, include_top=False, pooling="avg")
    console.print(f"{len(paths)} pictures of {len(classes)} classes, features of {model_name}")
    classifier = ImageClassifier(model, model_name, strength, progress=True).fit(paths, labels, classes)
    classifier.save(output)
    console.print(f"learned in {time.perf_counter() - start:.1f} s (C = {classifier.C}); wrote {output}")
    if (folder / "validation").is_dir():
        report = _evaluate(classifier, folder / "validation")
        console.print(f"validation accuracy {report['accuracy']:.4f} on {report['images']} pictures")


def _evaluate(classifier, folder: Path) -> dict:
    """Accuracy, overall and by class, of the pictures in a folder."""
    from ...errors import DataError
    from ...zoo.images import list_labelled

    paths, labels, names = list_labelled(folder)
    unknown = [n for n in names if n not in classifier.classes]
    if unknown:
        raise DataError(
            f"{folder} has classes the model never saw: {', '.join(unknown)}; it knows {', '.join(classifier.classes)}"
        )
    truth = np.array([classifier.classes.index(names[i]) for i in labels])
    right = classifier.predict(paths) == truth
    by_class = {n: float(right[labels == i].mean()) for i, n in enumerate(names)}
    return {"accuracy": float(right.mean()), "images": len(paths), "by_class": by_class}


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, folder: Path, as_json: bool) -> None:
    """Measure MODEL (written by `fit`) on the labelled pictures of FOLDER."""
    from .classifier import ImageClassifier

    report = _evaluate(ImageClassifier.load(model, progress=not as_json), folder)
    if as_json:
        click.echo(json.dumps(report))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "accuracy", title=f"accuracy {report['accuracy']:.4f} on {report['images']} pictures")
    for name, value in report["by_class"].items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def predict(model: Path, pictures: tuple[Path, ...], as_json: bool) -> None:
    """Classify PICTURES (files, or folders of them) with MODEL."""
    from ...zoo.images import list_images
    from .classifier import ImageClassifier

    classifier = ImageClassifier.load(model)
    paths = [p for given in pictures for p in (list_images(given) if given.is_dir() else [given])]
    for path, probabilities in zip(paths, classifier.predict_proba(paths), strict=True):
        best = int(probabilities.argmax())
        if as_json:
            scores = dict(zip(classifier.classes, probabilities.round(6).tolist(), strict=True))
            click.echo(json.dumps({"image": str(path), "class": classifier.classes[best], "probabilities": scores}))
        else:
            click.echo(f"{path}\t{classifier.classes[best]}\t{probabilities[best]:.3f}")


@transfer.command()
@click.argument("query", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", "model_name", default="squeezenet1_1", show_default=True, help="A network of the zoo.")
@click.option("--weights", default=None, help="A weights name of the network, or an HDF5 file.")
@click.option("-k", default=5, show_default=True, help="How many to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def similar(query: Path, folder: Path, model_name: str, weights: str | None, k: int, as_json: bool) -> None:
    """Find the pictures below FOLDER that look most like QUERY."""
    from ...zoo import create
    from ...zoo.images import list_images
    from .features import FeatureExtractor
    from .neighbours import similar as nearest

    if weights is None:
        raise click.UsageError("similarity needs pretrained weights; give a name or a file with --weights")
    paths = [p for p in list_images(folder) if p.resolve() != query.resolve()]
    model = create(model_name, weights=weights, include_top=False, pooling="avg")
    extractor = FeatureExtractor(model, progress=not as_json)
    wanted = extractor.transform([query])
    indices, distances = nearest(extractor.transform(paths), wanted, k=min(k, len(paths)))
    found = [{"image": str(paths[i]), "distance": float(d)} for i, d in zip(indices[0], distances[0], strict=True)]
    if as_json:
        click.echo(json.dumps({"query": str(query), "similar": found}))
        return
    for entry in found:
        click.echo(f"{entry['distance']:.4f}\t{entry['image']}")
