"""Picking, placing, joining and padding."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConfigError, DTypeError, ShapeError
from ..autograd import mode
from ..op import Op, Sample
from ..tensor import Tensor, as_dtype
from .common import normal, normal_axis, require_integers, require_same_dtype, require_shape
from .shape import expand_dims, getitem


def _copies(*arrays, **attrs):
    return 0


# -- gather and its adjoint ------------------------------------------------------------------------------------------


def _gather_infer(x, idx, axis):
    require_integers("gather", "the index", idx)
    return (*x.shape[:axis], *idx.shape, *x.shape[axis + 1 :]), x.dtype


def _gather_vjp(g, out, x, idx, axis):
    return SCATTER_ADD(g, idx, axis=axis, size=x.shape[axis]), None


def _gather_samples(rng):
    for axis in (0, 1):
        yield Sample((normal(rng, 4, 5), rng.integers(-4, 4, (2, 3))), {"axis": axis})
    yield Sample((normal(rng, 4, 5), np.zeros((0,), np.int64)), {"axis": 0})


def _scatter_infer(g, idx, axis, size):
    require_integers("scatter_add", "the index", idx)
    require_shape("scatter_add", "the index", idx, g.shape[axis : axis + idx.ndim])
    return (*g.shape[:axis], size, *g.shape[axis + idx.ndim :]), g.dtype


def _scatter_samples(rng):
    for axis, shape in ((0, (2, 3, 5)), (1, (4, 2, 3))):
        yield Sample((normal(rng, *shape), rng.integers(-4, 4, (2, 3))), {"axis": axis, "size": 4})


GATHER = Op("gather", infer=_gather_infer, vjp=_gather_vjp, cost=_copies, samples=_gather_samples)
SCATTER_ADD = Op(
    "scatter_add", infer=_scatter_infer, samples=_scatter_samples, cost=lambda g, idx, **a: math.prod(g.shape),
    vjp=lambda gg, out, g, idx, axis, size: (GATHER(gg, idx, axis=axis), None),
)  # fmt: skip


def gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    """Entries of `x` along `axis` at integer positions; negative ones count from the end.

    Shape x.shape[:axis] + index.shape + x.shape[axis + 1:]. Raises IndexError for a position out of range;
    on a GPU, where nobody looks before the kernel runs, it gives NaN (0 for integers).
    """
    axis = normal_axis("gather", axis, x.ndim)
    if mode.trace is not None:  # the eager kernel looks for itself
        mode.trace.guard(index, -x.shape[axis], x.shape[axis], "gather: positions", f"the axis has {x.shape[axis]} entries")
    return GATHER(x, index, axis=axis)


def embedding(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` (entries, width) at integer positions: index.shape + (width,). Positions out of range as in `gather`."""
    return gather(table, index, axis=0)


def _one_hot_infer(idx, depth, dtype):
    require_integers("one_hot", "the index", idx)
    return (*idx.shape, depth), as_dtype(dtype)


ONE_HOT = Op("one_hot", infer=_one_hot_infer, cost=_copies,
             samples=lambda rng: (Sample((rng.integers(0, 4, s),), {"depth": 4, "dtype": d}, False)
                                  for s, d in (((5,), "float32"), ((2, 3), "float64"))))  # fmt: skip


def one_hot(index: Tensor, depth: int, dtype="float32") -> Tensor:
    """1 at each integer position, 0 elsewhere: index.shape + (depth,). Positions outside 0 to depth - 1 give zeros."""
    if depth < 1:
        raise ConfigError(f"one_hot: depth={depth}, expected at least 1")
    return ONE_HOT(index, depth=int(depth), dtype=as_dtype(dtype).name)


def _in_range_samples(rng):
    limits = {"low": -4, "high": 4, "what": "positions", "limit": "the axis has 4 entries"}
    yield Sample((rng.integers(-4, 4, (2, 3)),), limits, False)


IN_RANGE = Op("in_range", infer=lambda idx, **limits: (idx.shape, idx.dtype), cost=_copies, samples=_in_range_samples,
              doc="The same integers once they have been checked: graphs compute what eager functions look at.")  # fmt: skip


# -- slices written back -------------------------------------------------------------------------------------------


def _slice_scatter_infer(g, shape, index):
    return shape, g.dtype


SLICE_SCATTER = Op(
    "slice_scatter", infer=_slice_scatter_infer, keeps_inputs=False, cost=_copies,
    vjp=lambda gg, out, g, shape, index: (getitem(gg, index),),
    samples=lambda rng: (
        Sample((normal(rng, *s),), {"shape": (4, 5), "index": i})
        for s, i in (((2, 3), (slice(1, 3, None), slice(None, None, 2))), ((5,), (2, slice(None))))
    ),
    doc="Zeros of `shape` with the input written at `index`.",
)  # fmt: skip


# -- joining -------------------------------------------------------------------------------------------------------


def _concat_infer(*xs, axis):
    first = xs[0]
    require_same_dtype("concat", *xs)
    for i, x in enumerate(xs):
        if x.ndim != first.ndim or any(a != b for k, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if k != axis):
            raise ShapeError(
                f"concat: tensor {i} has shape {tuple(x.shape)}, tensor 0 {tuple(first.shape)}; they may differ along "
                f"axis {axis} only"
            )
    total = sum(x.shape[axis] for x in xs)
    return (*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype


def _concat_vjp(g, out, *xs, axis):
    def part(start, stop):
        index = tuple(slice(start, stop) if i == axis else slice(None) for i in range(g.ndim))
        return lambda: getitem(g, index)

    ends = np.cumsum([x.shape[axis] for x in xs]).tolist()
    return tuple(part(start, stop) for start, stop in zip([0, *ends], ends, strict=False))


def _concat_samples(rng):
    yield Sample((normal(rng, 2, 3), normal(rng, 2, 1), normal(rng, 2, 4)), {"axis": 1})
    yield Sample((normal(rng, 2, 3), normal(rng, 0, 3)), {"axis": 0})
    yield Sample((normal(rng, 2, 3, 3, 2), normal(rng, 2, 3, 3, 4)), {"axis": 3})


CONCAT = Op("concat", infer=_concat_infer, vjp=_concat_vjp, keeps_inputs=False, cost=_copies, samples=_concat_samples)


def concat(tensors, axis: int = -1) -> Tensor:
    """Tensors end to end along `axis`; all other sizes equal."""
    tensors = list(tensors)
    if not tensors:
        raise ShapeError("concat: no tensors given, expected at least one")
    axis = normal_axis("concat", axis, tensors[0].ndim)
    return tensors[0] if len(tensors) == 1 else CONCAT(*tensors, axis=axis)


def stack(tensors, axis: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension at `axis`."""
    return concat([expand_dims(t, axis) for t in tensors], axis=axis)


def split(x: Tensor, parts, axis: int = -1) -> list[Tensor]:
    """Views of x along `axis`: `parts` equal ones, or of the sizes listed."""
    axis = normal_axis("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(parts, (int, np.integer)):
        if parts < 1 or n % parts:
            raise ShapeError(f"split: {n} entries along axis {axis} do not divide into {parts} equal parts; list the sizes")
        parts = [n // parts] * int(parts)
    if sum(parts) != n:
        raise ShapeError(f"split: sizes {list(parts)} add up to {sum(parts)}, axis {axis} has {n}")
    ends = np.cumsum(parts).tolist()
    return [
        getitem(x, tuple(slice(a, b) if i == axis else slice(None) for i in range(x.ndim)))
        for a, b in zip([0, *ends], ends, strict=False)
    ]


# -- padding -------------------------------------------------------------------------------------------------------


def _pad_infer(x, widths, value, mode):
    if mode != "constant":
        raise ConfigError(f"pad: mode={mode!r}; expected 'constant'")
    return tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)), x.dtype


def _pad_vjp(g, out, x, widths, value, mode):
    return (getitem(g, tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))),)


PAD = Op(
    "pad", infer=_pad_infer, vjp=_pad_vjp, keeps_inputs=False, cost=_copies,
    samples=lambda rng: (
        Sample((normal(rng, 2, 3),), {"widths": w, "value": v, "mode": "constant"})
        for w, v in ((((1, 2), (0, 1)), 0.0), (((0, 0), (2, 2)), 1.5))
    ),
)  # fmt: skip


def pad(x: Tensor, widths, value: float = 0.0) -> Tensor:
    """`value` added around x; widths: (before, after) for each dimension."""
    widths = tuple(tuple(w) for w in widths)
    if len(widths) != x.ndim or any(len(w) != 2 or min(w) < 0 for w in widths):
        raise ShapeError(f"pad: widths {widths} for shape {x.shape}; expected one (before, after) a dimension, none negative")
    if x.dtype.kind in "iub" and value != int(value):
        raise DTypeError(f"pad: value {value} does not fit dtype {x.dtype}")
    return PAD(x, widths=widths, value=value, mode="constant")


# -- layout --------------------------------------------------------------------------------------------------------

CONTIGUOUS = Op(
    "contiguous", infer=lambda x: (x.shape, x.dtype), vjp=lambda g, out, x: (g,), keeps_inputs=False, cost=_copies,
    samples=lambda rng: (
        Sample((x,)) for x in (normal(rng, 3, 4), normal(rng, 2, 5, 3).transpose(2, 0, 1), normal(rng, 4, 6)[::2, ::-1])
    ),
    doc="A copy in row-major order, of whatever view.",
)  # fmt: skip
