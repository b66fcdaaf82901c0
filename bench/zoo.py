"""Every network of the zoo: milliseconds an image, and how far its outputs are from Keras's: `python -m bench.zoo`.

Times are medians of compiled calls with one image of the network's own size, all threads. Errors are those of the golden
outputs (tests/zoo/goldens: Keras's logits and features for weights by formula): largest difference over largest value.
Networks that keras.applications does not have are compared with nothing. The table goes into docs/zoo.md, the figures into
results/zoo.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import graftwork as gw
from graftwork import zoo
from graftwork.nn.files import atomic_path

from .common import machine, write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "zoo.md"
BEGIN, END = "<!-- measured by `python -m bench.zoo` -->\n", "<!-- end of what is measured -->\n"
SECONDS, FEWEST = 1.0, 5  # for each network; calls


def milliseconds(name: str) -> float:
    """The median time of a compiled call with one image."""
    model = zoo.create(name)
    x = gw.tensor(np.random.default_rng(0).random((1, *model.input_shape), np.float32))
    fast = gw.compile(model)
    times: list[float] = []
    with gw.no_grad():
        for _ in range(2):
            fast(x)
        end = time.perf_counter() + SECONDS
        while len(times) < FEWEST or time.perf_counter() < end:
            start = time.perf_counter()
            fast(x)
            times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 2)


def golden_errors() -> dict[str, float]:
    """Largest error of logits and features by network, over all of its golden variants."""
    sys.path.insert(0, str(ROOT / "tests" / "zoo"))
    import test_applications as goldens

    worst: dict[str, float] = {}
    for label in goldens.FACTS:
        name = label.split()[0]
        worst[name] = max(worst.get(name, 0.0), *(error for _, error in goldens.golden_errors(label)))
    return worst


def table(found: dict[str, dict]) -> str:
    rows = ["| model | ms an image | beside Keras |", "| --- | ---: | ---: |"]
    for name, row in found.items():
        error = f"{row['error']:.1e}" if row["error"] is not None else "-"
        rows.append(f"| `{name}` | {row['ms']:g} | {error} |")
    return "\n".join(rows) + "\n"


def into_page(text: str) -> None:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    with atomic_path(PAGE) as path:
        path.write_text(before + BEGIN + text + END + rest.split(END)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="all networks of the zoo: time and error")
    parser.add_argument("networks", nargs="*", help="only these; prints, and writes nothing")
    names = parser.parse_args().networks
    errors, found = golden_errors() if not names else {}, {}
    for name in names or zoo.list_models():
        found[name] = {"ms": milliseconds(name), "error": errors.get(name)}
        print(name, found[name], flush=True)
    if not names:
        print("wrote", write("zoo", {"machine": machine(), "networks": found}))
        into_page(table(found))


if __name__ == "__main__":
    main()
