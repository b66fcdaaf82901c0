"""Products of matrices and of more."""

from __future__ import annotations

import numpy as np

from ....nn import functional as F
from ....nn.tensor import Tensor
from .table import Call, operator


@operator("MatMul")
def matmul(c: Call) -> Tensor:
    return product(c.x(), c.x(1))


def product(a: Tensor, b: Tensor) -> Tensor:
    """A product under NumPy's rules: a vector on the left is a row, one on the right a column."""
    if a.dtype.kind in "iu":  # exact in float64 for what 8-bit networks hold
        return product(a.astype("float64"), b.astype("float64")).astype(a.dtype)
    left, right = a.ndim == 1, b.ndim == 1
    if left and right:
        return F.sum(a * b)
    a, b = F.expand_dims(a, 0) if left else a, F.expand_dims(b, 1) if right else b
    y = F.linear(a, b) if b.ndim == 2 and a.dtype in (np.float32, np.float64) else F.matmul(a, b)
    return F.squeeze(y, -2) if left else F.squeeze(y, -1) if right else y


@operator("Gemm")
def gemm(c: Call) -> Tensor:
    a, b, bias = c.x(), c.x(1), c.optional(2)
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    a = F.transpose(a, (1, 0)) if c.attr("transA", 0) else a
    b = F.transpose(b, (1, 0)) if c.attr("transB", 0) else b
    if alpha == 1.0 and beta == 1.0 and bias is not None and bias.shape == b.shape[1:] and a.dtype.kind == "f":
        return F.linear(a, b, bias)
    y = product(a, b)
    y = y if alpha == 1.0 else y * alpha
    return y if bias is None else y + (bias if beta == 1.0 else bias * beta)


@operator("Einsum")
def einsum(c: Call) -> Tensor:
    """Einstein's sum, two operands at a time as a batched matrix product."""
    terms, _, result = c.required("equation").replace(" ", "").partition("->")
    names = terms.split(",")
    tensors = [c.x(i) for i in range(len(c.inputs))]
    names = [_spelled(c, n, t.ndim) for n, t in zip(names, tensors, strict=True)]
    widest = max((n for n in names), key=lambda n: sum(ch.isupper() for ch in n))
    dots = "".join(ch for ch in widest if ch.isupper())
    if "->" not in c.required("equation"):
        joined = "".join(names)
        result = dots + "".join(sorted(ch for ch in set(joined) if joined.count(ch) == 1 and ch not in dots))
    result = result.replace("...", dots)
    tensors, names = map(list, zip(*(_diagonal(t, n) for t, n in zip(tensors, names, strict=True)), strict=True))
    total, name = tensors[0], names[0]
    for i in range(1, len(tensors)):
        later = set(result) | set("".join(names[i + 1 :]))
        total, name = _pair(total, name, tensors[i], names[i], later)
    gone = tuple(i for i, ch in enumerate(name) if ch not in result)
    total = F.sum(total, gone) if gone else total
    name = "".join(ch for ch in name if ch in result)
    return F.transpose(total, tuple(name.index(ch) for ch in result)) if len(result) > 1 else total


def _spelled(c: Call, name: str, rank: int) -> str:
    """The dots as capital letters, counted from the right, so that they broadcast."""
    if any(ch.isupper() for ch in name):
        raise c.error(f"equation {c.required('equation')!r}: capital letters are not supported")
    more = rank - len(name.replace("...", ""))
    return name.replace("...", "".join(chr(ord("Z") - i) for i in reversed(range(more))))


def _diagonal(x: Tensor, name: str) -> tuple[Tensor, str]:
    """A letter that stands twice in one operand picks the diagonal."""
    for ch in dict.fromkeys(name):
        while name.count(ch) > 1:
            i, j = [k for k, other in enumerate(name) if other == ch][:2]
            order = [k for k in range(x.ndim) if k not in (i, j)] + [i, j]
            moved = F.transpose(x, order)
            n = moved.shape[-1]
            flat = F.reshape(moved, (*moved.shape[:-2], n * n))
            x = flat[..., :: n + 1]
            name = "".join(name[k] for k in order[:-1])
    return x, name


def _pair(a: Tensor, an: str, b: Tensor, bn: str, later: set[str]) -> tuple[Tensor, str]:
    """The sum over what only these two share, as a matrix product over everything else that they share."""
    shared = [ch for ch in an if ch in bn and ch not in later]
    batch = [ch for ch in an if ch in bn and ch in later]
    own, other = [ch for ch in an if ch not in bn], [ch for ch in bn if ch not in an]

    def arranged(x: Tensor, name: str, *groups: list[str]) -> tuple[Tensor, list[tuple[int, ...]]]:
        y = F.transpose(x, tuple(name.index(ch) for group in groups for ch in group)) if x.ndim > 1 else x
        sizes = dict(zip(name, x.shape, strict=True))
        return y, [tuple(sizes[ch] for ch in group) for group in groups]

    x, (first, rows, inner) = arranged(a, an, batch, own, shared)
    y, (second, inner_b, columns) = arranged(b, bn, batch, shared, other)
    x = F.reshape(x, (*first, int(np.prod(rows, dtype=int)), int(np.prod(inner, dtype=int))))
    y = F.reshape(y, (*second, int(np.prod(inner_b, dtype=int)), int(np.prod(columns, dtype=int))))
    z = F.matmul(x, y)
    return F.reshape(z, (*z.shape[:-2], *rows, *columns)), "".join([*batch, *own, *other])
