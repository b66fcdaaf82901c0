"""Initial values are those of NumPy's generator, however many are drawn at a time."""

from __future__ import annotations

import numpy as np
import pytest

import graftwork as gw
from graftwork.nn import init


@pytest.mark.parametrize("block", [1, 10, 1 << 20])
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (3, 3, 4, 5)])
def test_values_do_not_depend_on_the_block(monkeypatch, block, shape):
    monkeypatch.setattr(init, "BLOCK", block)
    gw.manual_seed(3)
    found = init.normal(shape, 0.5), init.uniform(shape, 2.0)
    rng = np.random.default_rng(3)
    expected = 0.5 * rng.standard_normal(shape), rng.uniform(-2.0, 2.0, shape)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32 and a.shape == np.shape(b)
        np.testing.assert_array_equal(a, np.float32(b))


def test_nothing_is_drawn_where_values_follow():
    gw.manual_seed(3)
    with init.values_follow():
        found = init.normal((2, 3))
        with pytest.raises(ZeroDivisionError), init.values_follow():
            raise ZeroDivisionError
    assert found.shape == (2, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(init.normal((4,), 1.0), np.float32(np.random.default_rng(3).standard_normal(4)))
