"""Numba kernels for the CPU. The first variant of each op is the one that is used unless another is asked for."""

from ..reference import FAMILIES

_CONV_VARIANTS = {
    "conv2d": ("pointwise", "im2col", "depthwise", "direct"),
    "conv2d_input_grad": ("pointwise", "flipped", "im2col", "depthwise", "direct"),
    "conv2d_weight_grad": ("pointwise", "im2col", "depthwise", "direct"),
}

KERNELS = {op: {"numba": f"{family}:{op}"} for family, ops in FAMILIES.items() for op in ops.split()}
for _op, _variants in _CONV_VARIANTS.items():
    KERNELS[_op] |= {variant: f"conv:{_op}_{variant}" for variant in _variants}
    KERNELS[_op]["simd"] = f"conv_simd:{_op}_simd"

_FLOATS = ("float32", "float64")
DTYPES = dict.fromkeys(("conv", "pool", "resize", "norm", "softmax", "update", "random"), _FLOATS) | {"conv_simd": ("float32",)}

PLANNERS = {
    "conv2d": "conv_select:plan_conv2d",
    "conv2d_input_grad": "conv_select:plan_conv2d_input_grad",
    "conv2d_weight_grad": "conv_select:plan_conv2d_weight_grad",
    "linear": "gemm:plan_linear",
    "matmul": "gemm:plan_matmul",
}
