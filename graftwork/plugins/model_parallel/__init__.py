"""Model parallelism: one network over several ranks, layers split (tensor) or dealt out in stages (pipeline).

`Mesh(data=2, tensor=2, pipeline=1)` says which rank does what; `split_tensor` and `split_pipeline` do it.
"""

from __future__ import annotations

from ..hookspecs import hookimpl

__all__ = [
    "ColumnConv2d", "ColumnLinear", "Mesh", "Pipeline", "Report", "RowConv2d", "RowLinear", "full_state", "register_kernels",
    "register_ops", "split_cross_entropy", "split_pipeline", "split_tensor", "sum_gradients",
]  # fmt: skip

_HOME = {
    "ColumnConv2d": "layers", "ColumnLinear": "layers", "RowConv2d": "layers", "RowLinear": "layers",
    "split_cross_entropy": "layers", "split_tensor": "split", "full_state": "split", "Mesh": "mesh", "sum_gradients": "mesh",
    "Pipeline": "pipeline", "Report": "pipeline", "split_pipeline": "stages",
}  # fmt: skip


def __getattr__(name: str):
    """The plugin's parts load when first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


@hookimpl
def register_ops(register) -> None:
    """Add the ops that communicate."""
    from . import ops

    for op in ops.ALL:
        register(op)


@hookimpl
def register_kernels(register) -> None:
    """Add their kernels: MPI, and for one rank what the tests compare with."""
    from . import ops

    for name, kernel in ops.KERNELS.items():
        register(name, "cpu", "mpi", kernel, dtypes=("float32", "float64"))
        register(name, "cpu", "reference", kernel, dtypes=("float32", "float64"))
