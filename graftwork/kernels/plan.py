"""What a kernel tells a graph before it runs: a plan.

A planner is a function of shapes, `plan(*specs, out, **attrs) -> Plan | None`, that stands beside a kernel in the catalogue. It
chooses a variant, says how much scratch memory it wants and which inputs it wants in another layout, and later binds the
choice to arrays. None means: no plan for these shapes, call the kernel itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CACHE_LINE = 64  # bytes
LARGE_PAGE = 2 << 20


class Spec(NamedTuple):
    """An array without its values: shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Pack(NamedTuple):
    """Another layout that a plan wants an input in: `bind(source, packed)` gives the rows that fill it."""

    name: str  # packs of one name, shape and source are made once and shared
    spec: Spec
    bind: Callable[[np.ndarray, np.ndarray], list]


class Plan(NamedTuple):
    """How one op call will be computed.

    bind(inputs, outputs, workspace) -> rows (`kernels.cpu.runtime.Row`). Inputs are C-contiguous arrays, those named in `packs`
    already packed. workspace: a uint8 array of `workspace` bytes, 64-byte aligned, or None if that is 0; it holds garbage.
    strided: the outputs may be channel slices of wider arrays (last axis contiguous, the others with one common pitch).
    strided_inputs: those that may be such slices too. in_place: inputs whose memory the first output may take over.
    """

    bind: Callable[[Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray | None], list]
    workspace: int = 0
    packs: dict[int, Pack] = {}
    strided: bool = False
    strided_inputs: tuple[int, ...] = ()
    in_place: tuple[int, ...] = ()
    variant: str = ""


def spec_of(array: Any) -> Spec:
    return Spec(tuple(array.shape), np.dtype(array.dtype))


def pitch(array: np.ndarray) -> int:
    """Elements between the starts of neighbouring rows of the last axis, for contiguous arrays and channel slices."""
    if array.ndim < 2:
        return array.shape[-1] if array.ndim else 1
    axis = next((i for i in range(array.ndim - 2, -1, -1) if array.shape[i] > 1), None)
    if axis is None:
        return array.shape[-1]
    inner = math.prod(array.shape[axis + 1 : -1])
    return array.strides[axis] // array.itemsize // inner


def aligned_empty(nbytes: int) -> np.ndarray:
    """Uninitialised bytes that start on a cache line, or on a large page where there are many: NumPy asks the kernel for
    large pages from 4 MiB on (weights that lie in them save ResNet-50 two percent of its time)."""
    alignment = LARGE_PAGE if nbytes >= 2 * LARGE_PAGE else CACHE_LINE
    raw = np.empty(nbytes + alignment, np.uint8)
    start = -raw.__array_interface__["data"][0] % alignment
    return raw[start : start + nbytes]


def aligned_together(specs: Sequence[Spec]) -> list[np.ndarray]:
    """Uninitialised arrays, one after another in one `aligned_empty`."""
    places = [-(-spec.nbytes // CACHE_LINE) * CACHE_LINE for spec in specs]
    raw, arrays, at = aligned_empty(sum(places)), [], 0
    for spec, place in zip(specs, places, strict=True):
        arrays.append(raw[at : at + spec.nbytes].view(spec.dtype).reshape(spec.shape))
        at += place
    return arrays
