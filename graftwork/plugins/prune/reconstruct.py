"""After channels are gone, the layers that read them are fitted anew, so that their outputs stay what they were.

Least squares on some real inputs, layer by layer from the input on (He, Zhang and Sun 2017, "Channel Pruning for Accelerating
Very Deep Neural Networks", section 3.1; Luo, Wu and Lin 2017, "ThiNet"). It needs no labels and makes most of the damage
good, so that less training is left to do.
"""

from __future__ import annotations

import math

import numpy as np

from ...nn import no_grad
from ...nn.compile import executable, trace
from ...nn.graph import Graph, Node, Value
from ...nn.modules.module import Module, assign
from ...nn.tensor import Tensor
from .dependencies import Dependencies

ROWS = 4000  # places of the output that a fit looks at, at least; four for each unknown otherwise
RIDGE = 1e-3  # of the mean squared input: what pulls towards the weights as they were cut
SEED = 0


def reconstruct(small: Module, model: Module, found: Dependencies, kept: np.ndarray, x: Tensor) -> int:
    """Fit every layer of `small` that lost inputs to the outputs that `model` has for the inputs x. found, kept: the channels'
    numbers, and which stayed. Both models in inference mode. Returns how many layers were fitted."""
    rng = np.random.default_rng(SEED)
    names = {id(p): name for name, p in model.named_parameters()}
    numbers = {name: found.axes[i] for i, name in found.names.items() if i in found.axes}
    first = _graph(model, x)
    seen: set[str] = set()
    for i, node in enumerate(_products(first)):
        name = names.get(id(first.states.get(node.inputs[1])), "")
        axes, last = numbers.get(name, {}), node.inputs[1].ndim - 1
        if name in seen or node.attrs.get("groups", 1) > 1 or not {last, last - 1} <= set(axes) or kept[axes[last - 1]].all():
            continue
        seen.add(name)
        before, after = _graph(model, x), _graph(small, x)
        new = _products(after)[i]
        states = [after.states[v] for v in new.inputs[1:]]
        wanted = _value(before, _products(before)[i].output, x)[..., kept[axes[last]]]
        _fit(new, _value(after, new.inputs[0], x), wanted, states, rng)
    return len(seen)


def _graph(model: Module, x: Tensor) -> Graph:
    with no_grad():
        return trace(model, x)


def _products(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op.name in ("conv2d", "linear")]


def _value(graph: Graph, value: Value, x: Tensor) -> np.ndarray:
    graph.outputs = [value]
    return executable(graph).run([x.data])[0]


def _fit(node: Node, given: np.ndarray, wanted: np.ndarray, states: list[Tensor], rng: np.random.Generator) -> None:
    """Set a layer's weight (and bias) to the least-squares solution for some places of its output."""
    weight = states[0].numpy().astype(np.float64)
    unknowns = weight.size // weight.shape[-1] + len(states) - 1
    places = math.prod(wanted.shape[:-1])
    chosen = np.unravel_index(rng.permutation(places)[: max(ROWS, 4 * unknowns)], wanted.shape[:-1])
    rows = _patches(node, given, chosen).astype(np.float64)
    start = weight.reshape(-1, weight.shape[-1])
    if len(states) > 1:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        start = np.concatenate([start, states[1].numpy()[None].astype(np.float64)])
    square = rows.T @ rows
    square += np.eye(len(square)) * max(RIDGE * float(np.trace(square)) / len(square), 1e-12)
    fitted = start + np.linalg.solve(square, rows.T @ (wanted[chosen] - rows @ start))
    assign(states[0], fitted[: weight.size // weight.shape[-1]].reshape(weight.shape))
    if len(states) > 1:
        assign(states[1], fitted[-1])


def _patches(node: Node, given: np.ndarray, chosen: tuple[np.ndarray, ...]) -> np.ndarray:
    """What a layer sees where it makes the chosen places of its output, a row each."""
    if node.op.name == "linear":
        return given[chosen]
    image, top, left = chosen
    height, width = node.inputs[1].shape[:2]
    (stride_y, stride_x), (dilation_y, dilation_x) = node.attrs["stride"], node.attrs["dilation"]
    padded = np.pad(given, ((0, 0), *node.attrs["padding"], (0, 0)))
    y = (top * stride_y)[:, None, None] + np.arange(height)[None, :, None] * dilation_y
    x = (left * stride_x)[:, None, None] + np.arange(width)[None, None, :] * dilation_x
    return padded[image[:, None, None], y, x].reshape(len(image), -1)


__all__ = ["reconstruct"]
