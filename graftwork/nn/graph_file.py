"""Graphs in files: structure as JSON, states and constants as datasets, in one HDF5 file. No model code is needed to run one.

Nothing in a file is executed: op names are looked up in the op table, attributes are plain data, and the graph is checked like
one that a pass has made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError, DTypeError, GraphError, ShapeError
from . import packing
from .compile import executable
from .files import atomic_path
from .graph import Graph, Node, Value
from .op import OPS
from .tensor import Tensor, device_of, host, tensor

FORMAT, PACKED = 1, 2  # packed files have another number, so that versions that know none of them say so
_LARGEST = 4 << 30  # bytes that a dataset may declare if it is much larger than what is stored for it
_DAMAGED = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, RecursionError)


def save(graph: Graph, path: str | os.PathLike, packed: bool = False) -> None:
    """Write a graph with the present values of its states; the file appears whole or not at all. packed: exactly, in few
    bytes, where weights were quantised, pruned or clustered (`packing.py`)."""
    import h5py

    structure = {
        "name": graph.name,
        "inputs": [_describe(v) for v in graph.inputs],
        "states": [_describe(v) for v in graph.states],
        "constants": [_describe(v) for v in graph.constants],
        "nodes": [
            {
                "op": n.op.name, "inputs": [v.name for v in n.inputs], "outputs": [v.name for v in n.outputs],
                "attrs": {k: _encode(v) for k, v in n.attrs.items()}, "source": n.source(),
            }
            for n in graph.nodes
        ],
        "outputs": [v.name for v in graph.outputs],
    }  # fmt: skip
    arrays = {str(i): a for i, a in enumerate([*(host(t.data) for t in graph.states.values()), *graph.constants.values()])}
    text = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["graftwork_graph"] = PACKED if packed else FORMAT
        file.create_dataset("structure", data=text, **({"compression": "gzip"} if packed else {}))
        values = file.create_group("values")
        if packed:
            packing.write_streams(values, packing.pack(arrays))
            return
        for name, array in arrays.items():
            values.create_dataset(name, data=array)


def is_graph(path: str | os.PathLike) -> bool:
    """Whether a file says that it holds a graph. (Only HDF5 files are opened.)"""
    import h5py

    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return "graftwork_graph" in file.attrs
    except OSError:
        return False  # damaged: whoever reads it says how


def load_graph(path: str | os.PathLike, device: str = "cpu") -> LoadedGraph:
    """Read a graph that `Graph.save` wrote; the result is called with tensors on `device` and returns a tensor, or a tuple of
    them. A file holds no device: what was captured on one may run on another.

    Raises GraphError for a missing, damaged or foreign file, one from a newer version, or an op that no plugin provides.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise GraphError(f"no graph file at {path}; expected one that graph.save(path) wrote")
    try:
        with h5py.File(path, "r") as file:
            version = int(file.attrs.get("graftwork_graph", 0))
            if version == 0:
                raise GraphError(f"{path} is an HDF5 file but holds no graph; graph.save(path) writes one")
            if version > PACKED:
                raise GraphError(f"{path} has graph format {version}, this version reads up to {PACKED}; upgrade it")
            structure = json.loads(bytes(_read(file, "structure")))
            graph = _rebuild(structure, _values(file, version), device)
        graph.check()
    except GraphError:
        raise
    except _DAMAGED as error:
        raise GraphError(f"{path} cannot be read as a graph ({type(error).__name__}: {error}); is it damaged?") from error
    return LoadedGraph(graph)


class LoadedGraph:
    """A graph from a file, ready to call. Thread-safe where the graph changes none of its states."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.executable = executable(graph)

    def __call__(self, *inputs: Tensor) -> Any:
        expected = self.graph.inputs
        if len(inputs) != len(expected):
            raise ShapeError(f"{self.graph.name}: {len(inputs)} inputs given, expected {len(expected)}: {self.signature}")
        for given, value in zip(inputs, expected, strict=True):
            if not isinstance(given, Tensor) or given.dtype != value.dtype:
                found = given.dtype if isinstance(given, Tensor) else type(given).__qualname__
                raise DTypeError(f"{self.graph.name}: input {value.name!r} is {found}, expected a tensor of {value.dtype}")
            if given.shape != value.shape:
                raise ShapeError(f"{self.graph.name}: input {value.name!r} has shape {given.shape}, the graph was captured for "
                                 f"{value.shape}; capture it again for other shapes")  # fmt: skip
            if device_of(given.data) != self.graph.device:
                raise DeviceError(f"{self.graph.name}: input {value.name!r} is on {given.device}, the graph runs on "
                                  f"{self.graph.device}; move it with x.to(...), or load with device=...")  # fmt: skip
        results = tuple(Tensor(a) for a in self.executable.run([t.data for t in inputs]))
        return results[0] if len(results) == 1 else results

    @property
    def signature(self) -> str:
        return ", ".join(f"{v.name}: {v.spec}" for v in self.graph.inputs)

    def __repr__(self) -> str:
        return f"<loaded graph {self.graph.name}({self.signature})>"


def _describe(value: Value) -> dict:
    return {"name": value.name, "shape": list(value.shape), "dtype": value.dtype.name}


def _encode(value: Any) -> Any:
    """An attribute as JSON: tuples and slices, which JSON lacks, are marked."""
    if isinstance(value, (tuple, list)):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise GraphError(f"an attribute of type {type(value).__qualname__} cannot be written to a graph file")


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(_decode(v) for v in value["tuple"])
    if isinstance(value, dict) and set(value) == {"slice"}:
        return slice(*value["slice"])
    if isinstance(value, (dict, list)):
        raise GraphError(f"an attribute {str(value)[:80]} is neither plain nor a marked tuple or slice")
    return value


def _read(file: Any, name: str) -> np.ndarray:
    """A dataset's values. Links to elsewhere and shapes far beyond what is stored are refused."""
    import h5py

    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise GraphError(f"dataset {name!r} is a link to elsewhere; a graph file holds its own values")
    data = file[name]
    if data.external or data.is_virtual:
        raise GraphError(f"dataset {name!r} keeps its values in another file; a graph file holds its own")
    declared, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
    if declared > _LARGEST and declared > 1000 * stored:
        raise GraphError(f"dataset {name!r} declares {declared} bytes and stores {stored}; refused")
    return data[()]


def _values(file: Any, version: int) -> Callable[[str], np.ndarray]:
    """What gives the array of a number."""
    if version == FORMAT:
        return lambda name: np.asarray(_read(file, f"values/{name}"))
    found = packing.entries(packing.read_streams(lambda name: _read(file, f"values/{name}"), file["values"]))
    return lambda name: found[name].read()


def _rebuild(structure: dict, values: Callable[[str], np.ndarray], device: str) -> Graph:
    graph = Graph(str(structure["name"]), "cuda:0" if device == "cuda" else device)
    known: dict[str, Value] = {}

    def fresh(entry: dict) -> Value:
        value = Value(str(entry["name"]), [int(n) for n in entry["shape"]], entry["dtype"])
        if known.setdefault(value.name, value) is not value:
            raise GraphError(f"two values are named {value.name!r}")
        graph._names[value.name] = 1
        return value

    graph.inputs = [fresh(entry) for entry in structure["inputs"]]
    for i, entry in enumerate([*structure["states"], *structure["constants"]]):
        value, array = fresh(entry), values(str(i))
        if array.shape != value.shape or array.dtype != value.dtype:
            raise GraphError(f"{value.name} holds {array.dtype}{list(array.shape)}, its graph says {value.spec}")
        if i < len(structure["states"]):
            graph.states[value] = tensor(array, device=device)
        else:
            graph.constants[value] = array
    for entry in structure["nodes"]:
        if entry["op"] not in OPS:
            raise GraphError(f"op {entry['op']!r} is not known here; it comes from a plugin that is not installed, or from a "
                             "newer version")  # fmt: skip
        node = Node(OPS[entry["op"]], [known[n] for n in entry["inputs"]], {k: _decode(v) for k, v in entry["attrs"].items()})
        specs = node.op.infer(*node.inputs, **node.attrs)
        specs = [] if specs is None else specs if node.op.multi else [specs]
        for name, (shape, dtype) in zip(entry["outputs"], specs, strict=True):
            value = fresh({"name": name, "shape": shape, "dtype": dtype})
            value.node = node
            node.outputs.append(value)
        graph.nodes.append(node)
    graph.outputs = [known[n] for n in structure["outputs"]]
    return graph


__all__ = ["LoadedGraph", "load_graph", "save"]
