"""Finding, loading and calling plugins.

Plugins are found through the entry-point group ``graftwork`` and loaded at first need, one by one: each gets its own call of
every ``register_*`` hook, so that what it registers has an owner and what it breaks is only itself. This module knows
nothing of ops, kernels or models. It fills tables; ``connect`` says where the entries of a table go.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pluggy

from graftwork.errors import ConfigError, PluginError
from graftwork.plugins import hookspecs

GROUP = "graftwork"
# Our own, for a checkout that no installer has given metadata; the same names stand in pyproject.toml.
BUNDLED = ("compress", "data_parallel", "model_parallel", "onnx", "quantize", "transfer")
STRICT = "GRAFTWORK_STRICT_PLUGINS"
DISABLE = "GRAFTWORK_DISABLE_PLUGINS"


class PluginWarning(UserWarning):
    """A plugin was skipped, or is probably not what its author meant."""


class PluginConflict(PluginError):
    """A hook that no spec knows, or a name that two sides claim.

    ``load`` raises it in every mode: to skip one side would leave the meaning of a name to the order of loading.
    """


@dataclass(frozen=True)
class PluginInfo:
    """What is known of one plugin. ``status`` is "loaded", "failed" (see ``error``), "disabled" or "found" (not tried yet)."""

    name: str
    distribution: str = ""
    version: str = ""
    summary: str = ""
    hooks: tuple[str, ...] = ()
    status: str = "found"
    error: str = ""

    @property
    def label(self) -> str:
        """The plugin in an error message: name, distribution and version."""
        origin = f"{self.distribution} {self.version}".strip()
        return f"plugin {self.name!r} ({origin or 'no distribution'})"


@dataclass
class Entry:
    """One thing a plugin registered, with its owner, and how to take it back once a sink has it."""

    kind: str
    name: str
    value: Any
    owner: PluginInfo
    info: dict[str, Any]
    undo: Callable[[], object] | None = None


class Table:
    """Everything of one kind ("op", "model", ...) that plugins registered, by name; a name has one owner."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}

    def add(self, name: Any, value: Any, owner: PluginInfo, **info: Any) -> Entry:
        """Enter ``value``; PluginConflict naming both owners if the name is taken, PluginError if it is no name."""
        if not isinstance(name, str) or not name:
            raise PluginError(f"{owner.label} registered {name!r} as the name of a {self.kind}: expected a non-empty string")
        if name in self.entries:
            raise taken(self.kind, name, self.entries[name].owner.label, owner)
        entry = self.entries[name] = Entry(self.kind, name, value, owner, info)
        return entry

    def of(self, plugin: str) -> list[Entry]:
        """The entries of one plugin, in the order in which it registered them."""
        return [entry for entry in self.entries.values() if entry.owner.name == plugin]

    def withdraw(self, plugin: str) -> None:
        """Take out the entries of one plugin, last first, and undo what their sinks did."""
        for entry in reversed(self.of(plugin)):
            del self.entries[entry.name]
            if entry.undo is not None:
                entry.undo()


class Registrar:
    """The ``register`` that one plugin's hook receives: it writes into one table in that plugin's name."""

    def __init__(self, table: Table, owner: PluginInfo) -> None:
        self.table = table
        self.owner = owner

    def __call__(self, name: Any, value: Any, **info: Any) -> None:
        self.table.add(name, value, self.owner, **info)


def _op_register(registrar: Registrar) -> Callable[..., None]:
    def register(op: Any) -> None:
        registrar(getattr(op, "name", None), op)  # an op carries its own name

    return register


def _kernel_register(registrar: Registrar) -> Callable[..., None]:
    def register(op: str, device: str, variant: str, kernel: Any, dtypes: Any = None) -> None:
        registrar(f"{op}/{device}/{variant}", kernel, op=op, device=device, variant=variant, dtypes=dtypes)

    return register


def _named_register(registrar: Registrar) -> Callable[..., None]:
    return registrar


# In this order: a kernel or a model may need the op that the same plugin brings.
REGISTER_HOOKS: dict[str, tuple[str, Callable[[Registrar], Callable[..., None]]]] = {
    "register_ops": ("op", _op_register),
    "register_kernels": ("kernel", _kernel_register),
    "register_modules": ("module", _named_register),
    "register_models": ("model", _named_register),
    "register_passes": ("pass", _named_register),
}

Sink = Callable[[Entry], "Callable[[], object] | None"]
_sinks: dict[str, Sink] = {}


def connect(kind: str, sink: Sink) -> None:
    """Send the entries of table ``kind`` to ``sink(entry)``.

    The sink returns a function that undoes it, or None; it raises ConfigError if the name exists on its side.
    """
    _sinks[kind] = sink


@dataclass(frozen=True)
class _Candidate:
    """A plugin that was found and not yet imported."""

    info: PluginInfo
    load: Callable[[], Any]


class PluginManager:
    """Plugins, the tables they fill, and the hooks they answer. An application has one: ``manager()``.

    ``sinks`` maps a kind of entry to the function that takes it into use; ``bundled`` names the sub-modules of
    ``graftwork.plugins`` to load even without metadata; ``group`` is the entry-point group that is searched.
    """

    def __init__(self, sinks: dict[str, Sink] | None = None, bundled: tuple[str, ...] = (), group: str = GROUP) -> None:
        self.tables = {kind: Table(kind) for kind, _ in REGISTER_HOOKS.values()}
        self._sinks = {} if sinks is None else sinks
        self._bundled = bundled
        self._group = group
        self._pluggy = pluggy.PluginManager("graftwork")
        self._pluggy.add_hookspecs(hookspecs)
        self._infos: list[PluginInfo] = []
        self._failures: list[PluginError] = []
        self._pending: list[str] = []  # warnings not given yet
        self._lock = threading.RLock()
        self._loaded = False
        self._loading = False

    @property
    def hook(self) -> Any:
        """Calls a hook of all plugins: ``manager().hook.step_end(trainer=trainer)``."""
        return self._pluggy.hook

    # Loading

    def load(self, strict: bool | None = None) -> None:
        """Load every plugin that is installed; later calls only repeat what is still wrong.

        A plugin that fails is skipped with a PluginWarning, or raises PluginError if ``strict`` (default: environment
        variable GRAFTWORK_STRICT_PLUGINS). PluginConflict is raised in both cases, after all others have loaded.
        """
        if not self._loaded:
            self._load_once()
        if not self._loading:
            self._report(_strict() if strict is None else strict)

    def _load_once(self) -> None:
        with self._lock:
            if self._loaded or self._loading:  # a plugin that is being imported may ask for a name and come back here
                return
            self._loading = True
            try:
                self._load_candidates()
                self._loaded = True
            finally:
                self._loading = False

    def _load_candidates(self) -> None:
        disabled = _disabled()
        done = {(info.name, info.distribution) for info in self._infos}  # by an earlier call that was interrupted
        for candidate in self._candidates():
            info = candidate.info
            if (info.name, info.distribution) in done:
                continue
            if _normal(info.name) in disabled:
                self._infos.append(replace(info, status="disabled"))
                continue
            try:
                self._admit(candidate)
            except PluginError as error:
                self._infos.append(replace(info, status="failed", error=str(error)))
                self._failures.append(error)
                if not isinstance(error, PluginConflict):
                    self._pending.append(f"{error} It is skipped.")

    def _report(self, strict: bool) -> None:
        """Raise for the failures that this mode does not forgive, warn of the others (once)."""
        conflicts = [failure for failure in self._failures if isinstance(failure, PluginConflict)]
        if strict:
            _raise_all(self._failures)
        self._warn()
        _raise_all(list(conflicts))

    def _warn(self) -> None:
        while self._pending:
            warnings.warn(self._pending.pop(0), PluginWarning, stacklevel=5)

    def _candidates(self) -> list[_Candidate]:
        """Installed plugins, ours first, then by distribution and name; ours also where no metadata lists them."""
        import importlib.metadata  # slow to import, and needed only here

        found = []
        for point in importlib.metadata.entry_points(group=self._group):
            found.append(_Candidate(PluginInfo(point.name, *_origin(point.dist)), point.load))
        listed = {candidate.info.name for candidate in found if _ours(candidate.info)}
        found += [_bundled(name) for name in self._bundled if name not in listed]
        return sorted(found, key=lambda item: (not _ours(item.info), item.info.distribution, item.info.name))

    def _admit(self, candidate: _Candidate) -> None:
        """Import one plugin and register it; PluginError, with nothing left behind, if that fails."""
        info = candidate.info
        try:
            plugin = candidate.load()
            plugin = plugin() if isinstance(plugin, type) else plugin
        except (Exception, SystemExit) as error:
            raise _broken(info, "could not be imported", error) from error
        self._register(plugin, info)

    def register(self, plugin: Any, name: str) -> PluginInfo:
        """Register a module or an object as plugin ``name``, without an installation; PluginError if it cannot be."""
        with self._lock:
            info = self._register(plugin, PluginInfo(name))
        self._warn()
        return info

    def _register(self, plugin: Any, info: PluginInfo) -> PluginInfo:
        for other in self._infos:
            if other.name == info.name and other.status == "loaded":
                raise taken("plugin", info.name, other.label, info)
        try:
            self._pluggy.register(plugin, name=info.name)
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            raise _broken(info, "does not fit the hooks", error) from error
        try:
            hooks = self._known_hooks(plugin, info)
            self._fill_tables(info)
            self._connect(info)
        except PluginError:
            self._withdraw(info.name)
            raise
        self._pending += _undecorated(plugin, hooks, info)
        loaded = replace(info, summary=_first_line(plugin) or info.summary, hooks=hooks, status="loaded")
        self._infos.append(loaded)
        return loaded

    def _known_hooks(self, plugin: Any, info: PluginInfo) -> tuple[str, ...]:
        """Names of the hooks that ``plugin`` implements; PluginConflict if there is one that no spec knows."""
        known = []
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            if caller.has_spec():
                known.append(caller.name)
            elif not all(impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is plugin):
                raise PluginConflict(
                    f"{info.label} implements hook {caller.name!r}, which this version of Graftwork does not have."
                    f"{suggestion(caller.name, HOOKS)} Mark it @hookimpl(optionalhook=True) if it is meant for another"
                    f" version, or set {DISABLE}={info.name}."
                )
        return tuple(sorted(known))

    def _fill_tables(self, info: PluginInfo) -> None:
        for hook, (kind, register) in REGISTER_HOOKS.items():
            self._guarded(info, hook, register=register(Registrar(self.tables[kind], info)))

    def _connect(self, info: PluginInfo) -> None:
        for kind, table in self.tables.items():
            sink = self._sinks.get(kind)
            if sink is None:
                continue
            for entry in table.of(info.name):
                try:
                    entry.undo = sink(entry)
                except PluginError:
                    raise
                except ConfigError as error:  # the table it goes to has that name already
                    raise taken(kind, entry.name, "graftwork itself", info) from error
                except Exception as error:
                    raise _broken(info, f"registered a {kind} {entry.name!r} that was refused", error) from error

    def _guarded(self, info: PluginInfo, hook: str, **arguments: Any) -> None:
        """Call one hook of one plugin, and turn what it raises into a PluginError that names them."""
        try:
            self._call(hook, self._pluggy.get_plugin(info.name), **arguments)
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise _broken(info, f"failed in its hook {hook!r}", error) from error

    def _call(self, hook: str, plugin: Any, **arguments: Any) -> list[Any]:
        others = [other for other in self._pluggy.get_plugins() if other is not plugin]
        return self._pluggy.subset_hook_caller(hook, others)(**arguments)

    # Taking back

    def unregister(self, name: str) -> Any:
        """Remove a plugin and all that it registered; returns the plugin. PluginError if there is none of that name."""
        with self._lock:
            plugin = self._pluggy.get_plugin(name)
            if plugin is None:
                names = [info.name for info in self._infos if info.status == "loaded"]
                hint = suggestion(name, names) or f" Loaded: {', '.join(names) or 'none'}."
                raise PluginError(f"no plugin {name!r} is loaded.{hint}")
            self._withdraw(name)
            self._infos = [info for info in self._infos if info.name != name or info.status != "loaded"]
            return plugin

    def _withdraw(self, name: str) -> None:
        for table in reversed(self.tables.values()):
            table.withdraw(name)
        self._pluggy.unregister(name=name)

    @contextmanager
    def registered(self, plugin: Any, name: str) -> Iterator[PluginInfo]:
        """Have ``plugin`` registered within a ``with`` block only, as tests want it."""
        info = self.register(plugin, name)
        try:
            yield info
        finally:
            if self._pluggy.has_plugin(name):
                self.unregister(name)

    # Asking

    def list_plugins(self) -> list[PluginInfo]:
        """Every plugin that was found, loaded or not, by name. Raises for no plugin's fault: here one looks it up."""
        if not self._loaded:
            self._load_once()
        return sorted(self._infos, key=lambda info: (info.name, info.distribution))

    def prepare_model(self, model: Any, trainer: Any) -> Any:
        """Hand the model through the ``prepare_model`` hook of each plugin in turn; returns what the last one made of it."""
        for implementation in reversed(self.hook.prepare_model.get_hookimpls()):
            for changed in self._call("prepare_model", implementation.plugin, model=model, trainer=trainer):
                model = changed
        return model

    def add_commands(self, cli: Any, new_group: Callable[[], Any]) -> None:
        """Add the plugins' commands to the click group ``cli``; ``new_group()`` makes the empty group each of them fills.

        A hook that fails is skipped with a PluginWarning (strict mode raises); a command that exists already raises
        PluginConflict.
        """
        table = Table("command")
        for name, command in cli.commands.items():
            table.add(name, command, PluginInfo("graftwork", "built in"))
        for info in [info for info in self._infos if "register_commands" in info.hooks]:
            group = new_group()
            try:
                self._guarded(info, "register_commands", cli=group)
            except PluginError as error:
                if _strict():
                    raise
                warnings.warn(f"{error} Its commands are missing.", PluginWarning, stacklevel=3)
                continue
            for name, command in group.commands.items():
                table.add(name, command, info)
                cli.add_command(command, name)


HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, "graftwork_spec"))


def taken(kind: str, name: str, first: str, second: PluginInfo) -> PluginConflict:
    """The error for a ``name`` that ``first`` (in words) already has and that plugin ``second`` wants too."""
    return PluginConflict(
        f"{kind} {name!r} is registered twice: by {first} and by {second.label}."
        f" Rename one of them, or set {DISABLE}={second.name} to go without the second."
    )


def suggestion(name: str, known: Any) -> str:
    """`` Did you mean 'x'?``, or nothing if no known name is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _raise_all(failures: Sequence[PluginError]) -> None:
    """Raise one error that holds the messages of all ``failures``, if there are any."""
    if failures:
        kind = PluginConflict if all(isinstance(failure, PluginConflict) for failure in failures) else PluginError
        raise kind("\n".join(map(str, failures))) from failures[0].__cause__


def _broken(info: PluginInfo, what: str, error: BaseException) -> PluginError:
    return PluginError(
        f"{info.label} {what}: {type(error).__name__}: {error}{_where(error)}."
        f" Repair or uninstall it, or set {DISABLE}={info.name}."
    )


def _where(error: BaseException) -> str:
    """The innermost line of the traceback that is neither ours nor the import system's."""
    machinery = ("<frozen", __file__, os.path.dirname(pluggy.__file__), os.path.dirname(importlib.__file__))
    place, frame = "", error.__traceback__
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if not path.startswith(machinery):
            place = f" ({os.path.basename(path)}, line {frame.tb_lineno})"
        frame = frame.tb_next
    return place


def _undecorated(plugin: Any, hooks: tuple[str, ...], info: PluginInfo) -> list[str]:
    """A remark on every function that has the name of a hook and lacks the decorator: it would silently never be called."""
    home = getattr(plugin, "__name__", None) or type(plugin).__module__
    functions = {name: getattr(plugin, name, None) for name in HOOKS if name not in hooks}
    return [
        f"{info.label} has a function {name} without @hookimpl, so it is not called. Add the decorator"
        " (from graftwork.plugins import hookimpl), or rename the function if it is not meant as a hook."
        for name, function in functions.items()
        if callable(function) and getattr(function, "__module__", None) == home
    ]


def _bundled(name: str) -> _Candidate:
    """One of our own plugins, found without metadata."""
    version = getattr(sys.modules.get("graftwork"), "__version__", "")
    return _Candidate(
        PluginInfo(name, "graftwork", version), partial(importlib.import_module, f"graftwork.plugins.{name}")
    )


def _origin(distribution: Any) -> tuple[str, str, str]:
    """Name, version and summary of a distribution; empty where an installation is too damaged to tell."""
    try:
        metadata = distribution.metadata
        return metadata["Name"] or "", metadata["Version"] or "", metadata["Summary"] or ""
    except Exception:  # a removed or half-written METADATA fails in many ways, and the plugin may be fine
        return "", "", ""


def _ours(info: PluginInfo) -> bool:
    return _normal(info.distribution) == "graftwork"


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _first_line(plugin: Any) -> str:
    text = (getattr(plugin, "__doc__", None) or "").strip()
    return text.splitlines()[0] if text else ""


def _strict() -> bool:
    return os.environ.get(STRICT, "") not in ("", "0")


def _disabled() -> set[str]:
    return {_normal(name) for name in os.environ.get(DISABLE, "").split(",") if name.strip()}


_manager: PluginManager | None = None
_manager_lock = threading.Lock()


def manager() -> PluginManager:
    """The manager of this process, built at the first call; it loads nothing until ``load`` is called."""
    global _manager
    if _manager is None:
        with _manager_lock:
            if _manager is None:
                _manager = PluginManager(_sinks, BUNDLED)
    return _manager
