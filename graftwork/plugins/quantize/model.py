"""`quantize`: calibration over batches, then a model-like callable that computes in 8 bits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, ShapeError
from ...nn.compile import executable
from ...nn.graph import Graph
from ...nn.tensor import Tensor
from .observers import MinMax, make
from .prepare import observed, prepare
from .rewrite import MODES, Rewriter

CALIBRATION_BYTES = 256 << 20  # of activations that are kept at once while calibrating; batches are cut to that


class QuantizedModel:
    """What `quantize` returns: call it like the model. Each new input shape is planned once, with the same ranges."""

    def __init__(self, model: Any, ranges: Sequence[tuple[float, float]], names: Sequence[str], shape: tuple[int, ...],
                 skip: frozenset[str], mode: str, observer: str, pictures: int):  # fmt: skip
        self.model, self.mode, self.observer, self.pictures = model, mode, observer, pictures
        self._ranges, self._names, self._skip = list(ranges), list(names), skip
        self._plans: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        self._first = shape
        self._plan(shape)

    def __call__(self, x: Tensor) -> Any:
        """x: float32, the shape of the calibration batches but for the first axis. Returns what the model returns, as one
        tensor or a tuple of them. Raises ShapeError for another shape."""
        if x.shape[1:] != self._first[1:] or x.dtype != np.float32:
            raise ShapeError(f"quantised model: input {x.dtype}{list(x.shape)}; calibrated for float32 (n, *{self._first[1:]})")
        results = [Tensor(a) for a in self._plan(tuple(x.shape))[0].run([x.data])]
        return results[0] if len(results) == 1 else tuple(results)

    def _plan(self, shape: tuple[int, ...]) -> Any:
        with self._lock:
            if shape not in self._plans:
                graph = prepare(self.model, shape)
                values = observed(graph)
                if [v.name for v in values] != self._names:
                    raise ConfigError("quantised model: the model has been changed since its calibration; quantise it again")
                known = dict(zip(values, self._ranges, strict=True))
                ranges = {v: r for v, r in known.items() if np.isfinite(r).all()}
                rewriter = Rewriter(graph, ranges, self._skip, self.mode)
                lowered = rewriter.run()
                self._plans[shape] = executable(lowered), rewriter
            return self._plans[shape]

    def graph(self, x: Tensor | None = None) -> Graph:
        """The graph that runs, for inputs like `x` (or the calibration's)."""
        return self._plan(self._first if x is None else tuple(x.shape))[0].graph

    def report(self) -> str:
        """In words: what computes in 8 bits, what in float32, how large the weights are, what looks odd."""
        plan, rewriter = self._plan(self._first)
        constants = plan.graph.constants
        bytes_ = sum(a.nbytes for a in constants.values())
        constant = [n for n, (low, high) in zip(self._names, self._ranges, strict=True) if low == high]
        lines = [
            f"{self.mode} quantisation, observer {self.observer}, {self.pictures} examples",
            f"8 bits: {len(rewriter.in_bytes)} nodes; constants take {bytes_ / 1e6:.1f} MB",
            f"float32: {len(rewriter.in_float)} nodes" + (f" ({', '.join(rewriter.in_float)})" if rewriter.in_float else ""),
        ]
        if constant:
            lines.append(f"constant during calibration: {', '.join(constant)}; show it more various examples")
        return "\n".join(lines)

    @property
    def in_bytes(self) -> list[str]:
        """Names of the nodes that compute in 8 bits, after the float32 graph's results."""
        return list(self._plan(self._first)[1].in_bytes)

    @property
    def in_float(self) -> list[str]:
        """Names of the nodes without a kernel for bytes, or left out by `skip`."""
        return list(self._plan(self._first)[1].in_float)


def quantize(model: Any, calibration_batches: Iterable[Any], observer: str = "minmax", mode: str = "static",
             skip: Sequence[str] = ()) -> QuantizedModel:  # fmt: skip
    """A post-training quantised version of `model` for the CPU: int8 weights with a scale a channel, uint8 activations.

    model: a Module in eval mode, or a function of one tensor. calibration_batches: tensors or float32 arrays, preprocessed as
    for the model; they are read once, one at a time. observer: "minmax", "moving_average", "percentile", "entropy" or "mse".
    mode: "static" (convolutions, dense layers, sums, pooling, tables and concatenations in 8 bits) or "weight_only" (weights
    are rounded to 8 bits, arithmetic stays float32). skip: names of nodes that stay in float32, as `report()` lists them.
    Weights are taken as they are now. Raises ConfigError for what cannot be quantised and DataError for unusable batches.
    """
    if isinstance(model, QuantizedModel):
        raise ConfigError("quantize: the model is quantised already; give the float32 model")
    if mode not in MODES:
        raise ConfigError(f"quantize: mode={mode!r}; expected {' or '.join(map(repr, MODES))}")
    make(observer)
    observers: list[MinMax] = []
    names: list[str] = []
    plans: dict[tuple[int, ...], Any] = {}
    first: tuple[int, ...] | None = None
    pictures = 0
    for batch in calibration_batches:
        array = _array(batch)
        if first is not None and array.shape[1:] != first[1:]:
            raise DataError(f"quantize: a batch of shape {array.shape} after {first}; only the first axis may differ")
        if first is None:
            first = array.shape
            graph = prepare(model, (1, *first[1:]))
            names = [v.name for v in observed(graph)]
            observers = [make(observer) for _ in names]
            share = sum(v.nbytes for v in observed(graph))
            at_once = max(1, min(CALIBRATION_BYTES // max(share, 1), len(array)))
        for start in range(0, len(array), at_once):
            part = np.ascontiguousarray(array[start : start + at_once])
            _observe(model, part, plans, names, observers)
        pictures += len(array)
    if first is None or pictures == 0:
        raise DataError("quantize: no calibration data; give at least one batch, better a few hundred typical examples")
    return QuantizedModel(model, [o.range() for o in observers], names, first, frozenset(skip), mode, observer, pictures)


def _array(batch: Any) -> np.ndarray:
    array = batch.numpy() if isinstance(batch, Tensor) else np.asarray(batch)
    if array.dtype != np.float32 or array.ndim < 2 or not len(array):
        raise DataError(
            f"quantize: a calibration batch is {array.dtype}{list(array.shape)}; expected float32, an example a row"
        )
    return array


def _observe(model: Any, part: np.ndarray, plans: dict, names: list[str], observers: list[MinMax]) -> None:
    """Run the float32 graph on some examples and show every activation to its observer."""
    if part.shape not in plans:
        graph = prepare(model, part.shape)
        graph.outputs = observed(graph)
        plans[part.shape] = executable(graph)
    for name, values, observer in zip(names, plans[part.shape].run([part]), observers, strict=True):
        try:
            observer.update(values)
        except DataError as error:
            raise DataError(f"quantize: {name}: {error}") from None
