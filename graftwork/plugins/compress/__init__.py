"""Compression: a network or classifier that takes less room and time, and what that costs in accuracy.

    graftwork compress clothes.h5 --data photos --budget 0.5pt -o small.h5

Pruning (`plugins.prune`), clustering, packed files (`nn/packing.py`) and quantisation (`plugins.quantize`) in one go.
"""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl

_HOME = {
    "cluster": "rounding", "kmeans": "rounding", "round_to_bytes": "rounding", "compress": "pipeline",
    "Compression": "pipeline", "Data": "pipeline", "Step": "pipeline", "LADDER": "pipeline", "Subject": "subject",
    "load_subject": "subject",
}  # fmt: skip
__all__ = [
    "LADDER", "Compression", "Data", "Step", "Subject", "cluster", "compress", "kmeans", "load_subject", "register_commands",
    "round_to_bytes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The plugin's parts load when first used: registering its command costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


@hookimpl
def register_commands(cli) -> None:
    """Add `graftwork compress`."""
    from .commands import compress

    cli.add_command(compress)
