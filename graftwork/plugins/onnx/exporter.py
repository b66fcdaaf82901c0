"""Writing a captured call as ONNX, opset 17 and IR version 8.

A model is traced, batch norm is folded, what depends on weights alone is computed, and every remaining op record becomes one or
a few ONNX nodes (`rules.py`). Convolutions are NHWC here and NCHW in ONNX: each value remembers which of the two it is in
(`builder.py`), so that transposes appear only where a value is needed in the other layout.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ConfigError, GraphError
from ...nn.autograd import no_grad
from ...nn.compile import trace
from ...nn.files import atomic_path, require_writable
from ...nn.graph import Graph
from ...nn.modules.module import Module
from ...nn.passes import PASSES
from ...nn.tensor import Tensor, host, tensor
from ...zoo.images import IMAGENET_BGR_MEAN, IMAGENET_DEVIATION, IMAGENET_MEAN
from ..quantize import QuantizedModel
from . import require_onnx
from .builder import Builder

OPSET, IR = 17, 8
_SIMPLIFY = ("dead_code", "constants", "common_subexpressions", "padding", "batch_norm", "clean_up")
PREPROCESSINGS = ("tf", "torch", "caffe", "unit", "raw")


def export(target: Callable, path: str | os.PathLike, *examples: Tensor, dtype: str = "float32", dynamic_batch: bool = True,
           preprocessing: bool = False) -> None:  # fmt: skip
    """Write what `target(*examples)` computes, in inference, to an ONNX file.

    target: a module, a function of tensors, or what `plugins.quantize` returns: that becomes 8-bit QDQ with its own scales.
    examples: tensors that give shapes and dtypes; left out, one image of the model's `input_shape`. dtype: "float32" or
    "float16", what weights are kept and products computed in; inputs and results stay float32. dynamic_batch: the first size
    of inputs is open. preprocessing: the file takes RGB pixels from 0 to 255 and normalises them itself.
    Activations come in and go out as here (NHWC). The file is checked by `onnx.checker` and appears whole or not at all.
    Raises ConfigError for options that do not fit, GraphError naming an op that has no form in ONNX.
    """
    require_onnx()
    require_writable(path)
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"export: dtype={dtype!r}; expected 'float32' or 'float16'")
    inputs = list(examples) or [_example(target)]
    mode = _preprocessing(target, inputs) if preprocessing else None
    proto = model_proto(target, inputs, dtype, dynamic_batch, mode)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def model_proto(target: Callable, inputs: list[Tensor], dtype: str, dynamic_batch: bool, mode: str | None) -> Any:
    """The checked onnx.ModelProto of a call. Weights above 2 GB do not fit into one: ConfigError."""
    import onnx

    read = quantised if isinstance(target, QuantizedModel) else capture
    graph = read(target, inputs)
    twin = read(target, [_longer(x) for x in inputs]) if dynamic_batch else None
    builder = Builder(graph, twin, dtype)
    if mode is not None:
        builder.normalise = lambda name: normalise(builder, name, mode, graph.inputs[0].shape[-1])
    body = builder.build()
    proto = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR,
                                   producer_name="graftwork")  # fmt: skip
    if proto.ByteSize() > 2**31 - 1:
        raise ConfigError(f"export: {proto.ByteSize()} bytes of weights, and one ONNX file holds 2 GB; use dtype='float16'")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def capture(target: Callable, inputs: list[Tensor]) -> Graph:
    """The traced graph after the passes that other runtimes profit from, with all that depends on weights alone computed."""
    training = isinstance(target, Module) and target.training
    if training:
        target.eval()  # type: ignore[attr-defined]
    try:
        with no_grad():
            graph = trace(target, *inputs)
    finally:
        if training:
            target.train()  # type: ignore[attr-defined]
    for name in _SIMPLIFY:
        graph = PASSES[name](graph)
    if graph.written():
        raise GraphError(f"export: the call changes {graph.written().pop().name} in place, which ONNX has no form for; export "
                         "inference")  # fmt: skip
    return _precompute(graph)


def quantised(target: QuantizedModel, inputs: list[Tensor]) -> Graph:
    """A copy of the graph that a quantised model runs for these inputs."""
    graph = copy.copy(target.graph(*inputs))
    graph.nodes, graph.constants = list(graph.nodes), dict(graph.constants)
    return _precompute(graph)


def _precompute(graph: Graph) -> Graph:
    """States become constants, and so does every node that reads constants only."""
    known = {v: host(t.data) for v, t in graph.states.items()} | dict(graph.constants)
    remaining = []
    with no_grad():
        for node in graph.nodes:
            if not node.inputs or any(v not in known for v in node.inputs):
                remaining.append(node)
                continue
            results = node.op(*(tensor(known[v]) for v in node.inputs), **node.attrs)
            for value, result in zip(node.outputs, results if node.op.multi else [results], strict=True):
                known[value] = result.numpy()
    read = {v for n in remaining for v in n.inputs} | set(graph.outputs)
    graph.nodes, graph.states = remaining, {}
    graph.constants = {v: a for v, a in known.items() if v in read}
    return graph


def _longer(x: Tensor) -> Tensor:
    """x with one more entry in its batch: where the two graphs' sizes differ, they depend on the batch."""
    if x.ndim == 0:
        raise ConfigError("export: an example without dimensions has no batch; give dynamic_batch=False")
    return tensor(np.zeros((x.shape[0] + 1, *x.shape[1:]), x.dtype))


def _network(target: Callable) -> Callable:
    return target.model if isinstance(target, QuantizedModel) else target


def _example(target: Callable) -> Tensor:
    shape = getattr(_network(target), "input_shape", None)
    if shape is None:
        raise ConfigError("export: the model does not say what its input is; give an example: export(model, path, x)")
    return tensor(np.zeros((1, *shape), np.float32))


def _preprocessing(target: Callable, inputs: list[Tensor]) -> str:
    network = _network(target)
    mode = getattr(network, "preprocessing", None)
    if mode not in PREPROCESSINGS or len(inputs) != 1 or inputs[0].ndim != 4:
        raise ConfigError(f"export: preprocessing={mode!r} of {type(network).__name__} cannot be embedded; expected an image "
                          f"model with one of {', '.join(PREPROCESSINGS)}")  # fmt: skip
    return mode


def normalise(builder: Builder, name: str, mode: str, channels: int) -> str:
    """`zoo.images.normalise` as nodes: pixels (NHWC) from 0 to 255 in the range that the network was trained on."""
    mean: np.ndarray = np.zeros(channels)
    deviation: np.ndarray = np.ones(channels)
    if mode == "caffe":
        mean = IMAGENET_BGR_MEAN if channels == 3 else np.full(channels, IMAGENET_BGR_MEAN.mean())
        if channels == 3:
            name = builder.node("Gather", [name, builder.constant(np.array([2, 1, 0], np.int64))], axis=3)
    elif mode == "tf":
        mean, deviation = mean + 127.5, deviation * 127.5
    elif mode == "torch":
        mean, deviation = IMAGENET_MEAN * 255.0, IMAGENET_DEVIATION * 255.0
        if channels == 1:
            mean, deviation = np.array([mean.mean()]), np.array([deviation.mean()])
    elif mode == "unit":
        deviation = deviation * 255.0
    centred = builder.node("Sub", [name, builder.constant(np.asarray(mean, np.float32))])
    return builder.node("Div", [centred, builder.constant(np.asarray(deviation, np.float32))])
