"""Reading ONNX files: what a stranger wrote is checked, turned into plain records, and never executed.

`onnx.checker` holds the file against the standard's schemas; the table of operators (`operators/`) says what each node becomes.
Everything that has no counterpart here is named in one error, before anything is computed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GraphError
from ...nn.tensor import FLOATS
from . import require_onnx
from .model import OnnxModel, Signature, compute
from .operators import OPERATORS
from .operators.table import DOMAINS, Node, Program, Value, dtype_of

OPSETS = range(7, 29)
_DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, RuntimeError)


def load(source: str | os.PathLike | bytes) -> OnnxModel:
    """An ONNX file, or its bytes, as a model on our ops, in evaluation mode.

    Values kept in other files are read from the model's own folder only. Raises GraphError for a missing, damaged or truncated
    file, for opsets outside 7 to 28, and for operators that have no form here, all of them named.
    """
    require_onnx()
    proto = _read(source)
    opset = _opset(proto)
    proto = _inlined(proto)
    _check(proto)
    _require_operators(proto.graph)
    constants = {t.name: _array(t) for t in proto.graph.initializer}
    if proto.graph.sparse_initializer:
        raise GraphError("ONNX: the file has sparse initialisers, which are not supported; store them densely")
    inputs = [i for i in proto.graph.input if i.name not in constants]
    program = _program(proto.graph, constants)
    program = _fold(program, {i.name for i in inputs}, opset)
    weights, statistics, rest = _split(program)
    program = program._replace(constants=rest, nodes=_with_drops(program))
    return OnnxModel(program, [_signature(i) for i in inputs], weights, statistics, opset)


# -- the file ----------------------------------------------------------------------------------------------------------


def _read(source: str | os.PathLike | bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    folder = None
    if not isinstance(source, (bytes, bytearray, memoryview)):
        path = Path(source)
        if not path.is_file():
            raise GraphError(f"no ONNX file at {path}")
        folder, source = path.parent, path.read_bytes()
    try:
        proto = onnx.load_model_from_string(bytes(source))
    except (DecodeError, *_DAMAGED) as error:
        raise GraphError(f"this cannot be read as ONNX ({error}); is the file damaged or cut off?") from error
    if not proto.HasField("graph"):
        raise GraphError("this holds no ONNX graph; is the file empty, cut off or of another kind?")
    for t in _tensors(proto.graph):
        if t.data_location == onnx.TensorProto.EXTERNAL:
            _load_external(t, folder)
    return proto


def _tensors(graph: Any) -> Iterable[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _load_external(t: Any, folder: Path | None) -> None:
    """Read a tensor's values from the file beside the model that it names."""
    from onnx import TensorProto

    entries = {e.key: e.value for e in t.external_data}
    if folder is None:
        raise GraphError(f"ONNX: {t.name!r} keeps its values in another file; load the model by its path, not from bytes")
    location = entries.get("location", "")
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or not path.is_relative_to(root):
        raise GraphError(f"ONNX: {t.name!r} keeps its values in {location!r}, outside of the model's folder; refused")
    if not path.is_file():
        raise GraphError(f"ONNX: {t.name!r} keeps its values in {path}, which does not exist; put it there")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", path.stat().st_size))
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise ValueError(f"{length} bytes from {offset} on, of {path.stat().st_size}")
        with open(path, "rb") as file:
            file.seek(offset)
            t.raw_data = file.read(length)
    except _DAMAGED as error:
        raise GraphError(f"ONNX: the values of {t.name!r} are not in {path}: {error}; is that file cut off?") from error
    t.data_location = TensorProto.DEFAULT
    del t.external_data[:]


def _opset(proto: Any) -> int:
    versions = {o.domain if o.domain not in DOMAINS else "": o.version for o in proto.opset_import}
    opset = versions.get("", 0 if not versions else OPSETS[-1])
    if opset not in OPSETS:
        raise GraphError(f"ONNX: opset {opset}; this reads {OPSETS[0]} to {OPSETS[-1]}. onnx.version_converter brings a model "
                         "to one of those")  # fmt: skip
    return opset


def _inlined(proto: Any) -> Any:
    if not proto.functions:
        return proto
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def _check(proto: Any) -> None:
    import onnx

    if proto.ByteSize() >= 2**31:
        raise GraphError(f"ONNX: {proto.ByteSize()} bytes of values; at most 2 GB can be read")
    for output in proto.graph.output:  # a shape that nobody needs here, and the checker insists on
        if output.type.HasField("tensor_type") and not output.type.tensor_type.HasField("shape"):
            output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, *_DAMAGED) as error:
        first = str(error).strip().partition("\n")[0]
        raise GraphError(f"this is not valid ONNX: {first}") from error


def _require_operators(graph: Any) -> None:
    missing: Counter[str] = Counter()

    def look(graph: Any) -> None:
        for node in graph.node:
            domain = "" if node.domain in DOMAINS else node.domain
            if (domain, node.op_type) not in OPERATORS:
                missing[f"{domain}:{node.op_type}" if domain else node.op_type] += 1
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    look(inner)

    look(graph)
    if missing:
        names = ", ".join(f"{name} ({n} nodes)" if n > 1 else name for name, n in sorted(missing.items()))
        raise GraphError(f"ONNX: operators that have no form here: {names}")


# -- records -----------------------------------------------------------------------------------------------------------


def _array(t: Any) -> np.ndarray:
    from onnx import numpy_helper

    dtype_of(t.data_type, t.name)
    try:
        array = numpy_helper.to_array(t)
    except _DAMAGED as error:
        raise GraphError(f"ONNX: the tensor {t.name!r} does not hold what its shape says: {error}") from error
    return np.array(array)  # memory of its own


def _program(graph: Any, constants: dict[str, np.ndarray]) -> Program:
    nodes = []
    for node in graph.node:
        domain = "" if node.domain in DOMAINS else node.domain
        attrs = {a.name: _attribute(a) for a in node.attribute}
        nodes.append(Node(node.op_type, domain, node.name, tuple(node.input), tuple(node.output), attrs,
                          OPERATORS[domain, node.op_type]))  # fmt: skip
    inputs = tuple(i.name for i in graph.input if i.name not in constants)
    return Program(inputs, tuple(o.name for o in graph.output), constants, tuple(nodes))


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.GRAPH:
        return _program(attribute.g, {t.name: _array(t) for t in attribute.g.initializer})
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return _array(value)
    if attribute.type == AttributeProto.STRING:
        return _text(value)
    if attribute.type == AttributeProto.STRINGS:
        return tuple(_text(v) for v in value)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise GraphError(f"ONNX: an attribute holds {value[:20]!r}, which is no text; is the file damaged?") from None


def _signature(info: Any) -> Signature:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise GraphError(f"ONNX: the input {info.name!r} is a {kind}; only tensors are supported")
    declared = info.type.tensor_type
    shape = None
    if declared.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim)
    return Signature(info.name, shape, dtype_of(declared.elem_type, info.name))


# -- before the first call ---------------------------------------------------------------------------------------------


def _fold(program: Program, inputs: set[str], opset: int) -> Program:
    """Compute what small constants alone decide; floating weights stay, so that they remain parameters."""
    scope = {name: Value(known=a) for name, a in program.constants.items() if name not in inputs}
    constants, nodes = dict(program.constants), []
    for node in program.nodes:
        nested = any(isinstance(a, Program) for a in node.attrs.values())
        small = all(name in scope and _settles(node, scope[name].known) for name in node.inputs if name)
        if nested or not small or (not node.inputs and node.kind != "Constant"):
            nodes.append(node)
            continue
        for name, result in zip(node.outputs, compute(node, scope, opset, "cpu"), strict=False):
            if result.known is None:
                result = Value(known=result.plain("cpu").numpy())
            if name:
                scope[name] = result
                constants[name] = np.array(result.known)
    read = {name for node in nodes for name in _reads(node)} | set(program.outputs)
    return program._replace(constants={n: a for n, a in constants.items() if n in read}, nodes=tuple(nodes))


def _settles(node: Node, array: np.ndarray | None) -> bool:
    return array is not None and (array.dtype not in FLOATS or array.size <= 1 or node.kind in ("Constant", "Identity"))


def _reads(node: Node) -> list[str]:
    """Names that a node reads, those in its inner graphs included."""
    names = [name for name in node.inputs if name]
    for inner in node.attrs.values():
        if isinstance(inner, Program):
            names += [*inner.outputs, *(n for child in inner.nodes for n in _reads(child))]
    return names


_STATISTICS = {"BatchNormalization": (3, 4)}


def _split(program: Program) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Floating constants that nodes compute with become parameters, batch norm's statistics buffers; the rest is known."""
    uses: dict[str, set[str]] = {}
    for node in program.nodes:
        direct = set()
        for i, name in enumerate(node.inputs):
            kind = "known" if i in node.rule.known else "buffer" if i in _STATISTICS.get(node.kind, ()) else "weight"
            uses.setdefault(name, set()).add(kind)
            direct.add(name)
        for name in set(_reads(node)) - direct:
            uses.setdefault(name, set()).add("known")
    weights, statistics, rest = {}, {}, {}
    for name, array in program.constants.items():
        kinds = uses.get(name, {"known"})
        if array.dtype not in FLOATS or array.size <= 1 or "known" in kinds:
            rest[name] = array
        elif kinds == {"buffer"}:
            statistics[name] = array
        else:
            weights[name] = array
    return weights, statistics, rest


def _with_drops(program: Program) -> tuple[Node, ...]:
    """Nodes with the names that nothing reads any more behind them."""
    last = {name: i for i, node in enumerate(program.nodes) for name in (*_reads(node), *node.outputs) if name}
    drops: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in program.outputs:
            drops.setdefault(i, []).append(name)
    return tuple(node._replace(drop=tuple(drops.get(i, ()))) for i, node in enumerate(program.nodes))


__all__ = ["OPSETS", "load"]
