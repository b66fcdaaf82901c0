"""Layers with other numbers of channels than they were made with: pruned networks, and their files."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import ShapeError
from ..tensor import Tensor
from .layers import BatchNorm, Conv2d, DepthwiseConv2d, SeparableConv2d
from .module import Module, Parameter


def resize(model: Module, arrays: Mapping[str, np.ndarray]) -> Module:
    """Give parameters and buffers, by path, new arrays of any shape with as many dimensions; the rest stays. In place.

    What layers derive from shapes follows: the groups of a depthwise convolution, the constants of a batch norm without scale
    or shift. The old tensors are left to whoever holds them, so an optimiser has to be made anew. `model.resized` is set.
    Raises ShapeError, before anything changes, for names that the model does not have and for arrays with another number of
    dimensions.
    """
    own = dict([*model.named_parameters(), *model.named_buffers()])
    wrong = [n for n, a in arrays.items() if n not in own or np.ndim(a) != own[n].ndim]
    if wrong:
        raise ShapeError(
            f"resize: {', '.join(f'{n} {np.shape(arrays[n])}' for n in wrong)} of {type(model).__name__}: expected its own "
            "parameters and buffers, each with as many dimensions as it has"
        )
    fresh = {id(own[name]): (own[name], np.array(array, own[name].dtype)) for name, array in arrays.items()}
    made: dict[int, Tensor] = {}
    for module in list(model.modules()):
        before = {name: value.shape for name, value in module._parameters.items()}
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if id(value) in fresh:
                if id(value) not in made:
                    made[id(value)] = _like(*fresh[id(value)])
                _put(module, name, made[id(value)])
        _derive(module, before)
    model.resized = True  # a file has to say its shapes
    return model


def _like(old: Tensor, array: np.ndarray) -> Tensor:
    if not isinstance(old, Parameter):
        return Tensor(array).to(old.device)
    new = Parameter(array)
    new.data = Tensor(array).to(old.device).data
    new.requires_grad = old.requires_grad
    return new


def _put(module: Module, name: str, value: Tensor) -> None:
    """In the place of the old one: the order of a module's tensors is that of its files."""
    table: dict = module._parameters if name in module._parameters else module._buffers
    order = list(table)
    (setattr if table is module._parameters else module.__class__.register_buffer)(module, name, value)
    for other in order[order.index(name) + 1 :]:
        table[other] = table.pop(other)


def _derive(module: Module, before: Mapping[str, tuple[int, ...]]) -> None:
    if isinstance(module, Conv2d) and module.groups > 1 and module.weight.shape[2] == 1:
        multiplier = module.multiplier if isinstance(module, DepthwiseConv2d) else before["weight"][3] // module.groups
        module.groups = module.weight.shape[3] // multiplier
    elif isinstance(module, SeparableConv2d):
        multiplier = before["depthwise_weight"][3] // module.channels
        module.channels = module.depthwise_weight.shape[3] // multiplier
    elif isinstance(module, BatchNorm) and module._constants[0].shape != module.moving_mean.shape:
        shape, device = module.moving_mean.shape, module.moving_mean.device
        module._constants = (Tensor(np.ones(shape, np.float32)).to(device), Tensor(np.zeros(shape, np.float32)).to(device))


__all__ = ["resize"]
