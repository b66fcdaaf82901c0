"""Runs CUDA C++ kernels on the CPU. See README.md in this folder."""

from .build import EmulatorError, build, compiler
from .launch import Struct, emulate

__all__ = ["EmulatorError", "Struct", "build", "compiler", "emulate"]
