"""`gw.compile`: a function or module that is captured once per input signature and replayed from then on.

What decides which graph serves a call: the structure of the arguments, the tensors' shapes and dtypes, every plain argument by
value, whether gradients are recorded, the settings of all modules within reach (training flag, rates, paddings), and the plain
values that the function can reach (`nn/reach.py`). Any of them changed means another capture, never a wrong replay. Values of
parameters, buffers, learning rates and generators are read at each call.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CaptureError, ConfigError, GradientError
from ..kernels.reference.index import check_range
from . import passes
from .autograd import Changes, Leaf, Node, Slot, mode, next_seq, share_memory
from .capture import Captured, Result, Same, Trace, capture, refuse
from .graph import Graph, Outgrown, Value
from .modules.module import Module
from .optim import Optimizer
from .passes.precision import DTYPES
from .profiling import report_runs
from .reach import PLAIN, Reach, frozen
from .tensor import Tensor, tensor

if TYPE_CHECKING:
    from .capture import Place
    from .lower import Executable

MANY = 16  # captures of one function after which a warning says why


def compile(target: Callable, precision: str | None = None) -> Compiled:
    """A static version of a Module, a function of tensors, or a whole training step; the same call signature.

    Each new input signature is captured (run once on symbols), optimised and planned; later calls replay without Python or
    allocation in between. Arguments and results may be nested tuples, lists and dicts. Results are new tensors of the caller's,
    which share memory with nothing; only a tensor that is returned as it was given (an argument, a parameter) is itself.
    Works as a decorator. Raises CaptureError with the user's line for what cannot be captured (a branch on a tensor's value,
    `.item()`, attributes assigned inside `forward`, a list that grows); ConfigError if `target` is no function.

    precision: "bf16" or "fp16" lets products and convolutions compute in 16 bits, on a GPU only; parameters, results and
    gradients stay float32 (`passes/precision.py`). float16 gradients need a `nn.LossScale`; `Trainer` has one.

    On a GPU, replays are CUDA graphs and do not wait for their end; a kernel that cannot be recorded makes them lists of
    launches, which a warning says once. Positions and labels out of range give NaN there, as in eager mode.

    Weights may change at any time through ops, optimisers, `load_state_dict` and `numpy()`. Where something has been computed
    ahead from them, arrays that `numpy()` gave out become read-only. What is written into the raw `tensor.data` goes unnoticed.
    """
    if precision is not None and precision not in DTYPES:
        raise ConfigError(f"compile: precision={precision!r}; expected None, {' or '.join(map(repr, DTYPES))}")
    if isinstance(target, Compiled):
        return target if precision in (None, target.precision) else Compiled(target.target, precision)
    if not callable(target):
        raise ConfigError(f"compile: {type(target).__qualname__} object given; expected a Module or a function of tensors")
    return Compiled(target, precision)


class Compiled:
    """What `compile` returns. Attributes that it does not have itself are those of what it wraps.

    captures: one line for each capture and why it was needed.
    """

    def __init__(self, target: Callable, precision: str | None = None):
        if not isinstance(target, Module):
            functools.update_wrapper(self, target)
        self.target = self.__wrapped__ = target
        self.precision = precision
        self.captures: list[str] = []
        self._name = type(target).__name__ if isinstance(target, Module) else getattr(target, "__name__", "function")
        self._entries: dict[Any, Entry] = {}
        self._alive: list[Any] = []  # objects whose ids stand in keys, so that no others can get those
        self._lock = threading.RLock()
        self._settings: dict[Any, int] = {}  # settings of the modules within reach -> a number for the key
        self._current = self._looked = -1
        self._objects: dict[int, Any] = {}  # modules and optimisers that have been arguments
        self._reach = Reach(target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.trace is not None:  # inside another capture: part of that one
            return self.target(*args, **kwargs)
        tensors: list[Tensor] = []
        structure = flatten((args, kwargs), tensors)
        while True:
            key, entry = self._entry(structure, tensors, args, kwargs)
            try:
                return entry.call(tensors)
            except Outgrown:
                self._entries.pop(key, None)

    def __getattr__(self, name: str) -> Any:
        if "target" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["target"], name)

    def __repr__(self) -> str:
        return f"<compiled {self._name}: {len(self._entries)} captures>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:  # copies and pickles capture anew
        return compile, (self.target, self.precision)

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The optimised graph for these arguments: `print` it, or `.html("graph.html")`."""
        return self.executable(*args, **kwargs).graph

    def executable(self, *args: Any, **kwargs: Any) -> Executable:
        """What a call with these arguments replays: plans, memory, steps."""
        if mode.trace is not None:
            refuse("a compiled function is captured inside another capture; call it there, and compile the outer one alone")
        tensors: list[Tensor] = []
        structure = flatten((args, kwargs), tensors)
        return self._entry(structure, tensors, args, kwargs)[1].executable

    def _entry(self, structure: Any, tensors: list[Tensor], args: tuple, kwargs: dict) -> tuple[Any, Entry]:
        if self._looked != Changes.settings:
            self._look()
        signature = tuple([(t.data.shape, t.data.dtype, t.device, t.edge is not None) for t in tensors])
        repeats = () if len(tensors) < 2 else tuple(_repeats(tensors))
        asked = structure, signature, repeats, mode.grad
        key = *asked, self._current, self._reach.values()
        entry = self._entries.get(key)
        return (key, entry) if entry is not None else self._new_entry(asked, tensors, args, kwargs)

    def _look(self) -> None:
        """Note the settings of all modules within reach."""
        with self._lock:
            looked = Changes.settings
            alive: list[Any] = []
            settings = self._reach.settings(alive)
            if settings not in self._settings:
                self._alive += alive
            self._current = self._settings.setdefault(settings, len(self._settings))
            self._looked = looked

    def _new_entry(self, asked: tuple, tensors: list[Tensor], args: tuple, kwargs: dict) -> tuple[Any, Entry]:
        """Something differs, so look again at what is within reach, and capture if that changes nothing."""
        with self._lock:
            self._objects.update({id(v): v for v in _objects((args, kwargs))})
            self._reach = Reach(self.target, self._objects.values())
            self._look()
            alive: list[Any] = []
            key = *asked, self._current, self._reach.values(alive)
            if key not in self._entries:
                self._alive += alive
                self._entries[key] = self._capture(key, tensors, args, kwargs)
            return key, self._entries[key]

    def _capture(self, key: Any, tensors: list[Tensor], args: tuple, kwargs: dict) -> Entry:
        start = time.perf_counter()
        captured = capture(self.target, self._name, lambda trace: _stand_ins(trace, self.target, args, kwargs), self._reach,
                           _flatten_output)  # fmt: skip
        captured.graph.precision = self.precision
        entry = Entry(captured, len(tensors))
        reason = _difference(key, list(self._entries), [name for name, _ in self._reach.cells])
        self.captures.append(f"{self._name}: captured {reason} in {time.perf_counter() - start:.2f} s")
        if len(self.captures) == MANY:
            warnings.warn(
                f"{self._name} has been captured {MANY} times, last {reason}; pass what changes often as a tensor", stacklevel=5
            )
        return entry


def trace(target: Callable, *args: Any) -> Graph:
    """The graph of a call as it is captured, before any pass: a node an op, states for weights. Nothing is computed."""
    captured = capture(target, type(target).__name__, lambda trace: _stand_ins(trace, target, args, {}), Reach(target),
                       _flatten_output)  # fmt: skip
    captured.graph.outputs = list(captured.results)
    return captured.graph


def executable(graph: Graph) -> Executable:
    """The graph, optimised and planned. (Numba loads with the first one, not with `import graftwork`.)"""
    if graph.precision is not None and graph.device == "cpu":
        raise ConfigError(f"precision={graph.precision!r} needs tensors on a GPU: the CPU has no kernels for 16 bits; move "
                          "model and inputs with .to(\"cuda\"), or leave precision out")  # fmt: skip
    graph = passes.optimise(graph)
    if graph.device == "cpu":
        from .lower import Executable

        made = Executable(graph)
    else:
        from .lower_cuda import CudaExecutable

        made = CudaExecutable(graph)
    if os.environ.get("GRAFTWORK_DEBUG") == "2":
        report_runs(made)
    return made


class Entry:
    """One captured signature, ready to run."""

    def __init__(self, captured: Captured, arguments: int):
        graph = captured.graph
        self.captured, self.structure, self.outputs = captured, captured.structure, captured.outputs
        self.guards = [(graph.inputs.index(guard[0]), guard[1:]) for guard in captured.guards]
        self.states = dict(graph.states)
        self.number = {v: i for i, v in enumerate(graph.inputs[:arguments])}
        self.written = [graph.states[v] for v in graph.states if v in graph.written()]
        self.backward: _BackwardPass | None = None
        if captured.differentiable is not None:
            self.backward = _BackwardPass(captured, self)
            graph = self.backward.forward_graph
        else:
            graph.outputs = list(captured.results)
        self.executable = executable(graph)

    def call(self, tensors: list[Tensor]) -> Any:
        self._check(tensors)
        results = [Tensor(a) for a in self.executable.run([t.data for t in tensors])]
        if self.backward is not None:
            self.backward.attach(tensors, results)
        captured = self.captured
        for i in captured.leaves:
            results[i].edge = Leaf()
        for i in captured.used_up:  # whoever asks for a gradient is told what happened to it
            results[i].edge = Node(_BackwardPass, {}, None, [], None, next_seq())
        for place, output, added in captured.gradients:
            leaf = self.tensor(place, tensors).edge
            new = None if output is None else self._result(output, tensors, results)
            leaf.grad = leaf.grad + new if added and leaf.grad is not None and new is not None else new
        return unflatten(self.structure, iter([self._result(v, tensors, results) for v in self.outputs]))

    def _result(self, output: Any, tensors: list[Tensor], results: list[Tensor]) -> Any:
        if type(output) is Result:
            return results[output.number]
        return self.tensor(output.value, tensors) if type(output) is Same else output

    def tensor(self, place: Place, tensors: list[Tensor]) -> Tensor:
        """The tensor that an argument's or state's value stands for."""
        if isinstance(place, Tensor):
            return place
        return self.states[place] if place in self.states else tensors[self.number[place]]

    def _check(self, tensors: list[Tensor]) -> None:
        """Refuse what this graph would compute wrongly."""
        for at, limits in self.guards:
            check_range(tensors[at].data, *limits)
        for place in self.captured.clear:
            if self.tensor(place, tensors).grad is not None:
                raise CaptureError(
                    "this call was captured with no gradients at its start and now there are some, which it would have to "
                    "read; call zero_grad() inside the compiled function, before backward()"
                )
        for place, _, _ in self.captured.gradients:
            if type(self.tensor(place, tensors).edge) is not Leaf:
                raise CaptureError(
                    "this call was captured with a leaf as its argument; backward() inside cannot go on into the history of a "
                    "computed tensor: return the loss and call backward() on that, or detach() the argument"
                )
        for t in self.written:
            for given in tensors:
                if share_memory(given.data, t.data):
                    raise CaptureError(
                        f"an argument of shape {given.shape} shares memory with a tensor that the compiled function changes in "
                        "place; pass a copy"
                    )


class _BackwardPass:
    """A captured call's gradient: a second graph, which takes the incoming gradients and what the first one left for it."""

    name, keeps_inputs, keeps_output, multi = "compiled", True, False, True

    def __init__(self, captured: Captured, entry: Entry):
        whole, plan = captured.graph, captured.differentiable
        assert plan is not None
        before, after = whole.nodes[: plan.start], whole.nodes[plan.start :]
        self.entry, self.count = entry, len(captured.results)
        self.sources = [place for place, _ in plan.sources]
        self.heads = list(plan.incoming)  # numbers of the results that can be differentiated
        incoming = list(plan.incoming.values())
        made_before = {v for n in before for v in n.outputs}
        wanted = dict.fromkeys([v for n in after for v in n.inputs] + [g for _, g in plan.sources])
        saved = [v for v in wanted if v in made_before]
        self.read = [v for v in wanted if v in entry.number or v in entry.states]
        arguments = [v for v in self.read if v in entry.number]
        self.forward_graph = _part(whole, before, list(entry.number), [*captured.results, *saved])
        self.backward_graph = _part(
            whole, after, [*incoming, *saved, *arguments], [g for _, g in plan.sources], f"{whole.name}_backward"
        )
        self.specs = [(v.shape, v.dtype) for v in incoming]
        reached = {v: {i} for i, v in enumerate(incoming)}  # value -> the incoming gradients that it depends on
        for node in after:
            found = set().union(*(reached.get(v, ()) for v in node.inputs))
            reached.update(dict.fromkeys(node.outputs, found))
        self.reached = [reached.get(g, set()) for _, g in plan.sources]
        self.executable: Executable | None = None
        self.lock = threading.Lock()

    def attach(self, tensors: list[Tensor], results: list[Tensor]) -> None:
        """Leave a record on the tape, so that the results can be differentiated. It keeps what the backward pass reads: results
        of the forward pass, then arguments, then states (those to see whether they are written in the meantime)."""
        read = [self.entry.tensor(v, tensors) for v in self.read]
        states = [t for v, t in zip(self.read, read, strict=True) if v in self.entry.states]
        kept = [*results[self.count :], *(t for v, t in zip(self.read, read, strict=True) if v not in self.entry.states)]
        del results[self.count :]
        edges = [self.entry.tensor(place, tensors).edge for place in self.sources]
        node = Node(self, {"given": len(kept)}, [*kept, *states], edges, None, next_seq())
        node.grad_specs = self.specs
        for i, number in enumerate(self.heads):
            results[number].edge = Slot(node, i)

    def vjp(self, g: list, out: None, *kept: Tensor, given: int) -> list[Tensor | None]:
        if mode.grad:
            raise GradientError(
                "gradients of gradients do not pass through a compiled call; compile the whole computation, both backward "
                "passes inside"
            )
        with self.lock:
            if self.executable is None:
                self.executable = executable(self.backward_graph)
        there = self.backward_graph.device
        incoming = [tensor(np.zeros(*s), device=there) if gi is None else gi for gi, s in zip(g, self.specs, strict=True)]
        arrays = self.executable.run([t.data for t in (*incoming, *kept[:given])])
        asked = {i for i, gi in enumerate(g) if gi is not None}  # who depends on none of these has no gradient, not a zero one
        return [None if asked.isdisjoint(r) else Tensor(a) for r, a in zip(self.reached, arrays, strict=True)]


def _part(whole: Graph, nodes: list, inputs: list[Value], outputs: list[Value], name: str | None = None) -> Graph:
    """The graph of some of the nodes, with copies of the values that become its inputs."""
    part = Graph(name or whole.name, whole.device, whole.precision)
    part._names = dict(whole._names)
    part.states, part.constants = dict(whole.states), dict(whole.constants)
    stand_ins = {v: Value(v.name, v.shape, v.dtype) for v in inputs}
    part.inputs = list(stand_ins.values())
    twins: dict[Value, Value] = dict(stand_ins)
    for node in nodes:
        copy = part.make(node.op, [twins.get(v, v) for v in node.inputs], node.attrs, node.line)
        twins.update(zip(node.outputs, copy.outputs, strict=True))
        part.nodes.append(copy)
    part.outputs = [twins.get(v, v) for v in outputs]
    return part


# -- arguments and results ---------------------------------------------------------------------------------------------


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """The hashable structure of nested tuples, lists and dicts; their tensors go to `tensors`, in order."""
    kind = type(value)
    if kind is Tensor or isinstance(value, Tensor):
        tensors.append(value)
        return "tensor"
    if kind is tuple or kind is list:
        return (kind, *[flatten(v, tensors) for v in value])
    if kind is dict:
        return (kind, *[(frozen(k), flatten(v, tensors)) for k, v in value.items()])
    if isinstance(value, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return (kind, *[flatten(v, tensors) for v in value])
    if isinstance(value, PLAIN) and not (isinstance(value, slice) and _holds_tensors(value)):
        return frozen(value)
    if isinstance(value, (Module, Optimizer)):
        return kind, id(value)
    if isinstance(value, np.ndarray):
        raise CaptureError("an argument is a NumPy array, whose values would be frozen into the graph; pass gw.tensor(array)")
    raise CaptureError(
        f"an argument is a {kind.__module__}.{kind.__qualname__}; a compiled function takes tensors, numbers, strings, "
        "modules, optimisers, and tuples, lists and dicts of those"
    )


def _holds_tensors(part: slice) -> bool:
    return any(isinstance(v, Tensor) for v in (part.start, part.stop, part.step))


def _objects(value: Any) -> Iterator[Module | Optimizer]:
    """Modules and optimisers among nested arguments."""
    if isinstance(value, (Module, Optimizer)):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _objects(v)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor exchanged."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)._make(_map(v, change) for v in value)  # type: ignore[attr-defined]
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return value


def _flatten_output(value: Any) -> tuple[list, Any]:
    """(leaves, a template to put them back into): for a container its type, its parts' templates, and a dict's keys."""
    kind = type(value)
    if kind not in (tuple, list, dict) and not (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return [value], None
    parts = [_flatten_output(v) for v in (value.values() if kind is dict else value)]
    keys = list(value) if kind is dict else None
    return [leaf for leaves, _ in parts for leaf in leaves], (kind, [t for _, t in parts], keys)


def unflatten(template: Any, leaves: Iterator) -> Any:
    if template is None:
        return next(leaves)
    kind, parts, keys = template
    values = [unflatten(part, leaves) for part in parts]
    if kind is dict:
        return dict(zip(keys, values, strict=True))
    return kind(values) if kind is tuple or kind is list else kind._make(values)


def _stand_ins(trace: Trace, target: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with symbols in the place of tensors; the same tensor twice is the same symbol twice."""
    names = iter(_argument_names(target, args, kwargs))
    made: dict[int, Tensor] = {}

    def change(t: Tensor) -> Tensor:
        stand_in = trace.argument(next(names, "x"), t)
        return made.setdefault(id(t), stand_in)

    return _map((args, kwargs), change)


def _argument_names(target: Callable, args: tuple, kwargs: dict) -> list[str]:
    """A name for each tensor among the arguments, from the function's own parameter names."""
    try:
        parameters = [*inspect.signature(target.forward if isinstance(target, Module) else target).parameters.values()]
    except (TypeError, ValueError):
        return []
    spread = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "x")
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names: list[str] = []
    for name, value in [*zip(positional, args, strict=False), *((spread, v) for v in args[len(positional) :]), *kwargs.items()]:
        found: list[Tensor] = []
        flatten(value, found)
        names += [name] * len(found)
    return names


def _repeats(tensors: list[Tensor]) -> Iterator[int]:
    """For each tensor the position of its first occurrence."""
    seen: dict[int, int] = {}
    return (seen.setdefault(id(t), i) for i, t in enumerate(tensors))


def _difference(key: Any, others: list[Any], names: list[str]) -> str:
    """What is new about a signature compared with the most similar one before, in words."""
    if not others:
        return "first"
    nearest = min(reversed(others), key=lambda other: sum(a != b for a, b in zip(key, other, strict=True)))
    words = ["the arguments' structure or plain values", "shapes, dtypes or devices", "which arguments are the same tensor",
             "gradient recording", "a module's settings", "values that the function can reach"]  # fmt: skip
    if len(key[5]) == len(nearest[5]) == len(names):
        words[5] = ", ".join(dict.fromkeys(name for name, a, b in zip(names, key[5], nearest[5], strict=True) if a != b))
    if key[1] != nearest[1]:
        words[1] += f" ({_specs(key[1])} after {_specs(nearest[1])})"
    changed = [word for word, a, b in zip(words, key, nearest, strict=True) if a != b]
    return "again because of " + " and ".join(changed or ["a parameter's shape or dtype"])


def _specs(signature: tuple) -> str:
    return ", ".join(f"{dtype}{list(shape)}{' with gradient' if grad else ''}" for shape, dtype, _, grad in signature)


__all__ = ["Compiled", "compile", "executable"]
