"""Two-dimensional convolution in plain NumPy: one shifted, strided copy of the image per kernel tap.

Images are (N, H, W, C), weights (kh, kw, C/groups, Cout); group j maps the j-th run of input channels to the j-th run of
output channels. A depthwise convolution is groups = C.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._epilogue import finish

Pair = tuple[int, int]


def conv2d(x, w, b=None, r=None, *, out, stride: Pair, padding, dilation: Pair, groups: int, activation=None) -> None:
    """out[n, y, x, o] = activation(sum over taps and channels of x * w + b[o] + r)."""
    out[...] = 0
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    for tap, window in _taps(w.shape, out.shape, stride, dilation):
        for cin, cout in _group_channels(w.shape, groups):
            out[..., cout] += padded[window][..., cin] @ w[tap][:, cout]
    finish(out, b, r, activation)


def conv2d_input_grad(g, w, *, out, input_shape, stride: Pair, padding, dilation: Pair, groups: int) -> None:
    """The adjoint of `conv2d` in its input: g has the output's shape, out has `input_shape`."""
    (top, bottom), (left, right) = padding
    n, h, width, c = input_shape
    padded = np.zeros((n, top + h + bottom, left + width + right, c), out.dtype)
    for tap, window in _taps(w.shape, g.shape, stride, dilation):
        for cin, cout in _group_channels(w.shape, groups):
            padded[window][..., cin] += g[..., cout] @ w[tap][:, cout].T
    out[...] = padded[:, top : top + h, left : left + width]


def conv2d_weight_grad(x, g, *, out, kernel_shape: Pair, stride: Pair, padding, dilation: Pair, groups: int) -> None:
    """The adjoint of `conv2d` in its weight: out is (kh, kw, C/groups, Cout)."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    for tap, window in _taps(out.shape, g.shape, stride, dilation):
        for cin, cout in _group_channels(out.shape, groups):
            pixels = padded[window][..., cin].reshape(-1, cin.stop - cin.start)
            out[tap][:, cout] = pixels.T @ g[..., cout].reshape(-1, cout.stop - cout.start)


def _taps(kernel_shape, out_shape, stride: Pair, dilation: Pair) -> Iterator[tuple[Pair, tuple]]:
    """Every (ky, kx) with the window of the padded image that this tap meets."""
    (sh, sw), (dh, dw), (oh, ow) = stride, dilation, out_shape[1:3]
    for ky in range(kernel_shape[0]):
        for kx in range(kernel_shape[1]):
            rows = slice(ky * dh, ky * dh + oh * sh, sh)
            columns = slice(kx * dw, kx * dw + ow * sw, sw)
            yield (ky, kx), (slice(None), rows, columns)


def _group_channels(kernel_shape, groups: int) -> Iterator[tuple[slice, slice]]:
    """(input channels, output channels) of every group."""
    cin, cout = kernel_shape[2], kernel_shape[3] // groups
    for j in range(groups):
        yield slice(j * cin, (j + 1) * cin), slice(j * cout, (j + 1) * cout)
