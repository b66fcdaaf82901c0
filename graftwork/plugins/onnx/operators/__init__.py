"""ONNX operators in our ops, one file a family. Importing this package fills the table."""

from . import (
    attention,
    control,
    convolution,
    detection,
    elementwise,
    losses,
    normalization,
    pooling,
    products,
    quantized,
    recurrent,
    reduce,
    resize,
    sampling,
    shape,
    signals,
)  # fmt: skip
from .table import OPERATORS

__all__ = [
    "OPERATORS", "attention", "control", "convolution", "detection", "elementwise", "losses", "normalization", "pooling",
    "products", "quantized", "recurrent", "reduce", "resize", "sampling", "shape", "signals",
]  # fmt: skip
