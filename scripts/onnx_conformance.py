"""The ONNX project's own backend node tests, read and computed by `graftwork.plugins.onnx`.

    python scripts/onnx_conformance.py                     # all: writes docs/onnx_conformance.md and bench/results/*.json
    python scripts/onnx_conformance.py --only resize -v    # those with a word in their name; nothing is written

A test passes if `load` reads its model and every output has the expected element type and shape, and values within the test's
own tolerances. What fails is listed by reason. Collecting the tests runs their reference code and takes a minute.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from graftwork import no_grad, tensor  # noqa: E402 - the path above leads to it
from graftwork.errors import GraftworkError  # noqa: E402
from graftwork.nn.files import atomic_path  # noqa: E402
from graftwork.plugins.onnx import load  # noqa: E402

PAGE, RESULTS = ROOT / "docs" / "onnx_conformance.md", ROOT / "bench" / "results" / "onnx_conformance.json"
REASONS = (  # (what the message holds, what stands in the table)
    (r"operators that have no form here: (.*)", "operator not supported: {}"),
    (r"element type (STRING)", "strings"),
    (r"element type (FLOAT8\w*|FLOAT4\w*|U?INT[24])\b", "floats of 8 or 4 bits, integers of 4 or 2"),
    (r"is an? (sequence|optional)_type", "sequences and optional values"),
    (r"no kernel for op .* with dtype (float16|bfloat16)|got dtype (bfloat16)", "no kernel of 16 bits on the CPU"),
    (r"training_mode is not supported", "training mode with random numbers"),
    (r"opset (\d+); this reads", "opset below 7"),
)


def run(case: Any) -> str | None:
    """None if the case passes, else why not."""
    from onnx import TensorProto, numpy_helper

    def array(value: Any) -> Any:
        return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value

    try:
        model = load(case.model.SerializeToString())
        for inputs, outputs in case.data_sets:
            with no_grad():
                found = model(*(tensor(np.array(array(x))) for x in inputs))
            found = found if isinstance(found, tuple) else (found,)
            for ours, wanted in zip((f.numpy() for f in found), map(np.asarray, map(array, outputs)), strict=True):
                if ours.dtype != wanted.dtype or ours.shape != wanted.shape:
                    return f"wrong: {ours.dtype}{list(ours.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
                np.testing.assert_allclose(ours, wanted, rtol=case.rtol, atol=case.atol)
    except GraftworkError as error:
        return reason(str(error))
    except AssertionError as error:
        return wrong(" ".join(str(error).split()))
    return None


def wrong(text: str) -> str:
    """NumPy's long account of a difference in a few words."""
    places = re.search(r"Mismatched elements: (\d+) / (\d+)", text)
    most = re.search(r"Max absolute difference[^:]*: (\S+)", text)
    if places is None or most is None:
        return f"wrong: {text[:120]}"
    return f"wrong: {places[1]} of {places[2]} values, by at most {float(most[1]):.1e}"


def reason(message: str) -> str:
    for pattern, text in REASONS:
        found = re.search(pattern, message)
        if found:
            names = ", ".join(sorted({re.sub(r" \(\d+ nodes\)", "", n) for n in found[1].split(", ")})) if "{}" in text else ""
            return text.format(names)
    return re.sub(r" node '[^']*'", "", message.removeprefix("ONNX: "))


def page(passed: list[str], failed: dict[str, str], version: str) -> str:
    total = len(passed) + len(failed)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, why in failed.items():
        groups[why].append(name)
    lines = [
        "# ONNX conformance",
        "",
        f"Written by `python scripts/onnx_conformance.py`: the backend node tests of onnx {version}, read and computed by",
        "`graftwork.plugins.onnx.load` on the CPU, within the tests' own tolerances. See [export.md](export.md).",
        "",
        f"**{len(passed)} of {total} pass.** The rest, by reason:",
        "",
        "| tests | reason | for example |",
        "|---:|---|---|",
    ]
    for why, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {len(names)} | {why.replace('|', chr(92) + '|')} | `{names[0]}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word in the tests' names")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every failure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    passed, failed = [], {}
    for case in (c for c in collect_testcases(None) if arguments.only in c.name):
        try:
            why = run(case)
        except Exception:  # a crash is a defect of ours: it is listed as one, and shown
            traceback.print_exc()
            why = f"crash: {sys.exc_info()[1]!r}"[:120]
        if why is None:
            passed.append(case.name)
        else:
            failed[case.name] = why
            if arguments.verbose:
                print(f"{case.name}: {why}")
    print(f"{len(passed)} of {len(passed) + len(failed)} pass")
    if arguments.only:
        return
    found = {"onnx": onnx.__version__, "passed": passed, "failed": failed, "reasons": Counter(failed.values())}
    for path, text in ((PAGE, page(passed, failed, onnx.__version__)), (RESULTS, json.dumps(found, indent=1) + "\n")):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
