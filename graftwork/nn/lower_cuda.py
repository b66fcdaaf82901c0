"""A graph on a GPU: one arena, every kernel bound to its addresses, and all launches replayed as one CUDA graph.

Ahead and body, lifetimes and refreshing are those of `lower.py`. What differs: kernels come from the registry and are bound
(`kernels/cuda/launch.py: Bound`) instead of planned; one workspace, as large as the neediest call's, serves all of them,
because they run one after another; what a kernel makes of its weights alone (in another order, transformed) is prepared when
they change and kept; and arguments and results are copied into and out of buffers that keep their places, because a CUDA
graph has the addresses baked in.

Nothing but that preparation runs while kernels are bound, and a recording does not run what it records: the first replay is
the first run. What cannot be recorded (a kernel that is a plain function and may allocate or wait) makes the whole graph a
list of launches, which a warning says once.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .. import cuda
from ..kernels import registry
from ..kernels.cuda.launch import address_of, empty, require_current
from .autograd import mark_written, memory
from .graph import Graph, Node, Value
from .lower import Executable, Place, Placed, Step
from .tensor import device_number, tensor


class CudaExecutable(Executable):
    """A graph ready to be replayed on a GPU. Thread-safe; replays of several threads follow one another."""

    def __init__(self, graph: Graph):
        self.number = device_number(graph.device)
        self.lock_of_runs = threading.Lock()  # one replay has the buffers at a time
        self.replay: Replay | None = None
        self.last_stream: Any = None
        self.kept: dict[Value, Any] = {}  # constants and ahead results, which stay where they are once they have been made
        super().__init__(graph)
        self.needed |= {Graph.viewed(v) for v in self.needed}  # a view that is computed ahead lives in its source

    def _plan(self, body: list[Node]) -> list[Step]:
        steps = []
        for node in body:
            if (view := _view_of(node)) is not None:
                self.places[node.output] = Place(node.inputs[0], view)
            else:
                steps.append(Step(node, variant=_variant(node)))
        return steps

    def _in_place(self, step: Step) -> Sequence[int]:
        """Of elementwise kernels, inputs with elements as large as the output's, unless a view of that memory is read too."""
        if not getattr(_kernel(step.node), "elementwise", False):
            return ()
        inputs, size = step.node.inputs, step.node.output.dtype.itemsize
        bases = [self.place(v)[0] for v in inputs]
        viewed = {base for v, base in zip(inputs, bases, strict=True) if v is not base}
        return [i for i, v in enumerate(inputs) if v.dtype.itemsize == size and v not in viewed]

    def _bind_anew(self, exchanged: bool) -> None:
        if not exchanged:  # what is computed ahead is written to where it was
            if self.replay is not None:
                self.replay.prepare()
            return
        self.generation += 1
        if self.last_stream is not None:
            self.last_stream.synchronize()  # the GPU may still be using what is given back now
        self.replay = None

    def steady_values(self) -> set[Value]:
        """Values that stay the same from replay to replay unless a refresh finds otherwise: constants, unwritten states, and
        what is computed ahead of those. Memory of another library's may change at any time, so it is left out."""
        foreign = {v for v, t in self.graph.states.items() if cuda.is_foreign(memory(t.data))}
        return (self.fixed - foreign).union(*(n.outputs for n in self.ahead_nodes))

    def _protect(self) -> None:
        """`numpy()` gives copies from a GPU: nobody can write behind our back."""

    def _compute_ahead(self) -> None:
        for value, array in self.graph.constants.items():
            if value not in self.kept:
                self.kept[value] = tensor(array, device=self.graph.device).data
        arrays = {v: self.kept[v] for v in self.graph.constants} | {v: t.data for v, t in self.graph.states.items()}
        for node in self.ahead_nodes:
            if (view := _view_of(node)) is not None:
                arrays[node.output] = view(arrays[node.inputs[0]])
                continue
            for value in node.outputs:
                arrays[value] = self.kept[value] if value in self.kept else empty(value.shape, value.dtype, self.number)
                if value in self.needed:
                    self.kept[value] = arrays[value]
            _kernel(node)(*(arrays[v] for v in node.inputs), out=_outs(node, arrays), **node.attrs)
        self.arrays = {v: a for v, a in arrays.items() if v in self.needed}

    def run(self, inputs: Sequence[Any], times: dict[Node, int] | None = None) -> list[Any]:
        """Replay with these inputs, on the current stream; the outputs are new arrays of the caller's. Does not wait for the
        GPU, unless it takes the times: nanoseconds added per node."""
        require_current(self.number)
        with self.lock_of_runs:
            self._follow()
            self.refresh()
            if self.replay is None:
                self.replay = Replay(self)
            try:
                return self.replay.run(inputs, times)
            finally:
                for t in self.written_states:
                    mark_written(t)


    def _follow(self) -> None:
        """Let the current stream wait for the one of the last run, which may still be using our buffers."""
        import cupy

        stream = cupy.cuda.get_current_stream()
        if self.last_stream is not None and self.last_stream.ptr != stream.ptr:
            stream.wait_event(self.last_stream.record())
        self.last_stream = stream


class Replay(Placed):
    """One arena with every call bound to its addresses, and the CUDA graph recorded from them.

    recorded: the CUDA graph; None before the first run, and where `why_not` says what stands in the way.
    """

    executable: CudaExecutable

    def __init__(self, executable: CudaExecutable):
        import cupy

        self.executable, self._cupy = executable, cupy
        graph = executable.graph
        self.arena = empty((max(executable.arena_bytes, 1),), "uint8", executable.number)
        self.arrays = dict(executable.arrays)
        self.own = [base for base, own in dict(executable.outputs).items() if own]
        for value in (*graph.inputs, *self.own):
            self.arrays[value] = empty(value.shape, value.dtype, executable.number)
        steady = executable.steady_values()
        self.calls = [self._bind(step.node, steady) for step in executable.steps]
        self.workspace = empty((max((c.workspace for c in self.calls), default=0) + 1,), "uint8", executable.number)
        self.prepared = empty((sum(c.prepared for c in self.calls) + 1,), "uint8", executable.number)
        at = address_of(self.prepared)
        for call in self.calls:
            call.place(address_of(self.workspace), at)
            at += call.prepared
        self.prepare()
        self.recorded: Any = None
        foreign = {s.node.op.name: None for s, c in zip(executable.steps, self.calls, strict=True) if isinstance(c, _Foreign)}
        self.why_not = f"the kernels of {', '.join(foreign)} are plain functions" if foreign else None
        self._told = False
        self._copy = registry.get("contiguous", "cuda")

    def prepare(self) -> None:
        """Let every call make what it needs of its weights: at first, and when those have been written."""
        for call in self.calls:
            call.prepare()

    def _bind(self, node: Node, steady: set[Value]) -> Any:
        kernel, inputs = _kernel(node), [self.array(v) for v in node.inputs]
        out = _outs(node, {v: self.array(v) for v in node.outputs})
        bind = getattr(kernel, "bind", None)
        if bind is None:
            return _Foreign(lambda: kernel(*inputs, out=out, **node.attrs))
        stay = [i for i, v in enumerate(node.inputs) if self.executable.place(v)[0] in steady]
        return bind(*inputs, out=out, steady=stay, **node.attrs)

    def run(self, inputs: Sequence[Any], times: dict[Node, int] | None) -> list[Any]:
        stream = self._cupy.cuda.get_current_stream()
        for value, given in zip(self.executable.graph.inputs, inputs, strict=True):
            self._copy(given, out=self.arrays[value])
        if times is not None:
            self._run_timed(times, stream)
        elif self.calls and self._can_replay():
            self.recorded.launch(stream)
        else:
            for call in self.calls:
                call.launch()
        results = []
        for value in self.executable.graph.outputs:
            results.append(empty(value.shape, value.dtype, self.executable.number))
            self._copy(self.array(value), out=results[-1])
        return results

    def _can_replay(self) -> bool:
        """Record at the first run. A recording that fails has run nothing."""
        if self.recorded is None and self.why_not is None:
            try:
                self.recorded = self._record()
            except (self._cupy.cuda.runtime.CUDARuntimeError, self._cupy.cuda.driver.CUDADriverError) as error:
                self.why_not = f"the driver says: {error}"
        if self.why_not is not None and not self._told:
            self._told = True
            warnings.warn(
                f"{self.executable.graph.name} is replayed launch by launch, not as a CUDA graph, because {self.why_not}",
                stacklevel=6,
            )
        return self.recorded is not None

    def _record(self) -> Any:
        stream = self._cupy.cuda.Stream(non_blocking=True)  # the default one cannot be recorded
        with stream:
            stream.begin_capture()
            try:
                for call in self.calls:
                    call.launch()
            finally:
                recorded = stream.end_capture()
        return recorded

    def _run_timed(self, times: dict[Node, int], stream: Any) -> None:
        """One call after another, waiting for each; a call's time includes its launches."""
        for step, call in zip(self.executable.steps, self.calls, strict=True):
            stream.synchronize()
            start = time.perf_counter_ns()
            call.launch()
            stream.synchronize()
            times[step.node] = times.get(step.node, 0) + time.perf_counter_ns() - start


class _Foreign:
    """A kernel that is a plain function: called at every replay."""

    workspace = prepared = 0

    def __init__(self, launch: Callable[[], Any]):
        self.launch = launch

    def place(self, workspace: int, prepared: int) -> None:
        pass

    def prepare(self) -> None:
        pass


def _kernel(node: Node) -> Callable:
    return registry.get(node.op.name, "cuda", dtype=node.inputs[node.op.key].dtype)


def _variant(node: Node) -> str:
    """The name of the variant that `_kernel` finds. Raises KernelUnavailable where there is none."""
    kernel = _kernel(node)
    entries = registry.list_kernels(node.op.name, "cuda")
    return next((e.variant for e in entries if e.function() is kernel), "from Python")


def _outs(node: Node, arrays: dict[Value, Any]) -> Any:
    outs = tuple(arrays[v] for v in node.outputs)
    return outs if node.op.multi else outs[0] if outs else None


def _view_of(node: Node) -> Callable | None:
    """The function that makes a node's output from its input, where both share memory."""
    if node.op.name == "in_range":  # from a graph that was captured on the CPU; here, kernels give NaN out of range
        return lambda x: x
    view = node.op.view
    return None if view is None else lambda x: view(x, **node.attrs)


__all__ = ["CudaExecutable", "Replay"]
