"""Fixtures of the CUDA tests: a machine that is the emulator, and the reasons to skip."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `emulator` and `machine`


@pytest.fixture
def emulated(monkeypatch):
    """CUDA kernels take NumPy arrays and run in the emulator meanwhile."""
    from emulator.build import compiler
    from machine import EmulatorMachine

    from graftwork.kernels.cuda import launch

    if compiler() is None:
        pytest.skip("no g++, which compiles the kernels for the emulator")
    machine = EmulatorMachine()
    monkeypatch.setattr(launch, "stand_in", machine)
    return machine


@pytest.fixture
def gpu(monkeypatch, emulated):
    """Tensors can be placed on "cuda": a stand-in for CuPy, with the emulator as the GPU. Returns the module."""
    import fake_cupy

    import graftwork as gw
    from graftwork.kernels.cuda import launch
    from graftwork.nn import rng
    from graftwork.nn.op import OPS

    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gw.cuda, "_problem", lambda: None)
    monkeypatch.setattr(launch, "stand_in", None)  # the CPU's arrays are no GPU arrays here
    monkeypatch.setattr(launch, "gpu", lambda number: emulated)
    emulated.empty = lambda shape, dtype: cupy.empty(shape, dtype)
    emulated.launch = cupy.gpu.launch
    yield cupy
    rng._on_devices.clear()
    for op in OPS.values():
        op.table.pop(fake_cupy.ndarray, None)
