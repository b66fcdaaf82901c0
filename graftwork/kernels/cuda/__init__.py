"""CUDA C++ kernels, compiled at run time (NVRTC) and launched through CuPy, which is imported at the first launch.

The first variant of each op is the one that is used unless another is asked for. `docs/kernels.md` explains them.
"""

from ..reference import FAMILIES

DEVICE = "cuda"

_MODULES = {"chain": "elementwise", "index": "index", "counter": "update", "matmul": "gemm"}
_ELSEWHERE = {"concat": "copies", "pad": "copies", "slice_scatter": "copies", "contiguous": "copies"}

KERNELS = {
    op: {"cuda": f"{_ELSEWHERE.get(op, _MODULES.get(family, family))}:{op}"}
    for family, ops in FAMILIES.items()
    for op in ops.split()
}

del KERNELS["in_range"]  # which stands in captured graphs only

for _op in ("matmul", "linear", "conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
    KERNELS[_op]["tf32"] = f"tf32:{_op}"

_FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = dict.fromkeys(("softmax", "norm", "pool", "resize", "random", "conv", "gemm"), _FLOATS) | {"tf32": ("float32",)}
