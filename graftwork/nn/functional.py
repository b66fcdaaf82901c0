"""Every op as a function, one namespace: `nn.functional.conv2d(x, weight, ...)`."""

from __future__ import annotations

import sys

from .ops.conv import conv2d, conv2d_transpose
from .ops.elementwise import (
    abs,
    add,
    cast,
    ceil,
    clip,
    cos,
    divide,
    elu,
    equal,
    erf,
    exp,
    expm1,
    floor,
    gelu,
    greater,
    greater_equal,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    reciprocal,
    relu,
    relu6,
    round,
    rsqrt,
    sigmoid,
    sign,
    silu,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tanh,
    where,
)  # fmt: skip
from .ops.index import concat, embedding, gather, one_hot, pad, split, stack
from .ops.matmul import linear, matmul
from .ops.norm import batch_norm, layer_norm
from .ops.pool import avg_pool2d, global_avg_pool2d, global_max_pool2d, max_pool2d
from .ops.quantized import quantized_conv2d, quantized_matmul
from .ops.random import dropout
from .ops.reduce import argmax, argmin, cumsum, max, mean, min, prod, std, sum, var
from .ops.resize import resize
from .ops.shape import broadcast_to, expand_dims, flatten, getitem, identity, reshape, squeeze, swap_last, transpose
from .ops.softmax import accuracy, cross_entropy, l1_loss, log_softmax, mse_loss, softmax
from .tensor import bind_operators

__all__ = [
    "abs", "accuracy", "add", "argmax", "argmin", "avg_pool2d", "batch_norm", "broadcast_to", "cast", "ceil", "clip",
    "concat", "conv2d", "conv2d_transpose", "cos", "cross_entropy", "cumsum", "divide", "dropout", "elu", "embedding",
    "equal", "erf", "exp", "expand_dims", "expm1", "flatten", "floor", "gather", "gelu", "getitem",
    "global_avg_pool2d", "global_max_pool2d", "greater", "greater_equal", "hard_sigmoid", "hard_swish", "identity",
    "l1_loss", "layer_norm", "leaky_relu", "less", "less_equal", "linear", "log", "log1p", "log_softmax",
    "logical_and", "logical_not", "logical_or", "matmul", "max", "max_pool2d", "maximum", "mean", "min", "minimum",
    "mse_loss", "multiply", "negative", "not_equal", "one_hot", "pad", "power", "prod", "quantized_conv2d",
    "quantized_matmul", "reciprocal", "relu", "relu6",
    "reshape", "resize", "round", "rsqrt", "sigmoid", "sign", "silu", "sin", "softmax", "softplus", "split", "sqrt",
    "square", "squeeze", "stack", "std", "subtract", "sum", "swap_last", "tanh", "transpose", "var", "where",
]  # fmt: skip

bind_operators(sys.modules[__name__])  # tensors' operators and methods call these
