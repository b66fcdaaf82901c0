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
