"""Plugins: ops, kernels, models, layers, passes and commands that come from other packages, and from ours.

Nothing is loaded when this package is imported. ``load()`` runs at first need: an unknown name, the command line, a Trainer.
The manager fills tables and knows no op, kernel or model; the functions here hand each entry to where it is used.
"""

from __future__ import annotations

from typing import Any

from graftwork.plugins import manager as _manager
from graftwork.plugins.hookspecs import hookimpl
from graftwork.plugins.manager import Entry, PluginConflict, PluginInfo, PluginWarning

__all__ = [
    "PluginConflict", "PluginInfo", "PluginWarning", "add_commands", "hookimpl", "list_plugins", "load", "register",
    "registered", "table", "unregister",
]  # fmt: skip


def load(strict: bool | None = None) -> None:
    """Load the installed plugins, once: see ``PluginManager.load``."""
    _manager.manager().load(strict)


def list_plugins() -> list[PluginInfo]:
    """Every plugin that was found, loaded or not, with its hooks and what went wrong. Loads them if that has not happened."""
    return _manager.manager().list_plugins()


def register(plugin: Any, name: str) -> PluginInfo:
    """Register a module or an object as plugin ``name``, without an installation."""
    return _manager.manager().register(plugin, name)


def unregister(name: str) -> Any:
    """Remove a plugin and all that it registered; returns the plugin."""
    return _manager.manager().unregister(name)


def registered(plugin: Any, name: str) -> Any:
    """Have ``plugin`` registered within a ``with`` block only."""
    return _manager.manager().registered(plugin, name)


def table(kind: str) -> dict[str, Any]:
    """What plugins registered of one kind ("op", "kernel", "module", "model" or "pass"), by name."""
    return {name: entry.value for name, entry in _manager.manager().tables[kind].entries.items()}


def add_commands(cli: Any) -> None:
    """Load plugins and add their commands to the click group ``cli``."""
    import click

    load()
    _manager.manager().add_commands(cli, click.Group)


def _use_op(entry: Entry) -> Any:
    from graftwork.nn import op, ops  # noqa: F401 - ours are declared first, so that a clash is seen

    op.register(entry.value)
    return lambda: op.unregister(entry.name)


def _use_kernel(entry: Entry) -> Any:
    from graftwork.kernels import registry

    key = entry.info["op"], entry.info["device"], entry.info["variant"]
    registry.register(*key, entry.value, dtypes=entry.info["dtypes"])
    return lambda: registry.unregister(*key)


def _use_module(entry: Entry) -> Any:
    from graftwork.zoo.keras import table

    table.register_keras_layer(entry.name, entry.value)
    return lambda: table.unregister_keras_layer(entry.name)


def _use_model(entry: Entry) -> Any:
    from graftwork.zoo import registry

    registry.register(entry.name, entry.value, **entry.info)
    return lambda: registry.unregister(entry.name)


def _use_pass(entry: Entry) -> Any:
    from graftwork.nn import passes

    passes.register(entry.name, entry.value)
    return lambda: passes.unregister(entry.name)


_manager.connect("op", _use_op)
_manager.connect("kernel", _use_kernel)
_manager.connect("module", _use_module)
_manager.connect("model", _use_model)
_manager.connect("pass", _use_pass)
