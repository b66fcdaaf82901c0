"""Damaged ONNX files: models of the ONNX project's node tests with a few bytes changed or the end cut off.

    python scripts/fuzz_onnx.py --seconds 60 --seed 1

Each file is read and, where that works and its inputs are small, called. Anything but a result or one of the project's own
errors is a defect: it is printed, and the exit status is 1. Address space is limited to 6 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from graftwork import no_grad, tensor
from graftwork.errors import GraftworkError
from graftwork.plugins.onnx import load

MEMORY, LARGEST, SLOW = 6 << 30, 1 << 20, 10.0  # bytes; values of all inputs; seconds that are reported


def damaged(rng: np.random.Generator, model: bytes) -> bytes:
    data = bytearray(model)
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)


def use(rng: np.random.Generator, data: bytes) -> str:
    """Read and call; what became of it in a word."""
    model = load(data)
    shapes = [tuple(2 if n is None else min(n, 64) for n in s.shape or (2, 3)) for s in model.signature]
    if sum(int(np.prod(s)) for s in shapes) > LARGEST:
        return "read"
    inputs = [tensor((3 * rng.standard_normal(s)).astype(d.dtype)) for s, d in zip(shapes, model.signature, strict=True)]
    with no_grad():
        model(*inputs)
    return "called"


def main() -> int:
    from onnx.backend.test.case.node import collect_testcases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    models = [(c.name, c.model.SerializeToString()) for c in collect_testcases(None)]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng, found, defects = np.random.default_rng(arguments.seed), Counter(), 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        name, model = models[rng.integers(len(models))]
        start = time.monotonic()
        try:
            found[use(rng, damaged(rng, model))] += 1
        except GraftworkError as error:
            found[type(error).__name__] += 1
        except Exception:  # what this script looks for
            defects += 1
            print(f"{name}:")
            traceback.print_exc(limit=-4)
        if time.monotonic() - start > SLOW:
            print(f"{name}: took {time.monotonic() - start:.0f} s")
    print(f"{found.total() + defects} files, {defects} defects: {dict(found.most_common())}")
    return int(defects > 0)


if __name__ == "__main__":
    sys.exit(main())
