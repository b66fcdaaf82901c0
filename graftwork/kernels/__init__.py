"""Kernels: functions over raw arrays, `fn(*arrays, out=..., **attrs)`; the caller owns `out`.

`reference/` holds the plain NumPy oracle, `cpu/` the Numba kernels, `cuda/` the loader of CUDA C++ sources.
"""

from .registry import Entry, get, register, unregister
from .registry import list_kernels as list

__all__ = ["Entry", "get", "list", "register", "unregister"]
