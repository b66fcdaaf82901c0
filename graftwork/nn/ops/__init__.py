"""The op table, one file per family. Importing this package declares every op."""

from . import chain, conv, elementwise, index, matmul, norm, pool, quantized, random, reduce, resize, shape, softmax, update

__all__ = [
    "chain", "conv", "elementwise", "index", "matmul", "norm", "pool", "quantized", "random", "reduce", "resize", "shape",
    "softmax", "update",
]  # fmt: skip
