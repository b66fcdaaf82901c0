"""`gw.compile`: a function or module that is captured once per input signature and replayed from then on.

What decides which graph serves a call: the structure of the arguments, the tensors' shapes, dtypes and devices, every plain
argument by value, whether gradients are recorded, the settings of all modules within reach (training flag, rates, paddings), and
the plain values that the function closes over. Any of them changed means another capture, never a wrong replay. Values of
parameters, buffers, learning rates and generators are read at each call.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CaptureError, ConfigError, GradientError
from . import passes
from .autograd import Changes, Leaf, Node, Slot, mode, next_seq
from .capture import Backward, Captured, Trace, capture
from .graph import Graph, Value
from .modules.module import Module
from .ops.common import check_range
from .optim import Optimizer
from .tensor import Tensor

if TYPE_CHECKING:
    from .lower import Executable

PLAIN = (int, float, complex, str, bytes, bool, type(None), np.dtype, np.generic, slice, type(Ellipsis), type)
MANY = 16  # captures of one function after which a warning says why


def compile(target: Callable) -> Compiled:
    """A static version of a Module, a function of tensors, or a whole training step; the same call signature.

    Each new input signature is captured (run once on symbols), optimised and planned; later calls replay without Python or
    allocation in between. Arguments and results may be nested tuples, lists and dicts; results are new tensors of the caller's.
    Works as a decorator. Raises CaptureError with the user's line for what cannot be captured (a branch on a tensor's value,
    `.item()`, attributes assigned inside `forward`); ConfigError if `target` is no function.
    """
    if isinstance(target, Compiled):
        return target
    if not callable(target):
        raise ConfigError(f"compile: {type(target).__qualname__} object given; expected a Module or a function of tensors")
    return Compiled(target)


class Compiled:
    """What `compile` returns. Attributes that it does not have itself are those of what it wraps.

    captures: one line for each capture and why it was needed.
    """

    def __init__(self, target: Callable):
        self.target = target
        self.captures: list[str] = []
        self._name = type(target).__name__ if isinstance(target, Module) else getattr(target, "__name__", "function")
        self._entries: dict[Any, Entry] = {}
        self._lock = threading.RLock()
        self._settings: dict[Any, int] = {}  # settings of the modules within reach -> a number for the key
        self._current = self._looked = -1
        self._watched = _Watched(target)
        if not isinstance(target, Module):
            functools.update_wrapper(self, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.trace is not None:  # inside another capture: part of that one
            return self.target(*args, **kwargs)
        tensors: list[Tensor] = []
        structure = flatten((args, kwargs), tensors)
        return self._entry(structure, tensors, args, kwargs).call(tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["target"], name)

    def __repr__(self) -> str:
        return f"<compiled {self._name}: {len(self._entries)} captures>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The optimised graph for these arguments: `print` it, or `.html("graph.html")`."""
        return self.executable(*args, **kwargs).graph

    def executable(self, *args: Any, **kwargs: Any) -> Executable:
        """What a call with these arguments replays: plans, memory, steps."""
        tensors: list[Tensor] = []
        structure = flatten((args, kwargs), tensors)
        return self._entry(structure, tensors, args, kwargs).executable

    def _entry(self, structure: Any, tensors: list[Tensor], args: tuple, kwargs: dict) -> Entry:
        if self._looked != Changes.settings:
            self._look()
        grad = mode.grad
        signature = tuple([(t.data.shape, t.data.dtype, t.device, grad and t.edge is not None) for t in tensors])
        repeats = () if len(tensors) < 2 else tuple(_repeats(tensors))
        key = structure, signature, repeats, grad, self._current, self._watched.values()
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        with self._lock:
            if self._watched.add((args, kwargs)):  # modules that were not known to be within reach
                self._look()
                return self._entry(structure, tensors, args, kwargs)
            if key not in self._entries:
                self._entries[key] = self._capture(key, tensors, args, kwargs)
            return self._entries[key]

    def _look(self) -> None:
        """Note the settings of all modules within reach."""
        looked = Changes.settings
        settings = tuple(_settings(m) for m in self._watched.modules())
        self._current = self._settings.setdefault(settings, len(self._settings))
        self._looked = looked

    def _capture(self, key: Any, tensors: list[Tensor], args: tuple, kwargs: dict) -> Entry:
        start = time.perf_counter()
        captured = capture(self.target, self._name, lambda trace: _stand_ins(trace, self.target, args, kwargs),
                           self._watched.tensors(), _flatten_output)  # fmt: skip
        entry = Entry(captured, len(tensors))
        reason = _difference(key, list(self._entries))
        self.captures.append(f"{self._name}: captured {reason} in {time.perf_counter() - start:.2f} s")
        if len(self.captures) == MANY:
            warnings.warn(
                f"{self._name} has been captured {MANY} times, last {reason}; pass what changes often as a tensor", stacklevel=4
            )
        return entry


def executable(graph: Graph) -> Executable:
    """The graph, optimised and planned. (Numba loads with the first one, not with `import graftwork`.)"""
    from .lower import Executable

    return Executable(passes.optimise(graph))


class Entry:
    """One captured signature, ready to run."""

    def __init__(self, captured: Captured, arguments: int):
        graph = captured.graph
        self.guards = [(graph.inputs.index(v), *rest) for v, *rest in captured.guards]
        self.structure = captured.structure
        self.states = dict(graph.states)
        self.constants = dict(graph.constants)
        self.arguments = graph.inputs[:arguments]
        computed = [v for v in captured.outputs if isinstance(v, Value) and v.node is not None]
        computed += [v for _, v, _ in captured.gradients if v is not None]
        results = list(dict.fromkeys(computed))
        self.position = {v: i for i, v in enumerate(results)}
        self.outputs, self.gradients = captured.outputs, captured.gradients
        self.updates = bool(graph.written())
        self.backward: _BackwardPass | None = None
        if captured.differentiable is not None:
            self.backward = _BackwardPass(captured, results)
            graph = self.backward.forward_graph
        else:
            graph.outputs = results
        self.executable = executable(graph)

    def call(self, tensors: list[Tensor]) -> Any:
        for at, low, high, what, limit in self.guards:
            check_range(tensors[at].data, low, high, what, limit)
        if self.updates:
            self._refuse_old_gradients()
        arrays = self.executable.run([t.data for t in tensors])
        results = [Tensor(a) for a in arrays]
        if self.backward is not None:
            self.backward.attach(self, tensors, results)
        for leaf, value, added in self.gradients:
            new = None if value is None else results[self.position[value]]
            leaf.grad = leaf.grad + new if added and leaf.grad is not None and new is not None else new
        return unflatten(self.structure, iter([self._output(v, tensors, results) for v in self.outputs]))

    def _output(self, value: Any, tensors: list[Tensor], results: list[Tensor]) -> Any:
        if not isinstance(value, Value):
            return value
        if value in self.position:
            return results[self.position[value]]
        if value in self.states:
            return self.states[value]
        if value in self.constants:
            return Tensor(self.constants[value].copy())
        return tensors[self.arguments.index(value)]

    def _refuse_old_gradients(self) -> None:
        for leaf, _, added in self.gradients:
            if added and leaf.grad is not None:
                raise CaptureError(
                    "this step was captured with no gradients at its start and now there are some, which it would have to add "
                    "to; call zero_grad() inside the compiled function, before backward()"
                )


class _BackwardPass:
    """A captured call's gradient: a second graph, which takes the incoming gradients and what the first one left for it."""

    name, keeps_inputs, keeps_output, multi = "compiled", True, False, True

    def __init__(self, captured: Captured, results: list[Value]):
        whole, plan = captured.graph, captured.differentiable
        assert plan is not None
        before, after = whole.nodes[: plan.start], whole.nodes[plan.start :]
        self.sources = plan.sources
        self.incoming = [v for v in plan.incoming if v is not None]
        heads = [v for v in captured.outputs if isinstance(v, Value)]
        self.heads = [v for v, g in zip(heads, plan.incoming, strict=True) if g is not None]
        made_before = {v for n in before for v in n.outputs}
        wanted = [v for n in after for v in n.inputs] + [g for _, g in plan.sources]
        self.saved = [v for v in dict.fromkeys(wanted) if v in made_before]
        arguments = [v for v in whole.inputs if v not in self.incoming]
        self.read = [v for v in dict.fromkeys(wanted) if v in set(arguments)]
        self.forward_graph = _part(whole, before, arguments, [*results, *self.saved])
        self.backward_graph = _part(
            whole, after, [*self.incoming, *self.saved, *self.read], [g for _, g in plan.sources], f"{whole.name}_backward"
        )
        self.arguments = arguments
        self.executable: Executable | None = None
        self.lock = threading.Lock()

    def attach(self, entry: Entry, tensors: list[Tensor], results: list[Tensor]) -> None:
        """Leave a record on the tape, so that the results can be differentiated."""
        saved = [t.data for t in results[len(entry.position) :]]
        del results[len(entry.position) :]
        inputs = [entry.states[v] if v in entry.states else tensors[self.arguments.index(v)] for v, _ in self.sources]
        read = [tensors[self.arguments.index(v)].data for v in self.read]
        specs = [results[entry.position[v]].data for v in self.heads]
        node = Node(self, {"saved": saved, "read": read}, inputs, [t.edge for t in inputs], None, next_seq())
        node.grad_specs = [(a.shape, a.dtype) for a in specs]
        for i, value in enumerate(self.heads):
            results[entry.position[value]].edge = Slot(node, i)

    def vjp(self, g: list, out: None, *inputs: Tensor, saved: list[np.ndarray], read: list[np.ndarray]) -> list[Tensor]:
        if mode.grad:
            raise GradientError(
                "gradients of gradients do not pass through a compiled call; compile the whole computation, both backward "
                "passes inside"
            )
        with self.lock:
            if self.executable is None:
                self.executable = executable(self.backward_graph)
        incoming = [np.zeros(v.shape, v.dtype) if gi is None else gi.data for gi, v in zip(g, self.incoming, strict=True)]
        return [Tensor(a) for a in self.executable.run([*incoming, *saved, *read])]


def _part(whole: Graph, nodes: list, inputs: list[Value], outputs: list[Value], name: str | None = None) -> Graph:
    """The graph of some of the nodes, with copies of the values that become its inputs."""
    part = Graph(name or whole.name)
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
        return (kind, *[(k, flatten(v, tensors)) for k, v in value.items()])
    if isinstance(value, tuple):  # a named tuple
        return (kind, *[flatten(v, tensors) for v in value])
    if isinstance(value, float):
        return kind, value.hex()
    if isinstance(value, PLAIN):
        return kind, str(value) if isinstance(value, (np.generic, slice)) else value
    if isinstance(value, (Module, Optimizer)):
        return kind, id(value)
    if isinstance(value, np.ndarray):
        raise CaptureError("an argument is a NumPy array, whose values would be frozen into the graph; pass gw.tensor(array)")
    raise CaptureError(
        f"an argument is a {kind.__module__}.{kind.__qualname__}; a compiled function takes tensors, numbers, strings, "
        "modules, optimisers, and tuples, lists and dicts of those"
    )


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor exchanged."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_map(v, change) for v in value])
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return value


def _flatten_output(value: Any) -> tuple[list, Any]:
    """(leaves, a template to put them back into)."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = [_flatten_output(v) for v in value]
        return [leaf for leaves, _ in parts for leaf in leaves], (type(value), [t for _, t in parts], "fields")
    if isinstance(value, (tuple, list)):
        parts = [_flatten_output(v) for v in value]
        return [leaf for leaves, _ in parts for leaf in leaves], (type(value), [t for _, t in parts], None)
    if isinstance(value, dict):
        parts = [_flatten_output(v) for v in value.values()]
        return [leaf for leaves, _ in parts for leaf in leaves], (dict, [t for _, t in parts], list(value))
    return [value], None


def unflatten(template: Any, leaves: Iterator) -> Any:
    if template is None:
        return next(leaves)
    kind, parts, keys = template
    values = [unflatten(part, leaves) for part in parts]
    if kind is dict:
        return dict(zip(keys, values, strict=True))
    return kind(*values) if keys == "fields" else kind(values)


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
    function = target.forward if isinstance(target, Module) else target
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return []
    names: list[str] = []
    for name, value in bound.items():
        found: list[Tensor] = []
        flatten(value, found)
        names += [name] * len(found)
    return names


def _repeats(tensors: list[Tensor]) -> Iterator[int]:
    """For each tensor the position of its first occurrence."""
    seen: dict[int, int] = {}
    return (seen.setdefault(id(t), i) for i, t in enumerate(tensors))


def _difference(key: Any, others: list[Any]) -> str:
    """What is new about a signature, in words."""
    if not others:
        return "first"
    last = others[-1]
    words = ("the arguments' structure or plain values", "shapes, dtypes or devices", "which arguments are the same tensor",
             "gradient recording", "a module's settings", "values that the function closes over")  # fmt: skip
    changed = [word for word, a, b in zip(words, key, last, strict=True) if a != b]
    return "again because of " + " and ".join(changed)


# -- what a function can reach -----------------------------------------------------------------------------------------


class _Watched:
    """The modules, optimisers and plain values within a function's reach: itself, its arguments, closure and globals."""

    def __init__(self, target: Callable):
        self.roots: dict[int, tuple[str, Any]] = {}
        self.cells: list[tuple[Callable[[], Any], str]] = []
        self._add("", target if isinstance(target, Module) else vars(getattr(target, "__self__", None) or _Nothing()))
        function = inspect.unwrap(getattr(target, "__func__", target)) if not isinstance(target, Module) else None
        if isinstance(function, types.FunctionType):
            self._look_into(function)

    def _look_into(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.cells.append((lambda cell=cell: _contents(cell), name))
        names = _global_names(function.__code__)
        for name in names:
            if name in function.__globals__:
                self.cells.append((lambda name=name, g=function.__globals__: g.get(name), name))
        for read, name in self.cells:
            self._add(name, read())
        self.cells = [(read, name) for read, name in self.cells if _watchable(read())]

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, (Module, Optimizer)):
            self.roots.setdefault(id(value), (name, value))
        elif isinstance(value, Compiled):
            self._add(name, value.target)
        elif isinstance(value, (tuple, list)) and len(value) < 100:
            for i, v in enumerate(value):
                self._add(f"{name}{i}", v)
        elif isinstance(value, dict) and len(value) < 100:
            for k, v in value.items():
                self._add(str(k), v)

    def add(self, arguments: Any) -> bool:
        """Modules and optimisers among the arguments are within reach too; returns whether any is new."""
        before = len(self.roots)
        self._add("", arguments)
        return len(self.roots) > before

    def values(self) -> tuple:
        """Plain values by content, everything else by identity."""
        return tuple([_frozen(read()) for read, _ in self.cells])

    def modules(self) -> list[Module]:
        return [value for _, value in self.roots.values() if isinstance(value, Module)]

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every parameter, buffer and optimiser state within reach, by a readable name."""
        found: list[tuple[str, Tensor]] = []
        for name, root in self.roots.values():
            if isinstance(root, Module):
                prefix = f"{name}." if name else ""
                found += [(prefix + path, t) for path, t in (*root.named_parameters(), *root.named_buffers())]
            else:
                found += [("lr", group["lr"]) for group in root.groups]
                found += [(key, t) for state in root.state for key, t in state.items()]
                found.append(("steps", root.steps))
        return found


class _Nothing:
    """An owner without attributes, for functions that are no methods."""


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _global_names(code: types.CodeType) -> list[str]:
    nested = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _global_names(c)]
    return list(dict.fromkeys([*code.co_names, *nested]))


def _watchable(value: Any) -> bool:
    """Whether a name's value is worth comparing at each call: plain values, tensors, modules; not functions and packages."""
    return not isinstance(value, (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, Compiled, type))


def _frozen(value: Any) -> Any:
    """Something hashable that changes when a plain value does."""
    if isinstance(value, float):
        return float, value.hex()
    if isinstance(value, PLAIN):
        return type(value), str(value) if isinstance(value, (np.generic, slice)) else value
    if type(value) in (tuple, list) and len(value) < 100:
        return (type(value), *[_frozen(v) for v in value])
    if type(value) is dict and len(value) < 100:
        return (dict, *[(k, _frozen(v)) for k, v in value.items()])
    return id(value)


def _settings(module: Module) -> tuple:
    """Everything about a tree of modules that its forward pass may depend on, tensors' values apart."""
    found = []
    for path, part in module.named_modules():
        plain = tuple((k, _frozen(v)) for k, v in part.__dict__.items() if k not in ("_parameters", "_buffers", "_modules"))
        leaves = tuple(p.edge is not None for p in part._parameters.values())
        found.append((path, id(part), plain, leaves, tuple(part._modules)))
    return tuple(found)


__all__ = ["Backward", "Compiled", "Leaf", "compile"]
