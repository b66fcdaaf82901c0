"""Numba kernels for the CPU."""

KERNELS: dict[str, dict[str, str]] = {}
