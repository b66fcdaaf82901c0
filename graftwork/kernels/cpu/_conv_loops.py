"""The compiled loops of the convolutions. All arrays are C-contiguous; nothing is checked here.

Throughout, output pixel (y, x) meets input pixel (y * sh - top + ky * dh, x * sw - left + kx * dw) at tap (ky, kx).
The innermost loops run over channels, which lie next to each other in memory, and so become vector instructions. All run
on the caller's thread: they serve float64 and the smallest arrays; `strips.py` has the loops for the rest.
"""

from __future__ import annotations

from .jit import njit

FUSED = {"contract"}  # multiply and add in one instruction; NaN and infinity keep their meaning


@njit(nogil=True)
def _copy(target, at, source, start, count):
    to, what = target[at : at + count], source[start : start + count]  # slices spare the loop its index checks
    for i in range(count):
        to[i] = what[i]


@njit(nogil=True)
def _zero(target, at, count):
    to = target[at : at + count]
    for i in range(count):
        to[i] = 0


@njit(nogil=True)
def _valid(start, step, taps, size):
    """The taps k in [low, high) for which start + k * step lies inside [0, size)."""
    low = 0 if start >= 0 else (-start + step - 1) // step
    high = min(taps, (size - 1 - start) // step + 1)
    return low, max(low, high)


@njit(nogil=True)
def _im2col_line(image, c, cols, row, y, ow, kh, kw, sh, sw, top, left, dh, dw):
    h, w, groups = image.shape[0], image.shape[1] // c, cols.shape[0]
    width = c // groups
    for j in range(groups):
        for x in range(ow):
            to, start = cols[j, row + x], x * sw - left
            whole = dw == 1 and groups == 1 and start >= 0 and start + kw <= w
            for ky in range(kh):
                iy, at = y * sh - top + ky * dh, ky * kw * width
                if iy < 0 or iy >= h:
                    _zero(to, at, kw * width)
                elif whole:  # the taps of one kernel row are neighbours in memory
                    _copy(to, at, image[iy], start * c, kw * c)
                else:
                    for kx in range(kw):
                        ix = start + kx * dw
                        if ix < 0 or ix >= w:
                            _zero(to, at + kx * width, width)
                        else:
                            _copy(to, at + kx * width, image[iy], ix * c + j * width, width)


@njit(nogil=True)
def im2col(x, c, cols, first, lines, oh, ow, kh, kw, sh, sw, top, left, dh, dw):
    """cols[groups, lines * ow, kh * kw * C/groups] of output lines first, first + 1, ... (n * oh + y); x is (N, H, W*C)."""
    for i in range(lines):
        n, y = (first + i) // oh, (first + i) % oh
        _im2col_line(x[n], c, cols, i * ow, y, ow, kh, kw, sh, sw, top, left, dh, dw)


@njit(nogil=True)
def _add(target, at, source, start, count):
    to, what = target[at : at + count], source[start : start + count]
    for i in range(count):
        to[i] += what[i]


@njit(nogil=True)
def _col2im_line(cols, row, line, c, iy, first, lines, ow, kh, kw, sh, sw, top, left, dh, dw):
    groups, w = cols.shape[0], line.size // c
    width = c // groups
    _zero(line, 0, line.size)
    for ky in range(kh):
        above = iy + top - ky * dh
        y = above // sh - first
        if above % sh != 0 or y < 0 or y >= lines:
            continue
        for kx in range(kw):
            for x in range(ow):
                ix = x * sw - left + kx * dw
                if 0 <= ix < w:
                    for j in range(groups):
                        _add(line, ix * c + j * width, cols[j, row + y * ow + x], (ky * kw + kx) * width, width)


@njit(nogil=True)
def col2im(cols, out, c, start, stop, first, lines, ow, kh, kw, sh, sw, top, left, dh, dw):
    """Input lines [start, stop) of every image of out (N, H, W*C), from the columns of `lines` output lines an image."""
    count = stop - start
    for i in range(out.shape[0] * count):
        n, iy = i // count, start + i % count
        _col2im_line(cols, n * lines * ow, out[n, iy], c, iy, first, lines, ow, kh, kw, sh, sw, top, left, dh, dw)


@njit(nogil=True, fastmath=FUSED)
def _tap(to, x, w):
    for c in range(to.size):
        to[c] += x[c] * w[c]


@njit(nogil=True, fastmath=FUSED)
def _three_taps(to, x0, x1, x2, w0, w1, w2):
    for c in range(to.size):
        to[c] += x0[c] * w0[c] + x1[c] * w1[c] + x2[c] * w2[c]


@njit(nogil=True)
def _depthwise_pixel(to, line, w, start, dw):
    low, high = _valid(start, dw, w.shape[0], line.shape[0])
    kx = low
    while kx + 3 <= high:  # three at once: the sums make a third of the way to memory and back
        ix = start + kx * dw
        _three_taps(to, line[ix], line[ix + dw], line[ix + 2 * dw], w[kx], w[kx + 1], w[kx + 2])
        kx += 3
    while kx < high:
        _tap(to, line[start + kx * dw], w[kx])
        kx += 1


@njit(nogil=True)
def _depthwise_line(image, w, out, y, sh, sw, top, left, dh, dw):
    for x in range(out.shape[0]):
        to = out[x]
        _zero(to, 0, to.size)
        low, high = _valid(y * sh - top, dh, w.shape[0], image.shape[0])
        for ky in range(low, high):
            _depthwise_pixel(to, image[y * sh - top + ky * dh], w[ky], x * sw - left, dw)


@njit(nogil=True)
def depthwise(x, w, out, sh, sw, top, left, dh, dw):
    """out[n, y, x, c] = sum over taps of x * w[ky, kx, c]."""
    oh = out.shape[1]
    for i in range(out.shape[0] * oh):
        _depthwise_line(x[i // oh], w, out[i // oh, i % oh], i % oh, sh, sw, top, left, dh, dw)


@njit(nogil=True)
def _depthwise_grad_line(g, w, line, iy, sh, sw, top, left, dh, dw):
    for ix in range(line.shape[0]):
        to = line[ix]
        _zero(to, 0, to.size)
        for ky in range(w.shape[0]):
            above = iy + top - ky * dh
            y = above // sh
            if above % sh != 0 or y < 0 or y >= g.shape[0]:
                continue
            for kx in range(w.shape[1]):
                before = ix + left - kx * dw
                x = before // sw
                if before % sw == 0 and 0 <= x < g.shape[1]:
                    _tap(to, g[y, x], w[ky, kx])


@njit(nogil=True)
def depthwise_input_grad(g, w, out, sh, sw, top, left, dh, dw):
    """The adjoint of `depthwise` in x: every input pixel gathers what it gave."""
    h = out.shape[1]
    for i in range(out.shape[0] * h):
        _depthwise_grad_line(g[i // h], w, out[i // h, i % h], i % h, sh, sw, top, left, dh, dw)


@njit(nogil=True, fastmath=FUSED)
def _four_products(to, x0, x1, x2, x3, g0, g1, g2, g3):
    for c in range(to.size):
        to[c] += x0[c] * g0[c] + x1[c] * g1[c] + x2[c] * g2[c] + x3[c] * g3[c]


@njit(nogil=True)
def _depthwise_weight_line(image, g, sums, y, sh, sw, top, left, dh, dw):
    low, high = _valid(y * sh - top, dh, sums.shape[0], image.shape[0])
    for ky in range(low, high):
        line = image[y * sh - top + ky * dh]
        for kx in range(sums.shape[1]):
            to, shift = sums[ky, kx], kx * dw - left
            x, end = _valid(shift, sw, g.shape[0], line.shape[0])
            while x + 4 <= end:
                ix = x * sw + shift
                _four_products(
                    to, line[ix], line[ix + sw], line[ix + 2 * sw], line[ix + 3 * sw], g[x], g[x + 1], g[x + 2], g[x + 3]
                )
                x += 4
            while x < end:
                _tap(to, line[x * sw + shift], g[x])
                x += 1


@njit(nogil=True)
def depthwise_weight_grad(x, g, sums, sh, sw, top, left, dh, dw):
    """sums[b] += the weight gradient of the b-th share of the output lines; sums is (blocks, kh, kw, C), zeros at first."""
    oh, blocks = g.shape[1], sums.shape[0]
    lines = g.shape[0] * oh
    for b in range(blocks):
        for i in range(b * lines // blocks, (b + 1) * lines // blocks):
            _depthwise_weight_line(x[i // oh], g[i // oh, i % oh], sums[b], i % oh, sh, sw, top, left, dh, dw)


@njit(nogil=True, fastmath=FUSED)
def _scaled_add(to, factor, what):
    for c in range(to.size):
        to[c] += factor * what[c]


@njit(nogil=True, fastmath={"contract", "reassoc"})
def _dot(a, b):
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total


@njit(nogil=True)
def direct(x, w, out, groups, sh, sw, top, left, dh, dw):
    """The convolution by its definition, on one thread."""
    cin, cout = w.shape[2], w.shape[3] // groups
    for n in range(out.shape[0]):
        for y in range(out.shape[1]):
            ylow, yhigh = _valid(y * sh - top, dh, w.shape[0], x.shape[1])
            for xo in range(out.shape[2]):
                to, start = out[n, y, xo], xo * sw - left
                low, high = _valid(start, dw, w.shape[1], x.shape[2])
                _zero(to, 0, to.size)
                for ky in range(ylow, yhigh):
                    for kx in range(low, high):
                        pixel = x[n, y * sh - top + ky * dh, start + kx * dw]
                        for c in range(pixel.size):
                            o = c // cin * cout
                            _scaled_add(to[o : o + cout], pixel[c], w[ky, kx, c % cin, o : o + cout])


@njit(nogil=True)
def direct_input_grad(g, w, out, groups, sh, sw, top, left, dh, dw):
    """The adjoint of `direct` in x, on one thread; out holds zeros at first."""
    cin, cout = w.shape[2], w.shape[3] // groups
    for n in range(g.shape[0]):
        for y in range(g.shape[1]):
            ylow, yhigh = _valid(y * sh - top, dh, w.shape[0], out.shape[1])
            for xo in range(g.shape[2]):
                start = xo * sw - left
                low, high = _valid(start, dw, w.shape[1], out.shape[2])
                for ky in range(ylow, yhigh):
                    for kx in range(low, high):
                        pixel = out[n, y * sh - top + ky * dh, start + kx * dw]
                        for c in range(pixel.size):
                            o = c // cin * cout
                            pixel[c] += _dot(g[n, y, xo, o : o + cout], w[ky, kx, c % cin, o : o + cout])


@njit(nogil=True)
def direct_weight_grad(x, g, out, groups, sh, sw, top, left, dh, dw):
    """The adjoint of `direct` in w, on one thread; out holds zeros at first."""
    cin, cout = out.shape[2], out.shape[3] // groups
    for n in range(g.shape[0]):
        for y in range(g.shape[1]):
            ylow, yhigh = _valid(y * sh - top, dh, out.shape[0], x.shape[1])
            for xo in range(g.shape[2]):
                start = xo * sw - left
                low, high = _valid(start, dw, out.shape[1], x.shape[2])
                for ky in range(ylow, yhigh):
                    for kx in range(low, high):
                        pixel = x[n, y * sh - top + ky * dh, start + kx * dw]
                        for c in range(pixel.size):
                            o = c // cin * cout
                            _scaled_add(out[ky, kx, c % cin, o : o + cout], pixel[c], g[n, y, xo, o : o + cout])
