"""The command `graftwork quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("model")
@click.option("--pictures", required=True, type=click.Path(path_type=Path), help="A folder of typical pictures.")
@click.option("--weights", default=None, help="A published name or an HDF5 file; random weights by default.")
@click.option("--mode", type=click.Choice(["static", "dynamic", "weight_only"]), default="static", show_default=True)
@click.option("--observer", default="minmax", show_default=True, help="How ranges of activations are learnt.")
@click.option("--equalize", is_flag=True, help="Cross-layer equalisation beforehand.")
@click.option("--correct-bias", is_flag=True, help="Take the mean error of rounded weights out of the biases.")
@click.option("--budget", default=None, type=click.FloatRange(min=0), help="Leave layers in float32 until the relative error "
              "of the outputs is at most this.")  # fmt: skip
@click.option("--layers", is_flag=True, help="What 8 bits cost in each layer alone.")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(min=2), help="Pictures to use at most; half of "
              "them calibrate, the others compare.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def quantize(model: str, pictures: Path, weights: str | None, mode: str, observer: str, equalize: bool, correct_bias: bool,
             budget: float | None, layers: bool, limit: int, as_json: bool) -> None:  # fmt: skip
    """What 8 bits do to the zoo's network MODEL: where they are used, and how far its outputs move."""
    from ...errors import DataError
    from ...zoo import create
    from ...zoo.images import list_images
    from .model import quantize as make
    from .search import agreement, mixed_precision, sensitivity

    paths = list_images(pictures)[:limit]
    if len(paths) < 2:
        raise DataError(f"{pictures} holds {len(paths)} pictures; expected at least two, to calibrate and to compare")
    network: Any = create(model, weights=weights).eval()
    half = len(paths) // 2
    known, fresh = (_batches(network, part) for part in (paths[:half], paths[half:]))
    quantised = make(network, known, observer, mode, equalize=equalize, correct_bias=correct_bias)
    metric = agreement(fresh, quantised.with_skip(quantised.in_bytes))
    found: dict[str, Any] = {"model": model, "mode": mode, "pictures": len(paths)}
    text = []
    if budget is not None:
        search = mixed_precision(quantised, fresh, metric, budget)
        quantised = search.model
        found |= {"budget": budget, "met": search.met, "missed_by": search.missed_by, "kept_in_float": search.in_float}
        text.append(str(search))
    found |= {"relative_error": -metric(quantised), "in_bytes": quantised.in_bytes, "in_float": quantised.in_float}
    if layers:
        found["layers"] = [layer._asdict() for layer in sensitivity(quantised, fresh, metric)]
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo("\n".join([quantised.report(), *text, f"relative error of the outputs: {found['relative_error']:.4f}"]))
    if layers:
        _table(found["layers"])


def _batches(network: Any, paths: list[Path]) -> list:
    return [network.preprocess(paths[i : i + 16]) for i in range(0, len(paths), 16)]


def _table(layers: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "weights", "relative error alone")
    for layer in layers:
        table.add_row(layer["name"], layer["weight"], f"{-layer['score']:.5f}")
    Console().print(table)
