"""Numba kernels for the CPU. The first variant of each op is the one that is used unless another is asked for."""

from ..reference import FAMILIES

_VARIANTS = {
    "conv2d": ("conv", "implicit_gemm winograd pointwise im2col depthwise direct"),
    "conv2d_input_grad": ("conv", "implicit_gemm winograd pointwise im2col depthwise direct"),
    "conv2d_weight_grad": ("conv", "implicit_gemm pointwise im2col depthwise direct"),
    "matmul": ("matmul", "gemm blas"),
    "linear": ("matmul", "gemm blas"),
}
_FLOAT32_ONLY = ("implicit_gemm", "winograd", "gemm")

KERNELS = {op: {"numba": f"{family}:{op}"} for family, ops in FAMILIES.items() for op in ops.split()}
for _op, (_module, _variants) in _VARIANTS.items():
    KERNELS[_op] |= {variant: f"{_module}:{_op}_{variant}" for variant in _variants.split()}

_FLOATS = ("float32", "float64")
DTYPES = dict.fromkeys(("conv", "pool", "resize", "norm", "softmax", "update", "random"), _FLOATS)
DTYPES |= {f"{m}:{op}_{v}": ("float32",) for op, (m, vs) in _VARIANTS.items() for v in vs.split() if v in _FLOAT32_ONLY}

_ELEMENTWISE = (
    "negative abs exp log sqrt rsqrt square reciprocal sin cos erf tanh sigmoid relu relu6 silu hard_swish hard_sigmoid "
    "softplus log1p expm1 sign floor ceil round logical_not leaky_relu elu gelu clip add subtract multiply divide power "
    "maximum minimum equal not_equal less less_equal greater greater_equal logical_and logical_or where relu_grad relu6_grad "
    "leaky_relu_grad"
)  # steps of `chain.py`
_PLANNED = {
    "chain": _ELEMENTWISE,
    "elementwise": "cast",
    "reduce": "sum mean max min prod argmax argmin cumsum",
    "softmax": "softmax log_softmax softmax_grad log_softmax_grad cross_entropy",
    "index": "gather scatter_add one_hot concat pad slice_scatter contiguous",
    "norm": "batch_norm batch_norm_train batch_norm_grad layer_norm layer_norm_grad",
    "update": "sgd_update adam_update moving_average",
    "random": "dropout dropout_grad",
    "pool": "max_pool2d max_pool2d_grad max_pool2d_take avg_pool2d avg_pool2d_grad",
    "resize": "resize resize_grad",
    "conv_select": "conv2d conv2d_input_grad conv2d_weight_grad",
    "gemm": "linear matmul",
    "byte_conv": "quantized_matmul quantized_conv2d quantized_conv2d_add",
    "byte_images": "quantize dequantize quantized_add byte_table quantized_max_pool2d quantized_avg_pool2d",
}
PLANNERS = {op: f"{module}:plan_{op}" for module, ops in _PLANNED.items() for op in ops.split()}
PLANNERS["chain"] = "chain:plan"
