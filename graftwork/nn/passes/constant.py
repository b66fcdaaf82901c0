"""Constant folding: what depends on constants only is computed now."""

from __future__ import annotations

import numpy as np

from ..graph import Graph

LARGEST = 16 << 20  # bytes; larger results are left to be computed ahead, where their memory is shared


def fold_constants(graph: Graph) -> Graph:
    """Replace nodes on constants by their results, and drop ops that only rename a value. (Those of a graph for a GPU are
    computed ahead, there: the CPU may lack kernels for their dtype.)"""
    from ..lower import compute_now

    kept, here = [], graph.device == "cpu"
    for node in graph.nodes:
        if node.op.name == "identity":
            graph.replace(node.output, node.inputs[0])
        elif here and not node.op.writes and all(v in graph.constants for v in node.inputs) and node.output.nbytes <= LARGEST:
            arrays: dict = dict(graph.constants)
            compute_now(node, arrays)
            for value in node.outputs:
                value.node = None
                graph.constants[value] = np.asarray(arrays[value])
        else:
            kept.append(node)
    graph.nodes = kept
    return graph
