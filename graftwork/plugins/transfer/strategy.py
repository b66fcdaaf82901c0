"""Which layers of a trunk are trained, when, and at which rate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import ConfigError
from ...nn import Module
from ...nn.modules.module import Parameter

STRATEGIES = ("head", "few", "all", "gradual")


@dataclass(frozen=True)
class Layer:
    """A layer with weights, and the normalisations that follow it."""

    name: str
    modules: tuple[Module, ...]

    def parameters(self) -> list[Parameter]:
        return [p for m in self.modules for p in m._parameters.values()]


def layers_of(trunk: Module) -> list[Layer]:
    """The trunk's layers from the input on, in the model's own order; a module of vectors only (batch norm) joins the one
    before it."""
    found: list[tuple[str, list[Module]]] = []
    for path, module in trunk.named_modules():
        own = list(module._parameters.values())
        if not own:
            continue
        if found and all(p.ndim < 2 for p in own):
            found[-1][1].append(module)
        else:
            found.append((path, [module]))
    return [Layer(name, tuple(modules)) for name, modules in found]


def stages(strategy: str | int, layers: int, epochs: int) -> list[tuple[int, int]]:
    """What is trained when: (layers counted from the top, beside the new head; the epoch up to which), in order.

    "head": none. "few": the last quarter, at least one. A number: so many. "all". "gradual": more with every epoch, from the
    top, until all are trained at half of the epochs (Howard and Ruder 2018). Raises ConfigError for anything else.
    """
    fixed = {"head": 0, "few": max(1, layers // 4) if layers else 0, "all": layers}
    if isinstance(strategy, str) and strategy in fixed:
        return [(fixed[strategy], epochs)]
    if strategy == "gradual":
        steps = max(1, epochs // 2)
        opened = [(round(layers * i / steps), i + 1) for i in range(steps)]
        return [*opened[: epochs - 1], (layers, epochs)]
    if isinstance(strategy, int) and not isinstance(strategy, bool) and 0 <= strategy <= layers:
        return [(strategy, epochs)]
    raise ConfigError(
        f"strategy={strategy!r}; expected one of {', '.join(STRATEGIES)}, or a number of layers from 0 to {layers}"
    )


def train_last(trunk: Module, count: int, freeze_statistics: bool) -> None:
    """Let the last `count` layers train and no others. Frozen layers, and with `freeze_statistics` all of them, keep the
    running statistics of their batch norm and use those."""
    layers = layers_of(trunk)
    for i, layer in enumerate(layers):
        trained = i >= len(layers) - count
        for module in layer.modules:
            module._frozen = not trained or (freeze_statistics and hasattr(module, "moving_mean"))
            module.training = module.training and not module._frozen
            for p in module._parameters.values():
                p.requires_grad = trained


def rates(trunk: Module, most: int, rate: float, decay: float) -> list[dict]:
    """Optimiser groups for the last `most` layers: the top one has `rate`, every layer below it `decay` times the one above."""
    layers = layers_of(trunk)
    chosen = layers[len(layers) - most :]
    if decay == 1 and chosen:
        return [{"parameters": [p for layer in chosen for p in layer.parameters()], "lr": rate}]
    below = range(len(chosen) - 1, -1, -1)
    return [{"parameters": g.parameters(), "lr": rate * decay**n} for g, n in zip(chosen, below, strict=True)]


@contextlib.contextmanager
def as_before(trunk: Module) -> Iterator[None]:
    """Which parameters are trained and which modules are frozen is, after the block, as it was before it."""
    needed = [(p, p.requires_grad) for p in trunk.parameters()]
    frozen = [(m, getattr(m, "_frozen", False)) for m in trunk.modules()]
    try:
        yield
    finally:
        for p, flag in needed:
            p.requires_grad = flag
        for module, flag in frozen:
            module._frozen = flag
