"""The gradients of float32 convolutions as implicit matrix products.

In the input: every input pixel meets those taps of the window whose distance to it the stride divides. The pixels of one
phase (their place modulo the stride) meet the same taps, so each phase is a convolution of the gradient with stride 1 and a
part of the turned-around weights, written to every `stride`-th pixel: nothing is stuffed with zeros.

In the weights: a product over all output pixels, sum of x[pixel + tap, channel] * g[pixel, out]. The strip's rows are the
channels under one line of the window, its steps are pixels. Shares of the pixels are summed on their own and then added in a
fixed order, so that the result depends on the number of threads but not on their luck.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..plan import Pack, Plan, Spec
from . import atomic, caches, runtime
from .conv_gemm import SERIAL_BELOW, Layout, Sizes, Steps, Window, _steps, convolution_rows, copy_lines, layout_of  # fmt: skip
from .gemm import FLOAT32, NOWHERE, pack_panel, pack_weights, plan_product
from .jit import njit
from .simd import LANES, PANEL
from .strips import STRIPS, advance, null, strip

_LOW, _HIGH = np.float32(-np.inf), np.float32(np.inf)
PIXELS = 256  # of one step through the weight gradient: a panel of their gradients stays in the first-level cache


# -- in the input ------------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """The input pixels (y0 + i * stride, x0 + j * stride) and how they are computed."""

    y: int
    x: int
    sizes: Sizes
    window: Window
    layout: Layout
    pack: Pack
    packed: int  # where its weights start among the packed ones


def plan_input_grad(g: Spec, w: Spec, *, out: Spec, input_shape, stride, padding, dilation, groups: int) -> Plan | None:
    """out[input_shape] = the adjoint of the convolution in x, applied to g (N, oh, ow, Cout); float32, any geometry."""
    if g.dtype != FLOAT32 or 0 in g.shape or 0 in input_shape:
        return None
    kh, kw, channels, cout = w.shape
    images, height, width, _ = input_shape
    if kh == kw == 1 and stride == (1, 1) and groups == 1 and not any(map(any, padding)):
        pack = pack_weights(f"turned{LANES}", NOWHERE, cout, channels, 1, (0, 1, cout))
        return plan_product(images * height * width, channels, cout, 0, strided=True, pack=pack)
    phases, packed = [], 0
    for y in range(min(stride[0], height)):
        for x in range(min(stride[1], width)):
            phases.append(_phase(g, w, y, x, packed, (height, width), stride, padding, dilation, groups))
            packed += phases[-1].pack.spec.size
    name = f"phases{LANES}.{stride}.{padding}.{dilation}.{groups}"

    def fill(source, target):
        return [r for p in phases for r in p.pack.bind(source, target[p.packed : p.packed + p.pack.spec.size])]

    def bind(inputs, outputs, workspace):
        g_, weights = inputs
        whole, rows = _steps(outputs[0], input_shape), []
        for p in phases:
            steps = Steps(whole.image, whole.line * stride[0], whole.pixel * stride[1], p.y * whole.line + p.x * whole.pixel)
            rows += convolution_rows(
                g_, weights[p.packed : p.packed + p.pack.spec.size], outputs[0], None, None, p.sizes, p.window, p.layout,
                _steps(g_, g.shape), steps, Steps(0, 0, 0), 0, workspace,
            )  # fmt: skip
        return rows

    return Plan(
        bind, workspace=max(4 * p.layout.floats * p.layout.threads for p in phases),
        packs={1: Pack(name, Spec((packed,), FLOAT32), fill)}, strided=True, variant="implicit_gemm",
    )  # fmt: skip


def _phase(g: Spec, w: Spec, y: int, x: int, packed: int, size, stride, padding, dilation, groups: int) -> Phase:
    (kh, kw, channels, cout), (images, oh, ow, _) = w.shape, g.shape
    (top, _), (left, _) = padding
    taps = []  # (down, right, tap): pixel i of the phase meets output line i + down by this tap
    for ky in range(kh):
        down, odd = divmod(y + top - ky * dilation[0], stride[0])
        for kx in range(kw):
            right, odd_too = divmod(x + left - kx * dilation[1], stride[1])
            if not odd and not odd_too:
                taps.append((down, right, ky * kw + kx))
    taps.sort()
    window = Window((1, 1), tuple((down, right) for down, right, _ in taps))
    lines, columns = -(-(size[0] - y) // stride[0]), -(-(size[1] - x) // stride[1])
    sizes = Sizes(images, oh, ow, cout // groups, lines, columns, channels, groups)
    offsets = np.array([tap for *_, tap in taps], np.int64) * (channels * cout)
    pack = pack_weights("phase", offsets, cout // groups, channels, groups, (cout // groups, 1, cout))
    return Phase(y, x, sizes, window, layout_of(sizes, window), pack, packed)


# -- in the weights ------------------------------------------------------------------------------------------------------------


@runtime.task
def correlate(a, part):
    """One share of a weight gradient: some images' lines, one group, some panels of output channels.

    Words: 0 x, 1 g, 2 sums (shares, whole weight gradient); 3 chunks, 4 lines a chunk, 5 lines of an image, 6 columns, 7
    pixels in all, 8 images a chunk (1 if a chunk is part of an image); 9 to 11 x's steps from image to image, line and
    pixel, 12 and 13 its lines and columns, 14 channels a group, 15 vertical and 16 horizontal stride, 17 and 18 where the
    first window begins, 19 lines that it reaches over, 20 columns of the copied lines, 21 whether lines are copied; 22
    rows of one strip, 23 strips, 24 where each begins in the copied lines, 25 segments' offsets; 26 output channels a
    group, 27 of all groups, 28 panels a part, 29 parts of the panels, 30 groups, 31 shares, 32 floats of the whole
    gradient, 33 scratch, 34 its floats a part, 35 of it copied lines, 36 and 37 strips.
    """
    shares, chunks, per, cout = a[31], a[3], a[28], a[26]
    share, rest = part % shares, part // shares
    at, group = rest % a[29] * per, rest // a[29]
    last = min(at + per, (cout + PANEL - 1) // PANEL)
    sums = advance(atomic.f32(a, 2), share * a[32] + group * cout)
    first = share * chunks // shares
    for chunk in range(first, (share + 1) * chunks // shares):
        _chunk(a, part, chunk, group, at, last, sums, 1 if chunk > first else 0)


@njit(nogil=True)
def _chunk(a, part, chunk, group, at, last, sums, adds):
    """Add the products over one chunk of output lines to the sums."""
    per_image, columns, together, channels = a[5], a[6], a[8], a[14]
    if together > 1:
        image, line = chunk * together, 0
        images = min(together, a[7] // (per_image * columns) - image)
        lines = per_image
    else:
        chunks_each = (per_image + a[4] - 1) // a[4]
        image, line, images = chunk // chunks_each, chunk % chunks_each * a[4], 1
        lines = min(a[4], per_image - line)
    pixel = (image * per_image + line) * columns
    length = min(columns, a[7] - pixel)  # shorter only in the last of the chunks that one line of all pixels is cut into
    scratch = advance(atomic.f32(a, 33), part * a[34])
    source = advance(atomic.f32(a, 0), image * a[9] + group * channels)
    step = a[11]
    if a[21] != 0:
        height, width = (lines - 1) * a[15] + a[19], a[20]
        for i in range(images):
            copy_lines(advance(scratch, i * height * width * channels), advance(source, i * a[9]), height,
                       line * a[15] + a[17], a[18], a[12], a[13], a[10], step, channels, width)  # fmt: skip
        source, step = scratch, channels
    else:
        source = advance(source, (line * a[15] + a[17]) * a[10] + a[18] * step)
    starts, offsets = atomic.i64(a, 24), atomic.i64(a, 25)
    segments, cout = images * lines, a[26]
    panel = advance(scratch, a[35])
    for j in range(at, last):
        valid = min(cout - j * PANEL, PANEL)
        width = PANEL if valid > LANES else LANES
        gradient = advance(atomic.f32(a, 1), pixel * a[27] + group * cout + j * PANEL)
        if a[27] != width:
            pack_panel(panel, gradient, a[27], 1, segments * length, valid, width)
            gradient = panel
        for s in range(a[23]):
            strip(a[37] if width == PANEL else a[36], advance(source, starts[s]), gradient,
                  advance(sums, s * a[22] * a[27] + j * PANEL), a[22], 1, a[16] * step, length, offsets, segments, a[27],
                  valid, null(), null(), 0, adds, _LOW, _HIGH, gradient)  # fmt: skip


@runtime.task
def add_up(a, part):
    """out[i] = sum over shares of sums[share, i], in their order. Words: sums, out, shares, count, parts."""
    sums, out, shares, count = atomic.f32(a, 0), atomic.f32(a, 1), a[2], a[3]
    first, last = part * count // a[4], (part + 1) * count // a[4]
    for start in range(first, last, 1024):
        stop = min(start + 1024, last)
        for i in range(start, stop):
            out[i] = sums[i]
        for share in range(1, shares):
            more = advance(sums, share * count)
            for i in range(start, stop):
                out[i] += more[i]


class Correlation(NamedTuple):
    """How a weight gradient is cut up."""

    chunks: int
    lines: int  # a chunk, of images of per_image lines and `columns` columns
    per_image: int
    columns: int
    line: int  # elements between x's lines
    together: int
    copies: bool
    width: int  # of the copied lines
    reach: int
    rows: int
    starts: np.ndarray
    offsets: np.ndarray
    per: int
    panel_parts: int
    shares: int
    lines_floats: int
    floats: int


def plan_weight_grad(x: Spec, g: Spec, *, out: Spec, kernel_shape, stride, padding, dilation, groups: int) -> Plan | None:
    """out (kh, kw, C/groups, Cout) = the adjoint of the convolution in w, applied to g; float32, any geometry."""
    if x.dtype != FLOAT32 or 0 in x.shape or 0 in out.shape:
        return None
    if 0 in g.shape:
        return None
    cut = _correlation(x, g, out, stride, padding, dilation, groups)
    images, height, width, total = x.shape
    _, oh, ow, cout = g.shape
    parts = cut.shares * cut.panel_parts * groups
    sums_bytes = 4 * cut.shares * out.size if cut.shares > 1 else 0
    scratch_at = -(-sums_bytes // 64) * 64

    def bind(inputs, outputs, workspace):
        x_, g_ = inputs
        result = outputs[0]
        floats = None if workspace is None else workspace.view(np.float32)
        sums = result if cut.shares == 1 else floats
        scratch = None if floats is None else floats[scratch_at // 4 :]
        rows = [
            runtime.row(
                correlate, parts, x_, g_, sums, cut.chunks, cut.lines, cut.per_image, cut.columns, images * oh * ow,
                cut.together, height * width * total, cut.line, total, height, width, total // groups, *stride, -padding[0][0],
                -padding[1][0], cut.reach, cut.width, cut.copies, cut.rows, len(cut.starts), cut.starts, cut.offsets,
                cout // groups, cout, cut.per, cut.panel_parts, groups, cut.shares, out.size, scratch, cut.floats,
                cut.lines_floats, STRIPS[0].address, STRIPS[1].address,
            )
        ]  # fmt: skip
        if cut.shares > 1:
            adders = max(1, min(4 * runtime.num_threads(), out.size // 4096))
            rows.append(runtime.row(add_up, adders, sums, result, cut.shares, out.size, adders))
        return rows

    # A share's scratch floats are followed by slack, because a packed panel is written in whole vectors.
    return Plan(bind, workspace=scratch_at + 4 * cut.floats * parts, variant="implicit_gemm")


def _correlation(x: Spec, g: Spec, out: Spec, stride, padding, dilation, groups: int) -> Correlation:
    (kh, kw, channels, cout), (images, oh, ow, _) = out.shape, g.shape
    (_, height, width, total), threads = x.shape, runtime.num_threads()
    reach, across = (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1
    plain = kh == kw == 1 and stride == (1, 1) and not any(map(any, padding))
    copies = not plain and (any(map(any, padding)) or groups > 1)
    flat = plain and groups == 1
    per_image, columns = oh, ow
    if flat:  # all pixels are one line, cut into chunks of any length
        per_image, columns = -(-images * oh * ow // PIXELS), PIXELS
    span = (columns - 1) * stride[1] + across
    line, step = (span * channels, channels) if copies else (width * total, total)
    room = max(caches.sizes().second // 2 // (4 * span * channels), 1)  # copied lines that fit
    together = 1
    if flat:
        lines = 1
    else:
        lines = max(1, min(oh, -(-PIXELS // columns), (room - reach) // stride[0] + 1))
        lines = -(-oh // -(-oh // lines))
        if lines == oh:
            together = max(1, min(images, PIXELS // (oh * columns), room // ((oh - 1) * stride[0] + reach)))
    per_chunk = (lines - 1) * stride[0] + reach
    block = per_chunk * line if copies else height * line
    offsets = np.array([i * block + j * stride[0] * line for i in range(together) for j in range(lines)], np.int64)
    merged = dilation[1] == 1 and (copies or groups == 1)
    strips = [(ky, 0) for ky in range(kh)] if merged else [(ky, kx) for ky in range(kh) for kx in range(kw)]
    starts = np.array([ky * dilation[0] * line + kx * dilation[1] * step for ky, kx in strips], np.int64)
    if together > 1:
        chunks = -(-images // together)
    else:
        chunks = (images if not flat else 1) * -(-per_image // lines)
    panels = -(-cout // groups // PANEL) if cout % groups == 0 else 0
    wanted = 1 if threads == 1 or g.size * kh * kw * channels < SERIAL_BELOW else 4 * threads
    panel_parts = min(panels, max(1, -(-wanted // groups)))
    per = -(-panels // panel_parts)
    panel_parts = -(-panels // per)
    shares = min(max(1, -(-wanted // (panel_parts * groups))), chunks)
    x_line = PIXELS * total if flat else width * total
    packs = groups > 1 or cout not in (PANEL, LANES)
    lines_floats = (together * per_chunk * line + 15) // 16 * 16 if copies else 0
    floats = lines_floats + (len(offsets) * columns * PANEL if packs else 0)
    rows = kw * channels if merged else channels
    return Correlation(
        chunks, lines, per_image, columns, x_line, together, copies, span, reach, rows, starts, offsets, per, panel_parts,
        shares, lines_floats, -(-floats // 16) * 16,
    )  # fmt: skip
