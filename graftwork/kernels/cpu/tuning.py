"""Measured choices of kernels: a table that wins over the heuristics where it knows a shape.

`table()` is what `graftwork tune` found on this machine, on top of what ships with the package. Both are JSON: for a key that
names machine kind, threads and shapes, the name of a variant in `conv_select.candidates`. A table is read once a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...folders import cache_folder
from .. import tables
from ..plan import Spec
from . import runtime
from .simd import LANES

SHIPPED = Path(__file__).with_name("tuned.json")


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
    return {**tables.read(SHIPPED), **tables.read(kept_at())}


def keep(choices: Mapping[str, str | None], path: Path | None = None) -> Path:
    """Add choices to this machine's table (or another file); None takes one out. Written whole or not at all."""
    path = tables.keep(choices, path or kept_at())
    table.cache_clear()
    return path
