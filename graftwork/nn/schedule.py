"""Learning-rate schedules: functions of the step number that set the optimiser's rate."""

from __future__ import annotations

import math

from ..errors import ConfigError
from .autograd import mark_written, mode
from .optim import Optimizer


class Schedule:
    """Base: `factor(step)` times the optimiser's initial rates. Call `step()` once before each optimiser step."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.base = [group["lr"].item() for group in optimizer.groups]
        self.count = 0
        self._apply()

    def factor(self, step: int) -> float:
        raise NotImplementedError(f"{type(self).__name__} has no factor(step); define it")

    def _apply(self) -> None:
        if mode.trace is not None:
            mode.trace.refuse("a schedule steps inside a captured function; call schedule.step() outside, between its calls")
        for base, group in zip(self.base, self.optimizer.groups, strict=True):
            group["lr"].data[...] = base * self.factor(self.count)
            mark_written(group["lr"])

    def step(self) -> None:
        """Go on to the next step's rate."""
        self.count += 1
        self._apply()

    def state_dict(self) -> dict:
        return {"count": self.count, "base": list(self.base)}

    def load_state_dict(self, state: dict) -> None:
        self.count, self.base = int(state["count"]), [float(b) for b in state["base"]]
        self._apply()


class ConstantLR(Schedule):
    """The initial rate throughout."""

    def factor(self, step: int) -> float:
        return 1.0


class StepLR(Schedule):
    """Multiplied by `gamma` at each of `milestones` (step numbers)."""

    def __init__(self, optimizer: Optimizer, milestones, gamma: float = 0.1):
        self.milestones, self.gamma = sorted(int(m) for m in milestones), gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        return self.gamma ** sum(step >= m for m in self.milestones)


class CosineLR(Schedule):
    """From the initial rate to `final` times it along half a cosine, after a linear warm-up (Loshchilov, Hutter 2016)."""

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, final: float = 0.0):
        if not 0 <= warmup_steps < max(total_steps, 1):
            raise ConfigError(f"CosineLR: warmup_steps={warmup_steps} of total_steps={total_steps}; expected fewer")
        self.total, self.warmup, self.final = total_steps, warmup_steps, final
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class OneCycleLR(Schedule):
    """Up from initial / `start_divisor` for the share `rise` of the steps, then down to almost nothing (Smith 2018).

    The optimiser's initial rate is the highest one. Both parts are half cosines, as in PyTorch.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, rise: float = 0.3, start_divisor: float = 25.0,
                 final_divisor: float = 1e4):  # fmt: skip
        if not 0.0 < rise < 1.0:
            raise ConfigError(f"OneCycleLR: rise={rise}, expected between 0 and 1")
        self.total, self.rise = total_steps, rise
        self.low, self.end = 1.0 / start_divisor, 1.0 / (start_divisor * final_divisor)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        peak = max(self.rise * self.total - 1, 1e-9)
        step = min(step, self.total - 1)
        if step <= peak:
            return _cosine(self.low, 1.0, step / peak)
        return _cosine(1.0, self.end, (step - peak) / max(self.total - 1 - peak, 1e-9))


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * share))
