"""ONNX: networks as files that other runtimes read, and networks from such files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ...errors import MissingDependency
from ..hookspecs import hookimpl

__all__ = ["export", "load", "register_commands"]


def export(*args: Any, **options: Any) -> Any:
    """Write a model as ONNX: see `exporter.export`, which loads with the first call."""
    from .exporter import export as write

    return write(*args, **options)


def load(source: Any) -> Any:
    """Read an ONNX file (or its bytes) as a model: see `importer.load`."""
    from .importer import load as read

    return read(source)


def require_onnx() -> None:
    """MissingDependency, in a sentence, where onnx is not installed. Ask before long work, not after it."""
    if find_spec("onnx") is None:
        raise MissingDependency("this needs onnx, which is not installed: pip install 'graftwork[onnx]'")


@hookimpl
def register_commands(cli) -> None:
    """Add `graftwork export`."""
    from .commands import export

    cli.add_command(export)
