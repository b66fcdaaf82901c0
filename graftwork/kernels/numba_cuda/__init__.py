"""The readable twins of the CUDA C++ kernels, in Python through numba.cuda, as the variant "numba_cuda".

One kernel an idea, float32, no tuning: read these first, then the C++. They run in Numba's simulator too
(NUMBA_ENABLE_CUDASIM=1), on NumPy arrays.
"""

DEVICE = "cuda"

_MODULES = {
    "elementwise": "negative abs exp log sqrt rsqrt square reciprocal sin cos erf tanh sigmoid relu relu6 silu hard_swish "
    "hard_sigmoid softplus log1p expm1 sign floor ceil round leaky_relu elu gelu add subtract multiply divide power maximum "
    "minimum equal not_equal less less_equal greater greater_equal where relu_grad relu6_grad leaky_relu_grad",
    "reduce": "sum mean prod max min softmax log_softmax",
    "norm": "batch_norm batch_norm_train layer_norm",
    "pool": "max_pool2d max_pool2d_grad avg_pool2d avg_pool2d_grad",
    "products": "matmul linear conv2d conv2d_input_grad conv2d_weight_grad",
}
KERNELS = {op: {"numba_cuda": f"{module}:{op}"} for module, ops in _MODULES.items() for op in ops.split()}
DTYPES = dict.fromkeys(_MODULES, ("float32",))
