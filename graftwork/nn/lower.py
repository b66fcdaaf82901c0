"""From a graph to something that runs: what is computed ahead, which kernel plan each node gets, where every array lives.

`Executable` is made once per graph. It splits off the **ahead** part (what depends on constants and unwritten states only:
folded weights, packed weights), which runs when a state has changed; asks a planner for each remaining node; lets producers
write straight into their slice of a concatenation; and lays out one arena by lifetimes (`nn/memory.py`). An `Instance` is one
arena with every kernel bound to its addresses: replaying it allocates nothing, and concurrent calls take one each.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..kernels import registry
from ..kernels.cpu import runtime
from ..kernels.plan import Plan, Spec, aligned_empty, aligned_together
from .autograd import Changes, mark_written, memory
from .graph import Graph, Node, Outgrown, Value
from .memory import Buffer, arrange, lower_bound
from .tensor import protect


class _Internal:
    """The op of a step that exists between a plan and the executable only."""

    view = cost = vjp = None
    multi, writes, key = False, (), 0

    def __init__(self, name: str):
        self.name = name


_PACK, _COPY = _Internal("pack"), _Internal("contiguous")


class Step(NamedTuple):
    """One body node with its plan (None: its kernel is called from Python) and its packed inputs by position."""

    node: Node
    plan: Plan | None = None
    packed: dict[int, Value] = {}
    workspace: Buffer | None = None
    variant: str = "from Python"  # what computes it, where there is no plan to say


class Place(NamedTuple):
    """Where a value lives: in `base`'s buffer, seen through `view` (None: as it is)."""

    base: Value
    view: Callable[[np.ndarray], np.ndarray] | None


class Executable:
    """A graph ready to be replayed. Thread-safe."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.lock = threading.Lock()
        self.free: list[Instance] = []
        written = graph.written()
        self.fixed = {*graph.constants, *(v for v in graph.states if v not in written)}
        self.written_states = [graph.states[v] for v in graph.states if v in written]
        self.ahead_nodes, body = _split(graph, self.fixed)
        self.arrays: dict[Value, np.ndarray] = dict(graph.constants)  # what instances share: constants, ahead results
        self.packs: dict[Value, tuple[Value, Any]] = {}
        self.places: dict[Value, Place] = {}
        self.slices: dict[tuple[Node, int], Value] = {}  # parts of concatenations that are copied there
        self.seen = -1
        self.states = list(graph.states.values())
        self.held: list[int] = []  # ids of the states' arrays
        self.versions: dict[Value, tuple] | None = None  # None: nothing has been computed ahead yet
        self.generation = 0
        self.steps = self._plan(body)
        self.outputs = self._outputs()
        self.needed = self._needed()
        self.buffers = self._buffers()
        self.arena_bytes = arrange(list(self.buffers.values()) + [s.workspace for s in self.steps if s.workspace])
        self.tensor_bound, self.bound = lower_bound(list(self.buffers.values()), [s.workspace for s in self.steps])

    # -- planning ----------------------------------------------------------------------------------------------------
    def _plan(self, body: list[Node]) -> list[Step]:
        ahead_values = self.fixed | {v for n in self.ahead_nodes for v in n.outputs}
        dummies = _Dummies(self)
        planned = [(node, None if node.op.view else _planned(node)) for node in body]
        self._place_concats(planned)
        steps: list[Step] = []
        for node, plan in planned:
            if node.op.view is not None:
                steps += dummies.place_view(node)
                continue
            if node.op.name == "concat" and any(self._is_part(v, node) for v in node.inputs):
                steps += [_copy_step(v, self.slices[node, i]) for i, v in enumerate(node.inputs) if not self._is_part(v, node)]
                continue  # the other parts write themselves
            contiguous = self._contiguous_inputs(node, plan, dummies, steps)
            packed: dict[int, Value] = {}
            for i, pack in (plan.packs if plan else {}).items():
                packed[i] = self._pack(contiguous.inputs[i], pack, ahead_values, steps)
            space = Buffer(plan.workspace) if plan and plan.workspace else None
            steps.append(Step(contiguous, plan, packed, space))
        return steps

    def _contiguous_inputs(self, node: Node, plan: Plan | None, dummies: _Dummies, steps: list[Step]) -> Node:
        """The node, reading copies where a planned kernel cannot read a view as it lies in memory."""
        if plan is None:
            return node
        inputs = list(node.inputs)
        for i, value in enumerate(inputs):
            array = dummies.array(value)
            if array.flags.c_contiguous or (i in plan.strided_inputs and _is_slice(array)):
                continue
            copy = Value(f"{value.name}_copy", value.shape, value.dtype)
            steps.append(_copy_step(value, copy))
            inputs[i] = copy
        if inputs == node.inputs:
            return node
        changed = Node(node.op, inputs, node.attrs, node.line)
        changed.outputs = node.outputs
        return changed

    def _pack(self, source: Value, pack: Any, ahead_values: set[Value], steps: list[Step]) -> Value:
        """The value that holds `source` in the layout that `pack` makes: ahead where that is possible."""
        for value, (of, made) in self.packs.items():
            if of is source and made.name == pack.name and made.spec == pack.spec:
                return value
        value = Value(f"{source.name}_{pack.name}", pack.spec.shape, pack.spec.dtype)
        if source in ahead_values:
            self.packs[value] = source, pack
        else:
            node = _internal_node(_PACK, source, value)
            steps.append(Step(node, Plan(lambda ins, outs, space: pack.bind(ins[0], outs[0])), {}, None))
        return value

    def _place_concats(self, planned: list[tuple[Node, Plan | None]]) -> None:
        """Let producers write into their part of a concatenation along the last axis."""
        plans = {node: plan for node, plan in planned}
        readers = self.graph.consumers()
        for node, _ in planned:
            if node.op.name != "concat" or node.attrs["axis"] != node.output.ndim - 1:
                continue
            first = 0
            for i, part in enumerate(node.inputs):
                last = first + part.shape[-1]
                place = Place(node.output, functools.partial(_channels, first=first, last=last))
                if self._can_write_into(part, node, plans, readers):
                    self.places[part] = place
                else:
                    self.slices[node, i] = copy = Value(f"{part.name}_slice", part.shape, part.dtype)
                    self.places[copy] = place
                first = last

    def _is_part(self, value: Value, concat: Node) -> bool:
        return value in self.places and self.places[value].base is concat.output

    def _can_write_into(self, part: Value, concat: Node, plans, readers) -> bool:
        plan = plans.get(part.node) if part.node else None
        if plan is None or not plan.strided or part in self.places or concat.inputs.count(part) > 1:
            return False
        if part in self.graph.outputs or len(part.node.outputs) != 1:  # type: ignore[union-attr]
            return False
        for reader in readers[part]:
            theirs = plans.get(reader)
            if reader is not concat and (theirs is None or reader.inputs.index(part) not in theirs.strided_inputs):
                return False
        return True

    def place(self, value: Value) -> tuple[Value, list[Callable]]:
        """The value whose buffer holds `value`, and the views that lead there."""
        views: list[Callable] = []
        while value in self.places:
            place = self.places[value]
            if place.view is not None:
                views.append(place.view)
            value = place.base
        return value, views[::-1]

    # -- memory ------------------------------------------------------------------------------------------------------
    def _outputs(self) -> list[tuple[Value, bool]]:
        """For each output the value whose buffer holds it, and whether that gets memory of the caller's at each call."""
        graph = self.graph
        inside = {*graph.inputs, *graph.states, *graph.constants, *(v for n in self.ahead_nodes for v in n.outputs)}
        bases = [self.place(v)[0] for v in self.graph.outputs]
        return [(base, base not in inside) for base in bases]

    def _needed(self) -> set[Value]:
        """What steps and outputs read. The rest of what is computed ahead, such as weights that were packed, is dropped."""
        read = [s.packed.get(i, v) for s in self.steps for i, v in enumerate(s.node.inputs)] + self.graph.outputs
        return {*read, *(self.place(v)[0] for v in read)}

    def _buffers(self) -> dict[Value, Buffer]:
        """One buffer for every value that needs memory in the arena, with the steps at which it is first and last needed."""
        outside = {*self.graph.inputs, *self.graph.states, *self.graph.constants, *self.packs,
                   *(v for n in self.ahead_nodes for v in n.outputs)}  # fmt: skip
        outside |= {base for base, own in self.outputs if own}
        last: dict[Value, int] = {}
        for at, step in enumerate(self.steps):
            for value in (*step.node.inputs, *step.packed.values()):
                last[self.place(value)[0]] = at
        for base, _ in self.outputs:
            last[base] = len(self.steps)
        buffers: dict[Value, Buffer] = {}
        for at, step in enumerate(self.steps):
            if step.workspace is not None:
                step.workspace.first = step.workspace.last = at
            for value in step.node.outputs:
                base = self.place(value)[0]
                if base in outside or base in buffers:
                    continue
                end = max(last.get(base, at), at)
                taken = self._taken_over(step, value, base, at, last, buffers)
                if taken is None:
                    buffers[base] = Buffer(base.nbytes, at, end)
                else:
                    taken.last = end
                    buffers[base] = taken
        return buffers

    def _taken_over(self, step: Step, value: Value, base: Value, at: int, last, buffers) -> Buffer | None:
        """The buffer of an input that dies here and that the output may overwrite."""
        if value is not base:
            return None
        for i in self._in_place(step):
            source = step.node.inputs[i]
            whole = source not in self.places and source in buffers
            if whole and last[source] == at and source.nbytes == value.nbytes and buffers[source].last == at:
                return buffers[source]
        return None

    def _in_place(self, step: Step) -> Sequence[int]:
        """Positions of the inputs that the step's output may overwrite, if they die here and lie alone in their buffer."""
        return step.plan.in_place if step.plan is not None else ()

    @property
    def ahead_bytes(self) -> int:
        """What is kept of the results that are computed ahead: folded and packed weights."""
        made = [*self.packs, *(v for n in self.ahead_nodes for v in n.outputs)]
        return sum(v.nbytes for v in made if v in self.needed)

    # -- running -----------------------------------------------------------------------------------------------------
    def run(self, inputs: Sequence[np.ndarray], times: dict[Node, int] | None = None) -> list[np.ndarray]:
        """Replay with these inputs; the outputs are new arrays of the caller's. times: nanoseconds added per node."""
        self.refresh()
        with self.lock:
            instance = self.free.pop() if self.free else None
        if instance is None:
            instance = Instance(self)
        try:
            return instance.run(inputs, times)
        finally:
            with self.lock:
                if instance.generation == self.generation:
                    self.free.append(instance)
            for t in self.written_states:
                mark_written(t)

    def refresh(self) -> None:
        """Compute ahead again what depends on states that have changed. Raises Outgrown if one has another shape or dtype."""
        if self.seen == Changes.values and self.held == [id(t.data) for t in self.states]:
            return
        with self.lock:
            seen = Changes.values
            for value, t in self.graph.states.items():
                if t.data.shape != value.shape or t.data.dtype != value.dtype or t.device != self.graph.device:
                    found = f"{t.dtype}{list(t.shape)} on {t.device}"
                    raise Outgrown(f"{value.name} is {found} now; the graph was made for {value.spec} on {self.graph.device}")
            if self._versions() != self.versions:
                self._protect()
                versions = self._versions()
                self._compute_ahead()
                before = self.versions or {}
                self._bind_anew(any(new[0] != before.get(v, (0,))[0] for v, new in versions.items()))
                self.versions = versions
            self.held = [id(t.data) for t in self.states]
            self.seen = seen

    def _versions(self) -> dict[Value, tuple]:
        """What tells whether a state has been exchanged or, where something may depend on its values, written."""
        return {
            v: (id(t.data), Changes.written.get(id(memory(t.data)), 0) if v in self.fixed else 0)
            for v, t in self.graph.states.items()
        }

    def _bind_anew(self, exchanged: bool) -> None:
        """Instances are bound to arrays that have been replaced. exchanged: a state's, not only what is computed ahead."""
        self.generation += 1
        self.free.clear()

    def _protect(self) -> None:
        sources = {v for n in self.ahead_nodes for v in n.inputs} | {source for source, _ in self.packs.values()}
        for value, t in self.graph.states.items():
            if value in sources:
                protect(t)

    def _compute_ahead(self) -> None:
        """Fold and pack. A result that only a pack or another result is made of goes as soon as it has been read, so that a
        network's weights are never there a third time."""
        arrays = dict(self.graph.constants) | {v: t.data for v, t in self.graph.states.items()}
        targets = dict(zip(self.packs, aligned_together([pack.spec for _, pack in self.packs.values()]), strict=True))
        waiting: dict[Value, list[Value]] = {}
        for value, (source, _) in self.packs.items():
            waiting.setdefault(source, []).append(value)
        last = {v: node for node in self.ahead_nodes for v in node.inputs}
        for source in [v for v in waiting if v in arrays]:
            self._pack_now(arrays, source, waiting, targets)
        for node in self.ahead_nodes:
            compute_now(node, arrays)
            for value in node.outputs:
                self._pack_now(arrays, value, waiting, targets)
            for value in (*node.inputs, *node.outputs):
                if last.get(value, node) is node and value not in self.needed:
                    arrays.pop(value, None)
        self.arrays = {v: a for v, a in (arrays | targets).items() if v in self.needed}

    def _pack_now(self, arrays, source: Value, waiting: dict[Value, list[Value]], targets: dict[Value, np.ndarray]) -> None:
        for value in waiting.pop(source, ()):
            runtime.run(self.packs[value][1].bind(np.ascontiguousarray(arrays[source]), targets[value]))


class Placed:
    """Where an executable's values live: in the arena, in a buffer of their own, or in a state. `arrays` holds those known."""

    executable: Executable
    arrays: dict[Value, Any]
    arena: Any

    def array(self, value: Value) -> Any:
        found = self.arrays.get(value)
        if found is None:
            base, views = self.executable.place(value)
            found = self.arrays.get(base)
            if found is None:
                buffer = self.executable.buffers[base]
                memory = self.arena[buffer.offset : buffer.offset + base.nbytes]
                found = self.arrays[base] = memory.view(base.dtype).reshape(base.shape)
            for view in views:
                found = view(found)
            self.arrays[value] = found
        return found


class Instance(Placed):
    """One arena, with every step bound to its addresses."""

    def __init__(self, executable: Executable):
        self.executable, self.generation = executable, executable.generation
        self.arena = aligned_empty(executable.arena_bytes)
        self.arrays = dict(executable.arrays)
        graph = executable.graph
        self.stand_ins = [np.empty(v.shape, v.dtype) for v in graph.inputs]
        self.arrays.update(zip(graph.inputs, self.stand_ins, strict=True))
        self.own = [base for base, own in dict(executable.outputs).items() if own]
        for base in self.own:
            self.arrays[base] = np.empty(base.shape, base.dtype)
        self.programs: list[Any] = []
        self.moves: dict[Value, list[tuple[np.ndarray, int, int]]] = {v: [] for v in (*graph.inputs, *self.own)}
        # arguments that Python steps or outputs refer to are copied to their stand-in
        self.fixed_inputs = {base for base, _ in executable.outputs if base in graph.inputs}
        self._bind()

    def _bind(self) -> None:
        rows: list[runtime.Row] = []
        owners: list[Node] = []
        for step in self.executable.steps:
            inputs = [self.array(step.packed.get(i, v)) for i, v in enumerate(step.node.inputs)]
            outputs = [self.array(v) for v in step.node.outputs]
            if step.plan is None:
                self._close(rows, owners)
                rows, owners = [], []
                self.programs.append((_python_step(step.node, inputs, outputs), [step.node]))
                self.fixed_inputs.update(self.executable.place(v)[0] for v in (*step.node.inputs, *step.node.outputs))
                continue
            space = None
            if step.workspace is not None:
                space = self.arena[step.workspace.offset : step.workspace.offset + step.workspace.nbytes]
            new = step.plan.bind(inputs, outputs, space)
            rows += new
            owners += [step.node] * len(new)
        self._close(rows, owners)
        self._find_moves()

    def _close(self, rows: list, owners: list[Node]) -> None:
        if rows:
            self.programs.append((runtime.Program(rows), owners))

    def _find_moves(self) -> None:
        """Where the addresses of arguments and outputs stand among the words, so that calls can exchange them."""
        ranges = {}
        for value in self.moves:
            if value not in self.fixed_inputs:
                start = self.arrays[value].__array_interface__["data"][0]
                ranges[value] = start, start + max(value.nbytes, 1)
        for program, _ in self.programs:
            for row in getattr(program, "rows", ()):
                for word, array in row.arrays:
                    address = array.__array_interface__["data"][0]
                    for value, (start, stop) in ranges.items():
                        if start <= address < stop:
                            self.moves[value].append((row.words, word, address - start))

    def run(self, inputs: Sequence[np.ndarray], times: dict[Node, int] | None) -> list[np.ndarray]:
        graph = self.executable.graph
        for value, stand_in, given in zip(graph.inputs, self.stand_ins, inputs, strict=True):
            if value in self.fixed_inputs or not given.flags.c_contiguous:
                np.copyto(stand_in, given)
                given = stand_in
            self._move(value, given)
        fresh: dict[Value, np.ndarray] = {}
        for base in self.own:
            if base in self.fixed_inputs:
                continue
            fresh[base] = np.empty(base.shape, base.dtype)
            self._move(base, fresh[base])
        for program, owners in self.programs:
            _run_program(program, owners, times)
        return self._collect(fresh)

    def _move(self, value: Value, array: np.ndarray) -> None:
        start = array.__array_interface__["data"][0]
        for words, at, offset in self.moves[value]:
            words[at] = start + offset

    def _collect(self, fresh: dict[Value, np.ndarray]) -> list[np.ndarray]:
        """The outputs, no two of which share memory with each other or with anything of ours."""
        results, taken = [], set()
        for value in self.executable.graph.outputs:
            base, views = self.executable.place(value)
            array = fresh.get(base)
            if array is None:
                results.append(self.array(value).copy())
                continue
            for view in views:
                array = view(array)
            results.append(array.copy() if base in taken else array)
            taken.add(base)
        return results


def _split(graph: Graph, fixed: set[Value]) -> tuple[list[Node], list[Node]]:
    """(nodes that depend on fixed values only, the others)."""
    known, first, body = set(fixed), [], []
    for node in graph.nodes:
        if not node.op.writes and node.inputs and all(v in known for v in node.inputs):
            known.update(node.outputs)
            first.append(node)
        else:
            body.append(node)
    return first, body


def _planned(node: Node) -> Plan | None:
    planner = registry.planner(node.op.name, "cpu")
    if planner is None:
        return None
    outs = [Spec(v.shape, v.dtype) for v in node.outputs]
    out = outs if node.op.multi else outs[0] if outs else None
    return planner(*(Spec(v.shape, v.dtype) for v in node.inputs), out=out, **node.attrs)


def _channels(whole: np.ndarray, first: int, last: int) -> np.ndarray:
    return whole[..., first:last]


def _internal_node(op: _Internal, source: Value, target: Value) -> Node:
    node = Node(op, [source], {})  # type: ignore[arg-type]
    node.outputs, target.node = [target], node
    return node


def _copy_step(source: Value, target: Value) -> Step:
    """Copy a view into memory of its own (or into its part of a concatenation)."""
    node = _internal_node(_COPY, source, target)
    return Step(node, _planned(node), {}, None)


class _Dummies:
    """Arrays that are never touched, to learn how views lie in memory."""

    def __init__(self, executable: Executable):
        self.executable = executable
        self.known: dict[Value, np.ndarray] = {v: t.data for v, t in executable.graph.states.items()}

    def array(self, value: Value) -> np.ndarray:
        if value not in self.known:
            base, views = self.executable.place(value)
            array = self.known.get(base)
            if array is None:
                array = self.known[base] = np.empty(base.shape, base.dtype)
            for view in views:
                array = view(array)
            self.known[value] = array
        return self.known[value]

    def place_view(self, node: Node) -> list[Step]:
        """Say where a view's values lie. A reshape of what is not in row-major order is no view: it reads a copy, which the
        returned steps make."""
        source, steps = node.inputs[0], []
        lies = self.array(source)
        if lies.size and not np.may_share_memory(lies, node.op.view(lies, **node.attrs)):  # type: ignore[misc]
            copy = Value(f"{source.name}_copy", source.shape, source.dtype)
            steps.append(_copy_step(source, copy))
            source = copy
        self.executable.places[node.output] = Place(source, lambda x: node.op.view(x, **node.attrs))  # type: ignore[misc]
        return steps


def _is_slice(array: np.ndarray) -> bool:
    """Whether the last axis is contiguous and the others have one common pitch."""
    if array.ndim < 2 or array.strides[-1] != array.itemsize:
        return False
    inner = array.strides[-2]
    for axis in range(array.ndim - 2, -1, -1):
        if array.shape[axis] > 1 and array.strides[axis] != inner:
            return False
        inner = inner * array.shape[axis] if array.shape[axis] > 1 else inner
    return True


def _python_step(node: Node, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Callable[[], Any]:
    """A call of the node's kernel from Python."""
    if node.op.name == "contiguous":
        return lambda: np.copyto(outputs[0], inputs[0])
    kernel = registry.get(node.op.name, "cpu", dtype=inputs[node.op.key].dtype)
    out = tuple(outputs) if node.op.multi else outputs[0] if outputs else None
    return lambda: kernel(*inputs, out=out, **node.attrs)


def compute_now(node: Node, arrays: dict[Value, np.ndarray]) -> None:
    """Compute one node on plain arrays, into new ones."""
    inputs = [arrays[v] for v in node.inputs]
    if node.op.view is not None:
        view = node.op.view(inputs[0], **node.attrs)
        arrays[node.output] = view if view.flags.c_contiguous else view.copy()  # what is bound to it counts on that
        return
    outputs = [np.empty(v.shape, v.dtype) for v in node.outputs]
    _python_step(node, inputs, outputs)()
    arrays.update(zip(node.outputs, outputs, strict=True))


def _run_program(program: Any, owners: list[Node], times: dict[Node, int] | None) -> None:
    if times is None:
        program.run() if isinstance(program, runtime.Program) else program()
        return
    if isinstance(program, runtime.Program):
        clock = np.empty(program.count + 1, np.int64)
        program.run(clock)
        spent = np.diff(clock).tolist()
    else:
        start = time.perf_counter_ns()
        program()
        spent = [time.perf_counter_ns() - start]
    for node, nanoseconds in zip(owners, spent, strict=True):
        times[node] = times.get(node, 0) + nanoseconds
