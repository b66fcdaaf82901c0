"""Executes the PTX that NVRTC emits, on the CPU: the slow test of what the compiler made of a kernel. See README.md."""

from .machine import PtxError, interpret
from .parser import Program

__all__ = ["Program", "PtxError", "interpret"]
