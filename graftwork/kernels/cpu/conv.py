"""Two-dimensional convolution on the CPU, eagerly: float32 through the plans of `conv_select.py`, the rest through BLAS.

Images are (N, H, W, C), weights (kh, kw, C/groups, Cout). `conv2d`, `conv2d_input_grad` and `conv2d_weight_grad` pick a
variant by its shapes; every variant is a kernel of its own, for the cases that its docstring names.

im2col ("image to columns") copies the pixels under each position of the kernel into one row of a matrix, which makes
the convolution a matrix product (Chellapilla, Puri and Simard, 2006). That is done for a chunk of output lines at a
time: the columns stay near the cores and the scratch memory stays small however large the batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from ..plan import Plan, spec_of
from . import _conv_loops as loops
from . import conv_gemm, conv_grads, conv_select, runtime, winograd
from ._epilogue import activation_code, finish
from .matmul import blas_ready

Pair = tuple[int, int]
CHUNK_BYTES = 4 << 20  # of im2col scratch in the forward pass: what two cores' second-level caches hold
GRADIENT_CHUNK_BYTES = 16 << 20  # larger, because each chunk adds a whole weight gradient to the sum
DIRECT_BELOW = 32768  # multiplications; smaller problems are over before a plan is bound or threads have started


def choose_variant(kernel, pixels: int, stride: Pair, padding, groups: int) -> str:
    """The variant where there is no plan, for a kernel (kh, kw, C/groups, Cout) and `pixels` = N * oh * ow positions."""
    kh, kw, group_channels, cout = kernel
    if groups > 1 and group_channels == 1:
        return "depthwise"
    if pixels * kh * kw * group_channels * cout < DIRECT_BELOW:
        return "direct"
    plain = kh == kw == 1 and stride == (1, 1) and not any(map(any, padding))
    return "pointwise" if plain and groups == 1 else "im2col"


def conv2d(x, w, b=None, r=None, *, out, stride: Pair, padding, dilation: Pair, groups: int, activation=None) -> None:
    """out[N, oh, ow, Cout] = activation(x * w + b + r), by the variant that suits the shapes.

    r is like out. Raises ValueError for an activation that cannot be fused (`_epilogue.ACTIVATIONS`).
    """
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    variant = choose_variant(w.shape, _pixels(out), stride, padding, groups)
    if variant == "direct" or not _planned("plan_conv2d", _inputs(x, w, b, r), out, activation=activation, **geometry):
        FORWARD[variant](x, w, b, r, out=out, activation=activation, **geometry)


def conv2d_input_grad(g, w, *, out, input_shape, stride: Pair, padding, dilation: Pair, groups: int) -> None:
    """The adjoint of `conv2d` in x: g is (N, oh, ow, Cout), out has `input_shape`."""
    geometry = {"input_shape": tuple(input_shape), "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    variant = choose_variant(w.shape, _pixels(g), stride, padding, groups)
    if variant == "direct" or not _planned("plan_conv2d_input_grad", (g, w), out, **geometry):
        INPUT_GRAD[variant](g, w, out=out, **geometry)


def conv2d_weight_grad(x, g, *, out, kernel_shape: Pair, stride: Pair, padding, dilation: Pair, groups: int) -> None:
    """The adjoint of `conv2d` in w: out is (kh, kw, C/groups, Cout)."""
    geometry = {"kernel_shape": kernel_shape, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    variant = choose_variant(out.shape, _pixels(g), stride, padding, groups)
    if variant == "direct" or not _planned("plan_conv2d_weight_grad", (x, g), out, **geometry):
        WEIGHT_GRAD[variant](x, g, out=out, **geometry)


def _pixels(y) -> int:
    return y.shape[0] * y.shape[1] * y.shape[2]


def _inputs(x, w, b, r) -> tuple:
    """The inputs of a plan, which takes no residual without a bias."""
    if r is None:
        return (x, w) if b is None else (x, w, b)
    return x, w, np.zeros(w.shape[3], w.dtype) if b is None else b, r


@lru_cache(maxsize=4096)
def _plan(name: str, threads: int, inputs, out, attributes) -> Plan | None:
    """The same call comes again and again, and a plan holds no memory."""
    return getattr(conv_select, name)(*inputs, out=out, **dict(attributes))


def _planned(name: str, inputs, out, **attributes) -> bool:
    """Run a call through its plan; False, with nothing done, if it has none."""
    specs = tuple(map(spec_of, inputs))
    return _carry_out(_plan(name, runtime.num_threads(), specs, spec_of(out), tuple(attributes.items())), inputs, out)


def _carry_out(plan: Plan | None, inputs, out) -> bool:
    if plan is None:
        return False
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    runtime.call(plan, inputs, (target,))
    if target is not out:
        out[...] = target
    return True


def _by_name(variant: str, plan: Plan | None, inputs, out) -> None:
    """Run a variant that was asked for by name; ValueError where it cannot do this convolution."""
    if plan is None and out.size and all(a.size for a in inputs):
        shapes = ", ".join(str(a.shape) for a in inputs)
        raise ValueError(
            f"variant {variant!r} cannot compute a convolution of {shapes} with these attributes; call conv2d without a variant"
        )
    if not _carry_out(plan, inputs, out):
        out[...] = 0


def conv2d_implicit_gemm(x, w, b=None, r=None, *, out, activation=None, **geometry) -> None:
    """For float32, any shape: `conv_gemm.py`."""
    inputs = _inputs(x, w, b, r)
    plan = conv_gemm.plan_forward(*map(spec_of, inputs), out=spec_of(out), activation=activation, **geometry)
    _by_name("implicit_gemm", plan, inputs, out)


def conv2d_input_grad_implicit_gemm(g, w, *, out, **geometry) -> None:
    """For float32, any shape: `conv_grads.py`."""
    _by_name("implicit_gemm", conv_grads.plan_input_grad(spec_of(g), spec_of(w), out=spec_of(out), **geometry), (g, w), out)


def conv2d_weight_grad_implicit_gemm(x, g, *, out, **geometry) -> None:
    """For float32, any shape: `conv_grads.py`."""
    _by_name("implicit_gemm", conv_grads.plan_weight_grad(spec_of(x), spec_of(g), out=spec_of(out), **geometry), (x, g), out)


def conv2d_winograd(x, w, b=None, r=None, *, out, activation=None, **geometry) -> None:
    """For float32, 3x3 kernels, stride 1, no dilation, one group: `winograd.py`."""
    inputs = _inputs(x, w, b, r)
    plan = winograd.plan(*map(spec_of, inputs), out=spec_of(out), activation=activation, **geometry)
    _by_name("winograd", plan, inputs, out)


def conv2d_input_grad_winograd(g, w, *, out, **geometry) -> None:
    """For float32, 3x3 kernels, stride 1, no dilation, one group, padding of at most 2: `winograd.py`."""
    _by_name("winograd", winograd.plan_input_grad(spec_of(g), spec_of(w), out=spec_of(out), **geometry), (g, w), out)


def conv2d_pointwise(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    """For 1x1 kernels, stride 1, no padding, one group: a single matrix product."""
    code = activation_code(activation)
    flat = _matrix(out)
    np.matmul(_matrix(x), _matrix(w), out=flat)
    finish(out, b, r, code)


def conv2d_im2col(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    """For any shape and any number of groups: one product a group for each chunk of output lines."""
    code = activation_code(activation)
    kernel, flat = _group_matrices(w, groups), _matrix(out)
    for cols, rows in _column_chunks(x, w.shape, out.shape, stride, padding, dilation, groups, CHUNK_BYTES):
        np.matmul(cols, kernel, out=_group_columns(flat[rows], groups))
    finish(out, b, r, code)


def conv2d_depthwise(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    """For groups = C: every channel is filtered on its own. A multiplier above 1 repeats the channels first."""
    code = activation_code(activation)
    loops.depthwise(_repeated(x, w.shape[3]), _filters(w), out, *_geometry(stride, padding, dilation))
    finish(out, b, r, code)


def conv2d_direct(x, w, b=None, r=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    """For any shape, on one thread: the choice for very small problems."""
    code = activation_code(activation)
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    loops.direct(x, w, out, groups, *_geometry(stride, padding, dilation))
    finish(out, b, r, code)


def conv2d_input_grad_pointwise(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    """For 1x1 kernels, stride 1, no padding, one group."""
    np.matmul(_matrix(g), _matrix(w).T, out=_matrix(out))


def conv2d_input_grad_im2col(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    """For any shape: the columns' gradient by a product, then every input pixel gathers its share (col2im)."""
    if g.size == 0:
        out[...] = 0
        return
    (kh, kw, cin, _), (_, oh, ow, _) = w.shape, g.shape
    g, kernel = np.ascontiguousarray(g), _group_matrices(w, groups).transpose(0, 2, 1)
    n, h, width, c = input_shape
    lines = out.reshape(n, h, width * c)
    line_bytes = groups * ow * kh * kw * cin * g.itemsize
    for images, start, stop, first, last in _input_blocks(n, h, oh, kh, stride[0], padding[0][0], dilation[0], line_bytes):
        block = _group_columns(_matrix(g[images, first:last]), groups)
        cols = np.matmul(block, kernel)
        geometry = (ow, kh, kw, *_geometry(stride, padding, dilation))
        loops.col2im(cols, lines[images], c, start, stop, first, last - first, *geometry)


def conv2d_input_grad_depthwise(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    """For groups = C."""
    n, h, width, c = input_shape
    multiplier = w.shape[3] // c
    wide = out if multiplier == 1 else np.empty((n, h, width, w.shape[3]), out.dtype)
    loops.depthwise_input_grad(np.ascontiguousarray(g), _filters(w), wide, *_geometry(stride, padding, dilation))
    if multiplier > 1:
        np.sum(wide.reshape(n, h, width, c, multiplier), axis=-1, out=out)


def conv2d_input_grad_direct(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    """For any shape, on one thread."""
    out[...] = 0
    g, w = np.ascontiguousarray(g), np.ascontiguousarray(w)
    loops.direct_input_grad(g, w, out, groups, *_geometry(stride, padding, dilation))


def conv2d_weight_grad_pointwise(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    """For 1x1 kernels, stride 1, no padding, one group."""
    np.matmul(_matrix(x).T, _matrix(g), out=_matrix(out))


def conv2d_weight_grad_im2col(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    """For any shape and any number of groups: the transposed columns times g, summed over the chunks."""
    total, flat = _group_matrices(out, groups), _matrix(np.ascontiguousarray(g))
    written = False
    for cols, rows in _column_chunks(x, out.shape, g.shape, stride, padding, dilation, groups, GRADIENT_CHUNK_BYTES):
        operands = cols.transpose(0, 2, 1), _group_columns(flat[rows], groups)
        if written:
            total += np.matmul(*operands)
        else:
            np.matmul(*operands, out=total)
            written = True
    if not written:
        out[...] = 0


def conv2d_weight_grad_depthwise(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    """For groups = C."""
    kh, kw, _, channels = out.shape
    sums = np.zeros((1, kh, kw, channels), out.dtype)
    x, g = _repeated(x, channels), np.ascontiguousarray(g)
    loops.depthwise_weight_grad(x, g, sums, *_geometry(stride, padding, dilation))
    out[...] = sums.reshape(out.shape)


def conv2d_weight_grad_direct(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    """For any shape, on one thread."""
    out[...] = 0
    x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
    loops.direct_weight_grad(x, g, out, groups, *_geometry(stride, padding, dilation))


def _geometry(stride: Pair, padding, dilation: Pair) -> tuple[int, ...]:
    """(sh, sw, top, left, dh, dw), as the compiled loops take them."""
    return (*stride, padding[0][0], padding[1][0], *dilation)


def _matrix(a: np.ndarray) -> np.ndarray:
    """a with all axes but the last as rows; a view wherever a's layout allows."""
    columns = a.shape[-1]
    return blas_ready(a.reshape(a.size // columns if columns else 0, columns))


def _group_columns(matrix: np.ndarray, groups: int) -> np.ndarray:
    """(rows, groups * k) -> (groups, rows, k), a view that BLAS can read and write."""
    rows, columns = matrix.shape
    return matrix.reshape(rows, groups, columns // groups).transpose(1, 0, 2)


def _group_matrices(w: np.ndarray, groups: int) -> np.ndarray:
    """(kh, kw, cin, groups * k) -> (groups, kh * kw * cin, k), a view of a contiguous w."""
    return _group_columns(_matrix(np.ascontiguousarray(w)), groups)


def _column_chunks(
    x, kernel_shape, out_shape, stride, padding, dilation, groups: int, limit: int
) -> Iterator[tuple[np.ndarray, slice]]:
    """The im2col columns (groups, rows, kh * kw * cin) chunk by chunk, with the rows of the output they belong to."""
    (kh, kw, cin, _), (n, oh, ow, _) = kernel_shape, out_shape
    taps, lines, c = kh * kw * cin, n * oh, x.shape[3]
    if lines * ow * taps == 0:
        return
    x = np.ascontiguousarray(x).reshape(n, x.shape[1], x.shape[2] * c)
    step = _even_step(lines, limit // (groups * ow * taps * x.itemsize))
    scratch = np.empty(groups * step * ow * taps, x.dtype)
    for first in range(0, lines, step):
        count = min(step, lines - first)
        cols = scratch[: groups * count * ow * taps].reshape(groups, count * ow, taps)
        geometry = (oh, ow, kh, kw, *_geometry(stride, padding, dilation))
        loops.im2col(x, c, cols, first, count, *geometry)
        yield cols, slice(first * ow, (first + count) * ow)


def _even_step(total: int, most: int) -> int:
    """The size of equal shares of `total` that are no larger than `most` (but at least 1)."""
    shares = -(-total // max(1, most))
    return -(-total // shares)


def _input_blocks(n, h, oh, kh, sh, top, dh, line_bytes: int) -> Iterator[tuple[slice, int, int, int, int]]:
    """(images, input lines start:stop, output lines first:last that reach them): whole images, or parts of one."""
    if oh * line_bytes <= GRADIENT_CHUNK_BYTES:
        step = _even_step(n, GRADIENT_CHUNK_BYTES // (oh * line_bytes))
        for i in range(0, n, step):
            yield slice(i, min(i + step, n)), 0, h, 0, oh
        return
    step = max(1, GRADIENT_CHUNK_BYTES // line_bytes * sh)
    for i in range(n):
        for start in range(0, h, step):
            stop = min(start + step, h)
            first = min(oh, max(0, -(-(start + top - (kh - 1) * dh) // sh)))
            yield slice(i, i + 1), start, stop, first, max(first, min(oh, (stop - 1 + top) // sh + 1))


def _repeated(x: np.ndarray, channels: int) -> np.ndarray:
    """x with every channel repeated until there are `channels`, contiguous."""
    multiplier = channels // x.shape[3]
    return np.ascontiguousarray(x) if multiplier == 1 else np.repeat(x, multiplier, axis=3)


def _filters(w: np.ndarray) -> np.ndarray:
    """Depthwise weights (kh, kw, 1, C) as (kh, kw, C)."""
    return np.ascontiguousarray(w).reshape(w.shape[0], w.shape[1], w.shape[3])


FORWARD: dict[str, Callable] = {
    "implicit_gemm": conv2d_implicit_gemm,
    "winograd": conv2d_winograd,
    "pointwise": conv2d_pointwise,
    "im2col": conv2d_im2col,
    "depthwise": conv2d_depthwise,
    "direct": conv2d_direct,
}
INPUT_GRAD: dict[str, Callable] = {
    "implicit_gemm": conv2d_input_grad_implicit_gemm,
    "winograd": conv2d_input_grad_winograd,
    "pointwise": conv2d_input_grad_pointwise,
    "im2col": conv2d_input_grad_im2col,
    "depthwise": conv2d_input_grad_depthwise,
    "direct": conv2d_input_grad_direct,
}
WEIGHT_GRAD: dict[str, Callable] = {
    "implicit_gemm": conv2d_weight_grad_implicit_gemm,
    "pointwise": conv2d_weight_grad_pointwise,
    "im2col": conv2d_weight_grad_im2col,
    "depthwise": conv2d_weight_grad_depthwise,
    "direct": conv2d_weight_grad_direct,
}
