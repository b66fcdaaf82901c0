"""The commands `graftwork transfer advise|fit|evaluate|predict|similar|cluster|tune|report`."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from .folders import Folder


@click.group()
def transfer() -> None:
    """Learn new classes from a folder of pictures with a pretrained network."""


_device_option = click.option("--device", default="cpu", show_default=True, help="Where the network runs: cpu, cuda or cuda:1.")


def _network_options(command):
    """--model, --weights and --device, the same everywhere."""
    for option in (
        _device_option,
        click.option("--weights", default=None, help="A weights name or an HDF5 file; embedded ones if absent."),
        click.option("--model", "model_name", default="squeezenet1_1", show_default=True, help="A network of the zoo."),
    ):
        command = option(command)
    return command


def _json_option(what: str = "Print one JSON object."):
    return click.option("--json", "as_json", is_flag=True, help=what)


FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@transfer.command()
@FOLDER
@_network_options
@click.option("--budget", type=float, default=None, help="Seconds that fine-tuning may take.")
@_json_option()
def advise(folder: Path, model_name: str, weights: str | None, device: str, budget: float | None, as_json: bool) -> None:
    """Measure FOLDER and a network, and say how best to learn: which corner of the table, which strategy, why, how long."""
    from .advise import advise as measure

    data = _read(_train_folder(folder))
    advice = measure(_pretrained(model_name, weights, device), data.paths, data.labels, budget=budget, progress=not as_json)
    click.echo(json.dumps(advice.to_dict()) if as_json else str(advice))


@transfer.command()
@FOLDER
@_network_options
@click.option("-C", "strength", type=float, default=None, help="Inverse regularisation; chosen by cross-validation if absent.")
@click.option(
    "--strategy", default="features", show_default=True,
    help="features; head, few, all, gradual or a number of layers to fine-tune; auto to follow `advise`.",
)  # fmt: skip
@click.option("--epochs", type=int, default=None, help="Of fine-tuning.")
@click.option("--cache", is_flag=True, help="Keep features beside the pictures, for the next time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write (.h5).")
@_json_option()
def fit(folder: Path, model_name: str, weights: str | None, device: str, strength: float | None, strategy: str,
        epochs: int | None, cache: bool, output: Path, as_json: bool) -> None:  # fmt: skip
    """Learn the classes of FOLDER, which has a sub-folder of pictures for each.

    If it holds `train` and `validation`, those are used: the first to learn, the second to measure.
    """
    from rich.console import Console

    from ...nn.files import require_writable
    from . import require_scikit_learn
    from .advise import fit as learn

    require_scikit_learn()
    console, start = Console(quiet=as_json), time.perf_counter()
    require_writable(output)
    data = _read(_train_folder(folder))
    checks = _read(folder / "validation", data.classes) if (folder / "validation").is_dir() else None
    if checks is not None:
        _say_warnings(data.shared_with, checks)
    model = _pretrained(model_name, weights, device)
    console.print(f"{len(data)} pictures of {len(data.classes)} classes, features of {model_name}")
    way = int(strategy) if strategy.isdigit() else strategy
    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    classifier = learn(model, data.paths, data.labels, data.classes, model_name, way, C=strength, cache=cache,
                       progress=not as_json, **options)  # fmt: skip
    if classifier.advice is not None:
        console.print(str(classifier.advice))
    classifier.save(output)
    seconds, C = time.perf_counter() - start, getattr(classifier, "C_", None)
    console.print(f"learned in {seconds:.1f} s{'' if C is None else f' (C = {C})'}; wrote {output}")
    result: dict[str, Any] = {
        "output": str(output), "seconds": seconds, "images": len(data), "classes": data.classes, "C": C,
        "advice": None if classifier.advice is None else classifier.advice.to_dict(),
    }  # fmt: skip
    if checks is not None:
        result["validation"] = _evaluate(classifier, checks)
        console.print(
            f"validation accuracy {result['validation']['accuracy']:.4f} on {result['validation']['images']} pictures"
        )
    if as_json:
        click.echo(json.dumps(result))


def _train_folder(folder: Path) -> Path:
    """Where the pictures to learn from are."""
    return folder / "train" if (folder / "train").is_dir() else folder


def _read(folder: Path, classes: list[str] | None = None) -> Folder:
    """The labelled pictures of a folder; `classes`, if given, must have all of them. What is wrong with some is said."""
    from .folders import load_folder

    return _say_warnings(load_folder, folder, classes=classes)


def _say_warnings(action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Do something, and put what it warns of on the error output, one line each."""
    from .folders import FolderWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FolderWarning)
        result = action(*arguments, **options)
    for warning in caught:
        click.echo(f"graftwork: {warning.message}", err=True)
    return result


def _pretrained(model_name: str, weights: str | None, device: str):
    """A network without its top, with the weights asked for or else those that ship with the package."""
    from ...errors import ModelError
    from ...zoo import create, find

    embedded = [name for name, source in find(model_name).weights.items() if "://" not in source]
    if weights is None and not embedded:
        raise ModelError(f"no weights for {model_name} ship with the package; give a file with --weights")
    return create(model_name, weights=weights or embedded[0], include_top=False, pooling="avg").to(device)


def _evaluate(classifier: Any, data: Folder) -> dict:
    """Accuracy with its interval, overall and by class, and confusion."""
    from .evaluation import Evaluation

    return Evaluation(classifier.classes, data.labels, np.asarray(classifier.predict_proba(data.paths))).summary()


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@FOLDER
@_device_option
@_json_option()
def evaluate(model: Path, folder: Path, device: str, as_json: bool) -> None:
    """Measure MODEL (written by `fit`) on the labelled pictures of FOLDER."""
    from .advise import load

    classifier = load(model, progress=not as_json, device=device)
    report = _evaluate(classifier, _read(folder, classifier.classes))
    if as_json:
        click.echo(json.dumps(report))
        return
    from rich.console import Console
    from rich.table import Table

    table, console = Table("class", "accuracy", "95 % interval", "precision"), Console()
    for row in report["classes"]:
        if row["images"]:
            claimed = "-" if row["precision"] is None else f"{row['precision']:.3f}"
            table.add_row(row["class"], f"{row['recall']:.3f}", "{:.2f} to {:.2f}".format(*row["interval"]), claimed)
    low, high = report["interval"]
    console.print(f"accuracy {report['accuracy']:.4f} on {report['images']} pictures (95 %: {low:.3f} to {high:.3f})")
    console.print(table)


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@_device_option
@_json_option("Print one JSON object a line.")
def predict(model: Path, pictures: tuple[Path, ...], device: str, as_json: bool) -> None:
    """Classify PICTURES (files, or folders of them) with MODEL."""
    from ...zoo.images import list_images
    from .advise import load

    classifier = load(model, device=device)
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
@FOLDER
@_network_options
@click.option("-k", default=5, show_default=True, help="How many to show.")
@_json_option()
def similar(query: Path, folder: Path, model_name: str, weights: str | None, device: str, k: int, as_json: bool) -> None:
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
    extractor = FeatureExtractor(_pretrained(model_name, weights, device), progress=not as_json)
    wanted = extractor.transform([query])
    indices, distances = nearest(extractor.transform(paths), wanted, k=min(k, len(paths)))
    found = [{"image": str(paths[i]), "distance": float(d)} for i, d in zip(indices[0], distances[0], strict=True)]
    if as_json:
        click.echo(json.dumps({"query": str(query), "similar": found}))
        return
    for entry in found:
        click.echo(f"{entry['distance']:.4f}\t{entry['image']}")


@transfer.command()
@FOLDER
@_network_options
@click.option("-k", default=10, show_default=True, help="How many clusters.")
@_json_option()
def cluster(folder: Path, model_name: str, weights: str | None, device: str, k: int, as_json: bool) -> None:
    """Sort the pictures below FOLDER, without labels, into clusters of what looks alike."""
    from ...zoo.images import list_images
    from . import require_scikit_learn
    from .features import FeatureExtractor
    from .neighbours import cluster as group

    require_scikit_learn()
    paths = list_images(folder)
    numbers = group(FeatureExtractor(_pretrained(model_name, weights, device), progress=not as_json).transform(paths), k)
    found = {str(c): [str(paths[i]) for i in np.flatnonzero(numbers == c)] for c in range(k)}
    if as_json:
        click.echo(json.dumps({"images": len(paths), "clusters": found}))
        return
    for path, number in sorted(zip(paths, numbers.tolist(), strict=True), key=lambda pair: pair[1]):
        click.echo(f"{number}\t{path}")


@transfer.command()
@FOLDER
@_network_options
@click.option("--layer", "layers", multiple=True, help="A layer to try beside the trunk's end; may be repeated.")
@click.option("-C", "strengths", type=float, multiple=True, help="A regularisation to try; may be repeated.")
@click.option("--rate", "rates", type=float, multiple=True, help="A learning rate of fine-tuning to try; may be repeated.")
@click.option("--epochs", type=int, default=None, help="Of fine-tuning.")
@click.option("--folds", default=3, show_default=True, help="Of cross-validation.")
@_json_option()
def tune(folder: Path, model_name: str, weights: str | None, device: str, layers: tuple[str, ...], strengths: tuple[float, ...],
         rates: tuple[float, ...], epochs: int | None, folds: int, as_json: bool) -> None:  # fmt: skip
    """Choose layer, regularisation and learning rate for FOLDER by cross-validation; a fifth is kept to measure the choice."""
    from . import require_scikit_learn
    from .classifier import CANDIDATES
    from .experiments import tune as search

    require_scikit_learn()
    data = _read(_train_folder(folder))
    options = {} if epochs is None else {"epochs": epochs}
    groups = data.groups if data.duplicates() else None  # files that are the same stay on one side
    found = search(_pretrained(model_name, weights, device), data.paths, data.labels, strengths or CANDIDATES, (None, *layers),
                   rates, data.classes, groups, folds=folds, progress=not as_json, fine_tuning=options)  # fmt: skip
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    from rich.console import Console
    from rich.table import Table

    table, console = Table("method", "layer", "C or rate", "accuracy", "deviation"), Console()
    for row in found.rows:
        spread = "" if row["deviation"] is None else f"{row['deviation']:.3f}"
        table.add_row(row["method"], row.get("layer") or "last", f"{row.get('C', row.get('trunk_lr'))}",
                      f"{row['accuracy']:.3f}", spread)  # fmt: skip
    console.print(table)
    low, high = found.interval
    console.print(f"the first, on {found.test_images} pictures never looked at: {found.test:.4f} ({low:.3f} to {high:.3f})")


@transfer.command()
@click.argument("model", type=click.Path(path_type=Path))
@FOLDER
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The page to write (.html).")
@click.option("--title", default="A grafted classifier", show_default=True)
@_device_option
@_json_option()
def report(model: Path, folder: Path, output: Path, title: str, device: str, as_json: bool) -> None:
    """Measure MODEL on the labelled pictures of FOLDER, and write one page: figures, mistakes, similar pictures, a map."""
    from ...nn.files import require_writable
    from .advise import load
    from .report.classifier import report as write

    require_writable(output)
    classifier = load(model, progress=not as_json, device=device)
    data = _read(folder, classifier.classes)
    found = write(output, classifier, data.paths, data.labels, title=title)
    if as_json:
        click.echo(json.dumps({**found.summary(), "output": str(output)}))
        return
    click.echo(f"accuracy {found.accuracy:.4f} on {len(found.truth)} pictures; wrote {output}")
