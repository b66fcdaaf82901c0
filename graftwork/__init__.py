"""Graftwork: a deep-learning framework small enough to read in an afternoon, with its own kernels.

    import graftwork as gw
    from graftwork import nn, zoo

    model = zoo.create("glyphnet", weights="glyphs")
"""

from __future__ import annotations

import importlib

from . import cuda, errors, kernels, nn
from .nn.autograd import grad, no_grad
from .nn.compile import compile
from .nn.graph_file import load_graph
from .nn.rng import manual_seed
from .nn.tensor import Tensor, tensor

__version__ = "0.1.0"
__all__ = [
    "Tensor", "compile", "cuda", "errors", "grad", "kernels", "load_graph", "manual_seed", "nn", "no_grad", "num_threads",
    "plugins", "set_num_threads", "tensor", "zoo",
]  # fmt: skip


def __getattr__(name: str):
    """zoo and plugins load when first asked for, so that `import graftwork` stays quick."""
    if name in ("set_num_threads", "num_threads"):
        return getattr(importlib.import_module(f"{__name__}.kernels.cpu.runtime"), name)
    if name in ("zoo", "plugins"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
