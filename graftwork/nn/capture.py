"""Capture: run a function once on symbols instead of arrays and write down the ops that it calls.

The function sees ordinary tensors whose data is a `Symbol`: shape, dtype and device, but no values. Ops reach the trace through
`op.intercept`; the tape, gradient rules and optimisers run unchanged, so that a whole training step becomes one graph.
Tensors from outside (parameters, buffers, the learning rate, the generator's state) become states, read anew at each replay.
Whatever would freeze a value (`.item()`, a branch, NumPy's generator) raises CaptureError with the user's line, and every
capture is made twice and compared, so that hidden inputs (a counter, the clock) are noticed too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CaptureError
from . import op as ops
from .autograd import Leaf, Slot, mark_written, mode
from .graph import Graph, Node, Value
from .modules.module import Module
from .op import Op
from .tensor import Tensor

_ENGINE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def user_line() -> tuple[str, int] | None:
    """File and line of the innermost frame outside the engine."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_ENGINE):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def refuse(what: str) -> None:
    """Raise CaptureError for something that a graph cannot hold, at the user's line."""
    line = user_line()
    where = f" at {line[0]}:{line[1]}" if line else ""
    raise CaptureError(f"this call cannot become a static graph: {what}{where}")


_NO_VALUE = (
    "{} needs a tensor's values, which a graph does not have yet; compute with ops instead (nn.functional.where for a branch), "
    "or do it outside the compiled function"
)


class Symbol:
    """In the place of an array: what is known of it before it exists."""

    __slots__ = ("device", "dtype", "shape", "trace", "value")

    def __init__(self, value: Value, trace: Trace, device: str):
        self.value, self.trace, self.device = value, trace, device
        self.shape, self.dtype = value.shape, value.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return self.value.size

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        refuse(_NO_VALUE.format("this"))

    get = item = tolist = copy = astype = __array__ = __dlpack__ = __dlpack_device__ = _refuse
    __getitem__ = __setitem__ = __iadd__ = __bool__ = __len__ = __iter__ = _refuse


class Trace:
    """One capture under way. Ops, tensors and modules report to it through `autograd.mode.trace`."""

    def __init__(self, name: str, known: Sequence[tuple[str, Tensor]]):
        self.graph = Graph(name)
        self.known = {id(t.data): (name, t) for name, t in known}
        self.leaves: dict[int, Value] = {}  # id of an array from outside -> its value
        self.outside: dict[Value, tuple[Tensor, Any]] = {}  # the tensor, and its array, so that the id stays taken
        self.arguments: dict[Value, Tensor] = {}
        self.argument_leaves: dict[int, tuple[Value, Leaf]] = {}
        self.guards: list[tuple[Value, int, int, str, str]] = []
        self.grads_set: dict[int, Tensor] = {}  # leaves whose gradient the function set or cleared
        self.collected: dict[int, Leaf] = {}  # leaves that a backward pass added to
        self.before: dict[int, tuple[Leaf, Any]] = {}  # gradients at the start, to be put back

    # -- what tensors and modules report -----------------------------------------------------------------------------
    refuse = staticmethod(refuse)

    def needs_value(self, what: str) -> None:
        refuse(_NO_VALUE.format(what))

    def assigns(self, module: Module, name: str) -> None:
        refuse(f"{type(module).__name__}.{name} is assigned inside, which would happen once and never again; return it instead")

    def guard(self, index: Tensor, low: int, high: int, what: str, limit: str) -> None:
        """Check an integer argument's range at every replay. (What the graph computes itself is in range or clipped.)"""
        value = self.value_of(index)
        if value in self.arguments:
            self.guards.append((value, low, high, what, limit))

    def remember(self, leaf: Leaf) -> None:
        self.before.setdefault(id(leaf), (leaf, leaf.grad))

    def grad_set(self, tensor: Tensor) -> None:
        assert tensor.edge is not None
        self.remember(tensor.edge)
        self.grads_set[id(tensor.edge)] = tensor

    def collects(self, leaf: Leaf) -> None:
        self.remember(leaf)
        if leaf.grad is not None and type(leaf.grad.data) is not Symbol:
            refuse("backward() adds to a gradient from before the call; call zero_grad() inside, before backward()")
        self.collected[id(leaf)] = leaf

    # -- ops ---------------------------------------------------------------------------------------------------------
    def argument(self, name: str, tensor: Tensor) -> Tensor:
        """The stand-in for an argument."""
        value = self.graph.add_input(name, tensor.shape, tensor.dtype)
        self.arguments[value] = tensor
        stand_in = Tensor(Symbol(value, self, tensor.device))
        if mode.grad and tensor.requires_grad:
            stand_in.edge = Leaf()
            self.argument_leaves[id(stand_in.edge)] = value, stand_in.edge
        return stand_in

    def value_of(self, tensor: Tensor) -> Value:
        data = tensor.data
        if type(data) is Symbol:
            if data.trace is not self:
                refuse(f"a tensor of shape {tensor.shape} is left over from another capture; return tensors from compiled "
                       "functions, do not keep them")  # fmt: skip
            return data.value
        value = self.leaves.get(id(data))
        if value is None:
            name, owner = self.known.get(id(data), ("", tensor))
            value = self.graph.add_state(name or "state", owner)
            self.leaves[id(data)] = value
            self.outside[value] = owner, data
        return value

    def record(self, op: Op, tensors: Sequence[Tensor], attrs: dict[str, Any]):
        """Write down one op call; returns what the eager call would."""
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            op._resolve(tensors)  # explains
        op._require_one_device(tensors)
        node = self.graph.append(op, [self.value_of(t) for t in tensors], attrs, user_line())
        for i in op.writes:
            if node.inputs[i] in self.arguments:
                refuse(f"op {op.name!r} changes argument {node.inputs[i].name!r} in place; return the new value instead")
            mark_written(tensors[i])
        if not node.outputs:
            return None
        symbols = [Symbol(v, self, tensors[op.key].device) for v in node.outputs]
        out = tuple(symbols) if op.multi else symbols[0]
        if mode.grad and op.vjp is not None and any(t.edge is not None for t in tensors):
            return op._record(tensors, [t.data for t in tensors], attrs, out)
        return tuple([Tensor(s) for s in symbols]) if op.multi else Tensor(symbols[0])

    # -- the end -----------------------------------------------------------------------------------------------------
    def restore(self) -> None:
        """Put back the gradients that the capture disturbed."""
        for leaf, grad in self.before.values():
            leaf.grad = grad

    def settle(self) -> None:
        """Tell constants from states: an array that nothing outside this trace can reach never changes."""
        while self.outside:
            value, (tensor, array) = self.outside.popitem()
            unreachable = (
                self.graph.states[value] is tensor
                and sys.getrefcount(tensor) <= 3  # the graph's table, this name, the call's argument
                and sys.getrefcount(array) <= 3  # the tensor, this name, the call's argument
                and isinstance(array, np.ndarray)
                and array.base is None
            )
            if unreachable and not any(value in node.writes for node in self.graph.nodes):
                del self.graph.states[value]
                self.graph.constants[value] = array


def _handle(op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any], eager: Callable):
    trace = mode.trace
    return eager(op, *inputs, **attrs) if trace is None else trace.record(op, inputs, attrs)


class Captured:
    """The result: the graph, and what happens around it. `outputs`: the returned leaves, each a Value or a plain object."""

    def __init__(self, trace: Trace):
        self.graph, self.guards = trace.graph, trace.guards
        self.outputs: list[Any] = []
        self.structure: Any = None
        self.gradients: list[tuple[Leaf, Value | None, bool]] = []  # leaf, new gradient, whether it is added to the old
        self.differentiable: Backward | None = None


class Backward:
    """What makes a compiled call differentiable: where in the graph the backward pass begins, the incoming gradients'
    values (None for outputs without history) and, for each source (an argument or a state), its gradient."""

    def __init__(self, start: int, incoming: list[Value | None], sources: list[tuple[Value, Value]]):
        self.start, self.incoming, self.sources = start, incoming, sources


def capture(function: Callable, name: str, build: Callable[[Trace], tuple[tuple, dict]], known: Sequence[tuple[str, Tensor]],
            flatten: Callable[[Any], tuple[list, Any]]) -> Captured:  # fmt: skip
    """Trace `function` twice and compare. `build(trace)` makes the stand-in arguments; `flatten` gives an output's leaves
    and a template for putting them together again."""
    first = _trace(function, name, build, known, flatten)
    second = _trace(function, name, build, known, flatten)
    _compare(first.graph, second.graph)
    return first


def _trace(function, name, build, known, flatten) -> Captured:
    if mode.trace is not None:
        refuse("a compiled function is called inside another while that one is captured; compile the outer one alone")
    trace = Trace(name, known)
    captured = Captured(trace)
    with ops.intercept(_handle):
        mode.trace = trace
        try:
            args, kwargs = build(trace)
            leaves, captured.structure = flatten(function(*args, **kwargs))
            del args, kwargs
            _take_outputs(trace, captured, leaves)
        finally:
            mode.trace = None
            trace.restore()
    leaves.clear()
    trace.settle()
    trace.graph.check()
    return captured


def _take_outputs(trace: Trace, captured: Captured, leaves: list) -> None:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    captured.outputs = [trace.value_of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    owners = {id(t.edge): t for t in (owner for owner, _ in trace.outside.values()) if type(t.edge) is Leaf}
    for key in dict.fromkeys([*trace.collected, *trace.grads_set]):
        leaf = trace.collected.get(key) or trace.grads_set[key].edge
        if key in owners or key in trace.grads_set:
            new = None if leaf.grad is None else trace.value_of(leaf.grad)
            captured.gradients.append((leaf, new, key not in trace.grads_set))
    if mode.grad and any(t.edge is not None for t in tensors) and not any(_used_up(t.edge) for t in tensors):
        captured.differentiable = _trace_backward(trace, tensors, owners)


def _used_up(edge: Any) -> bool:
    """Whether a backward pass inside the function has gone through this history and freed it."""
    seen, waiting = set(), [edge]
    while waiting:
        edge = waiting.pop()
        node = edge.node if type(edge) is Slot else edge
        if node is None or type(node) is Leaf or id(node) in seen:
            continue
        if node.saved is None:
            return True
        seen.add(id(node))
        waiting += node.parents
    return False


def _trace_backward(trace: Trace, outputs: list[Tensor], owners: dict[int, Tensor]) -> Backward:
    """Go on with the backward pass of the outputs, from gradients that will come in from outside."""
    from .autograd import _walk

    start = len(trace.graph.nodes)
    incoming: list[Value | None] = []
    roots, grads = [], []
    for t in outputs:
        if t.edge is None or type(t.edge) is Leaf:
            incoming.append(None)
            continue
        value = Value(trace.graph.fresh("incoming"), t.shape, t.dtype)
        trace.graph.inputs.append(value)
        incoming.append(value)
        roots.append(t)
        grads.append(Tensor(Symbol(value, trace, t.device)))
    found = _walk(roots, grads, {}, True, False) if roots else {}
    sources = []
    for leaf, gradient in found.items():
        if id(leaf) in trace.argument_leaves:
            sources.append((trace.argument_leaves[id(leaf)][0], trace.value_of(gradient)))
        else:
            sources.append((trace.value_of(owners[id(leaf)]), trace.value_of(gradient)))
    return Backward(start, incoming, sources)


def _compare(first: Graph, second: Graph) -> None:
    """Two captures of one call must agree, or something that is no argument decides what is computed."""
    twins = dict(zip(first.inputs, second.inputs, strict=True))

    def same(a: Value, b: Value) -> bool:
        if a in first.states and b in second.states:
            return first.states[a].data is second.states[b].data
        if a in first.constants and b in second.constants:
            return np.array_equal(first.constants[a], second.constants[b], equal_nan=first.constants[a].dtype.kind == "f")
        return twins.get(a) is b

    def describe(node: Node | None) -> str:
        return "nothing more" if node is None else f"{node}   [{node.source()}]"

    rows = [*zip(first.nodes, second.nodes, strict=False)]
    for one, two in rows:
        fits = one.op is two.op and one.attrs == two.attrs and len(one.inputs) == len(two.inputs)
        if not fits or not all(map(same, one.inputs, two.inputs)):
            _differ(describe(one), describe(two))
        twins.update(zip(one.outputs, two.outputs, strict=True))
    if len(first.nodes) != len(second.nodes):
        rest = (first.nodes[len(rows) :] or second.nodes[len(rows) :])[0]
        _differ(describe(rest), describe(None))


def _differ(one: str, two: str) -> None:
    raise CaptureError(
        "this call cannot become a static graph: captured twice with the same arguments it computed different things, so "
        "something that is no argument decides (a counter, a random draw, the clock). Pass it as an argument.\n"
        f"  first:  {one}\n  second: {two}"
    )


__all__ = ["Captured", "Symbol", "Trace", "capture", "user_line"]
