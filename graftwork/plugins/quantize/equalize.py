"""Cross-layer equalisation: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019).

What a channel carries between two layers may be multiplied by s in the first one and divided by s in the second, where all that
stands in between takes factors through. With r1 and r2 the largest weights that write and read the channel, s = sqrt(r2 / r1)
makes both equal, and the one scale of the activation in between fits its channels better.
"""

from __future__ import annotations

import numpy as np

from ...nn.graph import Graph, Node, Value

PRODUCTS = ("conv2d", "linear")
LINEAR = (None, "relu")  # activations f with f(s x) = s f(x) for s > 0
BETWEEN = ("relu", "leaky_relu", "max_pool2d", "avg_pool2d", "mean", "pad")  # further ops that take positive factors through
SWEEPS, ENOUGH = 20, 1e-3  # rounds over all pairs; logarithm of the largest factor at which they end
LARGEST = 1e3  # a factor, so that channels that are nearly zero do not become noise


def equalize(graph: Graph) -> int:
    """Equalise all pairs of products in a prepared graph, by changing its constants. Returns how many pairs there are."""
    pairs = _pairs(graph)
    for _ in range(SWEEPS):
        moved = max((_equalize_pair(graph, first, second) for first, second in pairs), default=0.0)
        if moved < ENOUGH:
            break
    return len(pairs)


def _pairs(graph: Graph) -> list[tuple[Node, Node]]:
    """Products whose results one other product alone reads, with only ops of BETWEEN on the way."""
    readers, found = graph.consumers(), []
    for node in graph.nodes:
        if not _has_weights(graph, node) or node.attrs.get("activation") not in LINEAR or len(node.inputs) > 3:
            continue
        value: Value = node.output
        while True:
            following = readers.get(value, [])
            if len(following) != 1 or value in graph.outputs:
                break
            reader = following[0]
            if _has_weights(graph, reader) and reader.inputs[0] is value:
                found.append((node, reader))
                break
            if reader.op.name not in BETWEEN or not _takes_factors(reader):
                break
            value = reader.output
    return found


def _has_weights(graph: Graph, node: Node) -> bool:
    """A product by constants that nothing else reads."""
    if node.op.name not in PRODUCTS or any(v not in graph.constants for v in node.inputs[1:3]):
        return False
    return all(len(graph.consumers()[v]) == 1 for v in node.inputs[1:3])


def _takes_factors(node: Node) -> bool:
    """Channels stay channels, and zeros stay zeros."""
    if node.op.name == "mean":
        return node.inputs[0].ndim - 1 not in node.attrs["axis"] and not any(a < 0 for a in node.attrs["axis"])
    if node.op.name == "pad":
        return node.attrs.get("value") == 0 and node.attrs.get("mode") == "constant" and node.attrs["widths"][-1] == (0, 0)
    return True


def _equalize_pair(graph: Graph, first: Node, second: Node) -> float:
    """Rescale one pair; returns the logarithm of the largest factor."""
    weight, following = first.inputs[1], second.inputs[1]
    a, b = graph.constants[weight], graph.constants[following]
    groups = second.attrs.get("groups", 1)
    wide = np.abs(a).reshape(-1, a.shape[-1]).max(0).astype(np.float64)
    read = _by_input_channel(np.abs(b), groups)
    if len(read) != len(wide):
        return 0.0
    live = (wide > 0) & (read > 0)
    factor = np.ones_like(wide)
    factor[live] = np.clip(np.sqrt(read[live] / wide[live]), 1 / LARGEST, LARGEST)
    graph.constants[weight] = (a * factor).astype(np.float32)
    if len(first.inputs) > 2:
        graph.constants[first.inputs[2]] = (graph.constants[first.inputs[2]] * factor).astype(np.float32)
    graph.constants[following] = _divided(b, factor, groups)
    return float(np.abs(np.log(factor)).max())


def _by_input_channel(b: np.ndarray, groups: int) -> np.ndarray:
    """The largest entry that reads each input channel; b: (..., in / groups, out)."""
    parts = np.split(b, groups, axis=-1)
    return np.concatenate([p.max(axis=(*range(p.ndim - 2), p.ndim - 1)) for p in parts]).astype(np.float64)


def _divided(b: np.ndarray, factor: np.ndarray, groups: int) -> np.ndarray:
    parts = zip(np.split(b, groups, axis=-1), np.split(factor, groups), strict=True)
    return np.concatenate([p / f[:, None] for p, f in parts], axis=-1).astype(np.float32)
