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
@click.option("--weights", default=None, help="A weights name or an HDF5 file; embedded ones if absent.")
@click.option("-C", "strength", type=float, default=None, help="Inverse regularisation; chosen by cross-validation if absent.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write (.h5).")
def fit(folder: Path, model_name: str, weights: str | None, strength: float | None, output: Path) -> None:
    """Learn the classes of FOLDER, which has a sub-folder of pictures for each.

    If it holds `train` and `validation`, those are used: the first to learn, the second to measure.
    """
    from rich.console import Console

    from ...nn.files import require_writable
    from ...zoo.images import list_labelled
    from . import require_scikit_learn
    from .classifier import ImageClassifier

    require_scikit_learn()
    console, start = Console(), time.perf_counter()
    require_writable(output)
    train = folder / "train" if (folder / "train").is_dir() else folder
    paths, labels, classes = list_labelled(train)
    checks = _labelled(folder / "validation", classes) if (folder / "validation").is_dir() else None
    model = _pretrained(model_name, weights)
    console.print(f"{len(paths)} pictures of {len(classes)} classes, features of {model_name}")
    classifier = ImageClassifier(model, model_name, strength, progress=True).fit(paths, labels, classes)
    classifier.save(output)
    console.print(f"learned in {time.perf_counter() - start:.1f} s (C = {classifier.C_}); wrote {output}")
    if checks is not None:
        report = _evaluate(classifier, *checks)
        console.print(f"validation accuracy {report['accuracy']:.4f} on {report['images']} pictures")


def _pretrained(model_name: str, weights: str | None):
    """A network without its top, with the weights asked for or else those that ship with the package."""
    from ...errors import ModelError
    from ...zoo import create, find

    embedded = [name for name, source in find(model_name).weights.items() if "://" not in source]
    if weights is None and not embedded:
        raise ModelError(f"no weights for {model_name} ship with the package; give a file with --weights")
    return create(model_name, weights=weights or embedded[0], include_top=False, pooling="avg")


def _labelled(folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """The pictures of a folder and their numbers among `classes`, which must have them all."""
    from ...errors import DataError
    from ...zoo.images import list_labelled

    paths, labels, names = list_labelled(folder)
    unknown = [n for n in names if n not in classes]
    if unknown:
        raise DataError(f"{folder} has classes the model never saw: {', '.join(unknown)}; it knows {', '.join(classes)}")
    return paths, np.array([classes.index(names[i]) for i in labels])


def _evaluate(classifier, paths: list[Path], truth: np.ndarray) -> dict:
    """Accuracy, overall and by class."""
    right = classifier.predict(paths) == truth
    by_class = {classifier.classes[i]: float(right[truth == i].mean()) for i in np.unique(truth)}
    return {"accuracy": float(right.mean()), "images": len(paths), "by_class": by_class}


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, folder: Path, as_json: bool) -> None:
    """Measure MODEL (written by `fit`) on the labelled pictures of FOLDER."""
    from .classifier import ImageClassifier

    classifier = ImageClassifier.load(model, progress=not as_json)
    report = _evaluate(classifier, *_labelled(folder, classifier.classes))
    if as_json:
        click.echo(json.dumps(report))
        return
    from rich.console import Console
    from rich.table import Table

    table, console = Table("class", "accuracy"), Console()
    for name, value in report["by_class"].items():
        table.add_row(name, f"{value:.3f}")
    console.print(f"accuracy {report['accuracy']:.4f} on {report['images']} pictures")
    console.print(table)


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
@click.option("--weights", default=None, help="A weights name or an HDF5 file; embedded ones if absent.")
@click.option("-k", default=5, show_default=True, help="How many to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def similar(query: Path, folder: Path, model_name: str, weights: str | None, k: int, as_json: bool) -> None:
    """Find the pictures below FOLDER that look most like QUERY."""
    from ...errors import ConfigError, DataError
    from ...zoo.images import list_images
    from . import require_scikit_learn
    from .features import FeatureExtractor
    from .neighbours import similar as nearest

    require_scikit_learn()
    if k < 1:
        raise ConfigError(f"-k {k}; expected at least 1 picture to show")
    paths = [p for p in list_images(folder) if p.resolve() != query.resolve()]
    if not paths:
        raise DataError(f"{folder} holds no picture but {query.name} itself; give a folder to search")
    extractor = FeatureExtractor(_pretrained(model_name, weights), progress=not as_json)
    wanted = extractor.transform([query])
    indices, distances = nearest(extractor.transform(paths), wanted, k=min(k, len(paths)))
    found = [{"image": str(paths[i]), "distance": float(d)} for i, d in zip(indices[0], distances[0], strict=True)]
    if as_json:
        click.echo(json.dumps({"query": str(query), "similar": found}))
        return
    for entry in found:
        click.echo(f"{entry['distance']:.4f}\t{entry['image']}")
