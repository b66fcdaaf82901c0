"""Quantisation-aware training: the network trains while its weights and activations are rounded as 8 bits would round them.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), with the
straight-through gradient of Bengio et al. (2013). It works on the same prepared graph as quantisation after training, so what
is rounded in training is what will be bytes: batch norms are folded into the weights, which then train themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import ConfigError, ShapeError
from ...nn import functional as F
from ...nn.autograd import no_grad
from ...nn.graph import Graph, Node, Value
from ...nn.modules.module import Module, Parameter
from ...nn.ops.update import MOVING_AVERAGE
from ...nn.tensor import Tensor, tensor
from ..hookspecs import hookimpl
from .calibrate import Calibration
from .model import QuantizedModel, quantize
from .rewrite import PRODUCTS, SHARING, Rewriter, corrected

_TINY = 1e-12


def straight_through(x: Tensor) -> Tensor:
    """x rounded to whole numbers, halves to even; the gradient passes as if it had not been."""
    return x + (F.round(x) - x).detach()


def fake_quantize(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x as 256 levels from low to high would store it, zero among them.

    low, high: 0-d; no gradient reaches them. The gradient of x is the incoming one within the range and zero outside.
    """
    low, high = F.clip(low, high=0.0), F.clip(high, low=0.0)
    scale = F.clip((high - low) * (1 / 255), low=_TINY)
    zero = F.round(-low / scale)
    inside = F.minimum(F.maximum(x * (1.0 / scale), -zero), 255.0 - zero)
    return straight_through(inside) * scale


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """A weight as int8 with a scale for each entry of the last axis would store it."""
    largest = F.max(F.abs(weight.detach()), axis=tuple(range(weight.ndim - 1)), keepdims=True)
    scale = F.clip(largest * (1 / 127), low=_TINY)
    return straight_through(weight * (1.0 / scale)) * scale


class FakeQuantized(Module):
    """What `prepare_qat` returns: a module that is trained like any other; `convert` makes 8 bits of it.

    Parameters are the folded weights and biases of all products, by their names in the model; buffers are the ranges, moved
    towards each training batch's extremes by 1 - `momentum` until `freeze_ranges`. Inputs are those of the model, of any batch
    size.
    """

    def __init__(self, quantised: QuantizedModel, momentum: float = 0.99):
        super().__init__()
        self.quantised, self.momentum, self.observing = quantised, momentum, True
        source = quantised.calibration.source
        self._graph, self._slopes = _growing(source.graph(source.shape), source.graph((2, *source.shape[1:])))
        lowered = quantised._rewriter(source.shape)
        assert isinstance(lowered, Rewriter)  # `prepare_qat` has seen to it
        lowered.run()
        self._lowered = frozenset(lowered.in_bytes)
        self._group = {v.name: lowered.root(v).name for v in (*lowered.ranges, *lowered.bytes)}
        self._stored = frozenset(v.name for v in lowered.bytes)
        self._apart = frozenset(v.name for v in lowered.narrowed)  # float32 readers see those as they are
        self._still = frozenset(self._group[v.name] for v in lowered.shortened)  # what saturates is left out of their ranges
        for value, (_, form) in lowered.bytes.items():
            group = self._group[value.name]
            self.register_buffer(f"{group}.low", tensor(np.float32(-form.zero * form.scale)))
            self.register_buffer(f"{group}.high", tensor(np.float32((255 - form.zero) * form.scale)))
        self._take_weights()

    def _take_weights(self) -> None:
        constants, known = dict(self._graph.constants), self.quantised.calibration.means
        products = [n for n in self._graph.nodes if n.op.name in PRODUCTS]
        for node in products if self.quantised.correct_bias else ():
            if len(node.inputs) > 2 and node.output.name in self._lowered:
                weight, bias = (constants[v] for v in node.inputs[1:3])
                mean = known.get(node.inputs[0].name)
                constants[node.inputs[2]] = np.asarray(corrected(weight, bias, node.attrs.get("groups", 1), mean))
        trained = {v for n in products for v in n.inputs[1:3]}
        for value, array in constants.items():
            if value in trained:
                setattr(self, value.name, Parameter(array.copy()))
            else:
                self.register_buffer(value.name, tensor(array))

    def freeze_ranges(self) -> None:
        """Keep the ranges as they are now; weights go on training."""
        self.observing = False

    def forward(self, x: Tensor) -> Any:
        """What the model returns, as one tensor or a tuple, rounded on its way as 8 bits would. Raises ShapeError."""
        given = self._graph.inputs[0]
        if x.shape[1:] != given.shape[1:]:
            raise ShapeError(f"FakeQuantized: input of shape {x.shape}; prepared for (n, *{given.shape[1:]})")
        return _Pass(self, x).run()

    def extra_repr(self) -> str:
        return f"{len(self._lowered)} nodes in 8 bits, ranges {'moving' if self.observing else 'frozen'}"


class _Pass:
    """One forward pass. known: values as float32 nodes read them; stored: as nodes that will be in bytes read them."""

    def __init__(self, module: FakeQuantized, x: Tensor):
        self.module, self.batch = module, x.shape[0]
        self.known: dict[Value, Tensor] = {v: getattr(module, v.name) for v in module._graph.constants}
        self.stored: dict[Value, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}
        self._keep(module._graph.inputs[0], x)

    def run(self) -> Any:
        for node in self.module._graph.nodes:
            self._node(node)
        outputs = tuple([self.known[v] for v in self.module._graph.outputs])
        if self.module.training and self.module.observing:
            self._move_ranges()
        return outputs[0] if len(outputs) == 1 else outputs

    def _node(self, node: Node) -> None:
        name, moves = node.output.name, node.op.view is not None or node.op.name in SHARING
        lowered = name in self.module._stored - self.module._apart if moves else name in self.module._lowered
        inputs = [self.stored.get(v, self.known[v]) if lowered else self.known[v] for v in node.inputs]
        if lowered and node.op.name in PRODUCTS:
            inputs[1] = fake_quantize_weight(inputs[1])
        slopes = self.module._slopes.get(node, {})
        attrs = {k: _grown(v, slopes[k], self.batch - 1) if k in slopes else v for k, v in node.attrs.items()}
        made = node.op(*inputs, **attrs)
        if node.op.multi:
            self.known.update(zip(node.outputs, made, strict=True))
        elif lowered and moves:
            self.known[node.output] = self.stored[node.output] = made  # rounded already
        else:
            self._keep(node.output, made)

    def _keep(self, value: Value, made: Tensor) -> None:
        self.known[value], name = made, value.name
        if name not in self.module._stored:
            return
        group = self.module._group[name]
        low, high = (getattr(self.module, f"{group}.{end}") for end in ("low", "high"))
        self.stored[value] = fake_quantize(made, low, high)
        if name not in self.module._apart:
            self.known[value] = self.stored[value]
        if group not in self.module._still:
            self.seen.setdefault(group, []).append(made.detach())

    def _move_ranges(self) -> None:
        with no_grad():
            for group, tensors in self.seen.items():
                for end, of, join in (("low", F.min, F.minimum), ("high", F.max, F.maximum)):
                    extreme = of(tensors[0])
                    for other in tensors[1:]:
                        extreme = join(extreme, of(other))
                    MOVING_AVERAGE(getattr(self.module, f"{group}.{end}"), extreme, momentum=float(self.module.momentum))


class FreezeRanges:
    """Freezes the ranges of a FakeQuantized at the end of an epoch; register it as a plugin for the fit.

    epochs: how many epochs the ranges follow the batches.
    """

    def __init__(self, model: FakeQuantized, epochs: int):
        if epochs < 1:
            raise ConfigError(f"FreezeRanges: epochs={epochs}; expected at least 1, or call model.freeze_ranges() now")
        self.model, self.epochs = model, epochs

    @hookimpl
    def epoch_end(self, trainer: Any) -> None:
        if trainer.epoch >= self.epochs:
            self.model.freeze_ranges()


def prepare_qat(model: Any, calibration: Iterable[Any] | None = None, observer: str = "minmax", momentum: float = 0.99,
                **options: Any) -> FakeQuantized:  # fmt: skip
    """A module that computes what `quantize(model, calibration)` would, and can be trained to do it better.

    model: as for `quantize`, or a QuantizedModel of mode "static", which need not be calibrated again. momentum: of the moving
    ranges, at least 0 and below 1. options: `skip`, `equalize` and `correct_bias` of `quantize`, from where training starts.
    Train it with a small learning rate for a few epochs; then `convert` it. The model itself is left as it is. Raises
    ConfigError for other modes, and for networks that compute something else for other batch sizes.
    """
    if not 0 <= momentum < 1:
        raise ConfigError(f"prepare_qat: momentum={momentum}; expected at least 0 and below 1")
    if not isinstance(model, QuantizedModel):
        model = quantize(model, calibration, observer, **options)
    elif calibration is not None or options:
        raise ConfigError("prepare_qat: the model is calibrated already; give a float32 model with calibration and options")
    if model.mode != "static":
        raise ConfigError(f"prepare_qat: mode={model.mode!r}; only static quantisation has ranges to train with")
    return FakeQuantized(model, momentum)


def convert(trained: FakeQuantized) -> QuantizedModel:
    """The network in 8 bits, with the weights and ranges that training has left. Raises ConfigError for anything else."""
    if not isinstance(trained, FakeQuantized):
        raise ConfigError(f"convert: a {type(trained).__name__} given; expected what prepare_qat returned")
    before: Calibration = trained.quantised.calibration
    source = before.source.copy()
    source.constants.update({name: p.numpy().copy() for name, p in trained.named_parameters()})
    broken = [name for name, a in source.constants.items() if not np.isfinite(a).all()]
    if broken:
        raise ConfigError(f"convert: {', '.join(broken)} hold NaN or infinity; the training has diverged, lower its rate")
    ranges = dict(before.ranges)
    for name, group in trained._group.items():
        if f"{group}.low" in trained._buffers:
            low, high = (float(trained._buffers[f"{group}.{end}"].numpy()) for end in ("low", "high"))
            ranges[name] = low, high
    known = replace(before, source=source, ranges=ranges, means={}, trained=True)
    return QuantizedModel(known, "static", trained.quantised.skip)


def _growing(one: Graph, two: Graph) -> tuple[Graph, dict[Node, dict[str, Any]]]:
    """The graph for one example, and by how much each attribute grows with every further one."""
    if any(a.shape != b.shape for a, b in zip(one.constants.values(), two.constants.values(), strict=True)):
        raise ConfigError("prepare_qat: the network holds constants that depend on the batch's size; it cannot be trained here")
    slopes = {}
    for a, b in zip(one.nodes, two.nodes, strict=True):
        slopes[a] = {key: (value, b.attrs[key]) for key, value in a.attrs.items() if value != b.attrs[key]}
    return one, {node: found for node, found in slopes.items() if found}


def _grown(value: Any, pair: tuple[Any, Any], more: int) -> Any:
    """An attribute for `more` examples than one, from those for one and two."""
    one, two = pair
    if isinstance(one, tuple) and isinstance(two, tuple) and len(one) == len(two):
        return tuple(_grown(a, (a, b), more) for a, b in zip(one, two, strict=True))
    if one == two:
        return one
    if isinstance(one, int) and isinstance(two, int):
        return one + more * (two - one)
    raise ConfigError(f"prepare_qat: an attribute is {one!r} for one example and {two!r} for two; it cannot be continued")
