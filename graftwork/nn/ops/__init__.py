"""The op table, one file per family. Importing this package declares every op."""

from . import (
    byte_images,
    chain,
    conv,
    elementwise,
    index,
    matmul,
    norm,
    pool,
    quantized,
    random,
    reduce,
    resize,
    shape,
    softmax,
    update,
)  # fmt: skip

__all__ = [
    "byte_images", "chain", "conv", "elementwise", "index", "matmul", "norm", "pool", "quantized", "random", "reduce", "resize",
    "shape", "softmax", "update",
]  # fmt: skip
