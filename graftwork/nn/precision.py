"""Dynamic loss scaling, which float16 gradients need: small ones would vanish below 6e-8 (Micikevicius et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from . import functional as F
from .modules.module import assign
from .tensor import Tensor, tensor

LEAST, MOST = 2.0**-24, 2.0**24  # of the factor


class LossScale:
    """A factor on the loss that halves after a step with an overflow and doubles after `interval` steps without one.

    value: the factor, a float32 tensor that a compiled step reads anew at each call. Gradients of the scaled loss are divided
    by it again (`unscale`) before the optimiser sees them; a step whose gradients are not all finite is to be left out.
    """

    def __init__(self, initial: float = 2.0**16, interval: int = 2000, device: str = "cpu"):
        if not (initial > 0 and math.isfinite(initial)) or interval < 1:
            raise ConfigError(f"LossScale: initial={initial}, interval={interval}; expected a positive number and at least 1")
        self.value = tensor(np.asarray(initial, np.float32), device=device)
        self.interval, self.good = interval, 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward() on."""
        return loss * self.value

    def unscale(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The gradients of the loss itself, and a scalar that is finite if all of them are."""
        factor = 1.0 / self.value
        unscaled = [g * factor for g in gradients]
        check = [F.sum(g) for g in unscaled]
        return unscaled, F.sum(F.stack(check)) if check else self.value

    def update(self, finite: bool) -> None:
        """Take note of how a step went."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            assign(self.value, max(self.value.item() / 2, LEAST))
        elif self.good == self.interval:
            self.good = 0
            assign(self.value, min(self.value.item() * 2, MOST))

    def state_dict(self) -> dict[str, float]:
        return {"value": float(self.value.item()), "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        assign(self.value, state["value"])
        self.good = int(state["good"])


__all__ = ["LossScale"]
