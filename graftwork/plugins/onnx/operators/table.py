"""The table of ONNX operators: one function each, from a node's inputs to its outputs, written in our own ops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ....errors import DTypeError, GraphError
from ....nn import functional as F
from ....nn.autograd import mode
from ....nn.tensor import Tensor, as_dtype, tensor

OPERATORS: dict[tuple[str, str], Rule] = {}
DOMAINS = {"", "ai.onnx"}  # names of the standard's own operators


class Rule(NamedTuple):
    """How an operator is computed. known: inputs whose values decide shapes or attributes, and must be known before others."""

    compute: Callable[[Call], Any]
    known: tuple[int, ...]


def operator(*kinds: str, known: Sequence[int] = (), domain: str = "") -> Callable:
    """Put a function `rule(call)` into the table. It gives a tensor, an array of known values, a Value, or several."""

    def keep(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
        for kind in kinds:
            OPERATORS[domain, kind] = Rule(function, tuple(known))
        return function

    return keep


def direct(kinds: dict[str, Callable[..., Tensor]]) -> None:
    """Elementwise operators that are ops of ours: any number of inputs, in whichever layout these are."""
    for kind, function in kinds.items():
        operator(kind)(lambda c, function=function: c.elementwise(function))


class Node(NamedTuple):
    """One record of the file. inputs: names, "" for those left out. drop: names that nothing reads any more afterwards."""

    kind: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    rule: Rule
    drop: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.domain}{':' if self.domain else ''}{self.kind} node {self.name or ', '.join(self.outputs)!r}"


class Program(NamedTuple):
    """A graph of the file, ready to run: names of inputs and outputs, known values by name, nodes in an order that runs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, np.ndarray]
    nodes: tuple[Node, ...]


class Value:
    """A tensor on its way through the graph, in one layout or both: as ONNX has it, and with its channels (axis 1) last.

    known: its values, where they follow from the file and from shapes alone.
    """

    __slots__ = ("_image", "_plain", "known")

    def __init__(self, plain: Tensor | None = None, image: Tensor | None = None, known: np.ndarray | None = None):
        self._plain, self._image, self.known = plain, image, known

    def plain(self, device: str) -> Tensor:
        """In ONNX's own layout."""
        if self._plain is None and self.known is not None:
            array = self.known if self.known.flags.owndata and mode.trace is None else self.known.copy()
            self._plain = tensor(array, device=device)  # a copy of its own becomes a constant of the graph
        elif self._plain is None:
            assert self._image is not None
            self._plain = F.transpose(self._image, (0, self._image.ndim - 1, *range(1, self._image.ndim - 1)))
        return self._plain

    def image(self, device: str) -> Tensor:
        """With channels last: what convolutions, pooling and normalisation want."""
        if self._image is None:
            x = self.plain(device)
            self._image = F.transpose(x, (0, *range(2, x.ndim), 1))
        return self._image

    @property
    def is_image(self) -> bool:
        """Whether it is there with its channels last only, so that what follows had better stay so."""
        return self._plain is None and self._image is not None

    @property
    def ndim(self) -> int:
        here = self.known if self.known is not None else self._plain if self._plain is not None else self._image
        assert here is not None
        return here.ndim


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Ops inside run now and leave no record, though a capture or a tape may be under way: for values known beforehand."""
    trace, grad = mode.trace, mode.grad
    mode.trace, mode.grad = None, False
    try:
        yield
    finally:
        mode.trace, mode.grad = trace, grad


class Call:
    """What a rule sees: the inputs and attributes of one node."""

    def __init__(self, node: Node, inputs: Sequence[Value | None], opset: int, device: str, scope: dict[str, Value]):
        self.node, self.inputs, self.opset, self.device, self.scope = node, list(inputs), opset, device, scope
        self._unread = set(node.attrs)

    # -- inputs ------------------------------------------------------------------------------------------------------
    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def value(self, i: int = 0) -> Value:
        if not self.has(i):
            raise self.error(f"input {i} is missing")
        return self.inputs[i]  # type: ignore[return-value]

    def x(self, i: int = 0) -> Tensor:
        """Input i as a tensor in ONNX's layout."""
        return self.value(i).plain(self.device)

    def image(self, i: int = 0) -> Tensor:
        """Input i as a tensor with its channels last."""
        return self.value(i).image(self.device)

    def optional(self, i: int) -> Tensor | None:
        return self.x(i) if self.has(i) else None

    def known(self, i: int) -> np.ndarray:
        """The values of input i. A capture knows those that follow from the file and from shapes, and refuses others."""
        value = self.value(i)
        if value.known is None:
            return self.x(i).numpy()
        return value.known

    def number(self, i: int, default: Any = None) -> Any:
        """The one value of input i as a Python number, or the default."""
        return self.known(i).reshape(-1)[0].item() if self.has(i) else default

    # -- attributes --------------------------------------------------------------------------------------------------
    def attr(self, name: str, default: Any = None) -> Any:
        self._unread.discard(name)
        return self.node.attrs.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self.node.attrs:
            raise self.error(f"the attribute {name!r} is missing")
        return self.attr(name)

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        value = self.attr(name, default)
        if value not in choices:
            raise self.error(f"{name}={value!r}; expected {', '.join(map(repr, choices))}")
        return value

    def ints(self, name: str, i: int, default: Any = None) -> Any:
        """Integers that stood in an attribute in older opsets and are input i in newer ones."""
        if self.has(i):
            return [int(n) for n in self.known(i).reshape(-1)]
        found = self.attr(name, default)
        return list(found) if isinstance(found, (list, tuple)) else found

    def dtype(self, name: str, default: str | None = None) -> np.dtype | None:
        """An element type that an attribute names by its number in ONNX."""
        number = self.attr(name)
        if number is None:
            return None if default is None else np.dtype(default)
        return dtype_of(number, self.node)

    def axis(self, ndim: int, default: int | None = None, name: str = "axis") -> int:
        axis = self.attr(name, default)
        if axis is None or not -ndim <= axis < max(ndim, 1):
            raise self.error(f"{name}={axis} for {ndim} dimensions; expected {-ndim} to {ndim - 1}")
        return axis % max(ndim, 1)

    def finish(self) -> None:
        """Refuse attributes that the rule did not look at: they would change the result."""
        if self._unread:
            raise self.error(f"the attribute {', '.join(sorted(self._unread))} is not supported")

    def error(self, what: str) -> GraphError:
        return GraphError(f"ONNX: {self.node}: {what}")

    # -- layouts -----------------------------------------------------------------------------------------------------
    def elementwise(self, function: Callable[..., Tensor], *inputs: int) -> Value:
        """`function` of some inputs (all of them by default), with channels last where an input is there only so."""
        values = [self.value(i) for i in (inputs or range(len(self.inputs)))]
        rank = max(v.ndim for v in values)
        if any(v.is_image and v.ndim == rank for v in values):
            return Value(image=function(*(self._spread(v, rank) for v in values)))
        return Value(function(*(v.plain(self.device) for v in values)))

    def _spread(self, value: Value, rank: int) -> Tensor:
        """A value that broadcasts against images of `rank` dimensions, as it does with channels last."""
        if value.ndim == rank:
            return value.image(self.device)
        x = value.plain(self.device)
        if x.ndim == 0 or x.size == 1:
            return F.reshape(x, ())
        x = F.reshape(x, (1,) * (rank - x.ndim) + x.shape)
        return F.transpose(x, (0, *range(2, rank), 1))


def dtype_of(number: int, node: Any) -> np.dtype:
    """Our dtype for an element type of ONNX. Raises DTypeError for those without one: strings, floats of 8 bits and less."""
    from onnx import TensorProto, helper

    name = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
    try:
        if name == "BFLOAT16":
            return as_dtype("bfloat16")
        if name in ("STRING", "UNDEFINED") or name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")):
            raise KeyError(name)
        return as_dtype(helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, DTypeError):
        raise DTypeError(f"ONNX: {node}: element type {name} has no counterpart here") from None


def fixed(x: Tensor, array: Any, dtype: Any = None) -> Tensor:
    """An array as a tensor beside x, in its dtype unless another is given."""
    return tensor(np.array(array, dtype or x.dtype), device=x.device)


def hot(index: Tensor, depth: int) -> Tensor:
    """Whether each position is that of the index, as a new last axis; nowhere for an index out of range."""
    return F.equal(F.expand_dims(index.astype("int64"), index.ndim), fixed(index, np.arange(depth), np.int64))
