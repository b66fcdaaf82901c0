"""float32 convolution on the register tile of `simd.py`: implicit GEMM, no im2col, one parallel region a call.

In a zero-padded NHWC image the values under one row of the window lie side by side, so an output pixel's dot product is
`kh` runs of `kw * channels` values; neighbouring pixels start `stride * channels` further on.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange

from ._epilogue import activation_code
from .jit import njit
from .simd import LANES, address, tile

_14x2, _8x2, _4x2, _2x2, _1x2 = (tile(rows, 2) for rows in (14, 8, 4, 2, 1))
_14x1, _8x1, _4x1, _2x1, _1x1 = (tile(rows, 1) for rows in (14, 8, 4, 2, 1))
_LOW = {0: -np.inf, 1: 0.0, 2: 0.0}
_HIGH = {0: np.inf, 1: np.inf, 2: 6.0}


def supports(dtype, dilation, groups: int) -> bool:
    """Whether the tile can run a convolution: float32, one group, no gaps between the window's columns."""
    return dtype == np.float32 and groups == 1 and dilation[1] == 1


def conv2d_simd(x, w, b=None, *, out, stride, padding, dilation, groups, activation=None) -> None:
    """For float32, one group, no horizontal dilation."""
    code = activation_code(activation)
    if 0 in out.shape:
        return
    (kh, kw, channels, cout), (sh, sw) = w.shape, stride
    x = pad(x, padding)
    bias = np.zeros(-(-cout // LANES) * LANES + LANES, np.float32)
    if b is not None:
        bias[:cout] = b
    rows, columns = out.shape[0] * out.shape[1], out.shape[2]
    geometry = (
        out.shape[1],
        x.shape[1] * x.shape[2] * channels,
        sh * x.shape[2] * channels,
        dilation[0] * x.shape[2] * channels,
    )
    if kh == kw == sh == sw == 1 and not any(map(any, padding)):  # pixels of all rows are one long row
        columns = max(rows * columns // (4 * get_num_threads()) // 14 * 14, 14)
        _pointwise(x.reshape(-1), pack(w), out.reshape(-1), bias, out.size // cout, columns, channels, cout,
                   _LOW[code], _HIGH[code])  # fmt: skip
        return
    _forward(x.reshape(-1), pack(w), out.reshape(-1), bias, rows, columns, geometry, kh, kw * channels, sw * channels,
             cout, _LOW[code], _HIGH[code])  # fmt: skip


def conv2d_input_grad_simd(g, w, *, out, input_shape, stride, padding, dilation, groups) -> None:
    """For float32, one group, stride 1: a convolution of the gradient with the window turned around."""
    kh, kw = w.shape[:2]
    (top, bottom), (left, right) = padding
    reach = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    turned = np.ascontiguousarray(w[::-1, ::-1].transpose(0, 1, 3, 2))
    sides = ((reach[0] - top, reach[0] - bottom), (reach[1] - left, reach[1] - right))
    conv2d_simd(g, turned, out=out, stride=(1, 1), padding=sides, dilation=dilation, groups=1)


def conv2d_weight_grad_simd(x, g, *, out, kernel_shape, stride, padding, dilation, groups) -> None:
    """For float32, one group, no dilation, output channels in whole vectors."""
    if 0 in x.shape or 0 in g.shape:
        out[...] = 0
        return
    x, g = pad(x, padding), np.ascontiguousarray(g)
    threads = max(min(get_num_threads(), x.shape[0]), 1)
    sums = np.zeros((threads, *out.shape), np.float32)
    channels, pitch = x.shape[3], x.shape[2] * x.shape[3]
    _weight_grad(x.reshape(x.shape[0], -1), g.reshape(g.shape[0], -1), sums.reshape(threads, -1), g.shape[1], g.shape[2],
                 g.shape[3], kernel_shape[0], kernel_shape[1] * channels, stride[1] * channels, stride[0] * pitch,
                 dilation[0] * pitch)  # fmt: skip
    sums.sum(axis=0, out=out)


def pad(x: np.ndarray, padding) -> np.ndarray:
    """A contiguous image batch with zeros around each image."""
    (top, bottom), (left, right) = padding
    if not any((top, bottom, left, right)):
        return np.ascontiguousarray(x)
    n, h, w, c = x.shape
    padded = np.empty((n, h + top + bottom, w + left + right, c), x.dtype)
    _pad(np.ascontiguousarray(x), padded, top, left)
    return padded


@njit(parallel=True, boundscheck=False)
def _pad(x, out, top, left):
    n, h, w, _ = x.shape
    height = out.shape[1]
    for line in prange(n * height):
        image, row = line // height, line % height - top
        target = out[image, row + top]
        if row < 0 or row >= h:
            target[:] = 0
        else:
            target[:left] = 0
            target[left : left + w] = x[image, row]
            target[left + w :] = 0


def pack(w: np.ndarray) -> np.ndarray:
    """Weights (kh, kw, in, out) as panels of 32 (or, last, 16) output channels: for each, all taps one after another."""
    taps, cout = int(np.prod(w.shape[:3])), w.shape[3]
    wide = -(-cout // LANES) * LANES
    flat = np.zeros((taps, wide), np.float32)
    flat[:, :cout] = w.reshape(taps, cout)
    full = wide // (2 * LANES) * (2 * LANES)
    panels = flat[:, :full].reshape(taps, -1, 2 * LANES).transpose(1, 0, 2).ravel()
    return np.concatenate([panels, flat[:, full:].ravel()])


@njit(boundscheck=False)
def _run(x, a, w, b, wide, c, at, ldc, bias, bias_at, count, k1, k2, ai, ak2, low, high):
    """`count` neighbouring pixels: 32 output channels if `wide`, else 16, written to `c` from `at` on, rows `ldc` apart."""
    i = 0
    step = 32 if wide else 16
    pb, init = address(w, b), address(bias, bias_at)
    while i < count:
        pa, pc, left = address(x, a + i * ai), address(c, at + i * ldc), count - i
        if wide:
            if left >= 14:
                _14x2(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
                i += 14
            elif left >= 8:
                _8x2(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
                i += 8
            elif left >= 4:
                _4x2(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
                i += 4
            elif left >= 2:
                _2x2(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
                i += 2
            else:
                _1x2(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
                i += 1
        elif left >= 14:
            _14x1(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
            i += 14
        elif left >= 8:
            _8x1(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
            i += 8
        elif left >= 4:
            _4x1(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
            i += 4
        elif left >= 2:
            _2x1(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
            i += 2
        else:
            _1x1(pa, pb, pc, init, k1, k2, ai, 1, ak2, step, k1 * step, ldc, 0, low, high)
            i += 1


@njit(boundscheck=False)
def _pixels(x, a, w, c, at, bias, count, k1, k2, ai, ak2, cout, scratch, low, high):
    """`count` neighbouring pixels, all output channels. A last panel that is not full goes through `scratch`."""
    for first in range(0, cout, 32):
        b, valid = first * k1 * k2, min(cout - first, 32)
        wide = cout - first > 16
        if valid == 32 or valid == 16:
            _run(x, a, w, b, wide, c, at + first, cout, bias, first, count, k1, k2, ai, ak2, low, high)
            continue
        done = 0
        while done < count:
            n = min(count - done, scratch.size // 32)
            _run(x, a + done * ai, w, b, wide, scratch, 0, 32, bias, first, n, k1, k2, ai, ak2, low, high)
            for i in range(n):
                for j in range(valid):
                    c[at + (done + i) * cout + first + j] = scratch[i * 32 + j]
            done += n


@njit(parallel=True, boundscheck=False)
def _forward(x, w, c, bias, rows, columns, geometry, kh, k1, ai, cout, low, high):
    height, image_pitch, row_step, ak2 = geometry
    low, high = np.float32(low), np.float32(high)
    for row in prange(rows):
        scratch = np.empty(56 * 32, np.float32)
        a = row // height * image_pitch + row % height * row_step
        _pixels(x, a, w, c, row * columns * cout, bias, columns, k1, kh, ai, ak2, cout, scratch, low, high)


@njit(parallel=True, boundscheck=False)
def _pointwise(x, w, c, bias, pixels, block, channels, cout, low, high):
    low, high = np.float32(low), np.float32(high)
    for part in prange((pixels + block - 1) // block):
        scratch = np.empty(56 * 32, np.float32)
        first = part * block
        count = min(block, pixels - first)
        for start in range(first, first + count, 112):  # enough pixels to stay in the first cache for all panels
            n = min(112, first + count - start)
            _pixels(x, start * channels, w, c, start * cout, bias, n, channels, 1, channels, 0, cout, scratch, low, high)


@njit(parallel=True, boundscheck=False)
def _weight_grad(x, g, sums, oh, ow, cout, kh, rows, ak1, ak2, window_row):
    """sums[thread, (ky, rows, cout)] += x^T g over the images of each thread. rows = kw * channels."""
    images, threads = x.shape[0], sums.shape[0]
    low, high = np.float32(-np.inf), np.float32(np.inf)
    for thread in prange(threads):
        mine = sums[thread]
        for image in range(thread * images // threads, (thread + 1) * images // threads):
            image_x, image_g = x[image], g[image]
            for ky in range(kh):
                for j in range(0, cout, 32):
                    wide = cout - j > 16
                    i = 0
                    while i < rows:
                        pa, pb = address(image_x, ky * window_row + i), address(image_g, j)
                        pc = address(mine, (ky * rows + i) * cout + j)
                        left = rows - i
                        if wide:
                            if left >= 14:
                                _14x2(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                                i += 14
                            elif left >= 4:
                                _4x2(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                                i += 4
                            else:
                                _1x2(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                                i += 1
                        elif left >= 14:
                            _14x1(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                            i += 14
                        elif left >= 4:
                            _4x1(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                            i += 4
                        else:
                            _1x1(pa, pb, pc, pc, ow, oh, 1, ak1, ak2, cout, ow * cout, cout, cout, low, high)
                            i += 1
