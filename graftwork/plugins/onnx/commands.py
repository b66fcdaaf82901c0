"""The command `graftwork export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

CALIBRATION, BATCH = 256, 32  # pictures that are looked at, and how many at once

@click.command()
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--weights", default=None, help="A published name or an HDF5 file; random weights by default.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="What weights are kept and products computed in.")  # fmt: skip
@click.option("--batch", default=None, type=click.IntRange(min=1), help="A fixed number of images; open by default.")
@click.option("--preprocess", is_flag=True, help="The file takes RGB pixels from 0 to 255 and normalises them itself.")
@click.option("--int8", is_flag=True, help="Quantise to 8 bits first; needs --calibrate.")
@click.option("--calibrate", "folder", default=None, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder of typical pictures that show --int8 the range of each layer; at most 256 are looked at.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a sentence.")
def export(model: str, output: Path, weights: str | None, dtype: str, batch: int | None, preprocess: bool, int8: bool,
           folder: Path | None, as_json: bool) -> None:  # fmt: skip
    """Write the zoo's network MODEL to OUTPUT as ONNX (opset 17). Images stay NHWC."""
    import numpy as np

    from ...errors import ConfigError
    from ...nn.files import require_writable
    from ...nn.tensor import tensor
    from ...zoo import create
    from . import require_onnx
    from .exporter import export as write

    require_onnx()
    require_writable(output)
    if int8 != (folder is not None) or (int8 and dtype != "float32"):
        raise ConfigError("--int8 and --calibrate FOLDER go together, and with --dtype float32")
    network = create(model, weights=weights)
    shape = getattr(network, "input_shape", None)
    if shape is None:
        raise ConfigError(f"{model} does not say what its input is; give it an input_shape of (height, width, channels)")
    example = tensor(np.zeros((batch or 1, *shape), np.float32))
    target = quantised(network, folder) if folder is not None else network
    write(target, output, example, dtype=dtype, dynamic_batch=batch is None, preprocessing=preprocess)
    size = output.stat().st_size
    found = {"model": model, "file": str(output), "bytes": size, "dtype": "int8" if int8 else dtype, "batch": batch}
    text = f"wrote {output}: {model}, {found['dtype']}, {size / 1e6:.1f} MB, images {tuple(shape)} NHWC"
    click.echo(json.dumps(found) if as_json else text)


def quantised(network: Any, folder: Path) -> Any:
    """The network in 8 bits, with ranges from pictures below the folder, evenly chosen."""
    from ...zoo.images import list_images
    from ..quantize import quantize

    pictures = list_images(folder)
    count = min(len(pictures), CALIBRATION)
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    network.eval()
    return quantize(network, (network.preprocess(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)))
