"""The readable twins of the CUDA C++ kernels, in Python through numba.cuda, as the variant "numba_cuda"."""

DEVICE = "cuda"
KERNELS: dict[str, dict[str, str]] = {}
