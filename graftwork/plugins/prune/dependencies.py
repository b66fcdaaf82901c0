"""Which channels of a network stand or fall together, read off its captured graph.

Every channel that a convolution or dense layer makes gets a number. What only looks at channels one by one (batch norms,
activations, pooling, depthwise convolutions) hands the numbers on; what adds or multiplies values joins the numbers of one
place; concatenations put them side by side. A number that meets something which needs all channels as they are (the network's
inputs and outputs, a channel padding, a softmax) is locked. So a channel is pruned everywhere or nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ...nn.compile import trace
from ...nn.graph import Graph, Node, Value
from ...nn.modules.layers import BatchNorm, Conv2d, SeparableConv2d
from ...nn.modules.module import Module
from ...nn.tensor import Tensor

PASSING = frozenset(
    ("negative", "abs", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "tanh", "log1p", "expm1",
     "sign", "floor", "ceil", "round", "sigmoid", "softplus", "silu", "hard_sigmoid", "hard_swish", "relu", "relu6",
     "leaky_relu", "elu", "gelu", "clip", "cast", "identity", "logical_not", "max_pool2d", "avg_pool2d", "contiguous",
     "dropout", "resize")
)  # fmt: skip
ELEMENTWISE = frozenset(
    ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "equal", "not_equal", "less", "less_equal",
     "greater", "greater_equal", "logical_and", "logical_or", "where")
)  # fmt: skip
REDUCTIONS = frozenset({"sum", "mean", "max", "min", "prod"})


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution or dense layer, by its weight's id. given, made: numbers of the channels it reads and makes. depthwise: it
    makes none of its own. window: weights for each pair of them. positions: of one example's output."""

    weight: int
    given: np.ndarray
    made: np.ndarray
    depthwise: bool
    window: int
    positions: int

    def macs(self, kept: np.ndarray) -> int:
        """Multiplications an example, if of all numbers those with kept[number] stay."""
        made = int(kept[self.made].sum())
        return self.positions * self.window * made * (1 if self.depthwise else int(kept[self.given].sum()))


@dataclass
class Dependencies:
    """axes: for each tensor (a Tensor's id) the numbers along its axes that hold channels; root: each number's representative.
    locked: why a representative must stay. norms: numbers of the channels of each batch norm's scale, by its tensor's id."""

    names: dict[int, str]
    tensors: dict[int, Tensor]
    axes: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    norms: dict[int, np.ndarray] = field(default_factory=dict)
    root: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    locked: dict[int, str] = field(default_factory=dict)


class Analysis:
    """One walk over a graph; `result` is what it found."""

    def __init__(self, model: Module, graph: Graph):
        self.graph = graph
        self.parent: list[int] = []
        self.reasons: dict[int, str] = {}
        self.numbers: dict[Value, np.ndarray] = {}  # of the last axis of values
        self.ids = {value: id(tensor) for value, tensor in graph.states.items()}
        pairs = [*model.named_parameters(), *model.named_buffers()]
        self.result = Dependencies({id(t): n for n, t in pairs}, {id(t): t for _, t in pairs})
        self.derived = {id(t) for m in model.modules() if isinstance(m, BatchNorm) for t in m._constants}
        self.flexible = _flexible_groups(model)

    def run(self) -> Dependencies:
        for value in self.graph.inputs:
            self._lock(self._new(value), "it is an input")
        for node in self.graph.nodes:
            self._visit(node)
        for value in self.graph.outputs:
            self._lock(self._of(value), "it is an output")
        found = self.result
        found.root = np.array([self._find(i) for i in range(len(self.parent))], np.int64)
        for number, reason in self.reasons.items():
            found.locked.setdefault(int(found.root[number]), reason)
        found.axes = {k: {a: found.root[n] for a, n in axes.items()} for k, axes in found.axes.items()}
        found.norms = {k: found.root[n] for k, n in found.norms.items()}
        found.products = [replace(p, given=found.root[p.given], made=found.root[p.made]) for p in found.products]
        return found

    # -- numbers -----------------------------------------------------------------------------------------------------
    def _fresh(self, count: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def _join(self, a: np.ndarray, b: np.ndarray) -> None:
        if a is b or np.array_equal(a, b):
            return
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            x, y = self._find(x), self._find(y)
            self.parent[max(x, y)] = min(x, y)

    def _lock(self, numbers: np.ndarray, reason: str) -> None:
        for number in numbers.tolist():
            self.reasons.setdefault(number, reason)

    def _new(self, value: Value) -> np.ndarray:
        self.numbers[value] = self._fresh(value.shape[-1] if value.ndim else 0)
        return self.numbers[value]

    def _of(self, value: Value) -> np.ndarray:
        """The numbers of a value's last axis; a state's or a constant's at first sight."""
        if value not in self.numbers:
            numbers = self._new(value)
            if value not in self.ids:
                self._lock(numbers, "it meets a constant")
            elif self.ids[value] in self.result.names:
                self._place(value, value.ndim - 1, numbers)
            elif self.ids[value] not in self.derived:
                self._lock(numbers, "it meets a tensor that is no parameter")
        return self.numbers[value]

    def _place(self, value: Value, axis: int, numbers: np.ndarray) -> None:
        """Say which numbers stand along a parameter's axis; joined with what was said before (shared weights)."""
        known = self.result.axes.setdefault(self.ids[value], {})
        if axis in known:
            self._join(known[axis], numbers)
        known.setdefault(axis, numbers)
        if axis == value.ndim - 1:
            self.numbers.setdefault(value, numbers)

    # -- nodes -------------------------------------------------------------------------------------------------------
    def _visit(self, node: Node) -> None:
        name = node.op.name
        if name in PASSING and len(node.inputs) == 1:
            self.numbers[node.output] = self._of(node.inputs[0])
        elif name in ELEMENTWISE:
            self._elementwise(node)
        elif name in ("conv2d", "linear"):
            self._product(node)
        elif name == "batch_norm":
            self._batch_norm(node)
        elif name not in _SPECIAL or not _SPECIAL[name](self, node):
            self._unknown(node)

    def _unknown(self, node: Node) -> None:
        for value in node.inputs:
            self._lock(self._of(value), f"{node.op.name} needs all channels")
        for value in node.outputs:
            self._lock(self._new(value), f"{node.op.name} makes it")

    def _elementwise(self, node: Node) -> None:
        width = node.output.shape[-1] if node.output.ndim else 0
        found = [self._of(v) for v in node.inputs if v.ndim and v.shape[-1] == width]
        for other in found[1:]:
            self._join(found[0], other)
        if found:
            self.numbers[node.output] = found[0]
        else:
            self._unknown(node)

    def _product(self, node: Node) -> None:
        x, weight, *rest = node.inputs
        groups = node.attrs.get("groups", 1)
        own = self.ids.get(weight)
        depthwise = groups > 1 and groups == x.shape[-1] and own in self.flexible
        if own is None or own not in self.result.names or len(rest) > 1 or (groups > 1 and not depthwise):
            self._unknown(node)
            return
        given = self._of(x)
        if depthwise:
            made = np.repeat(given, weight.shape[-1] // groups)
        else:
            made = self._of(weight)
            self._place(weight, weight.ndim - 2, given)
        self._place(weight, weight.ndim - 1, made)
        for bias in rest:
            self._join(self._of_vector(bias, made), made)
        self.numbers[node.output] = made
        positions = math.prod(node.output.shape[:-1]) // max(node.output.shape[0], 1)
        self.result.products.append(Product(own, given, made, depthwise, math.prod(weight.shape[:-2]), positions))

    def _of_vector(self, value: Value, numbers: np.ndarray) -> np.ndarray:
        """The numbers of a bias or a batch norm's vector: those of the channels that it belongs to."""
        if value not in self.numbers and self.ids.get(value) in self.result.names:
            self._place(value, 0, numbers)
        return self._of(value)

    def _batch_norm(self, node: Node) -> None:
        x, *vectors = node.inputs
        numbers = self._of(x)
        for vector in vectors:
            self._join(self._of_vector(vector, numbers), numbers)
        self.numbers[node.output] = numbers
        if self.ids.get(vectors[0]) in self.result.names:
            self.result.norms[self.ids[vectors[0]]] = numbers

    def _concat(self, node: Node) -> bool:
        parts = [self._of(v) for v in node.inputs]
        if node.attrs["axis"] % node.output.ndim == node.output.ndim - 1:
            self.numbers[node.output] = np.concatenate(parts)
        else:
            for other in parts[1:]:
                self._join(parts[0], other)
            self.numbers[node.output] = parts[0]
        return True

    def _pad(self, node: Node) -> bool:
        return self._whole_last(node, tuple(node.attrs["widths"][-1]) == (0, 0))

    def _slice(self, node: Node) -> bool:
        index, x = node.attrs["index"], node.inputs[0]
        whole = len(index) == x.ndim and index[-1] in (slice(None), slice(0, x.shape[-1], 1))
        return self._whole_last(node, len(index) < x.ndim or whole)

    def _transpose(self, node: Node) -> bool:
        return self._whole_last(node, node.attrs["axes"][-1] == node.output.ndim - 1)

    def _broadcast_to(self, node: Node) -> bool:
        return self._whole_last(node, node.inputs[0].ndim > 0 and node.inputs[0].shape[-1] == node.output.shape[-1])

    def _reduction(self, node: Node) -> bool:
        last = node.inputs[0].ndim - 1
        return self._whole_last(node, all(axis % (last + 1) != last for axis in node.attrs["axis"]))

    def _reshape(self, node: Node) -> bool:
        """Channels last before and after, or flattened together with the axes before them."""
        x, y = node.inputs[0], node.output
        if not x.ndim or not y.ndim:
            return False
        for first in range(x.ndim - 1, -1, -1):
            if math.prod(x.shape[first:]) == y.shape[-1]:
                self.numbers[y] = np.tile(self._of(x), math.prod(x.shape[first:-1]))
                return True
        return False

    def _whole_last(self, node: Node, whole: bool) -> bool:
        if whole:
            self.numbers[node.output] = self._of(node.inputs[0])
        return whole


# Ops that hand numbers on in a way of their own; False from them means that they do not, as for any op that is not known here.
_SPECIAL = {
    "concat": Analysis._concat, "pad": Analysis._pad, "slice": Analysis._slice, "transpose": Analysis._transpose,
    "broadcast_to": Analysis._broadcast_to, "reshape": Analysis._reshape, **dict.fromkeys(REDUCTIONS, Analysis._reduction),
}  # fmt: skip


def _flexible_groups(model: Module) -> set[int]:
    """Depthwise weights whose layers can be told another number of channels (`nn/modules/resize.py`)."""
    found = {id(m.weight) for m in model.modules() if isinstance(m, Conv2d)}
    return found | {id(m.depthwise_weight) for m in model.modules() if isinstance(m, SeparableConv2d)}


def analyse(model: Module, example: Tensor) -> Dependencies:
    """The dependencies between the channels of `model`, for an input like `example`. Raises CaptureError where the model cannot
    be captured."""
    from ...nn import no_grad

    with no_grad():
        return Analysis(model, trace(model, example)).run()


__all__ = ["Dependencies", "Product", "analyse"]
