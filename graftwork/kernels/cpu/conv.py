"""Two-dimensional convolution on the CPU: BLAS for the products, Numba for moving pixels and for depthwise kernels.

Images are (N, H, W, C), weights (kh, kw, C/groups, Cout). `conv2d`, `conv2d_input_grad` and `conv2d_weight_grad` choose
a variant from the shapes; every variant can be called on its own where its docstring says that it applies.

im2col ("image to columns") copies the pixels under each position of the kernel into one row of a matrix, so that the
convolution becomes a matrix product (Chellapilla, Puri and Simard, 2006). It is done for a chunk of output lines at a
time: the columns stay in the cache and the scratch memory stays small however large the batch is.
"""

from __future__ import annotations


