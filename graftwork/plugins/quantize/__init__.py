"""Quantisation to 8 bits: after training or during it, and what it costs, layer by layer."""

from __future__ import annotations

from ..hookspecs import hookimpl

__all__ = [
    "Calibration", "FakeQuantized", "FreezeRanges", "LayerHarm", "MixedPrecision", "QuantizedModel", "calibrate", "convert",
    "mixed_precision", "prepare_qat", "quantize", "register_commands", "sensitivity",
]  # fmt: skip

_HOME = {
    "QuantizedModel": "model", "quantize": "model", "Calibration": "calibrate", "calibrate": "calibrate",
    "sensitivity": "search", "mixed_precision": "search", "LayerHarm": "search", "MixedPrecision": "search",
    "FakeQuantized": "qat", "FreezeRanges": "qat", "prepare_qat": "qat", "convert": "qat",
}  # fmt: skip


def __getattr__(name: str):
    """The plugin's parts load when first used: registering its command costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


@hookimpl
def register_commands(cli) -> None:
    """Add `graftwork quantize`."""
    from .commands import quantize

    cli.add_command(quantize)
