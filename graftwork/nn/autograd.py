"""Reverse-mode differentiation over a tape of records.

Each tensor that may need a gradient carries an `edge`: a `Leaf` (where gradients collect), a `Node` (the op call that
made it), or a `Slot` (one of several outputs of a Node). Nodes are numbered as they are made, so walking them from the
highest number down visits every node after all its consumers, without a sorting pass. Gradient rules are ops
themselves; with `create_graph` the backward pass is recorded like any other computation.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import GradientError, ShapeError

Tensor: Any = None  # nn.tensor binds its class here: the two files are about each other

next_seq = itertools.count(1).__next__


class _Mode(threading.local):
    grad = True  # whether calls are recorded on the tape
    trace: Any = None  # the capture that this thread is in (nn.capture), if any
    ready: Callable[[Leaf, Any], None] | None = None  # told of each leaf whose gradient a backward pass has completed
    taps: dict[int, Any] | None = None  # what modules return, by id of those listened to (nn.modules.module.listen)


mode = _Mode()


class Changes:
    """Numbers that change with whatever may make a captured graph out of date, so that looking is cheap: `values` with every
    write into a tensor, `settings` with every new setting of a module or leaf. written: the last write into each piece of
    memory, by the id of the array that owns it, because several tensors may look at it.
    """

    values = settings = 0
    written: dict[int, int] = {}


def memory(array):
    """The array that owns the memory that `array` looks at."""
    while isinstance(base := getattr(array, "base", None), type(array)):
        array = base
    return array


def share_memory(a, b) -> bool:
    """Whether two arrays may look at the same bytes."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return memory(a) is memory(b) and np.may_share_memory(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or a.device.id != b.device.id:
        return False
    (first, last), (start, end) = _addresses(a), _addresses(b)
    return first < end and start < last


def _addresses(array) -> tuple[int, int]:
    """The first address that an array on a GPU reaches, and the one behind its last."""
    if not array.size:
        return array.data.ptr, array.data.ptr
    reach = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    return array.data.ptr + sum(min(r, 0) for r in reach), array.data.ptr + sum(max(r, 0) for r in reach) + array.itemsize


def mark_written(t) -> None:
    """Tell tapes and captured graphs that the values of `t` have changed in place."""
    t.written = Changes.written[id(memory(t.data))] = Changes.values = next_seq()


def mark_set() -> None:
    """Tell captured graphs that a setting has changed. (After the change: another thread may look at once.)"""
    Changes.settings = next_seq()


@contextlib.contextmanager
def set_grad(enabled: bool) -> Iterator[None]:
    """Record (or do not record) what happens inside; per thread."""
    before, mode.grad = mode.grad, enabled
    try:
        yield
    finally:
        mode.grad = before


def no_grad():
    """Context manager and decorator: nothing inside is recorded, so it costs no memory and cannot be differentiated."""
    return set_grad(False)


class Leaf:
    """Where the gradient of a tensor that nobody computed collects."""

    __slots__ = ("__weakref__", "grad")
    seq = 0

    def __init__(self):
        self.grad: Tensor | None = None


class Node:
    """One recorded op call: what its gradient rule needs, and where its gradients go."""

    __slots__ = ("attrs", "grad_specs", "op", "out", "parents", "saved", "seq")

    def __init__(self, op, attrs, saved, parents, out, seq):
        self.op, self.attrs, self.saved = op, attrs, saved
        self.parents, self.out, self.seq = parents, out, seq
        self.grad_specs: list = []  # shapes and dtypes of the outputs, where there are several


class Slot:
    """Output number `index` of a Node with several outputs."""

    __slots__ = ("index", "node")

    def __init__(self, node: Node, index: int):
        self.node, self.index = node, index

    @property
    def seq(self) -> int:
        return self.node.seq


def backward(outputs: Sequence[Tensor], grads: Sequence[Tensor], retain_graph=False, create_graph=False) -> None:
    """Accumulate the gradients of `outputs` into the `.grad` of every leaf they depend on.

    Where `mode.ready` is set, it is called as `ready(leaf, gradient)` as soon as nothing further will be added to it.
    """
    ready = mode.ready

    def collect(leaf: Leaf, g) -> None:
        with set_grad(create_graph):
            if mode.trace is not None:
                mode.trace.collects(leaf)
            leaf.grad = g if leaf.grad is None else leaf.grad + g
        if ready is not None:
            ready(leaf, leaf.grad)

    last = _last_uses(outputs) if ready is not None else {}
    found = _walk(outputs, grads, {}, retain_graph or create_graph, create_graph, last, collect)
    for leaf, g in found.items():
        collect(leaf, g)


def _last_uses(outputs) -> dict[int, list[Leaf]]:
    """For the number of a node: the leaves that no older node uses, so that their gradients are complete after it."""
    oldest: dict[Leaf, int] = {}
    stack = [edge.node if type(edge) is Slot else edge for edge in (y.edge for y in outputs)]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen or type(node) is Leaf:
            continue
        seen.add(node)
        for parent in node.parents:
            if type(parent) is Leaf:
                oldest[parent] = min(oldest.get(parent, node.seq), node.seq)
            elif parent is not None:
                stack.append(parent.node if type(parent) is Slot else parent)
    last: dict[int, list[Leaf]] = {}
    for leaf, seq in oldest.items():
        last.setdefault(seq, []).append(leaf)
    return last


def grad(outputs, inputs, grad_outputs=None, create_graph=False, retain_graph=None, allow_unused=False):
    """Gradients of the sum of `outputs` with respect to `inputs`, returned instead of accumulated.

    outputs, inputs: a Tensor or a sequence of them. grad_outputs: one Tensor an output; ones by default, for scalars.
    create_graph: record the computation, so that the result can be differentiated again.
    Raises GradientError if an output has no recorded history, or an input was not used (unless `allow_unused`, which
    gives None for it). Returns a tuple, one entry an input.
    """
    outputs = [outputs] if hasattr(outputs, "edge") else list(outputs)
    inputs = [inputs] if hasattr(inputs, "edge") else list(inputs)
    grads = _seed_gradients(outputs, grad_outputs)
    for i, t in enumerate(inputs):
        if t.edge is None:
            raise GradientError(f"grad: input {i} (shape {t.shape}) does not require a gradient; set requires_grad=True")
    keep = create_graph if retain_graph is None else retain_graph
    found = _walk(outputs, grads, {t.edge: None for t in inputs}, keep, create_graph)
    results = tuple(found.get(_key(t.edge)) for t in inputs)
    for i, (t, g) in enumerate(zip(inputs, results, strict=True)):
        if g is None and not allow_unused:
            raise GradientError(
                f"grad: the outputs do not depend on input {i} (shape {t.shape}); pass allow_unused=True to get None"
            )
    return results


def _seed_gradients(outputs, grad_outputs):
    """Check the outputs and the gradients that come in from outside; ones for scalars by default."""
    grad_outputs = [None] * len(outputs) if grad_outputs is None else grad_outputs
    grads = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    for i, (y, g) in enumerate(zip(outputs, grads, strict=True)):
        if y.edge is None:
            raise GradientError(
                "this tensor has no recorded history: nothing it was computed from requires a gradient, or it was made "
                "under no_grad(). Set requires_grad=True on an input before computing it"
            )
        if g is None:
            if y.size != 1:
                raise GradientError(f"a gradient starts from a scalar; shape {y.shape} needs an explicit gradient")
            grads[i] = Tensor(y._ones())
        elif g.shape != y.shape:
            raise ShapeError(f"gradient of shape {g.shape} given for an output of shape {y.shape}; they must be equal")
    return grads


def _key(edge):
    """What a gradient is filed under: Slots are made anew for every tensor, their node and index are not."""
    return (edge.node, edge.index) if type(edge) is Slot else edge


def _walk(outputs, grads, targets: dict, retain: bool, create_graph: bool, last: dict[int, list[Leaf]] | None = None,
          collect: Callable | None = None) -> dict[Any, Any]:  # fmt: skip
    """Push gradients from the outputs down. Returns those of `targets`, or of all leaves if there are none.

    last: leaves by the number of their last node; their gradients go to `collect(leaf, gradient)` after it, and are not
    returned.
    """
    wanted = {_key(edge) for edge in targets}
    stop = min((edge.seq for edge in targets), default=0)  # nothing older than the oldest target can reach one
    found: dict[Any, Tensor] = {}
    pending: dict[Node, Any] = {}
    heap: list[tuple[int, Node]] = []

    def send(edge, g) -> None:
        kind = type(edge)
        if kind is Node:
            if edge in pending:
                pending[edge] = pending[edge] + g
            else:
                pending[edge] = g
                heapq.heappush(heap, (-edge.seq, edge))
        elif kind is Leaf:
            if not wanted or edge in wanted:
                found[edge] = found[edge] + g if edge in found else g
        else:
            node = edge.node
            if node not in pending:
                pending[node] = [None] * len(node.grad_specs)
                heapq.heappush(heap, (-node.seq, node))
            slots = pending[node]
            slots[edge.index] = g if slots[edge.index] is None else slots[edge.index] + g

    with set_grad(create_graph):
        for y, g in zip(outputs, grads, strict=True):
            send(y.edge, g)
        while heap:
            node = heapq.heappop(heap)[1]
            if node.seq < stop:
                break
            g = pending.pop(node)
            if wanted:
                _collect(node, g, wanted, found)
            for parent, gi in zip(node.parents, _gradients(node, g), strict=True):
                if parent is not None and gi is not None:
                    send(parent, gi() if callable(gi) else gi)
            if not retain:
                node.saved = None
            for leaf in last.get(node.seq, ()) if last else ():
                if leaf in found:
                    collect(leaf, found.pop(leaf))  # type: ignore[misc]
    return found


def _collect(node, g, wanted, found) -> None:
    if node in wanted:
        found[node] = g
    if type(g) is list:
        for i, gi in enumerate(g):
            if (node, i) in wanted and gi is not None:
                found[node, i] = gi


def _gradients(node: Node, g):
    """Apply the op's gradient rule to one record."""
    op, saved = node.op, node.saved
    if saved is None:
        raise GradientError(
            f"the record of op {op.name!r} was freed by an earlier backward(); pass retain_graph=True there to go twice"
        )
    if op.keeps_inputs:
        for i, t in enumerate(saved):
            if t.written > node.seq:
                raise GradientError(
                    f"input {i} of op {op.name!r} (shape {t.shape}) was changed in place after it was used; its gradient "
                    "would be wrong. Call backward() before the update, or compute the output again"
                )
    out = node.out
    if op.multi:
        out = out and [Tensor(o, Slot(node, i)) for i, o in enumerate(out)]
    elif out is not None:
        out = Tensor(out, node)
    return op.vjp(g, out, *saved, **node.attrs)


def differentiate(composite: Callable) -> Callable:
    """A gradient rule from a function written in ops that computes the same values.

    For fused ops whose second derivative nobody would write by hand (batch-norm's backward pass): `composite(*inputs,
    **attrs)` returns a Tensor or a tuple; its own tape gives the gradients.
    """
    from .ops.shape import identity

    def vjp(g, out, *inputs, **attrs):
        recording = mode.grad
        with set_grad(True):
            proxies = [identity(t) if t.edge is not None else t for t in inputs]
            asked = [p for p in proxies if p.edge is not None]
            results = composite(*proxies, **attrs)
            results, gs = (results, g) if isinstance(results, tuple) else ((results,), (g,))
            pairs = [(y, gi) for y, gi in zip(results, gs, strict=True) if y.edge is not None and gi is not None]
            gradients = iter(
                grad([y for y, _ in pairs], asked, [gi for _, gi in pairs], create_graph=recording, allow_unused=True)
            )
        return tuple(next(gradients) if p.edge is not None else None for p in proxies)

    return vjp
