"""`compress`: prune, cluster, store, quantise, and measure what each costs, within a budget of accuracy.

Two files can come out. The stored one is of the same kind as what was given and loads like it: small weights are zero, the
others clustered around few values, all packed. It is as much smaller as the budget allows, found on a ladder of steps. The
graph is for running: the same network with int8 weights and uint8 activations, which needs no model code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError, DataError
from ...nn import Tensor
from ...nn.files import require_writable
from ...nn.modules.module import assign
from ..prune import MagnitudePruner
from ..prune.magnitude import weights
from ..quantize import quantize
from . import measure
from .rounding import cluster, relative_error, round_to_bytes
from .subject import Subject

CALIBRATION = 64  # pictures that activations' ranges are learned from
LOOKED_AT = 8  # pictures that layers' errors are measured with
FITS = 4  # steps at most that a classifier on top is fitted anew for; each reads all pictures to learn from
HEAD = ("mean", "scale", "weight", "bias", "estimator_", "C", "C_")  # what fitting it changes


class Step(NamedTuple):
    """sparsity: share of the weights that become zero. values: that the others are clustered around; None rounds them to 8
    bits."""

    sparsity: float
    values: int | None

    def __str__(self) -> str:
        return f"{self.sparsity:.0%} zeros, " + ("8 bits" if self.values is None else f"{self.values} values")


LADDER = (  # from mild to strong; each makes a smaller file than the one before
    Step(0.0, None), Step(0.0, 128), Step(0.0, 64), Step(0.3, 64), Step(0.5, 64), Step(0.5, 32), Step(0.6, 32), Step(0.7, 32),
    Step(0.7, 16), Step(0.8, 16), Step(0.9, 16),
)  # fmt: skip


@dataclass
class Compression:
    """What `compress` found.

    forms: for "before", "stored" and "graph" what they cost (`bytes`, `memory`, `latency_ms` by batch) and reach (`accuracy`
    with its `interval`, and beside "before" `points_lost` and the rest of `measure.answers`). tried: accuracy by step.
    layers: each layer's errors. channels: what taking channels out did, if it was asked for. met: whether all keep the budget.
    """

    pictures: int
    classes: int
    budget: float
    step: Step
    refitted: bool
    quantised: str | None
    forms: dict[str, dict[str, Any]]
    tried: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    channels: dict[str, Any] | None = None

    @property
    def missed(self) -> dict[str, float]:
        """Points by which forms miss the budget; empty if all keep it."""
        lost = {name: form["points_lost"] for name, form in self.forms.items() if "points_lost" in form}
        return {name: points - self.budget for name, points in lost.items() if points > self.budget + 1e-9}

    @property
    def met(self) -> bool:
        return not self.missed

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "step": self.step._asdict(), "met": self.met, "missed": self.missed}


class Data(NamedTuple):
    """Labelled pictures to measure on, and others to learn from (calibration, a new classifier on top), if there are."""

    pictures: Sequence[Any]
    labels: np.ndarray
    learn: Sequence[Any] | None = None
    learn_labels: np.ndarray | None = None


def compress(subject: Subject, data: Data, budget: float, stored: str | Path, graph: str | Path | None = None,
             ladder: Sequence[Step] = LADDER, macs: float | None = None,
             say: Callable[[str], None] = lambda text: None) -> Compression:  # fmt: skip
    """Compress as far as `budget` (points of accuracy on `data`) allows, write the files, and measure. The subject's network
    is changed in place.

    stored, graph: the files to write, graph may be None. ladder: steps from mild to strong; the strongest that keeps the
    budget is searched by bisection, so that about log2 of their number are measured. What is chosen is measured on the same
    pictures: with few of them the loss is a little flattering, and the interval says how little is known. macs: first take
    out whole channels, until at most this share of the multiplications is left. say: hears progress.
    Raises ConfigError for a budget below zero, DataError for no pictures.
    """
    if not budget >= 0:
        raise ConfigError(f"compress: budget={budget}; expected points of accuracy, at least 0")
    if len(data.pictures) == 0 or len(data.pictures) != len(data.labels):
        raise DataError(
            f"compress: {len(data.pictures)} pictures with {len(data.labels)} labels; expected one each, at least one"
        )
    require_writable(stored)
    if graph is not None:
        require_writable(graph)
    run = _Run(subject, data, budget, ladder, macs, say)
    run.store(stored)
    if subject.run is not None:
        run.quantise(graph)
    return run.result()


class _Run:
    def __init__(self, subject: Subject, data: Data, budget: float, ladder: Sequence[Step], macs: float | None,
                 say: Callable[[str], None]):  # fmt: skip
        self.subject, self.data, self.budget, self.ladder, self.say = subject, data, budget, list(ladder), say
        say(f"reading {len(data.pictures)} pictures")
        self.pixels, self.truth = subject.pixels(data.pictures), np.asarray(data.labels)
        self.inputs = subject.inputs(self.pixels[:LOOKED_AT])
        self.scores = subject.scores(self.pixels)
        self.outputs = self._layer_outputs()
        self.before = {"bytes": self._size(packed=False), **measure.answers(self.scores, self.truth)}
        self.before |= measure.costs(self._float, self.inputs)
        self.channels: dict[str, Any] | None = None
        if macs is not None:
            say(f"taking out channels, until {macs:.0%} of the multiplications are left")
            self.channels = subject.prune(macs, subject.pixels(self._calibration())).to_dict()
        self.original_head = self._head()
        self.original = {name: p.numpy().copy() for name, p in weights(subject.network).items()}
        self.forms: dict[str, dict[str, Any]] = {"before": self.before}
        self.tried: list[dict[str, Any]] = []
        self.refitted = False
        self.quantised: str | None = None

    def _calibration(self) -> list[Any]:
        """Pictures, of those to learn from if there are any."""
        learn = self.data.learn if self.data.learn is not None else self.data.pictures
        return [learn[i] for i in np.random.default_rng(0).permutation(len(learn))[:CALIBRATION]]

    @property
    def _float(self) -> Callable[[Tensor], Tensor]:
        return self.subject.run if self.subject.run is not None else self.subject._features

    def _layer_outputs(self) -> dict[str, np.ndarray]:
        return measure.layer_outputs(self.subject.network, self._float, self.inputs)

    def _size(self, packed: bool) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "size.h5"
            self.subject.save(path, packed)
            return path.stat().st_size

    def _head(self) -> dict[str, Any]:
        """What stands on top of the network, if that can be fitted."""
        return {name: getattr(self.subject.model, name) for name in HEAD} if self.subject.fits else {}

    def _put(self, head: dict[str, Any]) -> None:
        for name, value in head.items():
            setattr(self.subject.model, name, value)

    # -- the stored file ---------------------------------------------------------------------------------------------
    def apply(self, step: Step) -> None:
        """The original weights, pruned and with few values."""
        network = self.subject.network
        self._restore()
        if step.sparsity:
            MagnitudePruner(network, step.sparsity)
        if step.values is None:
            round_to_bytes(network)
        else:
            cluster(network, step.values)

    def _lost(self, number: int) -> float:
        """Points that a step of the ladder loses."""
        step = self.ladder[number]
        self.apply(step)
        found = measure.answers(self.subject.scores(self.pixels), self.truth, self.scores)
        self.tried.append({**step._asdict(), "refitted": False, **_counted(found)})
        self.say(f"{step}: {found['points_lost']:+.2f} points lost")
        return found["points_lost"]

    def _strongest(self) -> int:
        """The last step that keeps the budget, if those after it lose more; the one that loses least if none does."""
        low, high = -1, len(self.ladder)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._lost(middle) <= self.budget else (low, middle)
        if low >= 0:
            return low
        best = min(self.tried, key=lambda row: row["points_lost"])
        return self.ladder.index(Step(best["sparsity"], best["values"]))

    def store(self, path: str | Path) -> None:
        """Choose the step, fit the classifier on top anew where there is one, and write the file."""
        number = self._strongest()
        self.apply(self.ladder[number])
        found = measure.answers(self.subject.scores(self.pixels), self.truth, self.scores)
        if self.subject.fits and self.data.learn is not None:
            number, found = self._refit(number, found)
        self.step = self.ladder[number]
        self.apply(self.step)
        self.subject.save(path, packed=True)
        self.forms["stored"] = {"bytes": Path(path).stat().st_size, **found, **measure.costs(self._float, self.inputs)}

    def _refit(self, number: int, found: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What is on top, fitted anew to the features of a step, allows further steps: (the last one that keeps the budget,
        what it answers). Without any, the given step with whichever classifier answers better."""
        first, head = number, self._head()
        for following in range(first, min(first + FITS, len(self.ladder))):
            self.apply(self.ladder[following])
            self.say(f"{self.ladder[following]}: fitting the classifier on top anew")
            self.subject.refit(self.data.learn, self.data.learn_labels)  # type: ignore[arg-type]
            again = measure.answers(self.subject.scores(self.pixels), self.truth, self.scores)
            self.tried.append({**self.ladder[following]._asdict(), "refitted": True, **_counted(again)})
            self.say(f"{self.ladder[following]}, fitted anew: {again['points_lost']:+.2f} points lost")
            kept = again["points_lost"] <= self.budget
            if kept or (following == first and again["accuracy"] > found["accuracy"]):
                number, found, self.refitted = following, again, True
                head = self._head()
            if not kept:
                break
        self._put(head)
        return number, found

    # -- the graph that runs -----------------------------------------------------------------------------------------
    def quantise(self, path: str | Path | None) -> None:
        """The graph in 8 bits: of the stored weights, or else of the original ones, by the first way that keeps the budget."""
        batch = self.subject.inputs(self.subject.pixels(self._calibration()))
        assert self.subject.run is not None  # or there is nothing to capture
        found: list[tuple[float, int, str, Any, dict[str, Any]]] = []
        head = self._head()
        for of, observer in (("stored", "minmax"), ("stored", "mse"), ("original", "minmax")):
            if of == "original":
                self._restore()
                self._put(self.original_head)
            network = quantize(self.subject.run, [batch], observer=observer)
            scores = measure.answers(self.subject.scores(self.pixels, network), self.truth, self.scores)
            found.append((scores["points_lost"], len(found), f"{of} weights, ranges by {observer}", network, scores))
            self.say(f"8 bits, {found[-1][2]}: {scores['points_lost']:+.2f} points lost")
            if scores["points_lost"] <= self.budget:
                break
        _, _, self.quantised, network, scores = min(found, key=lambda entry: entry[:2])
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "graph.h5" if path is None else Path(path)
            network.graph(Tensor(self.inputs[:1])).save(target, packed=True)
            size = target.stat().st_size
        self.apply(self.step)
        self._put(head)
        self.forms["graph"] = {"bytes": size, **scores, **measure.costs(network, self.inputs)}

    def _restore(self) -> None:
        for name, parameter in weights(self.subject.network).items():
            assign(parameter, self.original[name])

    # -- what was found ----------------------------------------------------------------------------------------------
    def result(self) -> Compression:
        return Compression(
            len(self.truth), len(self.subject.classes), self.budget, self.step, self.refitted, self.quantised, self.forms,
            self.tried, self._layers(), self.channels,
        )  # fmt: skip

    def _layers(self) -> list[dict[str, Any]]:
        """How far each layer's weights and outputs are from the original ones, in the stored network; outputs only where no
        channel is gone."""
        now, rows = self._layer_outputs(), []
        for name, parameter in weights(self.subject.network).items():
            layer, array = name.rpartition(".")[0], parameter.numpy()
            seen = layer in now and layer in self.outputs and now[layer].shape == self.outputs[layer].shape
            rows.append({
                "weight": name, "values": int(array.size), "zeros": float((array == 0).mean()),
                "different": len(np.unique(array)), "weight_error": relative_error(array, self.original[name]),
                "output_error": relative_error(now[layer], self.outputs[layer]) if seen else None,
            })  # fmt: skip
        return rows


def _counted(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in ("accuracy", "points_lost")}


__all__ = ["LADDER", "Compression", "Data", "Step", "compress"]
