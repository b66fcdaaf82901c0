"""Recurrent layers: LSTM, GRU, SimpleRNN, stacked cells, both directions, and layers applied to every step.

A recurrence is a Python loop over the steps: eager runs it, a capture unrolls it. The products with the inputs of all steps
are one matrix product before the loop. Gates stand in Keras's order: i, f, c, o (LSTM), z, r, h (GRU).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import ShapeError
from ...nn import Module, Parameter, Tensor, init, tensor
from ...nn import functional as F
from ..weights_h5 import LayerSpec, counted
from .activations import activation_of
from .config import Built, LayerConfig, Mask, Shape, Weight, below, known, one, one_input, same_mask, variables
from .merging import MERGES
from .table import build, layer

State = tuple[Tensor, ...]


class Cell(Module):
    """One step of a recurrence: `project` what depends on the inputs alone, for all steps; `step` the rest.

    kernel: (features, gates * units). recurrent_kernel: (units, gates * units). bias: its own shape, or absent.
    """

    gates = 1
    states = 1

    def __init__(self, features: int, units: int, use_bias: bool, activation: Any, recurrent: Any, reset_after: bool = False):
        super().__init__()
        self.units, self.activation, self.recurrent, self.reset_after = units, activation, recurrent, reset_after
        width = self.gates * units
        self.kernel = Parameter(init.glorot_uniform((features, width)))
        self.recurrent_kernel = Parameter(init.glorot_uniform((units, width)))
        if use_bias:
            self.bias = Parameter(np.zeros((2, width) if reset_after else width, np.float32))

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.units,) * self.states

    def project(self, x: Tensor) -> Tensor:
        if "bias" not in self._parameters:
            return F.linear(x, self.kernel)
        return F.linear(x, self.kernel, self.bias[0] if self.reset_after else self.bias)

    def step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        raise NotImplementedError(f"{type(self).__name__} has no step()")


class SimpleRNNCell(Cell):
    """h' = activation(W x + b + U h)"""

    def step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        h = self.activation(x + F.matmul(states[0], self.recurrent_kernel))
        return h, (h,)


class LSTMCell(Cell):
    """Hochreiter and Schmidhuber 1997, with a forget gate (Gers et al. 2000)."""

    gates, states = 4, 2

    def step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        h, c = states
        i, f, g, o = F.split(x + F.matmul(h, self.recurrent_kernel), 4, axis=-1)
        c = self.recurrent(f) * c + self.recurrent(i) * self.activation(g)
        h = self.recurrent(o) * self.activation(c)
        return h, (h, c)


class GRUCell(Cell):
    """Cho et al. 2014. reset_after: the reset gate acts on the product (as cuDNN does), not on the state before it."""

    gates = 3

    def step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        (h,) = states
        xz, xr, xh = F.split(x, 3, axis=-1)
        if self.reset_after:
            inner = F.matmul(h, self.recurrent_kernel)
            if "bias" in self._parameters:
                inner = inner + self.bias[1]
            hz, hr, hh = F.split(inner, 3, axis=-1)
            z, r = self.recurrent(xz + hz), self.recurrent(xr + hr)
            new = self.activation(xh + r * hh)
        else:
            n = self.units
            hz, hr = F.split(F.matmul(h, self.recurrent_kernel[:, : 2 * n]), 2, axis=-1)
            z, r = self.recurrent(xz + hz), self.recurrent(xr + hr)
            new = self.activation(xh + F.matmul(r * h, self.recurrent_kernel[:, 2 * n :]))
        h = z * h + (1.0 - z) * new
        return h, (h,)


class StackedCells(Module):
    """Cells one after another within each step."""

    def __init__(self, cells: Sequence[Any]):
        super().__init__()
        self.cells = tuple(cells)
        for i, cell in enumerate(cells):
            self.add_module(str(i), cell)

    @property
    def units(self) -> int:
        return self.cells[-1].units

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(n for cell in self.cells for n in cell.sizes)

    def project(self, x: Tensor) -> Tensor:
        return self.cells[0].project(x)

    def step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        after: list[Tensor] = []
        for i, cell in enumerate(self.cells):
            own = states[len(after) : len(after) + len(cell.sizes)]
            x, new = cell.step(cell.project(x) if i else x, own)
            after += new
        return x, tuple(after)


class Recurrent(Module):
    """A cell over the steps of (batch, steps, features); the initial states may follow as further inputs.

    Under a mask (batch, steps) a step keeps the states; its output is the one before, or zero with `zeros`.
    """

    def __init__(self, cell: Any, sequences: bool, backwards: bool, states: bool, zeros: bool = False):
        super().__init__()
        self.cell = cell
        self.sequences, self.backwards, self.states, self.zeros = sequences, backwards, states, zeros

    def forward(self, x: Tensor, *initial: Tensor, masks: Sequence[Mask] = (None,)) -> Any:
        if x.shape[1] < 1:
            raise ShapeError(f"a recurrent layer was called on {x.shape}: there are no steps")
        mask = masks[0]
        projected = self.cell.project(x)
        states = initial or tuple(_zeros(x, n) for n in self.cell.sizes)
        output, outputs = _zeros(x, self.cell.units), []
        steps = range(x.shape[1])
        for t in reversed(steps) if self.backwards else steps:
            new, after = self.cell.step(projected[:, t], states)
            if mask is None:
                output, states = new, after
            else:
                present = mask[:, t : t + 1]
                output = F.where(present, new, new * 0.0 if self.zeros else output)
                states = tuple(F.where(present, a, b) for a, b in zip(after, states, strict=True))
            outputs.append(output)
        result = F.stack(outputs, axis=1) if self.sequences else output
        return (result, *states) if self.states else result


def _zeros(x: Tensor, width: int) -> Tensor:
    return tensor(np.zeros((x.shape[0], width), x.dtype), device=x.device)


# -- building ----------------------------------------------------------------------------------------------------------

CELLS = {"SimpleRNN": SimpleRNNCell, "LSTM": LSTMCell, "GRU": GRUCell}


def _cell(c: LayerConfig, kind: str, features: int) -> tuple[Any, tuple[Weight, ...], tuple[int, ...]]:
    """(maker, weights, sizes of the states) of a cell."""
    cls: type[Cell] = CELLS[kind]
    units = c.integer("units" if "units" in c.values else "output_dim")
    use_bias = c.flag("use_bias", True)
    reset_after = kind == "GRU" and c.flag("reset_after", False)
    old = "hard_sigmoid" if c.keras < 3 else "sigmoid"
    activation = activation_of(c, 2, "activation", "tanh") or F.identity
    recurrent = activation_of(c, 2, "recurrent_activation", old) or F.identity
    width = cls.gates * units
    own = [("bias", (2, width) if reset_after else (width,))] if use_bias else []
    weights = variables(("kernel", (features, width)), ("recurrent_kernel", (units, width)), *own)
    return partial(cls, features, units, use_bias, activation, recurrent, reset_after), weights, (units,) * cls.states


def _any_cell(c: LayerConfig, features: int) -> tuple[Any, tuple[Weight, ...], tuple[int, ...]]:
    """The cell of an RNN layer: one, or a stack of them."""
    if c.kind.removesuffix("Cell") in CELLS and c.kind.endswith("Cell"):
        return _cell(c, c.kind.removesuffix("Cell"), features)
    if c.kind != "StackedRNNCells":
        raise c.error("no such cell here")
    entries = c.get("cells")
    if not isinstance(entries, list) or not entries:
        raise c.error("has no list of cells")
    makers: list[Any] = []
    weights: list[Weight] = []
    sizes: list[int] = []
    inners = [c.inner(entry, "cell") for entry in entries]
    for inner, name in zip(inners, counted([inner.kind for inner in inners]), strict=True):
        make, own, states = _any_cell(inner, features)
        weights += below(f"cells/{name}", own)
        makers.append(make)
        sizes += states
        features = inner.integer("units") if "units" in inner.values else states[0]
    return lambda: StackedCells([make() for make in makers]), tuple(weights), tuple(sizes)


def _recurrent(c: LayerConfig, shapes: list[Shape], make: Any, weights: tuple[Weight, ...], sizes: tuple[int, ...],
               units: int) -> Built:  # fmt: skip
    x = shapes[0]
    for key in ("stateful", "time_major"):
        if c.flag(key, False):
            raise c.error(f"{key}=true is not supported; save the model with {key}=false")
    if len(shapes) > 1 and [s[1:] for s in shapes[1:]] != [(n,) for n in sizes]:
        raise c.error(f"has initial states of shapes {shapes[1:]}, expected one for each of {sizes}")
    if any(c.masked[1:]):
        raise c.error("masked initial states are not supported")
    sequences, states = c.flag("return_sequences", False), c.flag("return_state", False)
    backwards, zeros = c.flag("go_backwards", False), c.flag("zero_output_for_mask", False)
    output = (x[0], x[1], units) if sequences else (x[0], units)
    outputs = (output, *((x[0], n) for n in sizes)) if states else (output,)
    maker = lambda: Recurrent(make(), sequences, backwards, states, zeros)  # noqa: E731 - a closure as a value
    return Built(maker, outputs, below("cell", weights), masks=same_mask if sequences else None, takes_mask=True)


def _steps(c: LayerConfig, shapes: list[Shape]) -> int:
    if not shapes or len(shapes[0]) != 3:
        raise c.error(f"its input has shape {shapes[0] if shapes else ()}, expected (batch, steps, features)")
    return known(c, shapes[0][2], "number of features")


@layer("LSTM", "GRU", "SimpleRNN", arguments=("initial_state",))
def recurrent(c: LayerConfig, shapes: list[Shape]) -> Built:
    features = _steps(c, shapes)
    if c.keras < 2 and "output_dim" in c.values:
        raise c.error("recurrent layers of Keras 1 keep one tensor a gate; load and save the model in Keras 2 first")
    make, weights, sizes = _cell(c, c.kind, features)
    return _recurrent(c, shapes, make, weights, sizes, sizes[0])


@layer("RNN", arguments=("initial_state",))
def rnn(c: LayerConfig, shapes: list[Shape]) -> Built:
    features, entry = _steps(c, shapes), c.get("cell")
    if isinstance(entry, list):
        entry = {"class_name": "StackedRNNCells", "config": {"cells": entry}}
    inner = c.inner(entry, "cell")
    make, weights, sizes = _any_cell(inner, features)
    last = inner if inner.kind != "StackedRNNCells" else inner.inner(inner.get("cells")[-1], "cell")
    units = last.integer("units") if last.kind != "StackedRNNCells" else sizes[-1]
    return _recurrent(c, shapes, make, weights, sizes, units)


# -- both directions ---------------------------------------------------------------------------------------------------


class Bidirectional(Module):
    """A recurrent layer and its mirror image; the second one's sequence is turned round again."""

    def __init__(self, forward_layer: Recurrent, backward_layer: Recurrent, mode: str | None):
        super().__init__()
        self.forward_layer, self.backward_layer, self.mode = forward_layer, backward_layer, mode

    def forward(self, x: Tensor, *initial: Tensor, masks: Sequence[Mask] = (None,)) -> Any:
        half = len(initial) // 2
        first = self.forward_layer(x, *initial[:half], masks=masks)
        second = self.backward_layer(x, *initial[half:], masks=masks)
        a, *states = first if isinstance(first, tuple) else (first,)
        b, *more = second if isinstance(second, tuple) else (second,)
        if self.forward_layer.sequences:
            b = b[:, ::-1]
        result = (a, b) if self.mode is None else (COMBINE[self.mode](a, b),)
        outputs = (*result, *states, *more)
        return outputs if len(outputs) > 1 else outputs[0]


COMBINE: dict[str, Any] = {
    "concat": lambda a, b: F.concat((a, b), -1), "sum": F.add, "mul": F.multiply, "ave": lambda a, b: MERGES["average"]((a, b)),
}  # fmt: skip


@layer("Bidirectional", arguments=("initial_state",))
def bidirectional(c: LayerConfig, shapes: list[Shape]) -> Built:
    _steps(c, shapes)
    mode = c.values.get("merge_mode", "concat")
    if mode is not None and (not isinstance(mode, str) or mode not in COMBINE):
        raise c.error(f"merge_mode={mode!r:.60}; expected {', '.join(COMBINE)} or null")
    entry = c.get("layer")
    x, states = shapes[0], shapes[1:]
    if len(states) % 2:
        raise c.error(f"has {len(states)} initial states, expected as many for each direction")
    half = len(states) // 2
    ways = []
    for i, key in enumerate(("layer", "backward_layer")):
        own = c.get(key, None)
        inner = c.inner(entry if own is None else own, key, masked=c.masked[:1])
        if inner.kind not in ("LSTM", "GRU", "SimpleRNN", "RNN"):
            raise c.error(f"holds a {inner.kind!r:.60}, expected a recurrent layer")
        if own is None:
            inner.values["go_backwards"] = not inner.flag("go_backwards", False)
        inner.values["zero_output_for_mask"] = inner.flag("return_sequences", False)
        ways.append(build(inner, [x, *states[i * half : (i + 1) * half]]))
    first, second = ways
    (a, *extra), (b, *more) = first.outputs, second.outputs
    if len(a) != len(b) or len(extra) != len(more) or (mode not in (None, "concat") and a != b):
        raise c.error("its two directions return different things")
    merged = [a, b] if mode is None else [(*a[:-1], a[-1] + b[-1])] if mode == "concat" else [a]  # type: ignore[operator]
    weights = (*below("forward_layer", first.weights), *below("backward_layer", second.weights))

    def make() -> Module:
        return Bidirectional(first.make(), second.make(), mode)  # type: ignore[arg-type]

    return Built(make, (*merged, *extra, *more), weights, masks=first.masks, takes_mask=True)  # type: ignore[arg-type]


# -- every step --------------------------------------------------------------------------------------------------------


class TimeDistributed(Module):
    """A layer applied to every step: steps become part of the batch."""

    def __init__(self, inner: Built):
        super().__init__()
        self.built = inner
        self.layer = inner.make()

    def forward(self, x: Tensor) -> Tensor:
        y = self.built.apply(self.layer, [x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))])
        return y.reshape((x.shape[0], x.shape[1], *y.shape[1:]))


@layer("TimeDistributed")
def time_distributed(c: LayerConfig, shapes: list[Shape]) -> Built:
    shape = one_input(c, shapes)
    if len(shape) < 3:
        raise c.error(f"its input has shape {shape}, expected (batch, steps, ...)")
    inner = build(c.inner(c.get("layer"), "layer"), [(None, *shape[2:])])
    if len(inner.outputs) != 1:
        raise c.error("the layer within has several outputs, which is not supported")
    output = (shape[0], shape[1], *inner.output[1:])
    if any(c.masked) and inner.takes_mask:
        raise c.error("a mask over steps around a layer that takes masks itself is not supported")
    spec = LayerSpec("", c.get("layer")["class_name"], inner.inner)  # without a name: it is found by its attribute
    return one(partial(TimeDistributed, inner), output, below("layer", inner.weights), masks=same_mask, inner=(spec,))
