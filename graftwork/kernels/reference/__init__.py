"""The oracle: every op in plain NumPy, as plainly as possible. Never chosen unless asked for by name."""

FAMILIES = {
    "elementwise": "negative abs exp log sqrt rsqrt square reciprocal sin cos erf tanh sigmoid relu relu6 silu hard_swish "
    "hard_sigmoid softplus log1p expm1 sign floor ceil round logical_not leaky_relu elu gelu clip cast add subtract "
    "multiply divide power maximum minimum equal not_equal less less_equal greater greater_equal logical_and logical_or "
    "where relu_grad relu6_grad leaky_relu_grad",
    "chain": "chain",
    "reduce": "sum mean max min prod argmax argmin cumsum",
    "softmax": "softmax log_softmax softmax_grad log_softmax_grad cross_entropy",
    "index": "gather scatter_add one_hot concat pad slice_scatter contiguous in_range",
    "norm": "batch_norm batch_norm_train batch_norm_grad layer_norm layer_norm_grad",
    "update": "sgd_update adam_update moving_average",
    "counter": "increment",
    "random": "dropout dropout_grad",
    "matmul": "matmul linear",
    "conv": "conv2d conv2d_input_grad conv2d_weight_grad",
    "quantized": "quantized_matmul quantized_conv2d quantized_conv2d_add",
    "byte_images": "quantize dequantize quantized_add byte_table quantized_max_pool2d quantized_avg_pool2d",
    "pool": "max_pool2d max_pool2d_grad max_pool2d_take avg_pool2d avg_pool2d_grad",
    "resize": "resize resize_grad",
}
KERNELS = {op: {"reference": f"{family}:{op}"} for family, ops in FAMILIES.items() for op in ops.split()}
