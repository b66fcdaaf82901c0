"""Calibration: the float32 network runs over typical examples while observers learn the range of each of its values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...nn.compile import executable
from ...nn.tensor import Tensor
from .equalize import PRODUCTS
from .equalize import equalize as equalize_graph
from .observers import MinMax, make
from .prepare import Source, observed

BYTES = 256 << 20  # of activations that are kept at once; batches are cut to that
FEW = 8  # examples; below that a warning says that the ranges mean little


@dataclass(frozen=True)
class Calibration:
    """What is known of a network before it is quantised.

    ranges: (low, high) of each float32 value by name. means: of each channel of what products read. examples: how many were
    seen. equalized: how many pairs of layers have been equalised. trained: ranges come from training and are taken as they are.
    """

    source: Source
    observer: str = "minmax"
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    examples: int = 0
    equalized: int = 0
    trained: bool = False

    @property
    def constant(self) -> list[str]:
        """Values that never varied."""
        return [name for name, (low, high) in self.ranges.items() if low == high]


def without_data(model: Any, batches: Iterable[Any] | None, equalize: bool) -> Calibration:
    """For modes that need no ranges: the first batch, or the model's `input_shape`, says what the input looks like."""
    first = next(iter(batches), None) if batches is not None else None
    if first is not None:
        shape = as_array(first).shape
    elif getattr(model, "input_shape", None) is not None:
        shape = (1, *model.input_shape)
    else:
        raise ConfigError("quantize: nothing says what the input looks like; give a batch, or a model with an input_shape")
    source = Source(model, (1, *shape[1:]))
    return Calibration(source, equalized=_equalize(source) if equalize else 0)


def calibrate(model: Any, batches: Iterable[Any] | None, observer: str = "minmax", equalize: bool = False) -> Calibration:
    """Run `batches` through the model, once, one at a time. The arguments are those of `quantize`."""
    make(observer)
    watch: _Watch | None = None
    for batch in [] if batches is None else batches:
        array = as_array(batch)
        if watch is None:
            watch = _Watch(model, array.shape, observer, equalize)
        watch.see(array)
    if watch is None:
        raise DataError("quantize: no calibration data; give at least one batch, better a few hundred typical examples")
    if watch.examples < FEW:
        warnings.warn(
            f"quantize: {watch.examples} examples for calibration; ranges learnt from so few cut off what others need, give "
            "some hundreds", stacklevel=3,
        )  # fmt: skip
    return watch.result()


class _Watch:
    """Observers of all values of a network, and the float32 graphs that show them to them."""

    def __init__(self, model: Any, shape: tuple[int, ...], observer: str, equalize: bool):
        self.source = Source(model, (1, *shape[1:]))
        self.equalized = _equalize(self.source) if equalize else 0
        self.observer, self.shape, self.examples = observer, shape, 0
        self.observers: list[MinMax] = [make(observer) for _ in self.source.names]
        self.plans: dict[tuple[int, ...], Any] = {}
        graph = self.source.graph(self.source.shape)
        self.sums: dict[str, Any] = {n.inputs[0].name: 0.0 for n in graph.nodes if n.op.name in PRODUCTS}
        share = sum(v.nbytes for v in observed(graph))
        self.at_once = max(1, BYTES // max(share, 1))

    def see(self, array: np.ndarray) -> None:
        if array.shape[1:] != self.shape[1:]:
            raise DataError(f"quantize: a batch of shape {array.shape} after {self.shape}; only the first axis may differ")
        for start in range(0, len(array), self.at_once):
            part = np.ascontiguousarray(array[start : start + self.at_once])
            values = self._run(part)
            for name, observer in zip(self.source.names, self.observers, strict=True):
                try:
                    observer.update(values[name])
                except DataError as error:
                    raise DataError(f"quantize: {name}: {error}") from None
            for name in self.sums:
                channels = values[name].reshape(-1, values[name].shape[-1])
                self.sums[name] = self.sums[name] + len(part) * channels.mean(0, dtype=np.float64)
            self.examples += len(part)

    def _run(self, part: np.ndarray) -> dict[str, np.ndarray]:
        """Every observed value, and what products read (which may be a view of one), by name."""
        if part.shape not in self.plans:
            graph = self.source.graph(part.shape)
            read = [n.inputs[0] for n in graph.nodes if n.op.name in PRODUCTS]
            graph.outputs = list(dict.fromkeys([*observed(graph), *read]))
            self.plans[part.shape] = [v.name for v in graph.outputs], executable(graph)
        names, plan = self.plans[part.shape]
        return dict(zip(names, plan.run([part]), strict=True))

    def result(self) -> Calibration:
        ranges = {name: o.range() for name, o in zip(self.source.names, self.observers, strict=True)}
        means = {name: total / self.examples for name, total in self.sums.items()}
        return Calibration(self.source, self.observer, ranges, means, self.examples, self.equalized)


def _equalize(source: Source) -> int:
    graph = source.graph(source.shape)
    pairs = equalize_graph(graph)
    source.constants.update({v.name: a for v, a in graph.constants.items()})
    return pairs


def as_array(batch: Any) -> np.ndarray:
    """A batch as float32, an example a row. Raises DataError for anything else."""
    array = batch.numpy() if isinstance(batch, Tensor) else np.asarray(batch)
    if array.dtype != np.float32 or array.ndim < 2 or not len(array):
        raise DataError(
            f"quantize: a calibration batch is {array.dtype}{list(array.shape)}; expected float32, an example a row"
        )
    return array
