"""What the planners share: into how many parts a task is cut, and eager calls that go through a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..plan import Plan, Spec
from . import runtime

SERIAL_BELOW = 1 << 13  # element operations that one thread finishes before sharing them out would pay
_A_THREAD = 4  # parts for each thread, so that a late thread delays the end by a quarter of its share only
FLOAT32 = np.dtype(np.float32)


def parts_for(pieces: int, work: int, a_thread: int = _A_THREAD) -> int:
    """How many parts for `pieces` indivisible pieces that are `work` element operations in all."""
    threads = runtime.num_threads()
    if threads == 1 or work < SERIAL_BELOW:
        return 1
    return max(1, min(pieces, a_thread * threads, work // (SERIAL_BELOW // 2)))


def all_float32(*specs: Spec) -> bool:
    return all(s.dtype == FLOAT32 for s in specs)


@lru_cache(4096)
def _planned(planner: Callable, inputs: tuple, outputs: tuple, attrs: tuple, threads: int) -> Plan | None:
    """A plan, remembered: eager calls repeat. `threads` is part of the key because planners look at it."""
    outs = [Spec(*o) for o in outputs]
    return planner(*(Spec(*i) for i in inputs), out=outs[0] if len(outs) == 1 else outs, **dict(attrs))


def carry_out(planner: Callable, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], **attrs: Any) -> bool:
    """Run an op at once through its planner; False, with nothing done, where there is no plan for these arrays."""
    shapes = tuple([(a.shape, a.dtype) for a in inputs]), tuple([(o.shape, o.dtype) for o in outputs])
    plan = _planned(planner, *shapes, tuple(attrs.items()), runtime.num_threads())
    if plan is None:
        return False
    plain = [o if o.flags.c_contiguous else np.empty(o.shape, o.dtype) for o in outputs]
    runtime.call(plan, inputs, plain)
    for o, p in zip(outputs, plain, strict=True):
        if o is not p:
            np.copyto(o, p)
    return True
