"""The command `graftwork compress`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

FORMS = {"before": "before", "stored": "stored file", "graph": "8-bit graph"}


@click.command()
@click.argument("model")
@click.option("--data", "folder", type=click.Path(path_type=Path), required=True,
              help="Labelled pictures, a sub-folder a class; or validation and train with those in them.")  # fmt: skip
@click.option("--budget", default="0.5pt", show_default=True, help="Points of accuracy that may be lost.")
@click.option("--weights", default=None, help="Of a network of the zoo: a weights name or an HDF5 file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write, loaded like MODEL.")
@click.option("--graph", type=click.Path(path_type=Path), default=None, help="Write the graph that computes in 8 bits, too.")
@click.option("--html", type=click.Path(path_type=Path), default=None, help="Write a page about it.")
@click.option("--macs", type=float, default=None, help="First take out channels: the share of multiplications to keep.")
@click.option("--limit", default=2000, show_default=True, type=click.IntRange(min=1), help="Pictures to measure on, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compress(model: str, folder: Path, budget: str, weights: str | None, output: Path, graph: Path | None, html: Path | None,
             macs: float | None, limit: int, as_json: bool) -> None:  # fmt: skip
    """Make MODEL smaller and faster, and measure what that costs on pictures.

    MODEL: a classifier that `graftwork transfer fit` wrote, a network that `zoo.save` wrote, or a network of the zoo. Weights
    are pruned, clustered and stored packed as far as the budget allows; a classifier on top learns from `train` anew.
    """
    from rich.console import Console

    from ...nn.files import require_writable
    from ..transfer import require_scikit_learn
    from .pipeline import compress as run
    from .report import write
    from .subject import load_subject

    points = parse_budget(budget)
    for path in (output, graph, html):
        if path is not None:
            require_writable(path)
    console = Console(stderr=True, quiet=as_json)
    subject = load_subject(model, weights)
    data = read(folder, subject.classes, limit)
    if data.learn is not None and subject.fits:
        require_scikit_learn()  # before long work, not after it
    found = run(subject, data, points, output, graph, macs=macs, say=console.print)
    if html is not None:
        write(html, found, Path(model).name)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "output": str(output), "graph": None if graph is None else str(graph)}))
        return
    show(found)
    click.echo(f"wrote {', '.join(str(p) for p in (output, graph, html) if p is not None)}")


def parse_budget(text: str) -> float:
    """Points of accuracy from "0.5pt", "0.5 points" or "0.5". Raises ConfigError for anything else."""
    from ...errors import ConfigError

    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:pt|pts|point|points)?", text.strip())
    if match is None:
        raise ConfigError(f"--budget {text}: expected points of accuracy such as 0.5pt, at least 0")
    return float(match[1])


def read(folder: Path, classes: list[str], limit: int) -> Any:
    """The pictures of a folder, at most `limit` to measure on and as many to learn from, evenly from its classes."""
    from ..transfer.advise import probe_sample
    from ..transfer.folders import load_folder
    from .pipeline import Data

    def sampled(part: Path) -> tuple[list[Path], Any]:
        found = load_folder(part, check=False, classes=classes)
        chosen = probe_sample(found.labels, limit, 0)
        return [found.paths[i] for i in chosen], found.labels[chosen]

    split = (folder / "validation").is_dir() and (folder / "train").is_dir()
    measured = sampled(folder / "validation" if split else folder)
    if not split:
        return Data(*measured)
    found = load_folder(folder / "train", check=False, classes=classes)
    return Data(*measured, found.paths, found.labels)


def show(found: Any) -> None:
    """The tables, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *(FORMS[name] for name in found.forms), title=f"{found.pictures} pictures, {found.classes} classes")
    for title, cells in rows(found):
        table.add_row(title, *cells)
    console.print(table)
    layers = Table("weight", "values", "zeros", "different", "error of weights", "error of outputs")
    for row in found.layers:
        output = "-" if row["output_error"] is None else f"{row['output_error']:.3f}"
        layers.add_row(row["weight"], f"{row['values']:,}", f"{row['zeros']:.0%}", f"{row['different']:,}",
                       f"{row['weight_error']:.3f}", output)  # fmt: skip
    console.print(layers)
    for line in verdict(found):
        console.print(line)


def rows(found: Any) -> list[tuple[str, list[str]]]:
    """(what, a cell a form) of the one table before and after."""
    forms = list(found.forms.values())
    first = forms[0]["bytes"]
    spans = [form["interval"] for form in forms]
    return [
        ("file, bytes", [f"{f['bytes']:,} ({f['bytes'] / first:.3f})" for f in forms]),
        ("memory at batch 1, bytes", [f"{f['memory']:,}" for f in forms]),
        *((f"latency at batch {b}, ms", [f"{f['latency_ms'][b]:.2f}" for f in forms]) for b in forms[0]["latency_ms"]),
        ("accuracy", [f"{f['accuracy']:.4f}" for f in forms]),
        ("95 % interval", [f"{low:.3f} to {high:.3f}" for low, high in spans]),
        ("points lost", [f"{f['points_lost']:.2f}" if "points_lost" in f else "" for f in forms]),
        ("answers changed", [f"{f['changed']}" if "changed" in f else "" for f in forms]),
        ("error of the scores", [f"{f['score_error']:.3f}" if "score_error" in f else "" for f in forms]),
    ]  # fmt: skip


def verdict(found: Any) -> list[str]:
    """What was chosen, and whether the budget is kept, in sentences."""
    lines = [f"stored: {found.step}" + (", classifier on top fitted anew" if found.refitted else "")]
    if found.channels is not None:
        before, after = found.channels["macs"]
        lines.append(f"channels: multiplications {before:,} -> {after:,} ({after / before:.3f})")
    if found.quantised is not None:
        lines.append(f"8-bit graph: {found.quantised}")
    for name, points in found.missed.items():
        lines.append(f"{FORMS[name]} misses the budget of {found.budget:g} points by {points:.2f}; nothing better was found")
    if found.met:
        lines.append(f"the budget of {found.budget:g} points is kept")
    return lines
