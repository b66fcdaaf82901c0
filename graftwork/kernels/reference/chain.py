"""Chains of elementwise ops in plain NumPy: one op after another."""

from __future__ import annotations

import numpy as np

from . import elementwise

_TRUTHS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_and", "logical_or"}


def _result_dtype(name: str, attrs: dict, operands: list[np.ndarray]) -> np.dtype:
    if name == "cast":
        return np.dtype(attrs["dtype"])
    return np.dtype(bool) if name in _TRUTHS else operands[-1].dtype


def chain(*arrays: np.ndarray, out: np.ndarray, program: tuple) -> None:
    """out = the last step of the program: steps (op, operands, attributes), operands count the arrays, then earlier steps."""
    values = list(arrays)
    for name, operands, attributes in program:
        given, attrs = [values[i] for i in operands], dict(attributes)
        shape = np.broadcast_shapes(*(g.shape for g in given))
        result = np.empty(shape, _result_dtype(name, attrs, given))
        getattr(elementwise, name)(*given, out=result, **attrs)
        values.append(result)
    out[...] = values[-1]
