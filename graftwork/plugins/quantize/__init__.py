"""Post-training quantisation: networks that compute in 8 bits."""

from __future__ import annotations

__all__ = ["QuantizedModel", "quantize"]


def __getattr__(name: str):
    """The plugin's parts load when first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import model

    return getattr(model, name)
