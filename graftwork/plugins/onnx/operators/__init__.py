"""ONNX operators in our ops, one file a family. Importing this package fills the table."""

from . import (
    control,
    convolution,
    elementwise,
    losses,
    normalization,
    pooling,
    products,
    quantized,
    recurrent,
    reduce,
    resize,
    shape,
)  # fmt: skip
from .table import OPERATORS

__all__ = [
    "OPERATORS", "control", "convolution", "elementwise", "losses", "normalization", "pooling", "products", "quantized",
    "recurrent", "reduce", "resize", "shape",
]  # fmt: skip
