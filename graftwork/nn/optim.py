"""Optimisers. State lives in tensors that the update ops write in place; the learning rate is a tensor too, so that a
recorded step follows its changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError
from .autograd import mark_written, mode, no_grad
from .modules.module import assign
from .ops.update import ADAM_UPDATE, INCREMENT, SGD_UPDATE
from .tensor import Tensor, tensor

Entry = tuple[Tensor, Tensor, dict[str, Tensor]]  # a parameter, its gradient, its state


class Optimizer:
    """Base: parameter groups, each with its own options; the first group's learning rate is `lr`.

    parameters: Parameters, or dicts {"parameters": [...], "lr": ..., "weight_decay": ...} for groups with options of
    their own. Parameters without a gradient are left alone by `step()`.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable, lr: float, weight_decay: float = 0.0):
        entries = list(parameters)
        if not entries:
            raise ConfigError(f"{type(self).__name__}: no parameters given; is the model frozen, or empty?")
        if not isinstance(entries[0], dict):
            entries = [{"parameters": entries}]
        self.groups = [self._group(entry, lr, weight_decay) for entry in entries]
        self.state: list[dict[str, Tensor]] = [self._new_state(p) for g in self.groups for p in g["parameters"]]
        self.steps = tensor(np.zeros((), np.float64), device=self.groups[0]["lr"].device)

    def _group(self, entry: dict, lr: float, weight_decay: float) -> dict:
        unknown = set(entry) - {"parameters", "lr", "weight_decay"}
        if unknown:
            raise ConfigError(f"{type(self).__name__}: unknown group options {sorted(unknown)}; expected parameters, lr, "
                              "weight_decay")  # fmt: skip
        rate, decay = entry.get("lr", lr), entry.get("weight_decay", weight_decay)
        for name, value in (("lr", rate), ("weight_decay", decay)):
            if not value >= 0:
                raise ConfigError(f"{type(self).__name__}: {name}={value}, expected at least 0")
        parameters = list(entry["parameters"])
        dtype = parameters[0].dtype if parameters else np.float32
        device = parameters[0].device if parameters else "cpu"
        return {"parameters": parameters, "lr": tensor(np.asarray(rate, dtype), device=device), "weight_decay": float(decay)}

    def _new_state(self, p: Tensor) -> dict[str, Tensor]:
        return {name: tensor(np.zeros(p.shape, p.dtype), device=p.device) for name in self.state_names}

    @property
    def lr(self) -> float:
        return self.groups[0]["lr"].item()

    @lr.setter
    def lr(self, value: float) -> None:
        """Set the first group's rate; the others keep their ratio to it."""
        if mode.trace is not None:
            mode.trace.refuse("the learning rate is set inside a captured function; set it outside, between its calls")
        first = self.lr
        for group in self.groups:
            group["lr"].data[...] = value * (group["lr"].item() / first if first else 1.0)
            mark_written(group["lr"])

    def zero_grad(self) -> None:
        for group in self.groups:
            for p in group["parameters"]:
                if p.requires_grad:
                    p.grad = None

    def step(self) -> None:
        """Apply one update from the collected gradients."""
        states = iter(self.state)
        with no_grad():
            INCREMENT(self.steps)
            for group in self.groups:
                entries = [(p, next(states)) for p in group["parameters"]]
                self._update_all([(p, p.grad, state) for p, state in entries if p.grad is not None], group)

    def _update_all(self, entries: list[Entry], group: dict) -> None:
        """Update (parameter, gradient, state) of one group; here one at a time."""
        for entry in entries:
            self._update(*entry, group)

    def _update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no update rule; define _update()")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything needed to go on exactly from here, as flat arrays."""
        result = {"steps": self.steps.numpy().copy()}
        for i, group in enumerate(self.groups):
            result[f"lr.{i}"] = group["lr"].numpy().copy()
        for i, state in enumerate(self.state):
            for name, value in state.items():
                result[f"{name}.{i}"] = value.numpy().copy()
        return result

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state_dict` returned, for the same parameters in the same order."""
        own = self.state_dict()
        if set(own) != set(state) or any(np.shape(state[k]) != own[k].shape for k in own):
            raise CheckpointError(
                f"the optimiser's state does not fit: {len(own)} entries here, {len(state)} given, or other shapes; "
                "use the same optimiser, with the same parameters in the same order"
            )
        assign(self.steps, state["steps"])
        for i, group in enumerate(self.groups):
            assign(group["lr"], state[f"lr.{i}"])
        for i, tensors in enumerate(self.state):
            for name, value in tensors.items():
                assign(value, state[f"{name}.{i}"])


def _together(entries: list[Entry]) -> list[list[Entry]]:
    """What one call of an update op takes: on a GPU, where a launch costs more than a small update, all tensors of a dtype."""
    calls: dict[Any, list[Entry]] = {}
    for i, (p, grad, state) in enumerate(entries):
        calls.setdefault(i if p.device == "cpu" else (p.device, p.dtype), []).append((p, grad, state))
    return list(calls.values())


class SGD(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum; weight decay is added to the gradient (PyTorch's rule)."""

    state_names = ("momentum",)

    def __init__(self, parameters, lr: float = 0.01, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0):  # fmt: skip
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"SGD: momentum={momentum}, expected at least 0 and below 1")
        self.momentum, self.nesterov = float(momentum), bool(nesterov)
        super().__init__(parameters, lr, weight_decay)

    def _update_all(self, entries, group):
        for call in _together(entries):
            arrays = [t for p, grad, state in call for t in (p, grad, state["momentum"])]
            SGD_UPDATE(*arrays, group["lr"], momentum=self.momentum, nesterov=self.nesterov,
                       weight_decay=group["weight_decay"], dampening=0.0)  # fmt: skip


class Adam(Optimizer):
    """Adam (Kingma and Ba 2014); weight decay is added to the gradient."""

    state_names = ("mean", "square")
    decoupled = False

    def __init__(self, parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
                 weight_decay: float = 0.0):  # fmt: skip
        if not all(0.0 <= b < 1.0 for b in betas):
            raise ConfigError(f"{type(self).__name__}: betas={betas}, expected two numbers at least 0 and below 1")
        self.betas, self.epsilon = betas, float(epsilon)
        super().__init__(parameters, lr, weight_decay)

    def _new_state(self, p):
        return {**super()._new_state(p), "step": tensor(np.zeros((), p.dtype), device=p.device)}

    def _update_all(self, entries, group):
        for call in _together(entries):
            INCREMENT(*(state["step"] for _, _, state in call))  # its own count each: a parameter may join later
            arrays = [t for p, grad, s in call for t in (p, grad, s["mean"], s["square"], s["step"])]
            ADAM_UPDATE(*arrays, group["lr"], beta1=self.betas[0], beta2=self.betas[1], epsilon=self.epsilon,
                        weight_decay=group["weight_decay"], decoupled=self.decoupled)  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""

    decoupled = True

    def __init__(self, parameters, lr: float = 1e-3, betas=(0.9, 0.999), epsilon: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(parameters, lr, betas, epsilon, weight_decay)
