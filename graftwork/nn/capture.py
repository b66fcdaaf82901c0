"""Capture: run a function once on symbols instead of arrays and write down the ops that it calls.

The function sees ordinary tensors whose data is a `Symbol`: shape, dtype and device, but no values. Ops reach the trace through
`op.intercept`; the tape, gradient rules and optimisers run unchanged, so that a whole training step becomes one graph.
Tensors from outside (parameters, buffers, the learning rate, the generator's state) become states, read anew at each replay.
Whatever would freeze a value (`.item()`, a branch, a clock, a random draw) raises CaptureError with the user's line, and every
capture is made twice and compared, so that hidden inputs and side effects (a counter, a growing list) are noticed too.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import cuda
from ..errors import CaptureError, GradientError
from . import op as ops
from .autograd import Leaf, Slot, _walk, mark_written, memory, mode, share_memory
from .graph import Graph, Node, Value
from .modules.module import Module
from .op import OPS, Op
from .optim import Optimizer
from .reach import PLAIN, Reach, definition, frozen
from .tensor import Tensor, host

_ENGINE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = _ENGINE, os.path.dirname(np.__file__) + os.sep, os.path.dirname(os.__file__) + os.sep
_CLOCKS = {
    time.time, time.time_ns, time.perf_counter, time.perf_counter_ns, time.monotonic, time.monotonic_ns, time.process_time,
    datetime.datetime.now, datetime.datetime.utcnow, datetime.datetime.today, datetime.date.today, os.urandom, input,
}  # fmt: skip


def user_line() -> tuple[str, int] | None:
    """File and line of the innermost frame outside the engine, NumPy and the standard library."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) or ("-packages" in file and not file.startswith(_LIBRARIES[:2])):
            return file, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def refuse(what: str, line: tuple[str, int] | None = None) -> None:
    """Raise CaptureError for something that a graph cannot hold, at the user's line."""
    line = line or user_line()
    where = f" at {line[0]}:{line[1]}" if line else ""
    raise CaptureError(f"this call cannot become a static graph: {what}{where}")


_NO_VALUE = (
    "{} needs a tensor's values, which a graph does not have yet; compute with ops instead (nn.functional.where for a branch), "
    "or do it outside the compiled function"
)


class Symbol:
    """In the place of an array: what is known of it before it exists."""

    __slots__ = ("device", "dtype", "shape", "trace", "value")
    base, symbolic = None, True  # no view, and no values

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

    get = item = tolist = copy = astype = view = reshape = sum = mean = fill = _refuse
    __array__ = __dlpack__ = __dlpack_device__ = __getitem__ = __setitem__ = __bool__ = __float__ = __len__ = __iter__ = _refuse
    __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __isub__ = __mul__ = __rmul__ = __imul__ = __truediv__ = _refuse


class Trace:
    """One capture under way. Ops, tensors and modules report to it through `autograd.mode.trace`."""

    def __init__(self, name: str, known: Sequence[tuple[str, Tensor]], watched: set[int]):
        self.graph = Graph(name)
        self.device: str | None = None
        self.known = {id(t.data): (name, t) for name, t in known}
        self.watched = watched  # ids of NumPy arrays whose contents decide, like a number's value, which graph serves a call
        self.leaves: dict[int, Value] = {}  # id of an array from outside -> its value
        self.outside: dict[Value, tuple[Tensor, Any]] = {}  # the tensor, and its array, so that the id stays taken
        self.arguments: dict[Value, tuple[Tensor, Tensor]] = {}  # the caller's tensor, and its stand-in
        self.proxies: dict[int, tuple[Tensor, Tensor]] = {}  # tensors computed outside, and their stand-ins without history
        self.owners: dict[int, Place] = {}  # id of a leaf -> whose gradient it collects
        self.guards: list[tuple[Value, int, int, str, str]] = []
        self.grads_set: dict[int, Leaf] = {}  # leaves whose gradient the function set or cleared
        self.grads_read: dict[int, Leaf] = {}  # leaves that must have no gradient at the start, because it would be read
        self.collected: dict[int, Leaf] = {}  # leaves that a backward pass added to
        self.before: dict[int, tuple[Leaf, Any]] = {}  # gradients at the start, to be put back
        self.written: dict[int, tuple[Tensor, int]] = {}  # tensors that would be written, and the number of their last write
        self.born: list[Module] = []  # modules made inside

    # -- what tensors and modules report -----------------------------------------------------------------------------
    refuse = staticmethod(refuse)

    def needs_value(self, what: str) -> None:
        refuse(_NO_VALUE.format(what))

    def assigns(self, module: Module, name: str) -> None:
        if "_modules" not in module.__dict__:
            self.born.append(module)
        elif not any(module is m for m in self.born):
            refuse(f"{type(module).__name__}.{name} is assigned inside, which would happen once and never again; return it "
                   "instead")  # fmt: skip

    def guard(self, index: Tensor, low: int, high: int, what: str, limit: str) -> None:
        """Check an integer tensor's range at every replay: arguments before it, what is computed when it has been.
        (On a GPU kernels give NaN instead, as in eager mode: looking would mean to wait for it.)"""
        value = self.value_of(index)
        if index.device != "cpu":
            return
        if value in self.arguments:
            self.guards.append((value, low, high, what, limit))
            return
        node = self.graph.append(OPS["in_range"], [value], dict(low=low, high=high, what=what, limit=limit), user_line())
        if type(index.data) is Symbol:
            index.data.value = node.output  # whatever reads the index from here on reads what was checked
        else:
            self.leaves[id(index.data)] = node.output

    def grad_set(self, tensor: Tensor) -> None:
        leaf = self._remember(tensor)
        self.grads_set[id(leaf)] = leaf

    def grad_read(self, tensor: Tensor) -> None:
        leaf = self._remember(tensor)
        if id(leaf) in self.grads_set:
            return
        outside = self._outside(leaf)
        old = outside.edge.grad if outside is not None and outside.edge is not leaf else self.before[id(leaf)][1]
        if old is not None:
            refuse("a gradient from before the call is read; call zero_grad() inside, before backward(), or pass it as an "
                   "argument")  # fmt: skip
        self.grads_read[id(leaf)] = leaf

    def collects(self, leaf: Leaf) -> None:
        outside = self._outside(leaf)
        if outside is not None and type(outside.edge) is not Leaf:
            refuse(f"backward() goes on into the history of a tensor of shape {outside.shape} that was computed outside; "
                   "return the loss and call backward() on that, or detach() the tensor")  # fmt: skip
        self.before.setdefault(id(leaf), (leaf, leaf.grad))
        if id(leaf) not in self.grads_set and leaf.grad is not None and type(leaf.grad.data) is not Symbol:
            leaf.grad = None  # replays add to what is there
        self.collected[id(leaf)] = leaf

    def _remember(self, tensor: Tensor) -> Leaf:
        leaf = tensor.edge
        assert type(leaf) is Leaf  # tensors ask before they report
        self.before.setdefault(id(leaf), (leaf, leaf.grad))
        if type(tensor.data) is not Symbol:
            self.owners.setdefault(id(leaf), tensor)
        return leaf

    def _outside(self, leaf: Leaf) -> Tensor | None:
        """The caller's tensor whose gradient the leaf collects; None for leaves that were made inside."""
        place = self.owners.get(id(leaf))
        if not isinstance(place, Value):
            return place
        return self.arguments[place][0] if place in self.arguments else self.graph.states[place]

    # -- ops ---------------------------------------------------------------------------------------------------------
    def argument(self, name: str, tensor: Tensor) -> Tensor:
        """The stand-in for an argument."""
        self._require_one_device(tensor)
        value = self.graph.add_input(name, tensor.shape, tensor.dtype)
        stand_in = Tensor(Symbol(value, self, tensor.device))
        self.arguments[value] = tensor, stand_in
        if tensor.requires_grad:
            stand_in.edge = Leaf()
            self.owners[id(stand_in.edge)] = value
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
            self._require_one_device(tensor)
            name, owner = self.known.get(id(data), ("", tensor))
            value = self.graph.add_state(name or "state", owner)
            self.leaves[id(data)] = value
            self.outside[value] = owner, data
        if type(tensor.edge) is Leaf and not isinstance(self.owners.get(id(tensor.edge)), Value):
            self.owners[id(tensor.edge)] = value if tensor is self.graph.states.get(value) else tensor
        return value

    def record(self, op: Op, tensors: Sequence[Tensor], attrs: dict[str, Any]):
        """Write down one op call; returns what the eager call would."""
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            op._resolve(tensors)  # explains
        op._require_one_device(tensors)
        node = self.graph.append(op, [self.value_of(t) for t in tensors], attrs, user_line())
        for i in op.written(len(node.inputs)):
            self._note_write(node, node.inputs[i], tensors[i])
        if not node.outputs:
            return None
        symbols = [Symbol(v, self, tensors[op.key].device) for v in node.outputs]
        if mode.grad and op.vjp is not None and any(t.edge is not None for t in tensors):
            tensors = [self._without_history(t) for t in tensors]
            return op._record(tensors, [t.data for t in tensors], attrs, tuple(symbols) if op.multi else symbols[0])
        return tuple([Tensor(s) for s in symbols]) if op.multi else Tensor(symbols[0])

    def _note_write(self, node: Node, value: Value, tensor: Tensor) -> None:
        if value not in self.graph.states:
            what = f"argument {value.name!r}" if value in self.arguments else f"{value.name!r}, which is computed inside,"
            refuse(f"op {node.op.name!r} changes {what} in place; return the new value instead")
        self.written.setdefault(id(tensor), (tensor, tensor.written))
        mark_written(tensor)

    def _without_history(self, tensor: Tensor) -> Tensor:
        """A tensor that was computed outside ends the tape that is recorded here; its own history goes on from the replay."""
        if tensor.edge is None or type(tensor.edge) is Leaf or type(tensor.data) is Symbol:
            return tensor
        if id(tensor) not in self.proxies:
            self.proxies[id(tensor)] = tensor, Tensor(tensor.data, Leaf())
            self.owners[id(self.proxies[id(tensor)][1].edge)] = self.value_of(tensor)
        return self.proxies[id(tensor)][1]

    def _require_one_device(self, tensor: Tensor) -> None:
        """The first tensor says where the graph runs."""
        self.device = self.device or tensor.device
        if tensor.device != self.device:
            refuse(f"a tensor of shape {tensor.shape} is on {tensor.device!r}, while others are on {self.device!r}; a graph "
                   "runs on one device, move them to it with x.to(...)")  # fmt: skip

    # -- the end -----------------------------------------------------------------------------------------------------
    def restore(self) -> None:
        """Put back what the capture disturbed: gradients, and when tensors were last written."""
        for leaf, grad in self.before.values():
            leaf.grad = grad
        for tensor, number in self.written.values():
            tensor.written = number

    def settle(self) -> None:
        """Tell constants from states: an array that nothing outside this trace can reach never changes."""
        graph = self.graph
        graph.device = self.device or "cpu"
        writers = {v: n for n in graph.nodes for v in n.writes}
        self._refuse_shared_memory(writers)
        probe = graph.add_state("probe", Tensor(np.empty(2)[:1]))
        self.outside[probe] = graph.states[probe], graph.states[probe].data
        limits: list[int] = []
        while self.outside:
            value, (tensor, array) = self.outside.popitem()
            counts = _references(tensor, array)
            limits = limits or counts  # the probe comes first: nothing else knows it
            fresh = counts[0] <= limits[0]
            alone = fresh and all(n <= limits[min(i, 2)] for i, n in enumerate(counts))
            if fresh and counts[1] <= limits[1] and value in writers:
                refuse(f"op {writers[value].op.name!r} changes a tensor that was made inside the function, which would keep "
                       "its value from call to call; make it outside", writers[value].line)  # fmt: skip
            if alone or (fresh and id(memory(array)) in self.watched):
                del graph.states[value]
                graph.constants[value] = host(array) if alone else host(array).copy()
                value.name = graph.fresh("constant") if value is not probe else value.name
        del graph.constants[probe]

    def _refuse_shared_memory(self, writers: dict[Value, Node]) -> None:
        """What one state's update does to another one that looks at the same memory would go unnoticed."""
        states = self.graph.states
        for value in [v for v in states if v in writers]:
            for other, tensor in states.items():
                if other is not value and share_memory(tensor.data, states[value].data):
                    refuse(f"{value.name!r} is changed in place while {other.name!r} looks at the same memory",
                           writers[value].line)  # fmt: skip


def _references(tensor: Tensor, array: np.ndarray) -> list[int]:
    """How many references there are to the tensor, its array, and the arrays whose memory that shares."""
    counts = [sys.getrefcount(tensor), sys.getrefcount(array)]
    kind = type(array)
    while isinstance(array, kind) and array.base is not None:
        array = array.base
        counts.append(sys.getrefcount(array) if isinstance(array, kind) else sys.maxsize)
    if kind is not np.ndarray and cuda.is_foreign(array):
        counts.append(sys.maxsize)
    return counts


def _handle(op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any], eager: Callable):
    trace = mode.trace
    return eager(op, *inputs, **attrs) if trace is None else trace.record(op, inputs, attrs)


# -- what comes out ----------------------------------------------------------------------------------------------------


class Same(NamedTuple):
    """A result that is a tensor of the caller's: an argument or a state, returned as it is."""

    value: Value


class Result(NamedTuple):
    """A result that is computed: its number among `Captured.results`."""

    number: int


Place = Value | Tensor  # whose gradient: an argument's or state's value, or a tensor that the graph itself does not read


class Captured:
    """The graph, and what happens around it."""

    def __init__(self, trace: Trace):
        self.graph, self.guards = trace.graph, trace.guards
        self.results: list[Value] = []  # what the caller gets, in order
        self.outputs: list[Any] = []  # the returned leaves: Same, Result, or a plain value
        self.structure: Any = None  # for putting them together again
        self.gradients: list[tuple[Place, Same | Result | None, bool]] = []  # the new .grad, and whether it is added to the old
        self.clear: list[Place] = []  # whose .grad must be None at the start
        self.used_up: set[int] = set()  # results whose history a backward pass inside has freed
        self.leaves: set[int] = set()  # results that the function itself made leaves
        self.differentiable: Backward | None = None


class Backward(NamedTuple):
    """What makes a compiled call differentiable: where in the graph the backward pass begins, the values of the incoming
    gradients by the number of the result, and the gradient of each place that the results depend on."""

    start: int
    incoming: dict[int, Value]
    sources: list[tuple[Place, Value]]


def capture(function: Callable, name: str, build: Callable[[Trace], tuple[tuple, dict]], reach: Reach,
            flatten: Callable[[Any], tuple[list, Any]]) -> Captured:  # fmt: skip
    """Trace `function` twice and compare. `build(trace)` makes the stand-in arguments; `flatten` gives an output's leaves
    and a template for putting them together again."""
    line = definition(function)
    first = _trace(function, name, build, reach, flatten, line)
    before = reach.snapshot()
    second = _trace(function, name, build, reach, flatten, line)
    changed = dict.fromkeys(n for (n, old), (_, new) in zip(before, reach.snapshot(), strict=True) if old != new)
    if changed:
        refuse(f"{', '.join(changed)} changes whenever the function runs, which would happen once and never again; return what "
               "it computes instead, in the function", line)  # fmt: skip
    _compare(first, second, {id(t) for _, t in reach.tensors()})
    return first


def _trace(function, name, build, reach, flatten, line) -> Captured:
    trace = Trace(name, reach.tensors(), reach.arrays)
    captured = Captured(trace)
    with ops.intercept(_handle):
        mode.trace = trace
        try:
            args, kwargs = build(trace)
            with _no_clocks():
                leaves, captured.structure = flatten(function(*args, **kwargs))
            del args, kwargs
            _take_outputs(trace, captured, leaves, line)
        finally:
            mode.trace = None
            trace.restore()
            for kept in (trace.written, trace.before, trace.proxies, trace.arguments):
                kept.clear()
    leaves.clear()
    trace.settle()
    _take_constants(captured)
    trace.graph.check()
    return captured


@contextlib.contextmanager
def _no_clocks() -> Iterator[None]:
    """Refuse calls of clocks and Python's random numbers, whose results would be frozen. (Not under a profiler.)"""
    if sys.getprofile() is not None:
        yield
        return
    sys.setprofile(_look_at_call)
    try:
        yield
    finally:
        sys.setprofile(None)


def _look_at_call(frame: Any, event: str, called: Any) -> None:
    if event == "c_call" and (called in _CLOCKS or isinstance(getattr(called, "__self__", None), random.Random)):
        line = user_line()
        if line is not None and "-packages" not in line[0]:  # else a hook of the collector's, which is not the function's
            refuse(f"{called.__qualname__}() is called, whose result would be frozen; pass it as a tensor, or use random ops")


def _take_outputs(trace: Trace, captured: Captured, leaves: list, line: Any) -> None:
    numbers: dict[int, int] = {}

    def returned(t: Tensor) -> Same | Result:
        value = trace.value_of(t)
        given = trace.arguments[value][1] if value in trace.arguments else trace.graph.states.get(value)
        if t is given:
            return Same(value)
        if id(t) not in numbers:
            numbers[id(t)] = len(captured.results)
            captured.results.append(value)
        return Result(numbers[id(t)])

    for leaf in leaves:
        if not isinstance(leaf, (Tensor, Module, Optimizer, *PLAIN)):
            refuse(f"it returns a {type(leaf).__module__}.{type(leaf).__qualname__}; expected tensors, numbers, strings, and "
                   "tuples, lists and dicts of those", line)  # fmt: skip
        captured.outputs.append(returned(leaf) if isinstance(leaf, Tensor) else leaf)
    tensors = {numbers[id(t)]: t for t in leaves if id(t) in numbers}
    captured.leaves = {i for i, t in tensors.items() if type(t.edge) is Leaf}
    computed = {i: t for i, t in tensors.items() if t.edge is not None and i not in captured.leaves}
    captured.used_up = {i for i, t in computed.items() if _used_up(t.edge)}
    for key in dict.fromkeys([*trace.collected, *trace.grads_set]):
        leaf, place = trace.collected.get(key) or trace.grads_set[key], trace.owners.get(key)
        if leaf.grad is not None and type(leaf.grad.edge) not in (type(None), Leaf):
            refuse("a gradient with a history of its own (create_graph=True) is left in .grad; return it instead", line)
        if place is not None:
            captured.gradients.append((place, None if leaf.grad is None else returned(leaf.grad), key not in trace.grads_set))
    captured.clear = [place for place in map(trace.owners.get, trace.grads_read) if place is not None]
    if len(computed) > len(captured.used_up):
        _trace_backward(trace, captured, {i: t for i, t in computed.items() if i not in captured.used_up})


def _take_constants(captured: Captured) -> None:
    """Tensors made inside turned out to be constants: nobody can see their gradients, and each caller gets a copy."""
    constants = captured.graph.constants
    captured.gradients = [g for g in captured.gradients if g[0] not in constants]
    captured.clear = [place for place in captured.clear if place not in constants]
    for i, output in enumerate(captured.outputs):
        if isinstance(output, Same) and output.value in constants:
            captured.outputs[i] = Result(len(captured.results))
            captured.results.append(output.value)


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


def _trace_backward(trace: Trace, captured: Captured, outputs: dict[int, Tensor]) -> None:
    """Go on with the backward pass of the outputs, from gradients that will come in from outside."""
    graph, start = trace.graph, len(trace.graph.nodes)
    incoming = {i: Value(graph.fresh("incoming"), t.shape, t.dtype) for i, t in outputs.items()}
    given = [Tensor(Symbol(value, trace, trace.device or "cpu")) for value in incoming.values()]
    try:
        found = _walk(list(outputs.values()), given, {}, True, False)
    except GradientError:  # a weight was changed after its use: as in eager mode, only whoever asks for the gradient is told
        del graph.nodes[start:]
        captured.used_up |= set(outputs)
        return
    graph.inputs += incoming.values()
    places = [(trace.owners.get(id(leaf)), trace.value_of(g)) for leaf, g in found.items()]
    captured.differentiable = Backward(start, incoming, [(place, g) for place, g in places if place is not None])


# -- comparing two captures ---------------------------------------------------------------------------------------------


def _compare(one: Captured, two: Captured, known: set[int]) -> None:
    """Two captures of one call must agree, or something that is no argument decides what is computed.

    known: ids of tensors that existed before; any other one was made inside, each time anew."""
    first, second = one.graph, two.graph
    twins = dict(zip(first.inputs, second.inputs, strict=False))

    def same(a: Any, b: Any) -> bool:
        if a in first.states and b in second.states:
            left, right = first.states[a], second.states[b]
            return _same_memory(left.data, right.data) or (id(left) not in known and _equal(left.data, right.data))
        if a in first.constants and b in second.constants:
            return _equal(first.constants[a], second.constants[b])
        return twins.get(a) is b

    def same_output(a: Any, b: Any) -> bool:
        if isinstance(a, Same) and isinstance(b, Same):
            return same(a.value, b.value)
        return frozen(a) == frozen(b)

    def describe(node: Node | None) -> str:
        return "nothing more" if node is None else f"{node}   [{node.source()}]"

    for left, right in zip(first.nodes, second.nodes, strict=False):
        fits = left.op is right.op and repr(left.attrs) == repr(right.attrs) and len(left.inputs) == len(right.inputs)
        if not fits or not all(map(same, left.inputs, right.inputs)):
            _differ(describe(left), describe(right))
        twins.update(zip(left.outputs, right.outputs, strict=True))
    if len(first.nodes) != len(second.nodes):
        longer = max(first.nodes, second.nodes, key=len)
        _differ(describe(longer[min(len(first.nodes), len(second.nodes))]), describe(None))
    if one.structure != two.structure or len(one.results) != len(two.results):
        _differ(f"{len(one.outputs)} results", f"{len(two.outputs)} results, arranged in another way")
    if not all(map(same, one.results, two.results)) or not all(map(same_output, one.outputs, two.outputs)):
        _differ(f"results {one.outputs}", f"results {two.outputs}")
    new = [[g for _, g, _ in captured.gradients] for captured in (one, two)]
    if len(new[0]) != len(new[1]) or not all(map(same_output, *new)):
        _differ(f"{len(new[0])} gradients", f"{len(new[1])} gradients, or others")


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    name = "__array_interface__" if isinstance(a, np.ndarray) else "__cuda_array_interface__"
    return a is b or getattr(a, name) == getattr(b, name, None)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(host(a), host(b), equal_nan=a.dtype.kind == "f")


def _differ(one: str, two: str) -> None:
    raise CaptureError(
        "this call cannot become a static graph: captured twice with the same arguments it computed different things, so "
        "something that is no argument decides (a counter, a random draw, the clock). Pass it as an argument.\n"
        f"  first:  {one}\n  second: {two}"
    )


__all__ = ["Backward", "Captured", "Result", "Same", "Symbol", "Trace", "capture", "user_line"]
