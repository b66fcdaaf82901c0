"""Attention layers: multi-head, grouped-query, dot-product and additive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...nn import Module, Parameter, Tensor, init, tensor
from ...nn import functional as F
from .config import LARGEST, Built, LayerConfig, Mask, Shape, Weight, below, known, same_mask, variables
from .table import layer

FAR = 1e9  # taken off a score that may not count


def _causal(queries: int, keys: int, like: Tensor) -> Tensor:
    return tensor(np.tril(np.ones((queries, keys), bool)), device=like.device)


def _allowed(scores: Tensor, keys: Mask, causal: bool, extra: Tensor | None = None, queries: Mask = None) -> Tensor:
    """Scores (..., queries, keys) with what may not be attended to far below the rest."""
    allowed = [extra] if extra is not None else []
    if queries is not None:
        allowed.append(queries.reshape((queries.shape[0], *(1,) * (scores.ndim - 3), queries.shape[1], 1)))
    if keys is not None:
        allowed.append(keys.reshape((keys.shape[0], *(1,) * (scores.ndim - 2), keys.shape[1])))
    if causal:
        allowed.append(_causal(scores.shape[-2], scores.shape[-1], scores))
    for mask in allowed:
        scores = F.where(mask, scores, scores * 0.0 - FAR)
    return scores


class Projection(Module):
    """(batch, steps, features) to (batch, steps, *output) by a kernel (*features, *output), and a bias (*output)."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], use_bias: bool):
        super().__init__()
        self.inputs, self.outputs = math.prod(inputs), outputs
        self.kernel = Parameter(init.uniform((*inputs, *outputs)))
        if use_bias:
            self.bias = Parameter(np.zeros(outputs, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        width = math.prod(self.outputs)
        x = x.reshape((*x.shape[:2], self.inputs))
        kernel = self.kernel.reshape((self.inputs, width))
        if "bias" in self._parameters:
            y = F.linear(x, kernel, self.bias.reshape((width,)))
        else:
            y = F.linear(x, kernel)
        return y.reshape((*y.shape[:2], *self.outputs))


class MultiHeadAttention(Module):
    """Vaswani et al. 2017. order: which inputs are query, value and key. Sub-modules stand in Keras's order.

    With fewer key heads than query heads, each serves a group of queries (Ainslie et al. 2023).
    """

    def __init__(self, parts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], use_bias: bool, order: tuple[int, int, int],
                 causal: bool, scores: bool, attention_mask: int | None):  # fmt: skip
        super().__init__()
        self.order, self.causal, self.scores, self.attention_mask = order, causal, scores, attention_mask
        for name, (inputs, outputs) in parts.items():
            self.add_module(name, Projection(inputs, outputs, use_bias))

    def forward(self, *inputs: Tensor, masks: Sequence[Mask] = ()) -> Any:
        query, value, key = (inputs[i] for i in self.order)
        heads = self._modules
        q, k, v = (heads[n](x).transpose((0, 2, 1, 3)) for n, x in (("query", query), ("key", key), ("value", value)))
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = (_repeat_heads(t, group) for t in (k, v))
        logits = F.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k.transpose((0, 1, 3, 2)))
        extra = None
        if self.attention_mask is not None:
            extra = inputs[self.attention_mask]
            extra = extra if extra.dtype.kind == "b" else extra != 0
            extra = F.expand_dims(extra, 1) if extra.ndim == 3 else extra
        hidden = (masks[self.order[1]], masks[self.order[0]]) if masks else (None, None)
        weights = F.softmax(_allowed(logits, hidden[0], self.causal, extra, hidden[1]))
        y = self._modules["attention_output"](F.matmul(weights, v).transpose((0, 2, 1, 3)))
        return (y, weights) if self.scores else y


def _repeat_heads(x: Tensor, count: int) -> Tensor:
    batch, heads, steps, width = x.shape
    wide = F.broadcast_to(F.expand_dims(x, 2), (batch, heads, count, steps, width))
    return wide.reshape((batch, heads * count, steps, width))


def _roles(c: LayerConfig, shapes: list[Shape]) -> tuple[tuple[int, int, int], int | None]:
    """Which inputs are (query, value, key), and which the attention mask."""

    def role(name: str, position: int) -> int | None:
        found = c.call.tensors(name, position)
        if found is not None and len(found) != 1:
            raise c.error(f"is called with {len(found)} tensors as {name}, expected one")
        return found[0] if found else None

    query, value, key = role("query", 0), role("value", 1), role("key", 2)
    if query is None or value is None:
        raise c.error("is called without a query or a value")
    return (query, value, value if key is None else key), role("attention_mask", LARGEST)


_MHA_ARGUMENTS = ("query", "value", "key", "attention_mask", "return_attention_scores", "use_causal_mask")


@layer("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention", arguments=_MHA_ARGUMENTS)
def multi_head_attention(c: LayerConfig, shapes: list[Shape]) -> Built:
    order, attention_mask = _roles(c, shapes)
    query, value, key = (shapes[i] for i in order)
    if any(len(s) != 3 for s in (query, value, key)):
        raise c.error(f"has inputs of shapes {query}, {value}, {key}; expected (batch, steps, features)")
    if c.get("attention_axes", None) not in (None, 1, [1]) or c.get("use_gate", False) or c.get("sliding_window", None):
        raise c.error("attention_axes other than the steps, gates and sliding windows are not supported")
    if any(c.masked) and not _self_masked(c, order):
        raise c.error("a mask on the key alone is not supported")
    grouped = c.kind != "MultiHeadAttention"
    heads = c.integer("num_query_heads" if grouped else "num_heads")
    key_heads = c.integer("num_key_value_heads") if grouped else heads
    width = c.integer("head_dim" if grouped else "key_dim")
    value_width = width if grouped else c.integer("value_dim", width)
    if heads % key_heads:
        raise c.error(f"{heads} query heads are no multiple of {key_heads} key heads")
    features = [known(c, s[2], "number of features") for s in (query, key, value)]
    target = c.get("output_shape", None)
    target = target if isinstance(target, list) else [features[0] if target is None else target]
    if not target or any(type(n) is not int or not 1 <= n <= LARGEST for n in target):
        raise c.error(f"output_shape={target!r:.60}, expected positive integers")
    parts = {
        "query": ((features[0],), (heads, width)), "key": ((features[1],), (key_heads, width)),
        "value": ((features[2],), (key_heads, value_width)), "attention_output": ((heads, value_width), tuple(target)),
    }  # fmt: skip
    use_bias = c.flag("use_bias", True)
    weights: list[Weight] = []
    for name, (inputs, outputs) in parts.items():
        own = variables(("kernel", (*inputs, *outputs)), *([("bias", outputs)] if use_bias else []))
        weights += below(f"{name.removeprefix('attention_')}_dense", own, name)
    causal, scores = bool(c.call.kwargs.get("use_causal_mask")), bool(c.call.kwargs.get("return_attention_scores"))
    output = (query[0], query[1], *target)
    outputs = (output, (query[0], heads, query[1], key[1])) if scores else (output,)
    make = partial(MultiHeadAttention, parts, use_bias, order, causal, scores, attention_mask)
    return Built(make, outputs, tuple(weights), masks=_query_mask(order[0], c), takes_mask=True)


def _self_masked(c: LayerConfig, order: tuple[int, int, int]) -> bool:
    """Whether every mask is one that stands on the value, too: Keras then hides those keys."""
    return not (order[2] != order[1] and order[2] < len(c.masked) and c.masked[order[2]])


def _query_mask(index: int, c: LayerConfig) -> Any:
    has = index < len(c.masked) and c.masked[index]
    return (lambda inputs, masks: masks[index]) if has else None


# -- attention without heads -------------------------------------------------------------------------------------------


class Attention(Module):
    """Luong's (dot products) or Bahdanau's (additive) attention over inputs (query, value[, key]).

    scale: () or (features,), learned, or absent. concat: (), the weight of tanh(query + key) in "concat" mode.
    """

    def __init__(self, mode: str, scale: tuple[int, ...] | None, causal: bool, scores: bool):
        super().__init__()
        self.mode, self.causal, self.scores = mode, causal, scores
        if scale is not None:
            self.scale = Parameter(np.ones(scale, np.float32))
        if mode == "concat":
            self.concat_score_weight = Parameter(np.ones((), np.float32))

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None, masks: Sequence[Mask] = (None, None)) -> Any:
        key = value if key is None else key
        logits = self._logits(query, key)
        weights = F.softmax(_allowed(logits, masks[1], self.causal))
        y = F.matmul(weights, value)
        if masks[0] is not None:
            y = y * F.expand_dims(masks[0].astype(y.dtype), -1)
        return (y, weights) if self.scores else y

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        own = self._parameters
        if self.mode == "dot":
            logits = F.matmul(query, key.transpose((0, 2, 1)))
            return logits * own["scale"] if "scale" in own else logits
        both = F.expand_dims(query, 2) + F.expand_dims(key, 1)
        if self.mode == "concat":
            both = both * own["scale"] if "scale" in own else both
            return F.sum(F.tanh(both), -1) * own["concat_score_weight"]
        both = F.tanh(both)
        return F.sum(both * own["scale"] if "scale" in own else both, -1)


@layer("Attention", "AdditiveAttention", arguments=("return_attention_scores", "use_causal_mask"))
def attention(c: LayerConfig, shapes: list[Shape]) -> Built:
    if len(shapes) not in (2, 3) or any(len(s) != 3 for s in shapes):
        raise c.error(f"has inputs of shapes {shapes}, expected query, value and perhaps key of (batch, steps, features)")
    additive = c.kind == "AdditiveAttention"
    mode = "additive" if additive else c.choice("score_mode", "dot", ("dot", "concat"))
    query, value, key = shapes[0], shapes[1], shapes[-1]
    if query[2] != key[2] and None not in (query[2], key[2]):
        raise c.error(f"query {query} and key {key} have different numbers of features")
    if c.flag("causal", False):
        raise c.error("causal=true as a setting (Keras before 2.10) is not supported; save the model in a newer Keras")
    scale = None
    if c.flag("use_scale", additive):
        scale = (known(c, query[2], "number of features"),) if additive else ()
    named: list[tuple[str, tuple[int, ...]]] = [] if scale is None else [("scale", scale)]
    if mode == "concat":
        named.append(("concat_score_weight", ()))
    causal, scores = bool(c.call.kwargs.get("use_causal_mask")), bool(c.call.kwargs.get("return_attention_scores"))
    if len(c.masked) == 3 and c.masked[2] and not c.masked[1]:
        raise c.error("a mask on the key alone is not supported")
    output = (*query[:2], value[2])
    outputs = (output, (query[0], query[1], key[1])) if scores else (output,)
    rule = same_mask if c.masked[:1] == (True,) else None
    make = partial(Attention, mode, scale, causal, scores)
    return Built(make, outputs, variables(*named), masks=rule, takes_mask=True)


