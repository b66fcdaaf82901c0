"""Checks and small helpers that the op families share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...errors import DTypeError, ShapeError
from ...kernels.reference.index import check_range
from ..autograd import mode
from ..tensor import FLOATS, Tensor

BOOL = np.dtype(bool)
INT64 = np.dtype(np.int64)


def require_floats(name: str, *arrays) -> None:
    """All arrays floating and of one dtype, or DTypeError."""
    dtype = arrays[0].dtype
    for a in arrays:
        if a.dtype not in FLOATS:
            raise DTypeError(f"{name}: got dtype {a.dtype}, expected a floating one; use x.astype('float32')")
        if a.dtype != dtype:
            raise_mixed(name, arrays)


def raise_mixed(name: str, arrays) -> None:
    raise DTypeError(
        f"{name}: operands have different dtypes ({', '.join(str(a.dtype) for a in arrays)}); nothing is converted "
        "silently, use x.astype(...)"
    )


def require_same_dtype(name: str, *arrays) -> None:
    if any(a.dtype != arrays[0].dtype for a in arrays):
        raise_mixed(name, arrays)


def require_shape(name: str, what: str, array, shape: Sequence[int]) -> None:
    if tuple(array.shape) != tuple(shape):
        raise ShapeError(f"{name}: {what} has shape {tuple(array.shape)}, expected {tuple(shape)}")


def require_integers(name: str, what: str, array) -> None:
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name}: {what} has dtype {array.dtype}, expected integers; use x.astype('int64')")


def require_range(index: Tensor, low: int, high: int, what: str, limit: str) -> None:
    """All values of an integer tensor at least `low` and below `high`, or RangeError. A capture leaves it to its replays.

    The message reads "{what} run from ... to ..., but {limit}"."""
    if mode.trace is not None:
        mode.trace.guard(index, low, high, what, limit)
    elif isinstance(index.data, np.ndarray):
        check_range(index.data, low, high, what, limit)


def broadcast(name: str, *shapes) -> tuple[int, ...]:
    """The common shape under NumPy's rules, or ShapeError naming all of them."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        given = " and ".join(str(s) for s in shapes)
        raise ShapeError(f"{name}: shapes {given} do not broadcast; from the right, sizes must be equal or 1") from None


def normal_axis(name: str, axis: int, ndim: int) -> int:
    """A non-negative axis, or ShapeError."""
    if not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
        raise ShapeError(f"{name}: axis {axis!r} for a tensor of {ndim} dimensions; expected {-ndim} to {ndim - 1}")
    return int(axis) % ndim


def normal_axes(name: str, axis, ndim: int) -> tuple[int, ...]:
    """Sorted, non-negative, distinct axes from None (all), an int or a sequence."""
    if axis is None:
        return tuple(range(ndim))
    axes = [normal_axis(name, a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))]
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{name}: axis {axis!r} names a dimension twice")
    return tuple(sorted(axes))


def pair(name: str, what: str, value, least: int = 1) -> tuple[int, int]:
    """(vertical, horizontal) from one int or two."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(isinstance(v, (int, np.integer)) and v >= least for v in values):
        raise ShapeError(f"{name}: {what}={value!r}; expected one integer or two, each at least {least}")
    return int(values[0]), int(values[1])


def normal_padding(name: str, padding, in_size, window, stride, dilation=(1, 1)):
    """((top, bottom), (left, right)) from "same", "valid", an int, two ints, or two pairs.

    "same" gives ceil(size / stride) outputs; where the padding is odd, the extra row or column is at the bottom or right
    (TensorFlow's and Keras's rule).
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(in_size, window, stride, dilation, strict=True)
        ]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    sides = padding
    if isinstance(padding, (int, np.integer)):
        sides = (padding, padding)
    if isinstance(sides, (tuple, list)) and len(sides) == 2:
        pairs = [tuple(s) if isinstance(s, (tuple, list)) else (s, s) for s in sides]
        if all(len(p) == 2 and all(isinstance(v, (int, np.integer)) and v >= 0 for v in p) for p in pairs):
            return tuple((int(a), int(b)) for a, b in pairs)
    raise ShapeError(
        f'{name}: padding={padding!r}; expected "same", "valid", an integer, (vertical, horizontal) or '
        "((top, bottom), (left, right)), none negative"
    )


def window_output(name: str, in_size, window, stride, padding, dilation=(1, 1)) -> tuple[int, int]:
    """Output height and width of a sliding window, or ShapeError if the window does not fit."""
    out = []
    for n, k, s, (before, after), d in zip(in_size, window, stride, padding, dilation, strict=True):
        span = (k - 1) * d + 1
        if n + before + after < span:
            raise ShapeError(
                f"{name}: a window of {span} does not fit a size of {n} padded by {before} and {after} (input "
                f"{tuple(in_size)}, window {tuple(window)}, dilation {tuple(dilation)}); use padding or a larger input"
            )
        out.append((n + before + after - span) // s + 1)
    return out[0], out[1]


def require_nhwc(name: str, x) -> None:
    if x.ndim != 4:
        raise ShapeError(
            f"{name}: input has shape {tuple(x.shape)}, expected four dimensions (batch, height, width, channels)"
        )


def unbroadcast(g: Tensor, shape) -> Tensor:
    """Sum a gradient over the dimensions that broadcasting added or stretched."""
    if g.shape == tuple(shape):
        return g
    from .reduce import SUM
    from .shape import reshape

    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    if axes:
        g = SUM(g, axis=axes, keepdims=True)
    return reshape(g, tuple(shape))


def scalar(value: float, like) -> Tensor:
    """A zero-dimensional constant of the dtype and on the device of `like`."""
    array = np.asarray(value, like.dtype)
    if isinstance(like, Tensor) and type(like.data) is not np.ndarray:
        from ..tensor import tensor

        return tensor(array, device=like.device)
    return Tensor(array)


def size_of(shape) -> int:
    return math.prod(shape)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Sample values in float64, away from zero's neighbourhood so that kinks do not meet finite differences."""
    x = rng.standard_normal(shape)
    return np.where(np.abs(x) < 0.05, 0.1, x)
