"""Explicit padding that the following window op can do itself."""

from __future__ import annotations

from ..graph import Graph, Node, Value

_CANNOT_BE_NEGATIVE = ("relu", "relu6", "sigmoid", "softmax", "square", "abs", "hard_sigmoid")


def fold_padding(graph: Graph) -> Graph:
    """pad (zeros, height and width only) then conv2d becomes conv2d with padding. The same for max pooling of values that
    are never negative: there, a zero at the border wins no more often than the pooling's own minus infinity."""
    for pad in [n for n in graph.nodes if n.op.name == "pad"]:
        readers = graph.consumers().get(pad.output, [])
        widths = pad.attrs["widths"]
        only_spatial = len(widths) == 4 and not any(widths[0]) and not any(widths[3]) and pad.attrs["value"] == 0
        if only_spatial and readers and pad.output not in graph.outputs and all(_takes(r, pad, widths) for r in readers):
            for reader in readers:
                reader.inputs[0] = pad.inputs[0]
                own = reader.attrs["padding"]
                reader.attrs["padding"] = tuple(
                    (a + c, b + d) for (a, b), (c, d) in zip(own, (widths[1], widths[2]), strict=True)
                )
            graph.nodes.remove(pad)
    return graph


def _takes(reader: Node, pad: Node, widths) -> bool:
    if reader.inputs.count(pad.output) != 1 or reader.inputs[0] is not pad.output:
        return False
    if reader.op.name == "conv2d":
        return True
    if reader.op.name != "max_pool2d" or not _never_negative(pad.inputs[0]):
        return False
    sides = zip(reader.attrs["padding"], (widths[1], widths[2]), reader.attrs["window"], strict=True)
    return all(max(a + c, b + d) < window for (a, b), (c, d), window in sides)


def _never_negative(value: Value) -> bool:
    node = value.node
    return node is not None and (node.op.name in _CANNOT_BE_NEGATIVE or node.attrs.get("activation") in _CANNOT_BE_NEGATIVE)
