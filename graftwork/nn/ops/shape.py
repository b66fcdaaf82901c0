"""Views: ops that only look at the same memory in another way."""

from __future__ import annotations

import math

import numpy as np

from ...errors import DTypeError, ShapeError
from ..op import Op, Sample
from ..tensor import Tensor
from .common import normal, normal_axis, unbroadcast


def _zero(*arrays, **attrs):
    return 0


identity = Op(
    "identity", infer=lambda x: (x.shape, x.dtype), vjp=lambda g, out, x: (g,), keeps_inputs=False,
    view=lambda x: x, cost=_zero, samples=lambda rng: iter([Sample((normal(rng, 2, 3),))]),
    doc="The same tensor as a new record on the tape.",
)  # fmt: skip

RESHAPE = Op(
    "reshape",
    infer=lambda x, shape: (shape, x.dtype),
    vjp=lambda g, out, x, shape: (reshape(g, x.shape),),
    keeps_inputs=False,
    view=lambda x, shape: x.reshape(shape),
    cost=_zero,
    samples=lambda rng: (Sample((normal(rng, 2, 6),), {"shape": s}) for s in ((3, 4), (12,), (2, 1, 6))),
)


def reshape(x: Tensor, *shape) -> Tensor:
    """The same values in row-major order under another shape; one size may be -1. Raises ShapeError if they do not fit."""
    wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    size, known = math.prod(x.shape), math.prod(n for n in wanted if n != -1)
    if wanted.count(-1) == 1 and known and size % known == 0:
        wanted = tuple(size // known if n == -1 else n for n in wanted)
    if any(not isinstance(n, (int, np.integer)) or n < 0 for n in wanted) or math.prod(wanted) != size:
        raise ShapeError(f"reshape: {x.shape} has {size} values, which do not fit shape {tuple(shape)}")
    return x if wanted == x.shape else RESHAPE(x, shape=tuple(int(n) for n in wanted))


def _transpose_vjp(g, out, x, axes):
    return (TRANSPOSE(g, axes=tuple(int(i) for i in np.argsort(axes))),)


TRANSPOSE = Op(
    "transpose",
    infer=lambda x, axes: (tuple(x.shape[a] for a in axes), x.dtype),
    vjp=_transpose_vjp,
    keeps_inputs=False,
    view=lambda x, axes: x.transpose(axes),
    cost=_zero,
    samples=lambda rng: (Sample((normal(rng, 2, 3, 4),), {"axes": a}) for a in ((2, 1, 0), (1, 2, 0), (0, 1, 2))),
)


def transpose(x: Tensor, *axes) -> Tensor:
    """Dimensions in another order; without axes, reversed."""
    order = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    order = tuple(normal_axis("transpose", a, x.ndim) for a in order) or tuple(reversed(range(x.ndim)))
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"transpose: axes {axes} for {x.ndim} dimensions; each must be named once")
    return TRANSPOSE(x, axes=order)


def swap_last(x: Tensor) -> Tensor:
    """The matrix transpose: last two dimensions exchanged."""
    return TRANSPOSE(x, axes=(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """A new dimension of size 1 at `axis`."""
    axis = normal_axis("expand_dims", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def squeeze(x: Tensor, axis: int) -> Tensor:
    """Without the dimension of size 1 at `axis`."""
    axis = normal_axis("squeeze", axis, x.ndim)
    if x.shape[axis] != 1:
        raise ShapeError(f"squeeze: dimension {axis} of {x.shape} has size {x.shape[axis]}, expected 1")
    return reshape(x, x.shape[:axis] + x.shape[axis + 1 :])


def flatten(x: Tensor, start: int = 1) -> Tensor:
    """All dimensions from `start` on as one."""
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))


BROADCAST_TO = Op(
    "broadcast_to",
    infer=lambda x, shape: (shape, x.dtype),
    vjp=lambda g, out, x, shape: (unbroadcast(g, x.shape),),
    keeps_inputs=False,
    view=lambda x, shape: np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else _cupy().broadcast_to(x, shape),
    cost=_zero,
    samples=lambda rng: (Sample((normal(rng, *s),), {"shape": (2, 3, 4)}) for s in ((4,), (3, 1), (2, 1, 4), ())),
)


def _cupy():
    import cupy

    return cupy


def broadcast_to(x: Tensor, shape) -> Tensor:
    """x repeated along new and size-1 dimensions to `shape`, without copying."""
    shape = tuple(int(n) for n in shape)
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"broadcast_to: {x.shape} does not stretch to {shape}")
    return x if x.shape == shape else BROADCAST_TO(x, shape=shape)


def _slice_infer(x, index):
    shape = []
    for n, i in zip(x.shape, index, strict=True):
        if isinstance(i, slice):
            shape.append(len(range(*i.indices(n))))
    return tuple(shape), x.dtype


def _slice_vjp(g, out, x, index):
    from .index import SLICE_SCATTER

    return (SLICE_SCATTER(g, shape=tuple(x.shape), index=index),)


SLICE = Op(
    "slice",
    infer=_slice_infer,
    vjp=_slice_vjp,
    keeps_inputs=False,
    view=lambda x, index: x[(*index, ...)],  # the dots: an array even where every index is an integer
    cost=_zero,
    samples=lambda rng: (
        Sample((normal(rng, 4, 5),), {"index": i})
        for i in ((slice(1, 3, None), slice(None, None, 2)), (2, slice(None)), (slice(None, None, -1), -1))
    ),
)


def getitem(x: Tensor, index) -> Tensor:
    """`x[index]`: integers, slices, None and Ellipsis give a view; one integer tensor or array picks along its axis.

    Raises ShapeError for too many indices or one out of range, DTypeError for anything else (bool masks have a size that
    depends on values: use `where`).
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    used = sum(p is not None and p is not Ellipsis for p in parts)
    if used > x.ndim:
        raise ShapeError(f"{used} indices for a tensor of {x.ndim} dimensions (shape {x.shape})")
    dots = next((i for i, p in enumerate(parts) if p is Ellipsis), None)
    missing = [slice(None)] * (x.ndim - used)
    parts = parts + missing if dots is None else parts[:dots] + missing + parts[dots + 1 :]
    arrays = [i for i, p in enumerate(parts) if isinstance(p, (Tensor, np.ndarray, list))]
    if arrays:
        return _pick(x, parts, arrays)
    basic = [p for p in parts if p is not None]
    for axis, p in enumerate(basic):
        _check_index(x, axis, p)
    normal_index = tuple(p if isinstance(p, slice) else int(p) for p in basic)
    result = x if all(p == slice(None) for p in basic) else SLICE(x, index=normal_index)
    return _insert_new_axes(result, parts)


def _check_index(x, axis, p) -> None:
    if isinstance(p, slice):
        return
    if isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, np.integer)):
        raise DTypeError(f"cannot index with a {type(p).__qualname__}; expected integers, slices, None, ... or an "
                         "integer tensor")  # fmt: skip
    if not -x.shape[axis] <= p < x.shape[axis]:
        raise IndexError(f"index {p} is out of range for dimension {axis} of size {x.shape[axis]} (shape {x.shape})")


def _insert_new_axes(x: Tensor, parts) -> Tensor:
    if not any(p is None for p in parts):
        return x
    sizes, shape = iter(x.shape), []
    for p in parts:
        if p is None:
            shape.append(1)
        elif isinstance(p, slice):
            shape.append(next(sizes))
    return reshape(x, tuple(shape))


def _pick(x: Tensor, parts, arrays) -> Tensor:
    from .index import gather

    if len(arrays) > 1 or any(p is None for p in parts):
        raise DTypeError("one integer tensor an index expression; combine several with nn.functional.gather")
    where = arrays[0]
    picked = parts[where] if isinstance(parts[where], Tensor) else Tensor(np.asarray(parts[where]))
    before = sum(not isinstance(p, slice) for p in parts[:where])
    rest = tuple(slice(None) if i == where else p for i, p in enumerate(parts))
    return gather(getitem(x, rest), picked, axis=where - before)
