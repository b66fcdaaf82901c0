"""A network from an ONNX file, as a Module on our ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import DTypeError, GraftworkError, GraphError, RangeError, ShapeError
from ...nn.modules.module import Module, Parameter
from ...nn.tensor import Tensor, tensor
from .operators.table import Call, Node, Program, Value, at_once

_CONTRADICTIONS = (ArithmeticError, AssertionError, AttributeError, KeyError, TypeError, ValueError)  # of what a file says


class Signature(NamedTuple):
    """An input as the file declares it. shape: None for a size that is open, or altogether None."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


class OnnxModel(Module):
    """What `load` returns: call it with tensors in the order of the file's inputs; a tensor comes back, or a tuple of them.

    Floating weights are parameters under their names in the file, so that the network can be trained, saved, compiled and
    quantised like others; running statistics of batch norm are buffers and stay as they are. Layouts are those of the file.
    """

    def __init__(self, program: Program, signature: Sequence[Signature], weights: dict[str, np.ndarray],
                 statistics: dict[str, np.ndarray], opset: int):  # fmt: skip
        super().__init__()
        self._program, self.signature, self.opset = _Held(program), tuple(signature), opset
        for name, array in weights.items():
            self._parameters[name] = Parameter(array)
        for name, array in statistics.items():
            self._buffers[name] = tensor(array)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        program = self._program.program
        if len(inputs) != len(self.signature):
            expected = ", ".join(map(str, self.signature))
            raise ShapeError(f"{len(inputs)} inputs given, expected {len(self.signature)}: {expected}")
        for given, declared in zip(inputs, self.signature, strict=True):
            _check(given, declared)
        scope = {name: Value(known=array) for name, array in program.constants.items()}
        scope |= {name: Value(x) for name, x in (*self._parameters.items(), *self._buffers.items())}
        scope |= {declared.name: Value(x) for declared, x in zip(self.signature, inputs, strict=True)}
        device = inputs[0].device if inputs else next((p.device for p in self._parameters.values()), "cpu")
        run(program, scope, self.opset, device)
        results = tuple(scope[name].plain(device) for name in program.outputs)
        return results[0] if len(results) == 1 else results

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.signature))}; {len(self._program.program.nodes)} nodes, opset {self.opset}"


class _Held:
    """A program as one object: captures compare it by identity instead of looking through it at every call."""

    __slots__ = ("program",)

    def __init__(self, program: Program):
        self.program = program


def _check(given: Tensor, declared: Signature) -> None:
    if not isinstance(given, Tensor) or given.dtype != declared.dtype:
        found = given.dtype if isinstance(given, Tensor) else type(given).__qualname__
        raise DTypeError(f"input {declared.name!r} is {found}; expected a tensor of {declared.dtype} ({declared})")
    if declared.shape is None:
        return
    fits = len(given.shape) == len(declared.shape)
    if not fits or any(n is not None and n != m for n, m in zip(declared.shape, given.shape, strict=True)):
        raise ShapeError(f"input {declared.name!r} has shape {given.shape}; the file declares {declared}")


def run(program: Program, scope: dict[str, Value], opset: int, device: str) -> None:
    """Compute all nodes; their outputs go into the scope by name."""
    for node in program.nodes:
        results = compute(node, scope, opset, device)
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                scope[name] = result
        for name in node.drop:
            scope.pop(name, None)


def compute(node: Node, scope: dict[str, Value], opset: int, device: str) -> list[Value]:
    """One node's outputs. What depends on known values only is known too, and computed at once."""
    try:
        inputs = [scope[name] if name else None for name in node.inputs]
        present = [v for v in inputs if v is not None]
        call = Call(node, inputs, opset, device, scope)
        if present and all(v.known is not None for v in present):
            call.device = "cpu"
            call.inputs = [None if v is None else Value(known=v.known) for v in inputs]
            with at_once():
                return [_known(r) for r in _results(call)]
        return _results(call)
    except GraftworkError as error:
        if str(node) not in str(error):
            error.add_note(f"in the ONNX {node}")
        raise
    except IndexError as error:
        raise RangeError(f"ONNX: {node}: {error}") from error
    except _CONTRADICTIONS as error:
        raise GraphError(f"ONNX: {node} contradicts itself or its inputs: {error}") from error


def _results(call: Call) -> list[Value]:
    found = call.node.rule.compute(call)
    call.finish()
    found = found if isinstance(found, (tuple, list)) else (found,)
    if len(found) < len([name for name in call.node.outputs if name]):
        raise GraphError(f"ONNX: {call.node}: {len(call.node.outputs)} outputs are asked for, {len(found)} are supported")
    return [r if isinstance(r, Value) else Value(known=np.asarray(r)) if not isinstance(r, Tensor) else Value(r) for r in found]


def _known(value: Value) -> Value:
    return value if value.known is not None else Value(known=value.plain("cpu").numpy())


__all__ = ["OnnxModel", "Signature", "compute", "run"]
