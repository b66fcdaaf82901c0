"""float32 products and convolutions on tensor cores: the operands are rounded to 11 bits, sums are float32."""

from .conv import conv2d_input_grad_tf32 as conv2d_input_grad
from .conv import conv2d_tf32 as conv2d
from .conv import conv2d_weight_grad_tf32 as conv2d_weight_grad
from .gemm import linear_tf32 as linear
from .gemm import matmul_tf32 as matmul

__all__ = ["conv2d", "conv2d_input_grad", "conv2d_weight_grad", "linear", "matmul"]
