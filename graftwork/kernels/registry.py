"""The table of kernels: which op has which kernels on which device.

A kernel is a function over raw arrays, `fn(*arrays, out=..., **attrs)`, that knows nothing of tensors or graphs. Entries
name their function as "module:function" and are imported at first use, so that listing what exists costs nothing.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import ConfigError, KernelUnavailable

BACKENDS = ("cpu", "reference", "cuda", "numba_cuda")  # packages under kernels/ that hold a KERNELS catalogue
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Entry:
    """One kernel: the op it computes, the device it runs on, its variant, and where its function is."""

    op: str
    device: str
    variant: str
    target: str | Callable
    dtypes: tuple[str, ...] | None = None  # None: whatever dtype the function itself accepts

    def function(self) -> Callable:
        """The kernel itself, imported at the first call."""
        return _import(self.target)

    def accepts(self, dtype) -> bool:
        return self.dtypes is None or dtype is None or str(dtype) in self.dtypes


_entries: dict[tuple[str, str], dict[str, Entry]] = {}
_planners: dict[tuple[str, str], str | Callable] = {}


def _import(target: str | Callable) -> Callable:
    """The function that `target` is, or names as "module:function"."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_catalogues() -> None:
    with _lock:
        if _entries:
            return
        for backend in BACKENDS:
            package = importlib.import_module(f"graftwork.kernels.{backend}")
            device = getattr(package, "DEVICE", "cpu")
            for op, variants in package.KERNELS.items():
                for variant, target in variants.items():
                    module = target.partition(":")[0]
                    table = getattr(package, "DTYPES", {})
                    dtypes = table.get(target, table.get(module))
                    entry = Entry(op, device, variant, f"graftwork.kernels.{backend}.{target}", dtypes)
                    _entries.setdefault((op, device), {})[variant] = entry
            for op, target in getattr(package, "PLANNERS", {}).items():
                _planners[op, device] = f"graftwork.kernels.{backend}.{target}"


def register(op: str, device: str, variant: str, target: str | Callable, dtypes: Iterable[str] | None = None) -> Entry:
    """Add a kernel for `op` on `device` ("cpu" or "cuda").

    `target` is the function or "package.module:function". Raises ConfigError if that variant exists already.
    """
    _load_catalogues()
    with _lock:
        variants = _entries.setdefault((op, device), {})
        if variant in variants:
            raise ConfigError(
                f"kernel {op!r} on {device!r} already has a variant {variant!r} ({variants[variant].target}); "
                "register yours under another variant name"
            )
        variants[variant] = Entry(op, device, variant, target, tuple(dtypes) if dtypes else None)
        return variants[variant]


def unregister(op: str, device: str, variant: str) -> None:
    """Take a kernel out again (plugins that are unloaded, tests)."""
    with _lock:
        _entries.get((op, device), {}).pop(variant, None)


def list_kernels(op: str | None = None, device: str | None = None) -> list[Entry]:
    """All entries, or those of one op and/or one device, in order of preference."""
    _load_catalogues()
    found = [e for variants in list(_entries.values()) for e in variants.values()]
    return [e for e in found if op in (None, e.op) and device in (None, e.device)]


def get(op: str, device: str = "cpu", variant: str | None = None, dtype=None) -> Callable:
    """The kernel function `fn(*arrays, out=..., **attrs)` for an op.

    Without `variant`, the preferred one that takes `dtype`; the NumPy reference is an oracle and only comes when asked
    for by name. Raises KernelUnavailable, naming what is registered.
    """
    _load_catalogues()
    variants = _entries.get((op, device.partition(":")[0]), {})
    if variant is not None and variant in variants:
        return variants[variant].function()
    if variant is None:
        for entry in variants.values():
            if entry.variant != "reference" and entry.accepts(dtype):
                return entry.function()
    wanted = f"variant {variant!r}" if variant else f"dtype {dtype}" if dtype is not None else "any dtype"
    others = ", ".join(f"{e.device}/{e.variant}({', '.join(e.dtypes or ('any dtype',))})" for e in list_kernels(op))
    raise KernelUnavailable(
        f"no kernel for op {op!r} on device {device!r} with {wanted}; registered: {others or 'none at all'}. "
        "Convert with x.astype(...) or x.to(...), or register a kernel (CONTRIBUTING.md)"
    )


def planner(op: str, device: str) -> Callable | None:
    """The function `plan(*specs, out, **attrs) -> Plan | None` of an op on a device (`kernels.plan`), if there is one."""
    _load_catalogues()
    target = _planners.get((op, device.partition(":")[0]))
    return None if target is None else _import(target)
