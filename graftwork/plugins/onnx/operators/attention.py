"""Scaled dot-product attention and rotary positions (Vaswani et al. 2017; Su et al. 2021)."""

from __future__ import annotations

import math

import numpy as np

from ....nn import functional as F
from ....nn.tensor import FLOATS, Tensor
from .table import Call, fixed, operator


@operator("Attention")
def attention(c: Call) -> tuple[Tensor, ...]:
    """Y, keys and values including those of before, and the scores at the stage that qk_matmul_output_mode names."""
    flat = c.value().ndim == 3
    many, few = c.attr("q_num_heads"), c.attr("kv_num_heads")
    if flat and (many is None or few is None):
        raise c.error("inputs of three dimensions need q_num_heads and kv_num_heads")
    q, k, v = (_heads(c.x(i), n) if flat else c.x(i) for i, n in enumerate((many, few, few)))
    before = c.x(4).shape[2] if c.has(4) else 0
    keys, values = (F.concat([c.x(i), x], 2) if c.has(i) else x for i, x in ((4, k), (5, v)))
    scale = math.sqrt(c.attr("scale") or 1 / math.sqrt(q.shape[-1]))
    bias = _bias(c, q, keys.shape[2], before)
    shared = q.shape[1] // keys.shape[1]
    scores = F.matmul(q * scale, F.swap_last(_repeated(keys, shared)) * scale)
    stages = [scores]
    cap = c.attr("softcap", 0.0)
    stages.append(F.tanh(scores * (1 / cap)) * cap if cap else scores)
    stages.append(stages[1] if bias is None else stages[1] + bias)
    wide = c.dtype("softmax_precision") or q.dtype
    stages.append(_probabilities(stages[2].astype(wide), bias).astype(q.dtype))
    y = F.matmul(stages[3], _repeated(values, shared))
    if flat:
        y = F.transpose(y, (0, 2, 1, 3))
        y = F.reshape(y, (*y.shape[:2], -1))
    return y, keys, values, stages[c.attr("qk_matmul_output_mode", 0)]


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, steps, heads * size) as (batch, heads, steps, size)."""
    return F.transpose(F.reshape(x, (*x.shape[:2], count, x.shape[2] // count)), (0, 2, 1, 3))


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each head of keys or values for the several of the queries that share it."""
    return x if times == 1 else F.gather(x, fixed(x, np.repeat(np.arange(x.shape[1]), times), np.int64), 1)


def _bias(c: Call, q: Tensor, length: int, before: int) -> Tensor | None:
    """What is added to the scores: a mask of floats, and minus infinity where a query may not look."""
    steps, causal = q.shape[2], bool(c.attr("is_causal", 0))
    left, right = c.attr("left_window_size", -1), c.attr("right_window_size", -1)
    total = None
    if c.has(3):
        mask = c.x(3)
        total = mask if mask.dtype in FLOATS else _closed(mask, q)
        short = length - total.shape[-1]
        if short:
            total = F.pad(total, [(0, 0)] * (total.ndim - 1) + [(0, short)], -math.inf)
    kept = F.reshape(c.x(6).astype("int64"), (-1, 1, 1, 1)) if c.has(6) else None  # filled places of a cache of fixed size
    row, column = np.arange(steps)[:, None], np.arange(length)
    at = fixed(q, row + before, np.int64) if kept is None else kept + fixed(q, row - steps, np.int64)
    place = fixed(q, column, np.int64)
    limits = [
        F.less_equal(place, at) if causal else None,
        F.less_equal(at - place, fixed(q, left, np.int64)) if left >= 0 else None,
        F.less_equal(place - at, fixed(q, right, np.int64)) if right >= 0 else None,
        None if kept is None else F.less(place, kept),
    ]
    for limit in limits:
        if limit is not None:
            part = _closed(limit, q)
            total = part if total is None else total + part
    return total


def _closed(allowed: Tensor, like: Tensor) -> Tensor:
    return F.where(allowed, fixed(like, 0), fixed(like, -math.inf))


def _probabilities(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax over keys; a query that may look nowhere gets zeros."""
    if bias is None:
        return F.softmax(scores, -1)
    blind = F.equal(F.max(bias, -1, keepdims=True), fixed(bias, -math.inf))
    return F.where(blind, fixed(scores, 0), F.softmax(F.where(blind, fixed(scores, 0), scores), -1))


@operator("RotaryEmbedding")
def rotary_embedding(c: Call) -> Tensor:
    x, cos, sin = c.x(), c.x(1), c.x(2)
    heads, between = c.attr("num_heads", 0), bool(c.attr("interleaved", 0))
    if x.ndim == 4:
        y = F.transpose(x, (0, 2, 1, 3))
    elif heads:
        y = F.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))
    else:
        raise c.error("an input of three dimensions needs num_heads")
    size = c.attr("rotary_embedding_dim", 0) or y.shape[-1]
    if c.has(3):
        cos, sin = F.gather(cos, c.x(3)), F.gather(sin, c.x(3))
    cos, sin = F.expand_dims(cos, 2), F.expand_dims(sin, 2)
    if between:
        first, second = y[..., 0:size:2], y[..., 1:size:2]
    else:
        first, second = y[..., : size // 2], y[..., size // 2 : size]
    turned = first * cos - second * sin, first * sin + second * cos
    rotated = F.reshape(F.stack(turned, 4), (*y.shape[:3], size)) if between else F.concat(turned, 3)
    y = F.concat([rotated, y[..., size:]], 3) if size < y.shape[-1] else rotated
    return F.transpose(y, (0, 2, 1, 3)) if x.ndim == 4 else F.reshape(y, x.shape)
