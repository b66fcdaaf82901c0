"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several test processes share the cores; read when OpenMP loads

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights, photographs and golden results, kept outside the repository."""
    folder = Path(os.environ.get("GRAFTWORK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set GRAFTWORK_SHARED_DATA")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
