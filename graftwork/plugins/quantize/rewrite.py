"""From the prepared float32 graph to one that computes in bytes wherever there is a kernel for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...nn.graph import Graph, Node, Value
from ...nn.lower import compute_now
from ...nn.op import OPS
from ...nn.ops.quantized import CLAMPS

UNARY = frozenset(
    ("relu", "relu6", "sigmoid", "tanh", "silu", "hard_swish", "hard_sigmoid", "gelu", "leaky_relu", "elu", "clip", "softplus",
     "square", "abs", "negative", "exp")
)  # fmt: skip
PRODUCTS = frozenset({"conv2d", "linear"})
SHARING = frozenset({"concat", "max_pool2d", "pad"})  # inputs and output have one scale
_TAKES_BYTES = PRODUCTS | SHARING | {"add", "avg_pool2d", "mean"}
_PROBES = 4096  # places at which a function is looked at to find where its result no longer changes


class Form(NamedTuple):
    """What a byte stands for: scale * (byte - zero)."""

    scale: float
    zero: int


def form_of(low: float, high: float) -> Form:
    """The form that covers low ... high; zero is always a byte of its own, since padding and relu need it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    if not scale > 0:
        return Form(1.0, 0)
    return Form(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


class Rewriter:
    """Rewrites one graph (static quantisation).

    ranges: by the value's name. skip: names of nodes that stay in float32. means: of the channels of what products read, for
    bias correction. shorten: leave out what saturates. in_bytes: nodes that compute in 8 bits; in_float: those that do not.
    """

    def __init__(self, graph: Graph, ranges: Mapping[str, tuple[float, float]], skip: frozenset[str] = frozenset(),
                 means: Mapping[str, np.ndarray] | None = None, shorten: bool = True):  # fmt: skip
        self.graph, self.skip, self.means, self.shorten = graph, skip, means or {}, shorten
        self.ranges = {v: ranges[v.name] for v in _values(graph) if v.name in ranges and np.isfinite(ranges[v.name]).all()}
        self.group: dict[Value, Value] = {}
        self.bytes: dict[Value, tuple[Value, Form]] = {}
        self.wide: dict[Value, Value] = {}
        self.narrowed: set[Value] = set()  # of those in bytes, the ones that are computed in float32
        self.shortened: set[Value] = set()  # whose range leaves out what saturates
        self.done: set[Node] = set()
        self.in_bytes: list[str] = []
        self.in_float: list[str] = []
        self.line: tuple[str, int] | None = None

    def run(self) -> Graph:
        graph = self.graph
        self.readers = graph.consumers()
        self._join_groups()
        nodes, graph.nodes = graph.nodes, []
        for node in nodes:
            self.line = node.line
            if node in self.done:
                continue
            if node.output.name in self.skip or not self._lower(node):
                self._keep(node)
        graph.outputs = [self.floats(v) for v in graph.outputs]
        drop_unread(graph)
        return graph

    # -- forms -------------------------------------------------------------------------------------------------------
    def root(self, value: Value) -> Value:
        """What stands for all values that have one form with this one."""
        while self.group.get(value, value) is not value:
            value = self.group[value]
        return value

    def _join_groups(self) -> None:
        for node in self.graph.nodes:
            if node.op.view is not None or node.op.name in SHARING:
                for value in (v for v in node.inputs if v not in self.graph.constants):
                    a, b = self.root(value), self.root(node.output)
                    self.group[b] = a
        self.members: dict[Value, list[tuple[float, float]]] = {}
        for value, limits in self.ranges.items():
            self.members.setdefault(self.root(value), []).append(limits)

        for node in self.graph.nodes if self.shorten else ():
            if node.op.name in UNARY and len(node.inputs) == 1 and self._wanted(node.output):
                self._leave_out_what_saturates(node)

    def _leave_out_what_saturates(self, node: Node) -> None:
        """Narrow the range before a function to where its stored result changes: silu's far negative side, sigmoid's both ends.
        Bytes are better spent in between, and the results are the same."""
        x, root = node.inputs[0], self.root(node.inputs[0])
        alone = self.readers[x] == [node] and x not in self.graph.outputs and len(self.members.get(root, [])) == 1
        if not alone or root is not x or not self.members.get(self.root(node.output)):
            return
        (low, high), out = self.members[root][0], self.form(node.output)
        places = np.linspace(min(low, 0.0), max(high, 0.0), _PROBES, dtype=np.float32)
        stored = self._stored(node, places, out)
        changes = np.flatnonzero(stored[1:] != stored[:-1])
        if len(changes):
            self.shortened.add(x)
            self.members[root] = [(float(places[changes[0]]), float(places[changes[-1] + 1]))]

    def _stored(self, node: Node, places: np.ndarray, out: Form) -> np.ndarray:
        """The bytes that stand for a function's results at `places`."""
        x = Value("x", places.shape, np.float32)
        probe = self.graph.make(node.op, [x], node.attrs)
        arrays = {x: places}
        compute_now(probe, arrays)
        return np.clip(np.rint(arrays[probe.output] / np.float32(out.scale)) + out.zero, 0, 255).astype(np.uint8)

    def form(self, value: Value) -> Form:
        limits = self.members.get(self.root(value))
        if not limits:
            raise KeyError(f"{value.name} has no range")
        return form_of(min(low for low, _ in limits), max(high for _, high in limits))

    # -- values ------------------------------------------------------------------------------------------------------
    def _emit(self, name: str, inputs: list[Value], **attrs) -> Value:
        return self.graph.append(OPS[name], inputs, attrs, self.line).output

    def floats(self, value: Value) -> Value:
        """The float32 form of a value of the old graph."""
        if value not in self.wide:
            if value not in self.bytes:
                return value
            made, form = self.bytes[value]
            self.wide[value] = self._emit("dequantize", [made], scale=form.scale, zero_point=form.zero)
        return self.wide[value]

    def narrow(self, value: Value) -> tuple[Value, Form]:
        """The bytes of a value of the old graph, made at first need."""
        if value not in self.bytes:
            form = self.form(value)
            self.narrowed.add(value)
            self.bytes[value] = self._emit("quantize", [self.floats(value)], scale=form.scale, zero_point=form.zero), form
        return self.bytes[value]

    def _wanted(self, value: Value) -> bool:
        """Whether somebody can read the value as bytes."""
        return value not in self.graph.outputs and any(self._takes_bytes(n) for n in self.readers.get(value, []))

    def _takes_bytes(self, node: Node) -> bool:
        """A function of one value (a gate's sigmoid, say) does so only on the way to a node that does: otherwise it has the
        exact value, and not a byte, of the product before it."""
        if node.output.name in self.skip:
            return False
        if node.op.view is not None or node.op.name in UNARY:
            return self._wanted(node.output)
        return node.op.name in _TAKES_BYTES

    def _constant(self, array: np.ndarray, name: str) -> Value:
        return self.graph.add_constant(array, name)

    # -- nodes -------------------------------------------------------------------------------------------------------
    def _keep(self, node: Node) -> None:
        node.inputs = [self.floats(v) for v in node.inputs]
        self.graph.nodes.append(node)
        if node.op.view is None:
            self.in_float.append(node.output.name)

    def _lower(self, node: Node) -> bool:
        name = node.op.name
        if name in PRODUCTS:
            lowered = self._product(node)
        elif name == "add":
            lowered = self._sum(node)
        elif name in ("avg_pool2d", "mean"):
            lowered = self._average(node)
        elif name in SHARING or node.op.view is not None:
            lowered = self._sharing(node)
        else:
            lowered = name in UNARY and self._wanted(node.output) and self._table(node)
        if lowered and node.op.view is None:
            self.in_bytes.append(node.output.name)
        return lowered

    def _product(self, node: Node) -> bool:
        x, weight, *rest = node.inputs
        array = self.graph.constants.get(weight)
        bias = self.graph.constants.get(rest[0]) if rest else None
        activation = node.attrs.get("activation")
        if array is None or (rest and bias is None) or x.dtype != np.float32 or x in self.graph.constants:
            return False
        if activation not in CLAMPS or (len(rest) > 1 and node.op.name != "conv2d"):
            return False
        given, form = self.narrow(x)
        other = self.narrow(rest[1]) if len(rest) > 1 else None
        bias = corrected(array, bias, node.attrs.get("groups", 1), self.means.get(x.name))
        quantised, scales, offset = quantise_weight(array, bias, form.scale)
        inputs = [given, self._constant(quantised, f"{weight.name}_int8"), self._constant(scales, f"{weight.name}_scale")]
        if offset is not None or other is not None:
            inputs.append(self._constant(np.zeros(len(scales), np.int32) if offset is None else offset, f"{weight.name}_bias"))
        out = self.form(node.output) if self._wanted(node.output) else None
        low, high = CLAMPS[activation]
        attrs = {"x_scale": form.scale, "x_zero_point": form.zero, "low": low, "high": high,
                 "out_scale": out.scale if out else None, "out_zero_point": out.zero if out else 0,
                 "dtype": "uint8" if out else "float32"}  # fmt: skip
        name = "quantized_matmul"
        if node.op.name == "conv2d":
            name = "quantized_conv2d"
            attrs |= {k: node.attrs[k] for k in ("stride", "padding", "dilation", "groups")}
        if other is not None:
            name = "quantized_conv2d_add"
            inputs.append(other[0])
            attrs |= {"other_scale": other[1].scale, "other_zero_point": other[1].zero}
        made = self._emit(name, inputs, **attrs)
        if out:
            self.bytes[node.output] = made, out
        else:
            self.wide[node.output] = made
        return True

    def _sum(self, node: Node) -> bool:
        a, b = node.inputs
        if a.shape != b.shape or (a not in self.bytes and b not in self.bytes):
            return False
        target, (low, high) = node.output, (None, None)
        readers = self.readers.get(target, [])
        if len(readers) == 1 and readers[0].op.name in ("relu", "relu6") and target not in self.graph.outputs:
            self.done.add(readers[0])
            self.in_bytes.append(readers[0].output.name)
            target, (low, high) = readers[0].output, CLAMPS[readers[0].op.name]
        (x, first), (y, second), out = self.narrow(a), self.narrow(b), self.form(target)
        made = self._emit(
            "quantized_add", [x, y], x_scale=first.scale, x_zero_point=first.zero, y_scale=second.scale,
            y_zero_point=second.zero, out_scale=out.scale, out_zero_point=out.zero, low=low, high=high,
        )  # fmt: skip
        self.bytes[target] = made, out
        return True

    def _average(self, node: Node) -> bool:
        x = node.inputs[0]
        if x not in self.bytes or x.ndim != 4:
            return False
        if node.op.name == "mean":
            if tuple(node.attrs["axis"]) != (1, 2):
                return False
            window = {"window": tuple(x.shape[1:3]), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "count_padding": False}
        else:
            window = {k: node.attrs[k] for k in ("window", "stride", "padding", "count_padding")}
        (given, form), out = self.bytes[x], self.form(node.output)
        made = self._emit("quantized_avg_pool2d", [given], x_scale=form.scale, x_zero_point=form.zero, out_scale=out.scale,
                          out_zero_point=out.zero, **window)  # fmt: skip
        if made.shape != node.output.shape:
            made = self._emit("reshape", [made], shape=node.output.shape)
        self.bytes[node.output] = made, out
        return True

    def _sharing(self, node: Node) -> bool:
        """Ops that move or pick values: on bytes as they are."""
        values = node.inputs
        if not any(v in self.bytes for v in values) or any(v in self.graph.constants for v in values):
            return False
        name, attrs = node.op.name, dict(node.attrs)
        if name == "pad" and (attrs.get("value") != 0 or attrs.get("mode") != "constant"):
            return False
        made = [self.narrow(v) for v in values]
        form = made[0][1]
        if any(f != form for _, f in made):
            return False
        if name == "pad":
            attrs["value"] = float(form.zero)
        name = "quantized_max_pool2d" if name == "max_pool2d" else name
        self.bytes[node.output] = self._emit(name, [v for v, _ in made], **attrs), form
        return True

    def _table(self, node: Node) -> bool:
        if len(node.inputs) != 1 or node.inputs[0] not in self.bytes:
            return False
        given, form = self.bytes[node.inputs[0]]
        out = self.form(node.output)
        stored = self._stored(node, (np.arange(256, dtype=np.float32) - form.zero) * np.float32(form.scale), out)
        self.bytes[node.output] = self._emit("byte_table", [given, self._constant(stored, "table")]), out
        return True


def _values(graph: Graph) -> list[Value]:
    return [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]


def drop_unread(graph: Graph) -> None:
    """Forget constants that nothing reads any more."""
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.outputs)
    graph.constants = {v: a for v, a in graph.constants.items() if v in read}


def corrected(weight: np.ndarray, bias: np.ndarray | None, groups: int, mean: np.ndarray | None) -> np.ndarray | None:
    """The bias that takes back what rounding the weights adds to each output channel on average (Nagel et al. 2019): the error
    of the weights times the mean of what they read. Values in the padding count as inside. mean: (channels in,); None changes
    nothing."""
    if mean is None:
        return bias
    stored, scale, _ = quantise_weight(weight, None, 1.0)
    error = (stored * scale - weight).astype(np.float64)
    parts = zip(np.split(error, groups, axis=-1), np.split(mean, groups), strict=True)
    shift = np.concatenate([(m @ part).reshape(-1, part.shape[-1]).sum(0) for part, m in parts])
    return ((0.0 if bias is None else bias) - shift).astype(np.float32)


def quantise_weight(weight: np.ndarray, bias: np.ndarray | None, x_scale: float):
    """(int8 weight, float32 scale a channel, int32 bias or None), symmetric, by the last axis. A channel whose bias would not
    fit into 30 bits gets a larger scale."""
    axes = tuple(range(weight.ndim - 1))
    scale = np.abs(weight).max(axes).astype(np.float64) / 127
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (x_scale * 2**30))
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    quantised = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    if bias is None:
        return quantised, scale, None
    return quantised, scale, np.rint(bias.astype(np.float64) / (np.float64(x_scale) * scale)).astype(np.int32)
