"""Measured choices of kernels: a table that wins over the heuristics where it knows a shape.

`table()` is what `graftwork tune` found on this machine, on top of what ships with the package. Both are JSON: for a key that
names machine kind, threads and shapes, the name of a variant in `conv_select.candidates`. A table is read once a process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...folders import cache_folder
from ..plan import Spec
from . import runtime
from .simd import LANES

SHIPPED = Path(__file__).with_name("tuned.json")
FORMAT = 1


def kept_at() -> Path:
    """The file with this machine's own choices."""
    return cache_folder("tuned-cpu.json")


def key(x: Spec, w: Spec, stride: Any, padding: Any, dilation: Any, groups: int) -> str:
    """What a choice depends on: vector length, threads, shapes and geometry."""
    geometry = f"{_join(stride)}p{_join(v for side in padding for v in side)}d{_join(dilation)}g{groups}"
    return f"{LANES}x{runtime.num_threads()} {_join(x.shape)} {_join(w.shape)} s{geometry}"


def _join(values: Any) -> str:
    return ",".join(str(v) for v in values)


@cache
def table() -> dict[str, str]:
    """Key -> variant: the shipped choices, and over them those measured on this machine."""
    return {**_read(SHIPPED), **_read(kept_at())}


def _read(path: Path) -> dict[str, str]:
    """A table file; {} where there is none, or (with a warning) where it is of no use."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        return {str(k): str(v) for k, v in content["choices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the tuned table {path} cannot be used ({error}); run `graftwork tune` again, or delete it"
        warnings.warn(problem, stacklevel=3)
        return {}


def keep(choices: Mapping[str, str | None], path: Path | None = None) -> Path:
    """Add choices to this machine's table (or another file); None takes one out. Written whole or not at all."""
    path = path or kept_at()
    merged = {**_read(path), **choices}
    content = {"format": FORMAT, "choices": {k: merged[k] for k in sorted(merged) if merged[k] is not None}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{id(content)}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=0) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    table.cache_clear()
    return path
