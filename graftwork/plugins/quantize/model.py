"""`quantize`: calibration over batches, then a model-like callable that computes in 8 bits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError, ShapeError
from ...nn.compile import executable
from ...nn.graph import Graph
from ...nn.tensor import Tensor
from .calibrate import Calibration, calibrate, without_data
from .observers import make
from .rewrite import Rewriter
from .weights import WeightRewriter

MODES = ("static", "dynamic", "weight_only")


class QuantizedModel:
    """What `quantize` returns: call it like the model. Each new input shape is planned once, with the same ranges and weights.

    calibration: what it was made from; `with_skip` makes another one of it without calibrating again.
    """

    training = False

    def __init__(self, calibration: Calibration, mode: str = "static", skip: Iterable[str] = (), correct_bias: bool = False):
        self.calibration, self.mode, self.skip, self.correct_bias = calibration, mode, frozenset(skip), correct_bias
        self._first = calibration.source.shape
        self._plans: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        self._plan(self._first)

    def __call__(self, x: Tensor) -> Any:
        """x: float32, the shape of the calibration batches but for the first axis. Returns what the model returns, as one
        tensor or a tuple of them. Raises ShapeError for another shape."""
        if x.shape[1:] != self._first[1:] or x.dtype != np.float32:
            raise ShapeError(f"quantised model: input {x.dtype}{list(x.shape)}; calibrated for float32 (n, *{self._first[1:]})")
        results = [Tensor(a) for a in self._plan(tuple(x.shape))[0].run([x.data])]
        return results[0] if len(results) == 1 else tuple(results)

    @property
    def model(self) -> Any:
        """The float32 model that was quantised."""
        return self.calibration.source.model

    def with_skip(self, skip: Iterable[str]) -> QuantizedModel:
        """The same network with these nodes, and no others, in float32."""
        return QuantizedModel(self.calibration, self.mode, skip, self.correct_bias)

    def _plan(self, shape: tuple[int, ...]) -> Any:
        with self._lock:
            if shape not in self._plans:
                rewriter = self._rewriter(shape)
                self._plans[shape] = executable(rewriter.run()), rewriter
            return self._plans[shape]

    def _rewriter(self, shape: tuple[int, ...]) -> Rewriter | WeightRewriter:
        known = self.calibration
        graph = known.source.graph(shape)
        means = known.means if self.correct_bias else None
        if self.mode == "static":
            return Rewriter(graph, known.ranges, self.skip, means, shorten=not known.trained)
        return WeightRewriter(graph, self.mode, self.skip, means)

    def graph(self, x: Tensor | None = None) -> Graph:
        """The graph that runs, for inputs like `x` (or one example)."""
        return self._plan(self._first if x is None else tuple(x.shape))[0].graph

    def lowered(self, shape: tuple[int, ...] | None = None) -> Graph:
        """A new graph for inputs of `shape` before any pass: all weights are int8 constants, also where the graph that runs has
        widened them. `lowered().save(path)` writes a file of about a quarter of the float32 one's size."""
        return self._rewriter(self._first if shape is None else tuple(shape)).run()

    def report(self) -> str:
        """In words: what computes in 8 bits, what in float32, how large the weights are, what looks odd."""
        known, rewriter = self.calibration, self._plan(self._first)[1]
        bytes_ = sum(a.nbytes for a in self.lowered().constants.values())
        learnt = f", observer {known.observer}, {known.examples} examples" if known.examples else ""
        extras = [f"{known.equalized} pairs of layers equalised"] if known.equalized else []
        extras += ["trained in 8 bits"] if known.trained else []
        extras += ["biases corrected"] if self.correct_bias else []
        lines = [
            f"{self.mode} quantisation{learnt}" + "".join(f", {extra}" for extra in extras),
            f"8 bits: {len(rewriter.in_bytes)} nodes; constants take {bytes_ / 1e6:.1f} MB",
            f"float32: {len(rewriter.in_float)} nodes" + (f" ({', '.join(rewriter.in_float)})" if rewriter.in_float else ""),
        ]
        if known.constant:
            lines.append(f"constant during calibration: {', '.join(known.constant)}; show it more various examples")
        return "\n".join(lines)

    @property
    def in_bytes(self) -> list[str]:
        """Names of the nodes that compute in 8 bits, after the float32 graph's results."""
        return list(self._plan(self._first)[1].in_bytes)

    @property
    def in_float(self) -> list[str]:
        """Names of the nodes without a kernel for bytes, or left out by `skip`."""
        return list(self._plan(self._first)[1].in_float)


def quantize(model: Any, calibration: Iterable[Any] | None = None, observer: str = "minmax", mode: str = "static",
             skip: Sequence[str] = (), equalize: bool = False, correct_bias: bool = False) -> QuantizedModel:  # fmt: skip
    """A version of `model` for the CPU with int8 weights, a scale for each output channel.

    model: a Module in eval mode, or a function of one tensor. calibration: batches (tensors or float32 arrays, preprocessed as
    for the model), read once, one at a time.
    mode: "static": activations are uint8 with ranges learnt from the calibration (convolutions, dense layers, sums, pooling,
    tables and concatenations in 8 bits). "dynamic": convolutions and dense layers in 8 bits, each example's range measured in
    the call, float32 in between. "weight_only": arithmetic stays float32. The last two need no calibration, but its first
    batch, or the model's `input_shape`, says what the input looks like.
    observer: "minmax", "moving_average", "percentile", "entropy" or "mse".
    skip: names of nodes that stay in float32, as `in_bytes` lists them.
    equalize: cross-layer equalisation beforehand (`equalize.py`). correct_bias: take the mean error of rounded weights out of
    the biases; needs calibration in every mode. Both: Nagel et al. 2019.
    Weights are taken as they are now. Raises ConfigError for what cannot be quantised, and for names in `skip` that no node
    has; DataError for unusable batches; warns of very few examples.
    """
    if isinstance(model, QuantizedModel):
        raise ConfigError("quantize: the model is quantised already; give the float32 model")
    if mode not in MODES:
        raise ConfigError(f"quantize: mode={mode!r}; expected {', '.join(map(repr, MODES))}")
    make(observer)
    needed = mode == "static" or correct_bias
    known = calibrate(model, calibration, observer, equalize) if needed else without_data(model, calibration, equalize)
    unknown = sorted(set(skip) - {n.output.name for n in known.source.graph(known.source.shape).nodes})
    if unknown:
        raise ConfigError(f"quantize: skip names {', '.join(unknown)}, which the network does not have; `in_bytes` lists them")
    return QuantizedModel(known, mode, skip, correct_bias)
