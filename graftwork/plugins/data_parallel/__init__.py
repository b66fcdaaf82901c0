"""Data-parallel training over MPI or NCCL: one script, several processes, the result of one.

`graftwork launch -n 4 script.py` starts the processes; a `Trainer` in them works together without further words.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..hookspecs import hookimpl

__all__ = [
    "DataParallel", "ScaledLR", "ShardedLoader", "SyncBatchNorm", "configure", "epoch_end", "fit_end", "fit_start",
    "prepare_model", "reduce_gradients", "register_commands", "start", "step_end", "synchronise_batch_norm",
]  # fmt: skip

_HOME = {
    "DataParallel": "training", "ScaledLR": "data", "ShardedLoader": "data", "SyncBatchNorm": "norm", "configure": "group",
    "start": "group", "synchronise_batch_norm": "norm",
}  # fmt: skip

_attached: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # trainers that are fitting, and what ties them


def __getattr__(name: str):
    """The plugin's parts load when first used: being installed costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


@hookimpl
def register_commands(cli) -> None:
    """Add `graftwork launch`."""
    from .launch import launch

    cli.add_command(launch)


@hookimpl(trylast=True)
def prepare_model(model, trainer) -> None:
    """Convert batch norm before the step is compiled, where there is more than one rank."""
    if _several():
        from .group import start
        from .norm import synchronise_batch_norm

        if start().settings.sync_batch_norm:
            synchronise_batch_norm(model)


@hookimpl(tryfirst=True)
def fit_start(trainer) -> None:
    """Tie the trainer to those of the other ranks."""
    if _several():
        from .training import attach

        _attached[trainer] = attach(trainer).__enter__()


@hookimpl
def reduce_gradients(parameters, trainer) -> bool | None:
    """Wait for the sums of all ranks' gradients."""
    parallel = _attached.get(trainer)
    if parallel is None:
        return None
    parallel.reduce()
    return True


@hookimpl
def step_end(trainer) -> None:
    """Note the step, for the other ranks and the timeline."""
    if trainer in _attached:
        _attached[trainer].step_end()


@hookimpl
def epoch_end(trainer, record) -> None:
    """Compare the ranks' models bit by bit, average their metrics, and keep what compression owes for the checkpoint."""
    if trainer in _attached:
        _attached[trainer].verify()
        _attached[trainer].average(record)
        _attached[trainer].keep(trainer)


@hookimpl
def fit_end(trainer) -> None:
    """Let go of the trainer."""
    import sys

    parallel = _attached.pop(trainer, None)
    if parallel is not None:
        parallel.__exit__()
        if sys.exc_info()[0] is None:  # after an error the other ranks may be gone
            parallel.write_timeline()


def _several() -> bool:
    """Whether there are other ranks. Asked without loading anything of MPI where nothing was launched."""
    from .group import launched, start

    return launched() and start().size > 1
