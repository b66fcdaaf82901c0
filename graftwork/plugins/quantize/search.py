"""Which layers 8 bits hurt, and the fewest to leave in float32 so that the loss stays within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError, DataError
from ...nn.autograd import no_grad
from ...nn.graph import Graph
from ...nn.tensor import Tensor, tensor
from .calibrate import as_array
from .model import QuantizedModel, quantize
from .rewrite import PRODUCTS

Metric = Callable[[Callable[[Tensor], Any]], float]  # from something that is called like the model to a score; higher is better
HOWS = ("one", "without")


class LayerHarm(NamedTuple):
    """What 8 bits do to one layer. harm: score lost. score: with only this layer in 8 bits ("one"), or all but it ("without").
    name: of the node, as `skip` takes it. weight: the name of its weights in the model."""

    name: str
    weight: str
    harm: float
    score: float


def agreement(batches: Iterable[Any], reference: Callable[[Tensor], Any]) -> Metric:
    """A metric that needs no labels: minus the relative error (Frobenius norm) against what `reference` returns."""
    inputs = [tensor(as_array(batch)) for batch in batches]
    if not inputs:
        raise DataError("sensitivity: no data; give the batches to compare on")
    wanted = [_flat(reference(x)) for x in inputs]
    scale = np.sqrt(sum(float((w**2).sum()) for w in wanted))

    def metric(model: Callable[[Tensor], Any]) -> float:
        errors = [float(((_flat(model(x)) - w) ** 2).sum()) for x, w in zip(inputs, wanted, strict=True)]
        return -float(np.sqrt(sum(errors)) / max(scale, 1e-30))

    return metric


def _flat(outputs: Any) -> np.ndarray:
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.concatenate([p.numpy().ravel() for p in parts]).astype(np.float64)


def sensitivity(model: Any, data: Iterable[Any], metric: Metric | None = None, how: str = "one",
                **options: Any) -> list[LayerHarm]:  # fmt: skip
    """What 8 bits cost in each convolution and dense layer, the most harmful first.

    model: a float32 model, or a QuantizedModel, which is not calibrated again. data: calibration batches. metric(f) -> score of
    f, which is called like the model, higher is better: accuracy on labelled pictures, say. By default minus the relative
    error of the outputs on `data`. how: "one" quantises one layer at a time and everything else stays float32; "without"
    leaves one layer at a time in float32. options: for `quantize`. It asks the metric once a layer, and once more.
    """
    if how not in HOWS:
        raise ConfigError(f"sensitivity: how={how!r}; expected 'one' or 'without'")
    quantised, metric = _prepared(model, data, metric, options)
    everything, layers = set(quantised.in_bytes), _layers(quantised)
    if how == "one":
        start = _score(metric, quantised.with_skip(everything | quantised.skip))
        scores = {name: _score(metric, quantised.with_skip((everything - {name}) | quantised.skip)) for name in layers}
        found = [LayerHarm(name, layers[name], start - score, score) for name, score in scores.items()]
    else:
        start = _score(metric, quantised)
        scores = {name: _score(metric, quantised.with_skip({name} | quantised.skip)) for name in layers}
        found = [LayerHarm(name, layers[name], score - start, score) for name, score in scores.items()]
    return sorted(found, key=lambda layer: -layer.harm)


@dataclass(frozen=True)
class MixedPrecision:
    """What `mixed_precision` found. model: the QuantizedModel. in_float: its layers left in float32, the most harmful first.
    score, float_score: by the metric. lost: the difference. missed_by: how much more than the budget is lost, 0 if `met`.
    tried: (layers in float32, score) of every network that was looked at. layers: the sensitivities."""

    model: QuantizedModel
    in_float: list[str]
    score: float
    float_score: float
    budget: float
    tried: list[tuple[int, float]]
    layers: list[LayerHarm]

    @property
    def lost(self) -> float:
        return self.float_score - self.score

    @property
    def missed_by(self) -> float:
        return max(0.0, self.lost - self.budget)

    @property
    def met(self) -> bool:
        return self.missed_by == 0

    def __str__(self) -> str:
        kept = f"{len(self.in_float)} of {len(self.layers)} layers in float32" + "".join(f", {n}" for n in self.in_float)
        verdict = "within" if self.met else f"missing by {self.missed_by:.4g}"
        scores = f"score {self.score:.4g}, float32 {self.float_score:.4g}, lost {self.lost:.4g}"
        return f"{scores}, {verdict} the budget of {self.budget:.4g}; {kept}"


def mixed_precision(model: Any, data: Iterable[Any], metric: Metric | None = None, budget: float = 0.01,
                    most_float: float = 0.5, **options: Any) -> MixedPrecision:  # fmt: skip
    """Leave the most harmful layers in float32, as few as keep the score within `budget` of the float32 model's.

    budget: of the metric's units, at least 0. most_float: the share of the layers that may stay in float32. Other arguments as
    in `sensitivity`. The number of layers is doubled until the budget holds, then bisected. Where it cannot be met the best
    network found is returned; `met` and `missed_by` say so.
    """
    if not budget >= 0 or not 0 <= most_float <= 1:
        raise ConfigError(
            f"mixed_precision: budget={budget}, most_float={most_float}; expected at least 0, and a share from 0 to 1"
        )
    batches = list(data)
    quantised, metric = _prepared(model, batches, metric, options)
    float_score = _score(metric, quantised.with_skip(set(quantised.in_bytes) | quantised.skip))
    layers = sensitivity(quantised, batches, metric)
    order, scores = [layer.name for layer in layers], dict[int, tuple[float, QuantizedModel]]()

    def holds(count: int) -> bool:
        if count not in scores:
            candidate = quantised.with_skip({*order[:count], *quantised.skip}) if count else quantised
            scores[count] = _score(metric, candidate), candidate
        return float_score - scores[count][0] <= budget

    count = _fewest(holds, int(most_float * len(order)))
    if count is None:
        count = max(scores, key=lambda n: (scores[n][0], -n))
    score, chosen = scores[count]
    tried = [(n, scores[n][0]) for n in sorted(scores)]
    return MixedPrecision(chosen, order[:count], score, float_score, budget, tried, layers)


def _fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """The least number up to `most` for which `holds`, if it holds from some number on; None if it does not hold for `most`."""
    low, high = -1, 0
    while not holds(high):
        if high >= most:
            return None
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _prepared(model: Any, data: Iterable[Any], metric: Metric | None, options: dict) -> tuple[QuantizedModel, Metric]:
    if isinstance(model, QuantizedModel) and options:
        raise ConfigError(f"the model is quantised already; {', '.join(options)} would have to be given to `quantize`")
    batches = list(data) if metric is None or not isinstance(model, QuantizedModel) else []
    quantised = model if isinstance(model, QuantizedModel) else quantize(model, batches, **options)
    if metric is None:
        metric = agreement(batches, quantised.with_skip(set(quantised.in_bytes) | quantised.skip))
    return quantised, metric


def _score(metric: Metric, candidate: QuantizedModel) -> float:
    with no_grad():
        score = float(metric(candidate))
    if not np.isfinite(score):
        raise DataError(f"sensitivity: the metric gave {score}; expected a finite number, higher for a better network")
    return score


def _layers(quantised: QuantizedModel) -> dict[str, str]:
    """The quantised products' names with their weights' names, in the network's order."""
    graph: Graph = quantised.calibration.source.graph(quantised.calibration.source.shape)
    in_bytes = set(quantised.in_bytes)
    return {n.output.name: n.inputs[1].name for n in graph.nodes if n.op.name in PRODUCTS and n.output.name in in_bytes}
