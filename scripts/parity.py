"""Graftwork's networks beside Keras's, live and in every layout of file; `make parity` runs it in an environment of its own.

    make parity                                    # all applications, one process after another
    make parity ARGS="resnet50 vgg16"              # only these
    make parity ARGS="--resume"                    # go on with those that parity.json does not have yet

For each network of keras.applications, Keras builds it with weights by formula (tests/zoo/filling.py) and writes it as legacy
weights, .weights.h5, whole .h5 and .keras. Graftwork reads each file and must give Keras's logits; Graftwork writes legacy
weights and .weights.h5, and Keras must give its own logits with them. Each network has a process of its own, so that memory
is given back and a failure ends nothing. The table is printed, and kept as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_goldens as goldens  # noqa: E402 - the paths above lead to it

SHALLOW, DEEP = 1e-5, 1e-4  # both sides sum in float32 in different orders; that noise grows with depth
COLUMNS = {
    "legacy": "legacy .h5", "weights.h5": ".weights.h5", "h5": "whole .h5", "keras": ".keras", "load h5": "load_keras .h5",
    "load keras": "load_keras .keras", "legacy back": "legacy in Keras", "weights.h5 back": ".weights.h5 in Keras",
}  # fmt: skip
SUFFIXES = {"legacy": "legacy.h5", "weights.h5": "w.weights.h5", "h5": "whole.h5", "keras": "whole.keras"}


def measure(name: str) -> dict[str, Any]:
    """Errors of one network by column: {"error": relative, "top5": whether the five best agree}, or {"failed": sentence}."""
    import graftwork as gw
    from graftwork import zoo

    kind, size, options = goldens.MODELS[name]
    theirs, x = goldens.build(name), goldens.pictures(name)
    expected = np.asarray(theirs(x, training=False))

    def create(path: str):
        return zoo.create(name.split()[0], weights=path, classes=goldens.CLASSES, input_shape=(*size, 3), **options)

    def ours(path: str) -> np.ndarray:
        return goldens.zoo_logits(create(path), x)

    def whole(path: str) -> np.ndarray:
        with gw.no_grad():
            return zoo.load_keras(path)(gw.tensor(x)).numpy()

    def back(path: str, load: Callable[[], None]) -> np.ndarray:
        for variable in theirs.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        load()
        return np.asarray(theirs(x, training=False))

    results: dict[str, Any] = {}

    def compare(column: str, action: Callable[[], np.ndarray]) -> None:
        try:
            found = action()
            same = (top5(found) == top5(expected)).all()
            results[column] = {"error": goldens.relative(found, expected), "top5": bool(same)}
        except Exception as error:  # a table of all that works and all that does not is what this is for
            results[column] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}

    with tempfile.TemporaryDirectory() as folder:
        for column, suffix in SUFFIXES.items():
            path = f"{folder}/{suffix}"
            with contextlib.redirect_stdout(sys.stderr):
                write(theirs, column, path)
            compare(column, lambda path=path: ours(path))
            if column in ("h5", "keras"):
                compare(f"load {column}", lambda path=path: whole(path))
            if column != "legacy":
                os.unlink(path)
        model = create(f"{folder}/legacy.h5")
        for layout, load in (("legacy", goldens.load_legacy), ("weights.h5", lambda model, path: model.load_weights(path))):
            path = f"{folder}/back.{'h5' if layout == 'legacy' else layout}"
            compare(f"{layout} back", lambda path=path, load=load, layout=layout: (
                zoo.save_weights(model, path, layout=layout), back(path, lambda: load(theirs, path)))[1])  # fmt: skip
    return {"keras": kind, "size": size, "parameters": theirs.count_params(), "results": results}


def write(model: Any, column: str, path: str) -> None:
    """One of Keras's files of `model`."""
    if column == "legacy":
        goldens.save_legacy(model, path)
    elif column == "weights.h5":
        model.save_weights(path)
    else:
        model.save(path)


def top5(logits: np.ndarray) -> np.ndarray:
    return logits.argsort(axis=1)[:, :-6:-1]


def tolerance(name: str) -> float:
    return SHALLOW if name.startswith("vgg") else DEEP


def passes(name: str, cell: dict[str, Any] | None) -> bool:
    return bool(cell) and "failed" not in cell and cell["error"] < tolerance(name) and cell["top5"]


def in_own_process(name: str) -> dict[str, Any]:
    """`measure` in a fresh process; what goes wrong there becomes a result, too."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--one", name, "--json", str(path)]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if child.returncode == 0:
            result = json.loads(path.read_text())
        else:
            last = (child.stderr.strip().splitlines() or ["nothing was said"])[-1]
            result = {"results": {}, "failed": f"ended with {child.returncode}: {last[:300]}"}
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def table(results: dict[str, Any]) -> Any:
    """All results as a table: relative errors, with what is over the tolerance or failed in red."""
    from rich.table import Table

    shown = Table(title="Graftwork beside Keras: largest difference of logits over the largest logit")
    for column in ("network", *COLUMNS.values(), "seconds"):
        shown.add_column(column)
    for name, result in results.items():
        cells = []
        for column in COLUMNS:
            cell = result["results"].get(column)
            text = "failed" if cell is None or "failed" in cell else f"{cell['error']:.1e}" + ("" if cell["top5"] else " top-5")
            cells.append(text if passes(name, cell) else f"[red]{text}[/red]")
        shown.add_row(name, *cells, str(result["seconds"]))
    return shown


def run(names: list[str], path: Path, resume: bool) -> int:
    """Measure, print, keep. The number of networks with a cell that does not pass."""
    from rich.console import Console

    import graftwork
    from graftwork.nn.files import atomic_path

    console = Console(width=200 if not sys.stdout.isatty() else None)
    results = json.loads(path.read_text())["networks"] if resume and path.exists() else {}
    for number, name in enumerate(names, 1):
        if name in results:
            continue
        console.print(f"{number} of {len(names)}: {name}")
        results[name] = in_own_process(name)
        with atomic_path(path) as temporary:
            head = {"graftwork": graftwork.__version__, "shallow": SHALLOW, "deep": DEEP}
            Path(temporary).write_text(json.dumps(head | {"networks": results}, indent=1) + "\n")
        for column, cell in results[name]["results"].items():
            if "failed" in cell:
                console.print(f"  {COLUMNS[column]}: {cell['failed']}", markup=False)
        if "failed" in results[name]:
            console.print(f"  {results[name]['failed']}", markup=False)
    console.print(table({name: results[name] for name in names}))
    bad = [name for name in names if not all(passes(name, results[name]["results"].get(column)) for column in COLUMNS)]
    console.print(f"{len(names) - len(bad)} of {len(names)} networks agree in every column; results in {path}")
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="names in the zoo; all by default")
    parser.add_argument("--json", type=Path, default=Path("parity.json"), help="where results are kept (parity.json)")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file already has")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        args.json.write_text(json.dumps(measure(args.one)))
        return 0
    chosen = [name for name in goldens.MODELS if not args.networks or name.split()[0] in args.networks]
    if unknown := set(args.networks) - {name.split()[0] for name in goldens.MODELS}:
        known = dict.fromkeys(name.split()[0] for name in goldens.MODELS)
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return int(run(chosen, args.json, args.resume) > 0)


if __name__ == "__main__":
    sys.exit(main())
