"""Ops: what a user calls, what the tape and the graph hold.

An op is declared once: its shape rule (`infer`), its gradient rule (`vjp`, written in ops, so that it can be
differentiated again), what the backward pass keeps, which inputs it writes, its cost, and sample inputs that drive the
tests. Calling it runs it at once and, where a gradient may be asked for, leaves a record on the tape.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import CaptureError, ConfigError, DeviceError, DTypeError
from ..kernels import registry
from ..kernels.plan import Spec
from .autograd import Node, Slot, mark_written, mode, next_seq
from .tensor import Tensor, device_of


class Sample(NamedTuple):
    """One example call of an op: NumPy arrays and attributes. `smooth=False` where finite differences mean nothing."""

    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = {}
    smooth: bool = True


OPS: dict[str, Op] = {}


class Op:
    """One operation.

    name: unique, and the name of its kernels.
    infer(*arrays, **attrs) -> (shape, dtype), or a list of those for several outputs. Raises what a wrong call gets.
    vjp(g, out, *inputs, **attrs) -> one entry an input: None, a Tensor, or a function without arguments that computes it
        (called only if that gradient is wanted). With several outputs `g` and `out` are lists, and `g` holds None for those
        that nothing depends on. Without `keeps_output` `out` is None; without `keeps_inputs` the inputs are Specs.
        None: the op has no gradient.
    writes: indices of the inputs that the kernel changes in place. Such an op returns None unless it has outputs too.
    repeats: how many leading inputs may be given several times over, before fewer others that are given once: an update of
        many tensors in one call. `writes` are indices of each time.
    view: the output shares the input's memory; `view(array, **attrs)` makes it, and there is no kernel.
    key: index of the input whose device and dtype choose the kernel.
    cost(*arrays, **attrs) -> floating-point operations, for the roofline; bytes moved follow from the shapes.
    samples(rng) -> iterator of Sample, in float64; tests cast them down.
    """

    def __init__(
        self,
        name: str,
        *,
        infer: Callable,
        vjp: Callable | None = None,
        keeps_inputs: bool = True,
        keeps_output: bool = False,
        multi: bool = False,
        writes: tuple[int, ...] = (),
        repeats: int = 0,
        view: Callable | None = None,
        key: int = 0,
        cost: Callable | None = None,
        samples: Callable[[np.random.Generator], Iterator[Sample]] | None = None,
        doc: str = "",
    ):
        self.name, self.infer, self.vjp = name, infer, vjp
        self.keeps_inputs, self.keeps_output = keeps_inputs, keeps_output
        self.multi, self.writes, self.view, self.key = multi, writes, view, key
        self.repeats = repeats
        self.plain = view is None and not multi and not writes  # one new output from one kernel: nearly every op
        self.cost, self.samples, self.__doc__ = cost, samples, doc
        self.table: dict[type, dict[Any, tuple[Callable, Callable]]] = {}  # array type -> dtype -> (kernel, empty)
        register(self)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *inputs: Tensor, **attrs: Any):
        """Run now. Every line here is paid by every op: keep it flat."""
        try:
            arrays = [t.data for t in inputs]
            x = arrays[self.key]
            kernel, empty = self.table[type(x)][x.dtype]
        except (KeyError, AttributeError, IndexError):
            kernel, empty = self._resolve(inputs)
        specs = self.infer(*arrays, **attrs)
        try:
            if self.plain:
                out = empty(*specs)
                kernel(*arrays, out=out, **attrs)
            elif self.view is not None:
                out = kernel(x, **attrs)
            elif self.multi:
                out = tuple([empty(shape, dtype) for shape, dtype in specs])
                kernel(*arrays, out=out, **attrs)
            else:  # only writes its inputs
                out = kernel(*arrays, out=None, **attrs)
        except TypeError:
            self._require_one_device(inputs)
            raise
        if self.writes:
            for i in self.written(len(inputs)):
                mark_written(inputs[i])
            if out is None:
                return None
        for t in inputs:
            if t.edge is not None:
                if mode.grad and self.vjp is not None:
                    return self._record(inputs, arrays, attrs, out)
                break
        return tuple([Tensor(o) for o in out]) if self.multi else Tensor(out)

    def written(self, count: int) -> Sequence[int]:
        """Which of `count` inputs a call changes in place."""
        if not self.repeats or count < 2 * self.repeats:
            return self.writes
        return [start + i for start in range(0, count - self.repeats + 1, self.repeats) for i in self.writes]

    def _record(self, inputs, arrays, attrs, out):
        """Wrap `out` in tensors that remember how they came about."""
        saved = inputs if self.keeps_inputs else [Spec(a.shape, a.dtype) for a in arrays]
        node = Node(self, attrs, saved, [t.edge for t in inputs], out if self.keeps_output else None, next_seq())
        if self.multi:
            node.grad_specs = [Spec(o.shape, o.dtype) for o in out]
            return tuple([Tensor(o, Slot(node, i)) for i, o in enumerate(out)])
        return Tensor(out, node)

    def _resolve(self, inputs) -> tuple[Callable, Callable]:
        """Find the kernel for these inputs and remember it; explain a call that fits none."""
        for i, t in enumerate(inputs):
            if not isinstance(t, Tensor):
                raise DTypeError(
                    f"{self.name}: argument {i} is a {type(t).__module__}.{type(t).__qualname__}, expected a "
                    "graftwork.Tensor; wrap it with graftwork.tensor(...)"
                )
            if getattr(t.data, "symbolic", False):
                raise CaptureError(
                    f"{self.name}: argument {i} (shape {t.shape}) has no values: it is left over from a capture, or from "
                    "another thread's; return tensors from compiled functions, do not keep them"
                )
        if not inputs:
            raise DTypeError(f"{self.name}: no tensor given, expected at least one")
        self._require_one_device(inputs)
        x = inputs[self.key].data
        empty: Callable
        empty = np.empty
        if type(x) is not np.ndarray:
            from ..kernels.cuda.launch import empty
        kernel = self.view or registry.get(self.name, device=device_of(x), dtype=x.dtype)
        self.table.setdefault(type(x), {})[x.dtype] = kernel, empty
        return kernel, empty

    def _require_one_device(self, inputs) -> None:
        devices = [device_of(t.data) for t in inputs]
        if len(set(devices)) > 1:
            raise DeviceError(
                f"{self.name}: operands on different devices ({', '.join(devices)}); nothing is moved silently, "
                'move them to one with x.to("...")'
            )


SMALL = 8192  # values; below this a NumPy ufunc is done before a kernel call has been prepared
_FLOAT32 = np.dtype(np.float32)


class UnaryOp(Op):
    """An elementwise op of one input. Small float32 arrays on the CPU go straight to a NumPy ufunc, which saves the shape
    rule, the look-up and the allocation: half the time of a tiny op. Everything else takes the common path."""

    def __init__(self, name: str, ufunc: Callable[..., Any] | None = None, **declaration: Any):
        super().__init__(name, **declaration)
        self.ufunc = ufunc

    def __call__(self, a: Tensor, **attrs: Any):  # type: ignore[override]
        x = a.data
        if self.ufunc is None or type(x) is not np.ndarray or x.dtype is not _FLOAT32 or x.size > SMALL or not x.shape:
            return Op.__call__(self, a, **attrs)
        out = self.ufunc(x)
        if a.edge is not None and mode.grad and self.vjp is not None:
            return self._record((a,), (x,), attrs, out)
        return Tensor(out)


class BinaryOp(UnaryOp):
    """The same for two inputs, where neither needs a conversion."""

    def __call__(self, a: Tensor, b: Tensor):  # type: ignore[override]
        try:
            x, y = a.data, b.data
            if x.dtype is not _FLOAT32 or y.dtype is not _FLOAT32 or x.size > SMALL or y.size > SMALL:
                return Op.__call__(self, a, b)
            if type(x) is not np.ndarray or type(y) is not np.ndarray or self.ufunc is None:
                return Op.__call__(self, a, b)
            out = self.ufunc(x, y)
        except (AttributeError, ValueError):  # not a tensor, or shapes that do not broadcast: the common path explains
            return Op.__call__(self, a, b)
        if not out.shape:
            out = np.asarray(out)
        if (a.edge is not None or b.edge is not None) and mode.grad and self.vjp is not None:
            return self._record((a, b), (x, y), {}, out)
        return Tensor(out)


_EAGER = {kind: kind.__call__ for kind in (Op, UnaryOp, BinaryOp)}
_intercepted = 0
_intercept_lock = threading.Lock()


@contextlib.contextmanager
def intercept(handler: Callable) -> Iterator[None]:
    """Send calls of ops, on all threads, through `handler(op, inputs, attrs, eager)` while inside.

    Outside, calls pay nothing for the possibility. Several threads may be inside at once, with the same handler.
    """
    global _intercepted
    with _intercept_lock:
        _intercepted += 1
        for kind, eager in _EAGER.items():
            kind.__call__ = _route(handler, eager)  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _intercept_lock:
            _intercepted -= 1
            if _intercepted == 0:
                for kind, eager in _EAGER.items():
                    kind.__call__ = eager  # type: ignore[method-assign]


def _route(handler: Callable, eager: Callable) -> Callable:
    return lambda op, *inputs, **attrs: handler(op, inputs, attrs, eager)


def register(op: Op) -> Op:
    """Add an op to the table. Raises ConfigError if the name is taken."""
    if op.name in OPS and OPS[op.name] is not op:
        raise ConfigError(f"an op named {op.name!r} exists already; choose another name")
    OPS[op.name] = op
    return op


def unregister(name: str) -> None:
    """Take an op out of the table (plugins that are unloaded, tests)."""
    OPS.pop(name, None)


def bytes_moved(op: Op, arrays, specs) -> int:
    """Least bytes that an op must read and write, for the roofline."""
    outs = [] if specs is None else specs if op.multi else [specs]
    read = sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in arrays)
    return read + sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in outs)


def all_samples(seed: int = 0) -> Iterator[tuple[Op, Sample]]:
    """Every sample of every op of the table, from one seed."""
    for op in list(OPS.values()):
        if op.samples is not None:
            for sample in itertools.islice(op.samples(np.random.default_rng(seed)), 32):
                yield op, sample
